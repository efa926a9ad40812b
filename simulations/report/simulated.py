"""Simulated time to accuracy under network profiles, from the records' bytes and seconds."""

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from simulations.network import (
    NetworkProfile,
    client_seconds,
    network_profile,
    round_seconds,
    time_to_accuracy,
)
from simulations.report.bars import shortened
from simulations.report.figure import Figure, LegendEntry
from simulations.report.run import Run, rows_of
from simulations.report.study import network_names
from simulations.report.style import INK, MARKERS, MUTED, SURFACE, Look
from simulations.report.text import seconds_text

DEFAULT_PROFILES = ("slow", "4g", "wifi-5")
TARGET_SHARE = 0.95
"""The target is this share of the first strategy's final accuracy."""


def profiles(run: Run) -> list[NetworkProfile]:
    """Return the profiles that the study names, or the default ones."""
    return [network_profile(name) for name in network_names(run.study) or DEFAULT_PROFILES]


def target_accuracy(run: Run) -> float | None:
    """Return 95 % of the first finished strategy's mean final accuracy, None without results."""
    if run.results.empty:
        return None
    means = run.results.groupby("label")["final_accuracy"].mean()
    first = next(label for label in run.labels if label in means.index)
    return TARGET_SHARE * float(means[first])


def seconds_by_round(clients: pd.DataFrame, profile: NetworkProfile, seed: int) -> dict[int, float]:
    """Return the simulated seconds of each round of one cell.

    The slowest kept client of download + compute + encode + upload. Whole message bytes travel.
    `compute_seconds` is measured around the client's whole call, encoding included, so encoding
    is not added a second time.
    """
    kept = clients[clients["status"] == "ok"].fillna(
        {"compute_seconds": 0.0, "encode_seconds": 0.0}
    )
    # A node that never told its partition id is known by its node id alone.
    kept = kept.assign(client=kept["client"].fillna(kept["node_id"]))
    links = {client: profile.rates(seed, client) for client in kept["client"].astype(int).unique()}
    spent: dict[int, list[float]] = {}
    for row in kept.to_dict("records"):
        encode = float(row["encode_seconds"])
        seconds = client_seconds(
            links[int(row["client"])],
            downlink_bytes=float(row["downlink_message_bytes"]),
            compute_seconds=max(0.0, float(row["compute_seconds"]) - encode),
            encode_seconds=encode,
            uplink_bytes=float(row["uplink_message_bytes"]),
        )
        spent.setdefault(int(row["round"]), []).append(seconds)
    return {number: round_seconds(each) for number, each in spent.items()}


def simulated_times(
    run: Run, profile: NetworkProfile, target: float
) -> dict[str, list[float | None]]:
    """Return, per strategy, each finished seed's simulated seconds to `target` (None: never)."""
    times: dict[str, list[float | None]] = {}
    for label, seed in run.finished:
        clients = rows_of(run.clients, label, seed)
        rounds = rows_of(run.rounds, label, seed).sort_values("round")
        if clients.empty:
            continue
        per_round = seconds_by_round(clients, profile, seed)
        times.setdefault(label, []).append(
            time_to_accuracy(
                [per_round.get(int(number), 0.0) for number in rounds["round"]],
                [float(accuracy) for accuracy in rounds["accuracy"].astype(float)],
                target,
            )
        )
    return times


def time_figure(run: Run) -> Figure:
    """Return simulated time to accuracy for each strategy and network profile."""
    target = target_accuracy(run)
    shown = profiles(run)
    times = {p.name: simulated_times(run, p, target) if target else {} for p in shown}
    labels = [label for label in run.labels if any(label in each for each in times.values())]
    means = {
        name: {label: _mean(each.get(label, [])) for label in labels}
        for name, each in times.items()
    }
    goal = f"{100 * target:.1f} %" if target else "the target"
    markers = {profile.name: MARKERS[index % len(MARKERS)] for index, profile in enumerate(shown)}
    looks = {label: Look(index) for index, label in enumerate(run.labels)}
    return Figure(
        name="time_to_accuracy",
        title=f"Simulated time to {goal} accuracy",
        caption=f"Target: {100 * TARGET_SHARE:g} % of the first strategy's final accuracy; mean "
        "over seeds. A round lasts as long as its slowest kept client: download + compute + "
        "encode + upload. Links are simulated.",
        description=_described(labels, means),
        draw=lambda axes: _dots(axes, means, looks=looks, markers=markers, labels=labels),
        legend=tuple(LegendEntry(name, INK, marker) for name, marker in markers.items()),
        height_inches=1.3 + 0.36 * max(len(labels), 2),
        notes=(
            *((profile.name, profile.about) for profile in shown),
            (
                "Seconds",
                "Compute and encode as measured on the machine of this run, not on a device. The "
                "server's own time is left out. Whole messages travel, not payloads alone.",
            ),
        ),
        columns=("Strategy", *means),
        rows=tuple(
            (label, *(_time_text(each[label]) for each in means.values())) for label in labels
        ),
    )


def _mean(seconds: list[float | None]) -> float:
    """Mean over seeds; NaN unless every seed got there, since a mean of the lucky ones is none."""
    if not seconds or None in seconds:
        return float("nan")
    return float(np.mean([s for s in seconds if s is not None]))


def _time_text(seconds: float) -> str:
    return "not reached" if math.isnan(seconds) else seconds_text(seconds)


def _dots(
    axes: Axes,
    means: dict[str, dict[str, float]],
    *,
    looks: dict[str, Look],
    markers: dict[str, str],
    labels: list[str],
) -> None:
    axes.set_xscale("log")
    for row, label in enumerate(labels):
        reached = {name: each[label] for name, each in means.items() if each[label] > 0}
        if len(reached) > 1:
            ends = [min(reached.values()), max(reached.values())]
            axes.plot(
                ends,
                [row, row],
                color=MUTED,
                linewidth=0.8,
                zorder=1,
                gid=f"series-{looks[label].index}-span",
            )
        for name, seconds in reached.items():
            axes.plot(
                seconds,
                row,
                marker=markers[name],
                color=looks[label].color,
                markersize=7.5,
                markeredgecolor=SURFACE,
                markeredgewidth=0.8,
                linestyle="none",
                zorder=2,
                gid=f"series-{looks[label].index}-on-{name}",
            )
        missing = [name for name in means if name not in reached]
        if missing:
            note = "not reached" if not reached else f"not reached: {', '.join(missing)}"
            _note(axes, row, note)
    axes.set_yticks(range(len(labels)), [shortened(label) for label in labels])
    axes.set_ylim(max(len(labels), 1) - 0.5, -0.5)
    _time_axis(axes, [s for each in means.values() for s in each.values() if s > 0])
    axes.tick_params(axis="y", length=0, labelsize=8.5)
    axes.set_xlabel("Simulated time, logarithmic")


def _note(axes: Axes, row: int, text: str) -> None:
    place = (0.99, row)
    axes.annotate(
        text,
        place,
        xycoords=("axes fraction", "data"),
        va="center",
        ha="right",
        fontsize=8,
        color=MUTED,
    )


def _time_axis(axes: Axes, seconds: list[float]) -> None:
    if not seconds:
        axes.set_xticks([])
        return
    low, high = min(seconds) / 1.5, max(seconds) * 1.5
    axes.set_xlim(low, high)
    steps = (1, 2, 5) if high / low < 50 else (1, 3) if high / low < 1000 else (1,)
    axes.xaxis.set_major_locator(LogLocator(subs=steps, numticks=8))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: seconds_text(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _described(labels: list[str], means: dict[str, dict[str, float]]) -> str:
    parts = [
        f"{label}: "
        + ", ".join(f"{_time_text(each[label])} on {name}" for name, each in means.items())
        for label in labels
    ]
    return "; ".join(parts) + "." if parts else "No finished cell."
