"""The summary table as CSV, Markdown, LaTeX and rows for a terminal."""

from collections.abc import Sequence

import pandas as pd

from simulations.report.run import Run
from simulations.report.summary import summary_table
from simulations.report.text import (
    accuracy_text,
    change_text,
    latex_cell,
    markdown_cell,
    number_text,
    ratio_text,
)

HEADINGS = (
    "Strategy",
    "Accuracy %",
    "Change",
    "Up kB",
    "Down kB",
    "Up ×",
    "Up+down ×",
    "All traffic ×",
    "Rejected/failed",
    "Seconds",
    "Seeds",
)

CAPTION = (
    "Accuracy: mean ± half the 95 % t-interval over seeds. kB: payload per client and round. "
    "×: dense bytes ÷ sent bytes; up+down counts each round's update payloads, all traffic also "
    "the first model and catch-up. Seconds: wall-clock per seed."
)


def text_rows(summary: pd.DataFrame) -> list[tuple[str, ...]]:
    """Return one tuple of texts per strategy, in the order of `HEADINGS`."""
    return [
        (
            str(row["label"]),
            accuracy_text(row["accuracy_percent"], row["accuracy_interval_percent"]),
            change_text(row["accuracy_change_points"]),
            number_text(row["uplink_kb"]),
            number_text(row["downlink_kb"]),
            ratio_text(row["uplink_ratio"]),
            ratio_text(row["both_ways_ratio"]),
            ratio_text(row["all_traffic_ratio"]),
            f"{row['clients_rejected']}/{row['clients_failed']}",
            number_text(row["seconds"]),
            seeds_text(row["seeds_finished"], row["seeds_expected"], row["seeds_damaged"]),
        )
        for row in summary.to_dict("records")
    ]


def seeds_text(finished: int, expected: int, damaged: int) -> str:
    """Write `3`, `2 of 3 (unfinished)`, or `2 of 3 (1 damaged)`."""
    if finished >= expected:
        return str(finished)
    why = f"{damaged} damaged" if damaged else "unfinished"
    return f"{finished} of {expected} ({why})"


def terminal_table(run: Run) -> list[tuple[str, ...]]:
    """Return the table as texts: the headings first, then one row per strategy.

    Lost clients and seeds have a column only where there is something to say: an update was
    rejected or a client failed, or strategies differ in their seeds. The texts are plain: a
    caller that prints them through rich escapes its markup.
    """
    summary = summary_table(run)
    lost = summary[["clients_rejected", "clients_failed"]].to_numpy().any()
    seeds = summary[["seeds_finished", "seeds_expected"]].to_numpy()
    silent = {"Rejected/failed": not lost, "Seeds": len(set(seeds.flat)) <= 1}
    shown = [place for place, heading in enumerate(HEADINGS) if not silent.get(heading)]
    table = [HEADINGS, *text_rows(summary)]
    return [tuple(row[place] for place in shown) for row in table]


def csv_table(summary: pd.DataFrame) -> str:
    """Return every column of the summary at full precision; `n/a` where there is no number."""
    return summary.to_csv(index=False, na_rep="n/a", lineterminator="\n")


def markdown_table(summary: pd.DataFrame) -> str:
    """Return a Markdown table with its caption."""
    return markdown_of(HEADINGS, text_rows(summary), CAPTION)


def markdown_of(
    headings: Sequence[str], rows: Sequence[Sequence[str]], caption: str, texts: int = 1
) -> str:
    """Return rows as a Markdown table with a caption; the first columns are texts."""
    rule = ["---"] * texts + ["---:"] * (len(headings) - texts)
    body = [[markdown_cell(text) for text in row] for row in rows]
    lines = ["| " + " | ".join(cells) + " |" for cells in (headings, rule, *body)]
    return "\n".join([*lines, "", caption, ""])


def latex_table(summary: pd.DataFrame) -> str:
    """Return a LaTeX `table` that needs the package `booktabs`."""
    columns = "l" + "r" * (len(HEADINGS) - 1)
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{latex_cell(CAPTION)}}}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        " & ".join(latex_cell(heading) for heading in HEADINGS) + r" \\",
        r"\midrule",
        *(" & ".join(latex_cell(t) for t in row) + r" \\" for row in text_rows(summary)),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
        "",
    ]
    return "\n".join(lines)
