"""A matrix as cells of one colour, drawn in few bytes and in the reader's light or dark."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path as Outline
from numpy.typing import NDArray

from simulations.report.style import GRID

LEVELS = 8


def mosaic(
    axes: Axes,
    values: NDArray[np.float64],
    corner: tuple[float, float],
    size: tuple[float, float],
    color: str,
) -> None:
    """Draw a matrix as cells of one colour, the more opaque the larger the value.

    Parameters
    ----------
    axes
        Where to draw, y pointing down.
    values
        Shape (rows, columns), 0 to 1.
    corner, size
        Left and upper end, width and height, in data coordinates.
    color
        Of cells whose value is 1.
    """
    rows, columns = values.shape
    width, height = size[0] / columns, size[1] / rows
    levels = np.rint(np.clip(values, 0, 1) * LEVELS).astype(int)
    for level in range(1, LEVELS + 1):
        bars = _bars(levels == level)
        if not bars:
            continue
        outline = Outline.make_compound_path(
            *(
                _rectangle(
                    (corner[0] + start * width, corner[1] + row * height),
                    ((end - start) * width, height),
                )
                for row, start, end in bars
            )
        )
        # One path for a level: the page stays small, and cells side by side leave no seam.
        axes.add_patch(
            PathPatch(outline, facecolor=color, alpha=level / LEVELS, edgecolor="none", linewidth=0)
        )
    axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor=GRID, linewidth=0.8))


def _bars(chosen: NDArray[np.bool_]) -> list[tuple[int, int, int]]:
    """Join cells side by side: row, first column, column after the last."""
    edges = np.diff(np.pad(chosen.astype(int), ((0, 0), (1, 1))), axis=1)
    starts, ends = np.argwhere(edges == 1), np.argwhere(edges == -1)
    return [(int(a[0]), int(a[1]), int(b[1])) for a, b in zip(starts, ends, strict=True)]


def _rectangle(corner: tuple[float, float], size: tuple[float, float]) -> Outline:
    (x, y), (width, height) = corner, size
    return Outline([(x, y), (x + width, y), (x + width, y + height), (x, y + height), (x, y)])
