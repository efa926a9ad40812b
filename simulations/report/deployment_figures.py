"""Deployed models drawn: size, time, classes, calibration."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from simulations.report.deployment import DeployedModel, Deployment, class_changes
from simulations.report.deployment_maps import map_figures, wrapped
from simulations.report.figure import Figure, LegendEntry
from simulations.report.style import INK, MUTED, STACK, SURFACE
from simulations.report.text import bytes_text, change_text, number_text, ratio_text

BATCHES = ("1", "64")
_BATCH_COLORS = (STACK[0], STACK[1])
MOST_CLASSES = 12
FEWEST_ROWS = 20
"""Rows that an interval of confidence must have to be drawn."""


def deployment_figures(deployment: Deployment) -> list[Figure]:
    """Return every figure of deployed models that has something to show."""
    models = deployment.models
    if not models:
        return []
    figures = [_size_figure(models), _latency_figure(models)]
    others = [model for model in models if not model.is_dense]
    if others:
        figures.append(_class_figure(others))
    figures.append(_calibration_figure(models))
    return [*figures, *map_figures(deployment)]


def _legend(models: Sequence[DeployedModel], *, lines: bool = False) -> tuple[LegendEntry, ...]:
    return tuple(
        LegendEntry(m.text, m.look.color, m.look.marker, m.look.dashes if lines else None)
        for m in models
    )


def _size_figure(models: Sequence[DeployedModel]) -> Figure:
    points = {
        m.text: (m.mean(lambda s: s.model.file_bytes), 100 * m.mean(lambda s: s.model.accuracy))
        for m in models
    }
    return Figure(
        name="deployed_accuracy_against_bytes",
        title="Accuracy against size on disk",
        caption="Length of each file, logarithmic axis; further left is smaller. Dotted: the dense "
        "model's accuracy.",
        description="; ".join(
            f"{name}: {bytes_text(size)}, {accuracy:.2f} %"
            for name, (size, accuracy) in points.items()
        )
        + ".",
        draw=lambda axes: _draw_sizes(axes, models, points),
        legend=_legend(models),
    )


def _draw_sizes(
    axes: Axes, models: Sequence[DeployedModel], points: dict[str, tuple[float, float]]
) -> None:
    axes.set_xscale("log")
    for model in models:
        size, accuracy = points[model.text]
        if model.is_dense:
            axes.axhline(accuracy, color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
        axes.plot(
            [size],
            [accuracy],
            color=model.look.color,
            marker=model.look.marker,
            markersize=8,
            markeredgecolor=SURFACE,
            linestyle="none",
        )
    sizes, accuracies = zip(*points.values(), strict=True)
    axes.set_xlim(min(sizes) / 1.6, max(sizes) * 1.6)
    # Differences of hundredths of a point are no news.
    middle, reach = (max(accuracies) + min(accuracies)) / 2, max(accuracies) - min(accuracies)
    axes.set_ylim(middle - max(0.6 * reach, 1), middle + max(0.6 * reach, 1))
    wide = max(sizes) / min(sizes) > 30
    axes.xaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5), numticks=8))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: bytes_text(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(which="minor", visible=False)
    axes.set_xlabel("Size of the file")
    axes.set_ylabel("Test accuracy, %")


def _latency_figure(models: Sequence[DeployedModel]) -> Figure:
    return Figure(
        name="deployed_latency",
        title="Time for one row",
        caption="Time of one core in onnxruntime on one thread, for a row alone and for one of 64 "
        "rows in a call: median over turns in which all models ran one after another. Line: "
        "quartiles. Beside it, how many times as fast as the dense model.",
        description="; ".join(
            f"{m.text}: " + ", ".join(f"batch {b} {_per_row_text(m, b)}" for b in BATCHES)
            for m in models
        )
        + ".",
        draw=lambda axes: _draw_latency(axes, models),
        legend=tuple(
            LegendEntry(f"batch {batch}", color)
            for batch, color in zip(BATCHES, _BATCH_COLORS, strict=True)
        ),
        height_inches=1.15 + 0.5 * max(len(models), 2),
        columns=(
            "Model",
            *(f"{what}, batch {b}" for b in BATCHES for what in ("core µs", "clock µs", "×")),
        ),
        rows=tuple(
            (
                m.text,
                *(
                    text
                    for b in BATCHES
                    for text in (
                        number_text(m.latency(b).cpu_us),
                        number_text(m.latency(b).wall_us),
                        ratio_text(m.latency(b).speedup),
                    )
                ),
            )
            for m in models
        ),
        notes=(
            ("core µs", "of a whole call, by the thread's own time: what an idle core would take"),
            ("clock µs", "of a whole call, by the clock: more where other processes ran"),
        ),
    )


def _per_row(model: DeployedModel, batch: str) -> tuple[float, float, float]:
    """Microseconds for a row: median, lower and upper quartile."""
    rows, call = int(batch), model.latency(batch)
    return call.cpu_us / rows, call.cpu_us_low / rows, call.cpu_us_high / rows


def _per_row_text(model: DeployedModel, batch: str) -> str:
    taken = f"{number_text(_per_row(model, batch)[0])} µs"
    return taken if model.is_dense else f"{taken} ({ratio_text(model.latency(batch).speedup)})"


def _draw_latency(axes: Axes, models: Sequence[DeployedModel]) -> None:
    longest = max(_per_row(model, batch)[2] for model in models for batch in BATCHES)
    for row, model in enumerate(models):
        for place, batch in enumerate(BATCHES):
            median, low, high = _per_row(model, batch)
            at = row + 0.39 * (place - 0.5)
            axes.barh(at, median, height=0.36, color=_BATCH_COLORS[place])
            axes.plot([low, high], [at, at], color=INK, linewidth=1.1, solid_capstyle="butt")
            text = _per_row_text(model, batch)
            axes.text(max(median, high) + 0.015 * longest, at, text, va="center", fontsize=8)
    axes.set_yticks(range(len(models)), [wrapped(model.text, 20) for model in models])
    axes.set_ylim(len(models) - 0.5, -0.5)
    axes.set_xlim(0, 1.35 * longest)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0, labelsize=8.5)
    axes.set_xlabel("Time for one row, µs")


def _class_figure(models: Sequence[DeployedModel]) -> Figure:
    changes = {model.text: class_changes(model) for model in models}
    names = next(iter(changes.values())).keys()
    far = {name: max(abs(each.get(name, 0.0)) for each in changes.values()) for name in names}
    shown = set(sorted(far, key=lambda name: -far[name])[:MOST_CLASSES])
    ordered = [name for name in names if name in shown]
    part = f" The {MOST_CLASSES} that change most." if len(far) > MOST_CLASSES else ""
    return Figure(
        name="deployed_classes",
        title="Which classes pay",
        caption="Share of each class's test rows answered right, less the dense model's, in points."
        f"{part} A class has few rows, so that small changes may be chance.",
        description="; ".join(
            f"{text}: worst class {worst}, {change_text(each[worst])} points"
            for text, each in changes.items()
            if (worst := min(each, key=lambda name: each[name], default=""))
        )
        + ".",
        draw=lambda axes: _draw_classes(axes, models, ordered, changes),
        legend=_legend(models),
        height_inches=1.2 + 0.22 * max(len(ordered), 4),
        columns=("Class", *changes),
        rows=tuple(
            (name, *(change_text(each.get(name, float("nan"))) for each in changes.values()))
            for name in names
        ),
    )


def _draw_classes(
    axes: Axes,
    models: Sequence[DeployedModel],
    names: Sequence[str],
    changes: Mapping[str, Mapping[str, float]],
) -> None:
    axes.axvline(0, color=MUTED, linewidth=1)
    for model in models:
        of = changes[model.text]
        axes.plot(
            [of.get(name, np.nan) for name in names],
            range(len(names)),
            color=model.look.color,
            marker=model.look.marker,
            markersize=5.5,
            markeredgecolor=SURFACE,
            markeredgewidth=0.6,
            linestyle="none",
        )
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.set_ylabel("Class")
    axes.set_xlabel("Change against the dense model, points")


def _calibration_figure(models: Sequence[DeployedModel]) -> Figure:
    return Figure(
        name="deployed_calibration",
        title="Can its confidence be trusted?",
        caption="Rows by the probability that a model gives its answer, in intervals of a "
        "fifteenth, and the share that it has right. On the dotted line confidence is what it "
        f"says; below it the model is too sure. Intervals of at least {FEWEST_ROWS} rows.",
        description="Expected calibration error: "
        + ", ".join(f"{m.text} {100 * m.mean(lambda s: s.model.ece):.2f} %" for m in models)
        + ".",
        draw=lambda axes: _draw_calibration(axes, models),
        legend=_legend(models, lines=True),
    )


def _draw_calibration(axes: Axes, models: Sequence[DeployedModel]) -> None:
    axes.plot([0, 100], [0, 100], color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
    lowest = 100.0
    for model in models:
        bins = [b for b in model.seeds[0].model.reliability if b[2] >= FEWEST_ROWS]
        if not bins:
            continue
        confidence, right, _ = (100 * np.array(each) for each in zip(*bins, strict=True))
        lowest = min(lowest, float(confidence.min()), float(right.min()))
        (line,) = axes.plot(
            confidence,
            right,
            color=model.look.color,
            linewidth=1.5,
            marker=model.look.marker,
            markersize=4.2,
            markeredgecolor=SURFACE,
            markeredgewidth=0.6,
        )
        if model.look.dashes:
            line.set_dashes(model.look.dashes)
    start = 10 * (lowest // 10)
    axes.set_xlim(start, 102)
    axes.set_ylim(start, 102)
    axes.set_xlabel("Confidence, %")
    axes.set_ylabel("Right answers, %")
