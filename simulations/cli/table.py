"""The results table as wide as the terminal: fewer columns, or one block for each strategy."""

from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

# The first is the first to go; the others say what was sent and what was reached.
DISPENSABLE = ("All traffic ×", "Change", "Seconds", "Up+down ×")
CAPTIONS = {
    "Accuracy %": "Accuracy: mean, ± half the 95 % t-interval over seeds.",
    "Change": "Change: points against the first row.",
    "Up kB": "kB: payload per client and round. ×: dense bytes ÷ sent bytes.",
    "Up+down ×": "Up+down: each round's update payloads.",
    "All traffic ×": "All traffic: also the first model and catch-up.",
    "Seconds": "Seconds: wall-clock per seed.",
}


def print_table(
    rows: Sequence[tuple[str, ...]],
    console: Console,
    *,
    dispensable_first: Sequence[str] = DISPENSABLE,
    captions: Mapping[str, str] = CAPTIONS,
    elsewhere: str = "the report",
) -> None:
    """Print headings and rows so that no text of theirs is wrapped or cut.

    Parameters
    ----------
    rows : sequence of tuple of str
        The headings first; each row begins with its label.
    console : Console
        Its width decides how many columns there are; the caption names those left out.
    dispensable_first : sequence of str
        Headings of columns that may be left out, the first to go first.
    captions : mapping of str to str
        What to say below of a heading that is shown.
    elsewhere : str
        Where columns stand that are left out.
    """
    left_out: list[str] = []
    unbounded = console.options.update(width=10_000)
    for dispensable in (None, *dispensable_first):
        if dispensable in rows[0]:
            left_out.append(str(dispensable))
        shown = _without(rows, left_out)
        table = _table(shown)
        if Measurement.get(console, unbounded, table).maximum <= console.width:
            console.print(table)
            break
    else:
        left_out, shown = [], list(rows)
        _print_blocks(rows, console)
    caption = [text for heading, text in captions.items() if heading in shown[0]]
    if left_out:
        caption.append(f"Not shown in this width, but in {elsewhere}: {', '.join(left_out)}.")
    console.print(" ".join(caption), style="dim italic", highlight=False, markup=False)


def _without(rows: Sequence[tuple[str, ...]], headings: Sequence[str]) -> list[tuple[str, ...]]:
    kept = [place for place, heading in enumerate(rows[0]) if heading not in headings]
    return [tuple(row[place] for place in kept) for row in rows]


def _table(rows: Sequence[tuple[str, ...]]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for place, heading in enumerate(rows[0]):
        # Unbreakable: a text that rich may wrap it also may cut.
        table.add_column(escape(heading), justify="left" if place == 0 else "right", no_wrap=True)
    for row in rows[1:]:
        table.add_row(*(escape(text) for text in row))
    return table


def _print_blocks(rows: Sequence[tuple[str, ...]], console: Console) -> None:
    headings = rows[0][1:]
    widest = max(map(cell_len, headings))
    for label, *texts in rows[1:]:
        lines = [f"  {head:<{widest}}  {text}" for head, text in zip(headings, texts, strict=True)]
        block = "\n".join([label, *lines, ""])
        console.print(block, highlight=False, markup=False, soft_wrap=True)
