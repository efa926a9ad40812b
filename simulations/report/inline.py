"""Figures and legend keys as inline SVG: no namespace, no colours of their own, no id clashes."""

import re
from html import escape

from simulations.report.figure import Figure, LegendEntry, render
from simulations.report.style import CSS_VARIABLES

_ID = re.compile(r'(?<=\bid=")([^"]+)(?=")|(?<=url\(#)([^)]+)(?=\))|(?<=href="#)([^"]+)(?=")')

_OUTLINE = re.compile(r' d="[^"]*"')
_LONG = re.compile(r"-?\d+\.\d{3,}")  # finer than anybody sees, but everybody loads

_KEY_MARKERS = {
    "o": '<circle cx="18" cy="8" r="4.2"/>',
    "s": '<rect x="14" y="4" width="8" height="8"/>',
    "^": '<path d="M18 3l5 9.2h-10z"/>',
    "D": '<path d="M18 2.6l5.2 5.4-5.2 5.4-5.2-5.4z"/>',
    "v": '<path d="M18 13l5-9.2h-10z"/>',
    "P": '<path d="M16 3h4v3h3v4h-3v3h-4v-3h-3v-4h3z"/>',
    "X": '<path d="M18 6l3-3 2 2-3 3 3 3-2 2-3-3-3 3-2-2 3-3-3-3 2-2z"/>',
    "*": '<path d="M18 2l1.7 4.1 4.4.3-3.4 2.9 1.1 4.3-3.8-2.3-3.8 2.3 1.1-4.3-3.4-2.9 4.4-.3z"/>',
}


def inline_svg(figure: Figure) -> str:
    """Return the drawing as an `<svg>` element for an HTML page.

    It names itself to screen readers, takes its colours from the page's CSS variables and its
    width from the column it stands in.
    """
    svg = render(figure, "svg", alone=False).decode("utf-8")
    svg = svg[svg.index("<svg") :]
    for unwanted in (r"<!--.*?-->", r"<metadata>.*?</metadata>", r"<style.*?</style>"):
        svg = re.sub(unwanted, "", svg, flags=re.DOTALL)
    svg = _OUTLINE.sub(lambda found: _LONG.sub(lambda n: f"{float(n[0]):.2f}", found[0]), svg)
    svg = re.sub(r' id="series-(\d+)-[^"]*"', r' class="series series-\1"', svg)
    svg = _ID.sub(lambda found: f"{figure.name}-{found[0]}", svg)
    for color, variable in CSS_VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    opening, rest = svg.split(">", 1)
    view = re.search(r'viewBox="[^"]*"', opening)
    name, about = f"{figure.name}-title", f"{figure.name}-about"
    return (
        f'<svg {view[0] if view else ""} role="img" aria-labelledby="{name} {about}">'
        f'<title id="{name}">{escape(figure.title)}</title>'
        f'<desc id="{about}">{escape(figure.description)}</desc>{rest.strip()}'
    )


def key_svg(entry: LegendEntry) -> str:
    """Return the sample of line and marker that stands beside a legend's text."""
    color = f"var({CSS_VARIABLES.get(entry.color, '--ink')})"
    line, left, width = "", 11, 14
    if entry.dashes is not None:
        left, width = 0, 36
        dashes = " ".join(f"{2 * length:g}" for length in entry.dashes)
        pattern = f' stroke-dasharray="{dashes}"' if dashes else ""
        line = f'<path d="M1 8h34" stroke="{color}" stroke-width="2" fill="none"{pattern}/>'
    return (
        f'<svg class="key" viewBox="{left} 0 {width} 16" width="{width}" height="16" '
        'aria-hidden="true">'
        f'{line}<g fill="{color}" stroke="var(--card)">{_KEY_MARKERS[entry.marker]}</g></svg>'
    )
