"""Where the seconds of a round went, as stacked bars."""

from collections.abc import Mapping
from statistics import median

from simulations.report.bars import described, height_of, legend_of, stacked, table_of
from simulations.report.figure import Figure
from simulations.report.run import Run
from simulations.report.style import INK, STACK
from simulations.report.text import seconds_text
from simulations.report.totals import training_rounds
from simulations.timeline import PARTS

_COLORS = {
    "download": STACK[5],
    "train": STACK[1],
    "encode": STACK[0],
    "transfer": STACK[2],
    "wait": STACK[6],
    "clients": STACK[8],
    "decode": STACK[3],
    "aggregate": STACK[7],
    "evaluate": STACK[4],
    "other": INK,
}
_UNSPLIT = " Clients: from the first message to the last reply, where the engine says no more."


def seconds_figure(run: Run) -> Figure:
    """Return the parts of a round's seconds, median over rounds and finished seeds.

    It has no rows where the records do not split rounds.
    """
    split = _split_by_label(run)
    known = {name for rounds in split.values() for parts in rounds for name in parts}
    names = [name for name in PARTS if name in known]
    spent = {
        label: [median(float(parts.get(name, 0.0)) for parts in rounds) for name in names]
        for label, rounds in split.items()
    }
    colors = [_COLORS[name] for name in names]
    return Figure(
        name="seconds_by_part",
        title="Where a round's seconds go",
        caption="Wall-clock on this machine, median of each part over rounds and seeds. "
        "Download, train and encode are the mean of the workers that run the clients. Transfer: "
        "messages packed, sent, counted and unpacked. Wait: for the slowest worker. "
        "The rest is the server's, and decoding that workers do for it."
        + (_UNSPLIT if "clients" in names else ""),
        description=described(spent, seconds_text),
        draw=lambda axes: stacked(
            axes,
            spent,
            colors,
            order=run.labels,
            share=False,
            text=seconds_text,
            axis="Time of a round",
        ),
        legend=legend_of(names, colors),
        height_inches=height_of(len(spent)),
        columns=("Strategy", *names, "all"),
        rows=table_of(spent, seconds_text),
    )


def _split_by_label(run: Run) -> dict[str, list[Mapping[str, float]]]:
    found: dict[str, list[Mapping[str, float]]] = {}
    rounds = training_rounds(run)
    if not rounds.empty and "split_seconds" in rounds:
        for label, parts in zip(rounds["label"], rounds["split_seconds"], strict=True):
            if isinstance(parts, Mapping):
                found.setdefault(str(label), []).append(parts)
    return found
