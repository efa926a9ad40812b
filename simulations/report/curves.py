"""Accuracy against bytes and against rounds, with 95 % bands over seeds."""

from dataclasses import dataclass
from typing import final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from simulations.report.figure import Figure, LegendEntry
from simulations.report.intervals import half_width
from simulations.report.run import Run
from simulations.report.style import SURFACE, Look
from simulations.report.text import bytes_text

SHOWN_BELOW_END_POINTS = 35.0


@final
@dataclass(frozen=True)
class Curve:
    """One strategy's accuracy over its evaluated rounds.

    Attributes
    ----------
    rounds, uplink_bytes, total_bytes
        Shape (points,): round number, and payload bytes sent until then by all clients together,
        mean over seeds.
    accuracy_percent
        Shape (seeds, points).
    """

    label: str
    look: Look
    rounds: NDArray[np.float64]
    uplink_bytes: NDArray[np.float64]
    total_bytes: NDArray[np.float64]
    accuracy_percent: NDArray[np.float64]


def curves(run: Run) -> list[Curve]:
    """Return one curve per strategy that has a finished seed, in the study's order."""
    return [
        curve
        for index, label in enumerate(run.labels)
        if (curve := _curve(run, label, Look(index))) is not None
    ]


def _curve(run: Run, label: str, look: Look) -> Curve | None:
    if run.rounds.empty:
        return None
    rows = run.rounds[run.rounds["label"] == label]
    if rows.empty:
        return None
    accuracy = _by_seed(rows, "accuracy")
    evaluated = ~np.isnan(accuracy).any(axis=1)
    uplink = np.nancumsum(_by_seed(rows, "uplink_payload_bytes"), axis=0)
    total = uplink + np.nancumsum(_by_seed(rows, "downlink_payload_bytes"), axis=0)
    return Curve(
        label=label,
        look=look,
        rounds=np.unique(rows["round"].to_numpy(np.float64))[evaluated],
        uplink_bytes=uplink[evaluated].mean(axis=1),
        total_bytes=total[evaluated].mean(axis=1),
        accuracy_percent=100 * accuracy[evaluated].T,
    )


def _by_seed(rows: pd.DataFrame, column: str) -> NDArray[np.float64]:
    """Return shape (rounds, seeds), NaN where a round has no value."""
    wide = rows.pivot_table(
        index="round", columns="seed", values=column, aggfunc="last", dropna=False
    )
    return wide.sort_index().to_numpy(np.float64)


def curve_figures(run: Run) -> list[Figure]:
    """Return the three accuracy figures."""
    drawn = curves(run)
    legend = tuple(LegendEntry(c.label, c.look.color, c.look.marker, c.look.dashes) for c in drawn)
    band = "Line: mean over seeds; band: 95 % interval (none with a single seed)."
    return [
        Figure(
            name="accuracy_against_uplink_bytes",
            title="Accuracy against uplink bytes",
            caption="Payload bytes sent by all clients until then, logarithmic axis. Further "
            f"left is cheaper. {band}",
            description=_described(drawn, "uplink_bytes"),
            draw=lambda axes: _against_bytes(axes, drawn, "uplink_bytes"),
            legend=legend,
            by_strategy=True,
        ),
        Figure(
            name="accuracy_against_all_bytes",
            title="Accuracy against bytes, both directions",
            caption="Payload bytes up and down until then, first model and catch-up included, "
            f"logarithmic axis. {band}",
            description=_described(drawn, "total_bytes"),
            draw=lambda axes: _against_bytes(axes, drawn, "total_bytes"),
            legend=legend,
            by_strategy=True,
        ),
        Figure(
            name="accuracy_against_rounds",
            title="Accuracy against rounds",
            caption=f"What compression costs in rounds. {band}",
            description=_described(drawn, "rounds"),
            draw=lambda axes: _against_rounds(axes, drawn),
            legend=legend,
            by_strategy=True,
        ),
    ]


def _against_bytes(axes: Axes, drawn: list[Curve], field: str) -> None:
    axes.set_xscale("log")
    for curve in drawn:
        _line(axes, curve, getattr(curve, field), positive_only=True)
    way = "uplink" if field == "uplink_bytes" else "uplink + downlink"
    axes.set_xlabel(f"Payload sent so far, {way}")
    _finish(axes, drawn)
    bottom = axes.get_ylim()[0]
    seen = [
        sent
        for curve in drawn
        for sent, accuracy in zip(
            getattr(curve, field), curve.accuracy_percent.mean(axis=0), strict=True
        )
        if sent > 0 and accuracy >= bottom
    ]
    if seen:
        axes.set_xlim(min(seen) / 1.5, max(seen) * 1.3)
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3) if high / low < 300 else (1,), numticks=8))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: bytes_text(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _against_rounds(axes: Axes, drawn: list[Curve]) -> None:
    for curve in drawn:
        _line(axes, curve, curve.rounds, positive_only=False)
    axes.set_xlabel("Round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _finish(axes, drawn)


def _line(axes: Axes, curve: Curve, x: NDArray[np.float64], *, positive_only: bool) -> None:
    shown = x > 0 if positive_only else np.ones_like(x, dtype=bool)
    if not shown.any():
        return
    mean = curve.accuracy_percent.mean(axis=0)
    spread = half_width(curve.accuracy_percent)
    look = curve.look
    if not np.isnan(spread).all():
        axes.fill_between(
            x[shown],
            np.clip(mean - spread, 0, 100)[shown],
            np.clip(mean + spread, 0, 100)[shown],
            color=look.color,
            alpha=0.13,
            linewidth=0,
            gid=f"series-{look.index}-band",
        )
    (line,) = axes.plot(
        x[shown],
        mean[shown],
        color=look.color,
        linewidth=1.8,
        marker=look.marker,
        markersize=5.2,
        markeredgecolor=SURFACE,
        markeredgewidth=0.7,
        markevery=_marks(int(shown.sum()), look.index),
        gid=f"series-{look.index}-line",
    )
    if look.dashes:
        line.set_dashes(look.dashes)


def _marks(points: int, index: int) -> list[int]:
    """Spread about seven markers, staggered so that series do not cover each other; end marked."""
    step = max(1, points // 7)
    return sorted({*range(index % step, points, step), points - 1})


def _finish(axes: Axes, drawn: list[Curve]) -> None:
    axes.set_ylabel("Test accuracy, %")
    # The strategies differ where they end; the steep start, alike for all, may leave the frame.
    ends = [float(c.accuracy_percent[:, -1].mean()) for c in drawn if len(c.rounds)]
    bottom, top = axes.get_ylim()
    if ends and min(ends) - SHOWN_BELOW_END_POINTS > bottom:
        axes.set_ylim(5 * ((min(ends) - SHOWN_BELOW_END_POINTS) // 5), top)
    axes.margins(x=0.03)
    axes.grid(which="minor", visible=False)


def _described(drawn: list[Curve], field: str) -> str:
    if not drawn:
        return "No finished cell."
    parts = []
    for curve in drawn:
        if not len(curve.rounds):
            continue
        last = float(curve.accuracy_percent[:, -1].mean())
        end = float(getattr(curve, field)[-1])
        where = f"round {end:.0f}" if field == "rounds" else bytes_text(end)
        parts.append(f"{curve.label} ends at {last:.1f} % after {where}")
    return "; ".join(parts) + "."
