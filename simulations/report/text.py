"""Numbers and labels as a person reads them."""

import math

NOT_AVAILABLE = "n/a"

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "−": r"$-$",
    "≥": r"$\geq$",
}


def accuracy_text(percent: float, interval: float) -> str:
    """Write `91.23 ± 0.45`, `91.23` with a single seed, `n/a` without a result."""
    if math.isnan(percent):
        return NOT_AVAILABLE
    return f"{percent:.2f}" if math.isnan(interval) else f"{percent:.2f} ± {interval:.2f}"


def change_text(points: float) -> str:
    """Write a signed difference in points, with a true minus sign."""
    if math.isnan(points):
        return NOT_AVAILABLE
    return f"{points:+.2f}".replace("-", "−").replace("+0.00", "0.00").replace("−0.00", "0.00")


def number_text(value: float) -> str:
    """Write three significant figures, whole numbers from 1000 on with a thousands mark."""
    if math.isnan(value):
        return NOT_AVAILABLE
    if abs(value) >= 999.5:
        return f"{value:,.0f}"
    if abs(value) >= 99.95:
        return f"{value:.0f}"
    if abs(value) >= 9.995:
        return f"{value:.1f}"
    return f"{value:.2f}"


def ratio_text(value: float) -> str:
    """Write a compression ratio: `62.4×`."""
    return NOT_AVAILABLE if math.isnan(value) else f"{number_text(value)}×"


def count_text(value: float) -> str:
    """Write a count in three figures: `950`, `114 k`, `1.82 M`."""
    for unit in ("", " k", " M", " G"):
        if abs(value) < 999.5:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:,.3g} T"


def bytes_text(value: float) -> str:
    """Write `1.2 MB`, with 1 kB = 1000 B."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 999.5:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:,.3g} TB"


def seconds_text(value: float) -> str:
    """Write `0.42 s`, `3.5 min`, `2.1 h` or `1.3 days`."""
    if math.isnan(value):
        return NOT_AVAILABLE
    if value < 120:
        return f"{value:.3g} s"
    if value < 7200:
        return f"{value / 60:.3g} min"
    if value < 172_800:
        return f"{value / 3600:.3g} h"
    return f"{value / 86_400:,.3g} days"


def markdown_cell(text: str) -> str:
    """Escape what would end a Markdown table cell, or open a tag, emphasis or code."""
    for character in "\\`*_<>[]|":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())


def latex_cell(text: str) -> str:
    """Escape LaTeX's special characters."""
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))
