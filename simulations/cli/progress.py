"""Live progress of a study: cells done, rounds of the current one, bytes and accuracy."""

from types import TracebackType
from typing import Self, final

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
)
from rich.table import Column
from rich.text import Text

from simulations.events import CellDone, CellStarted, Event, RoundDone
from simulations.study import Study

BYTES_PER_KB = 1000
WIDE = 100
"""From this many columns on the bars are long."""
GAPS = 4


@final
class StudyProgress:
    """Shows what a run tells: one bar for cells, one for the rounds of the current cell.

    Every column but the last has one width throughout, so that nothing jumps; the last says
    what the cell is called, and as much of the round's facts as the terminal has room for.

    Parameters
    ----------
    study : Study
        What runs.
    console : Console
        Where to show it; without a terminal, one line for each cell.
    """

    def __init__(self, study: Study, console: Console) -> None:
        self._console = console
        self._cells = len(study.cells())
        bar = 24 if console.width >= WIDE else 8
        counts = 2 * len(str(max(self._cells, study.rounds))) + 1
        fixed = len("rounds") + bar + counts + _Elapsed.WIDTH + GAPS
        self._room = max(console.width - fixed, 1)
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=bar),
            MofNCompleteColumn(table_column=Column(width=counts, justify="right", no_wrap=True)),
            _Elapsed(),
            TextColumn("{task.fields[facts]}", table_column=Column(no_wrap=True)),
            console=console,
            transient=True,
        )
        self._study = self.bars.add_task("cells", total=self._cells, facts="")
        self._rounds = self.bars.add_task("rounds", total=study.rounds, facts="")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.bars.live.is_started:
            self.bars.stop()

    def __call__(self, event: Event) -> None:
        """Show an event."""
        self.bars.start()  # with the first event, so that a mistake in a setting stands alone
        if isinstance(event, CellStarted):
            self._begin(event)
        elif isinstance(event, RoundDone):
            facts = _facts(event.row, self._room)
            self.bars.update(self._rounds, completed=event.row["round"], facts=facts)
        elif isinstance(event, CellDone):
            self._end(event)

    def _begin(self, event: CellStarted) -> None:
        name = _short_name(event.cell.label, event.cell.seed, self._room)
        self.bars.update(self._study, facts=escape(name))
        self.bars.reset(self._rounds, total=event.cell.rounds)
        self.bars.update(self._rounds, completed=event.rounds_done, facts="")
        if event.rounds_done:
            self._console.print(
                f"{event.cell.label}, seed {event.cell.seed}: "
                f"goes on after round {event.rounds_done}",
                highlight=False,
                markup=False,
            )

    def _end(self, event: CellDone) -> None:
        self.bars.advance(self._study)
        accuracy = event.result["final_accuracy"]
        reached = "no accuracy" if accuracy is None else f"accuracy {accuracy:.2%}"
        when = "finished before" if event.skipped else f"{event.result['total_seconds']:.1f} s"
        self._console.print(
            f"{event.cell.label}, seed {event.cell.seed}: {reached}, {when}",
            highlight=False,
            markup=False,
        )


@final
class _Elapsed(ProgressColumn):
    """Hours, minutes and seconds in one width, however long it takes."""

    WIDTH = 9

    def __init__(self) -> None:
        super().__init__(table_column=Column(width=self.WIDTH, no_wrap=True))

    def render(self, task: Task) -> Text:
        """Write the time since the task began."""
        elapsed = task.finished_time if task.finished else task.elapsed
        minutes, seconds = divmod(int(elapsed or 0), 60)
        hours, minutes = divmod(minutes, 60)
        return Text(f"{hours:3}:{minutes:02}:{seconds:02}", style="progress.elapsed")


def _short_name(label: str, seed: int, room: int) -> str:
    """Shorten the label where it must be, never the seed; a done cell's line has it whole."""
    ending = f", seed {seed}"
    left = max(room - cell_len(ending), 1)
    return (label if cell_len(label) <= left else f"{set_cell_size(label, left - 1)}…") + ending


def _facts(row: dict[str, object], room: int) -> str:
    """Write the facts of a round that there is room for, the first one in any case."""
    accuracy = row["accuracy"]
    parts = [(f"accuracy {accuracy:6.1%}", "")] if isinstance(accuracy, float) else []
    lost = sum(int(str(row.get(name, 0))) for name in ("clients_rejected", "clients_failed"))
    if lost:
        parts.append((f"{lost} clients left out", "red"))
    clients = row.get("clients_sampled")
    if isinstance(clients, int) and clients:
        for name, arrow in (("uplink_payload_bytes", "up"), ("downlink_payload_bytes", "down")):
            sent = row[name]
            if isinstance(sent, int):
                parts.append((f"{arrow} {sent / clients / BYTES_PER_KB:7,.1f} kB", ""))
    shown: list[str] = []
    used = 0
    for text, style in parts:
        used += len(text) + (2 if shown else 0)
        if shown and used > room:
            break
        shown.append(f"[{style}]{text}[/]" if style else text)
    return "  ".join(shown)
