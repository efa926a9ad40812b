"""Bytes by direction and by stream, as stacked bars."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from simulations.report.figure import Figure, LegendEntry
from simulations.report.run import Run
from simulations.report.style import INK, STACK, SURFACE
from simulations.report.text import bytes_text
from simulations.report.totals import Traffic, traffic_by_label, training_rounds

DIRECTIONS = (
    "uplink payload",
    "uplink envelope",
    "downlink update",
    "downlink catch-up",
    "downlink envelope",
)
STREAMS = ("symbols", "index", "floats", "scale", "seed", "lossless", "overhead")
_DIRECTION_COLORS = (STACK[0], STACK[5], STACK[3], STACK[2], STACK[6])
_STREAM_COLORS = (STACK[0], STACK[1], STACK[2], STACK[3], STACK[6], STACK[5], STACK[4])


def direction_figure(run: Run) -> Figure:
    """Return total bytes of a run by direction, mean over finished seeds."""
    seeds = Counter(label for label, _ in run.finished)
    sent = {
        label: [part / seeds[label] for part in _direction_bytes(traffic)]
        for label, traffic in traffic_by_label(run).items()
    }
    return Figure(
        name="bytes_by_direction",
        title="Bytes by direction",
        caption="Whole training messages of a run, mean over seeds. Payload: the compressed "
        "arrays. Envelope: what Flower's message adds. Catch-up: the first model and missed "
        "updates.",
        description=described(sent),
        draw=lambda axes: stacked(axes, sent, _DIRECTION_COLORS, order=run.labels, share=False),
        legend=legend_of(DIRECTIONS, _DIRECTION_COLORS),
        height_inches=height_of(len(sent)),
        columns=("Strategy", *DIRECTIONS, "all"),
        rows=table_of(sent),
    )


def stream_figure(run: Run) -> Figure:
    """Return what uplink payloads consist of, as shares of each strategy's payload."""
    sent: dict[str, list[float]] = {}
    counts = {label: t.uplink_messages for label, t in traffic_by_label(run).items()}
    streams: dict[str, Counter[str]] = {}
    rounds = training_rounds(run)
    if not rounds.empty and "uplink_bytes_by_stream" in rounds:
        for label, parts in zip(rounds["label"], rounds["uplink_bytes_by_stream"], strict=True):
            if isinstance(parts, Mapping):
                streams.setdefault(str(label), Counter()).update(parts)
    known = {name for parts in streams.values() for name in parts}
    names = (
        *(name for name in STREAMS if name in known),
        *sorted(name for name in known if name not in STREAMS),
    )
    for label, parts in streams.items():
        if counts.get(label):
            sent[label] = [parts[name] / counts[label] for name in names]
    colors = [_stream_color(name) for name in names]
    return Figure(
        name="uplink_by_stream",
        title="What an uplink payload is made of",
        caption="Share of each stream in the uplink payload; beside the bar, the mean payload of "
        "one client in one round. Symbols: quantized values. Index: which entries are sent. "
        "Overhead: header and lengths. A strategy that sends plain arrays has no streams.",
        description=described(sent),
        draw=lambda axes: stacked(axes, sent, colors, order=run.labels, share=True),
        legend=legend_of(names, colors),
        height_inches=height_of(len(sent)),
        columns=("Strategy", *names, "all"),
        rows=table_of(sent),
    )


def _stream_color(name: str) -> str:
    return _STREAM_COLORS[STREAMS.index(name)] if name in STREAMS else INK


def _direction_bytes(traffic: Traffic) -> list[int]:
    return [
        traffic.uplink_payload_bytes,
        max(0, traffic.uplink_message_bytes - traffic.uplink_payload_bytes),
        traffic.update_bytes,
        traffic.catchup_bytes,
        max(0, traffic.downlink_message_bytes - traffic.downlink_payload_bytes),
    ]


def stacked(
    axes: Axes,
    sent: Mapping[str, Sequence[float]],
    colors: Sequence[str],
    *,
    order: Sequence[str],
    share: bool,
    text: Callable[[float], str] = bytes_text,
    axis: str = "Sent in a run, both directions",
) -> None:
    """Draw one bar for each label, its parts one after another, what they sum to beside it."""
    labels = list(sent)
    largest = max((sum(parts) for parts in sent.values()), default=0.0)
    for row, label in enumerate(labels):
        total = sum(sent[label])
        unit = 100 / total if share and total else 1.0
        left = 0.0
        for index, part in enumerate(sent[label]):
            if part <= 0:
                continue
            axes.barh(
                row,
                part * unit,
                left=left,
                height=0.62,
                color=colors[index],
                edgecolor=SURFACE,
                linewidth=0.6,
                gid=f"series-{order.index(label)}-part-{index}",
            )
            left += part * unit
        gap = (100 if share else largest) * 0.015
        axes.text(left + gap, row, text(total), va="center", ha="left", fontsize=8)
    axes.set_yticks(range(len(labels)), [shortened(label) for label in labels])
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_xlim(0, (100 if share else largest or 1) * 1.2)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0, labelsize=8.5)
    if share:
        axes.set_xticks([0, 25, 50, 75, 100])
        axes.set_xlabel("Share of the uplink payload, %")
    else:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel(axis)


def shortened(label: str, longest: int = 28) -> str:
    """Cut a label that would squeeze the axes."""
    return label if len(label) <= longest else label[: longest - 1] + "…"


def height_of(rows: int) -> float:
    """Return the inches that a figure of so many bars takes."""
    return 1.15 + 0.36 * max(rows, 2)


def legend_of(names: Sequence[str], colors: Sequence[str]) -> tuple[LegendEntry, ...]:
    """Return what each colour means."""
    return tuple(LegendEntry(name, color) for name, color in zip(names, colors, strict=True))


def table_of(
    sent: Mapping[str, Sequence[float]], text: Callable[[float], str] = bytes_text
) -> tuple[tuple[str, ...], ...]:
    """Return the numbers behind the bars, each with their sum at the end."""
    return tuple(
        (label, *(text(part) for part in parts), text(sum(parts))) for label, parts in sent.items()
    )


def described(
    sent: Mapping[str, Sequence[float]], text: Callable[[float], str] = bytes_text
) -> str:
    """Return the bars' sums in words."""
    totals = [f"{label}: {text(sum(parts))}" for label, parts in sent.items()]
    return "; ".join(totals) + "." if totals else "No finished cell."
