"""Draw what `benchmarks.codecs` wrote: ``python -m benchmarks.codecs_figure JSON OUT.svg``."""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from simulations.report.style import INK, MUTED, RC, Look

_LEAST_BITS, _MOST_BITS = 0.05, 12.0
_Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw one column for each update: bits against error, and bits against encoding speed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.codecs_figure", description=__doc__)
    parser.add_argument("json", type=Path)
    parser.add_argument("out", type=Path, help="ending in .svg, .pdf or .png")
    parser.add_argument("--updates", nargs="*", help="these of the file only (default: all)")
    options = parser.parse_args(arguments)
    updates = json.loads(options.json.read_text("utf-8"))["updates"]
    chosen = [one for one in updates if not options.updates or one["update"] in options.updates]
    if not chosen:
        sys.exit(f"error: no such update; the file holds {', '.join(u['update'] for u in updates)}")
    draw(chosen, options.out)


def draw(updates: Sequence[dict[str, Any]], out: Path) -> None:
    """Draw the updates side by side into a file; the same measurements give the same bytes.

    Curves are codecs measured at several settings; what has one setting is a grey point.
    """
    counts = Counter(row["curve"] for row in updates[0]["rows"])
    looks = {
        curve: Look(place)
        for place, curve in enumerate(c for c, points in counts.items() if points > 1)
    }
    with mpl.rc_context({**RC, "svg.hashsalt": "fedcompress-codecs"}):  # type: ignore[dict-item]
        canvas = Figure(figsize=(3.9 * len(updates) + 0.6, 7.8), layout="constrained")
        axes = canvas.subplots(2, len(updates), squeeze=False, sharey=True)
        for column, one in enumerate(updates):
            errors, speeds = axes[0][column], axes[1][column]
            errors.set_title(f"{one['update']}, {one['parameters']:,} parameters", fontsize=9)
            bound = one["bound"]
            errors.plot(
                bound["nmse"], bound["bits_per_parameter"], color=INK, linewidth=3, alpha=0.3,
                label="memoryless limit R(D)",
            )  # fmt: skip
            _plot(errors, one["rows"], looks, "nmse", "NMSE")
            errors.set_xlim(3e-4, 1)
            _plot(speeds, one["rows"], looks, "encode_mb_per_second", "encoding, MB/s")
        for row in axes:
            row[0].set_ylabel("bits per parameter")
        handles, labels = axes[0][0].get_legend_handles_labels()
        canvas.legend(handles, labels, loc="outside lower center", ncols=min(2, len(updates)))
        canvas.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None)


def _plot(
    axes: Axes, rows: Sequence[_Row], looks: Mapping[str, Look], key: str, label: str
) -> None:
    for curve, look in looks.items():
        points = sorted((row for row in rows if row["curve"] == curve), key=lambda row: row["nmse"])
        axes.plot(
            [row[key] for row in points], [row["bits_per_parameter"] for row in points],
            color=look.color, marker=look.marker, markersize=4, label=curve,
            linewidth=1.8 if any(row["ours"] for row in points) else 1.0,
            dashes=look.dashes or (1, 0),
        )  # fmt: skip
    for ours, marker, name in ((True, "x", "ours"), (False, "+", "peers")):
        lone = [row for row in rows if row["curve"] not in looks and row["ours"] == ours]
        axes.plot(
            [row[key] for row in lone], [row["bits_per_parameter"] for row in lone],
            color=MUTED, marker=marker, markersize=5, linestyle="none",
            label=f"{name}, one setting" if lone else None,
        )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel=label, ylim=(_LEAST_BITS, _MOST_BITS))
    # Plain numbers: the style parses no formulas, in which powers of ten would be written.
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


if __name__ == "__main__":
    main()
