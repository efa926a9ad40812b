"""One figure: drawn once for its own files and once, without legend, for the page."""

import io
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from simulations.report.style import RC

logger = logging.getLogger(__name__)

Draw = Callable[[Axes], None]
WIDTH_INCHES = 4.9
FORMATS = ("svg", "pdf", "png")
_METADATA: dict[str, dict[str, str | None]] = {
    "svg": {"Date": None, "Creator": "fedcompress"},
    "pdf": {"CreationDate": None, "ModDate": None, "Creator": "fedcompress", "Producer": None},
    "png": {"Software": "fedcompress"},
}


@final
@dataclass(frozen=True)
class LegendEntry:
    """One line of a legend: its text and the matplotlib artist that shows it."""

    text: str
    color: str
    marker: str = "s"
    dashes: tuple[float, ...] | None = None


@final
@dataclass(frozen=True)
class Figure:
    """A figure with what a reader who cannot see it is told.

    Attributes
    ----------
    name
        File name without ending, and the anchor on the page.
    title, caption
        Heading, and what is plotted, in one or two sentences.
    description
        The finding in words, for screen readers.
    draw
        Draws into empty axes.
    legend
        What the colours mean; empty when the axes say it themselves.
    by_strategy
        Whether the legend is the strategies' own, which the page shows once.
    notes
        Terms of this figure and what they mean.
    columns, rows
        The numbers behind the figure, for the table below it; may be empty.
    """

    name: str
    title: str
    caption: str
    description: str
    draw: Draw
    legend: tuple[LegendEntry, ...] = ()
    by_strategy: bool = False
    height_inches: float = 3.3
    notes: tuple[tuple[str, str], ...] = ()
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = field(default=())


def render(figure: Figure, file_format: str, *, alone: bool = True) -> bytes:
    """Draw `figure` as one of `FORMATS`; the same figure gives the same bytes.

    With `alone` it carries its title and legend, as a file that travels by itself must.
    """
    with mpl.rc_context({**RC, "svg.hashsalt": f"fedcompress-{figure.name}"}):  # type: ignore[dict-item]
        canvas = Canvas(figsize=(WIDTH_INCHES, figure.height_inches), layout="constrained")
        axes = canvas.add_subplot()
        figure.draw(axes)
        if alone:
            axes.set_title(figure.title, loc="left", fontsize=10, fontweight="bold", pad=8)
            if figure.legend:
                _add_legend(canvas, figure)
        target = io.BytesIO()
        # Such as a sign that the font lacks: the drawing stands, and a reader can do nothing.
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            metadata = _METADATA[file_format]
            canvas.savefig(target, format=file_format, dpi=200, metadata=metadata)
        for warning in caught:
            logger.debug("figure %s: %s", figure.name, warning.message)
        return target.getvalue()


def _add_legend(canvas: Canvas, figure: Figure) -> None:
    from matplotlib.lines import Line2D

    handles = []
    for entry in figure.legend:
        line = Line2D([], [], color=entry.color, marker=entry.marker, linewidth=1.8, markersize=5)
        if entry.dashes is None:
            line.set_linestyle("none")
        elif entry.dashes:
            line.set_dashes(entry.dashes)
        handles.append(line)
    longest = max(len(entry.text) for entry in figure.legend)
    legend = canvas.legend(
        handles,
        [str(index) for index in range(len(handles))],
        loc="outside lower left",
        ncols=1 if longest > 30 else 2 if longest > 16 else 3,
    )
    # Set afterwards: a legend drops labels that begin with an underscore.
    for text, entry in zip(legend.get_texts(), figure.legend, strict=True):
        text.set_text(entry.text)
