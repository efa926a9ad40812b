"""How figures look: colours that stay apart for colour-blind readers, markers and line styles.

Every figure is drawn in the light colours; on the page each becomes a CSS variable, so that the
same drawing follows the reader's light or dark mode.
"""

from dataclasses import dataclass
from typing import final

INK = "#1d2430"
MUTED = "#5d6877"
GRID = "#dfe4ea"
SURFACE = "#fefefe"

SERIES = (
    "#566173",
    "#0069b4",
    "#cf4f0a",
    "#00795c",
    "#b03f96",
    "#8f6400",
    "#1591c4",
    "#6a4ad0",
)
STACK = (
    "#3f3d9e",
    "#2f9c8c",
    "#d3ab37",
    "#b8456f",
    "#7d8b9d",
    "#86b4e6",
    "#e7b6c9",
    "#6b4a2f",
    "#a9c46c",
)
"""Parts of a bar: another set than the strategies', so that neither is taken for the other."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES: tuple[tuple[float, ...], ...] = (
    (),
    (5.0, 1.6),
    (1.2, 1.4),
    (6.0, 1.6, 1.2, 1.6),
    (2.6, 1.4),
    (8.0, 2.0),
    (4.0, 1.4, 1.2, 1.4, 1.2, 1.4),
    (1.2, 2.6),
)

CSS_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    SURFACE: "--card",
    **{color: f"--series-{index}" for index, color in enumerate(SERIES)},
    **{color: f"--stack-{index}" for index, color in enumerate(STACK)},
}

RC: dict[str, object] = {
    "figure.facecolor": SURFACE,
    "savefig.facecolor": SURFACE,
    "axes.facecolor": "none",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.0,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "svg.fonttype": "none",
    "pdf.fonttype": 3,
    "path.simplify": True,
}


@final
@dataclass(frozen=True)
class Look:
    """Colour, marker and dashes of one series; the three differ together."""

    index: int

    @property
    def color(self) -> str:
        """Colour as hex."""
        return SERIES[self.index % len(SERIES)]

    @property
    def marker(self) -> str:
        """Matplotlib's marker."""
        return MARKERS[(self.index + self.index // len(SERIES)) % len(MARKERS)]

    @property
    def dashes(self) -> tuple[float, ...]:
        """On and off lengths in line widths; empty for a solid line."""
        return DASHES[(self.index + self.index // len(SERIES)) % len(DASHES)]

    @property
    def css_variable(self) -> str:
        """The CSS variable that holds the colour on the page."""
        return CSS_VARIABLES[self.color]
