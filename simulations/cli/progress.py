"""Live progress of a study: cells done, rounds of the current one, bytes and accuracy."""

from types import TracebackType
from typing import Self, final

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from simulations.events import CellDone, CellStarted, Event, RoundDone
from simulations.study import Study

BYTES_PER_KB = 1000


@final
class StudyProgress:
    """Shows what a run tells: one bar for cells, one for the rounds of the current cell.

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
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._study = self._bars.add_task("cells", total=self._cells, facts="")
        self._rounds = self._bars.add_task("rounds", total=study.rounds, facts="", visible=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bars.live.is_started:
            self._bars.stop()

    def __call__(self, event: Event) -> None:
        """Show an event."""
        self._bars.start()  # with the first event, so that a mistake in a setting stands alone
        if isinstance(event, CellStarted):
            self._begin(event)
        elif isinstance(event, RoundDone):
            facts = _facts(event.row)
            self._bars.update(self._rounds, completed=event.row["round"], facts=facts)
        else:
            self._end(event)

    def _begin(self, event: CellStarted) -> None:
        name = f"{escape(event.cell.label)}, seed {event.cell.seed}"
        self._bars.reset(self._rounds, total=event.cell.rounds)
        self._bars.update(
            self._rounds, description=name, completed=event.rounds_done, visible=True, facts=""
        )
        if event.rounds_done:
            self._console.print(f"{name}: goes on after round {event.rounds_done}", highlight=False)

    def _end(self, event: CellDone) -> None:
        self._bars.advance(self._study)
        accuracy = event.result["final_accuracy"]
        reached = "no accuracy" if accuracy is None else f"accuracy {accuracy:.2%}"
        when = "finished before" if event.skipped else f"{event.result['total_seconds']:.1f} s"
        self._console.print(
            f"{escape(event.cell.label)}, seed {event.cell.seed}: {reached}, {when}",
            highlight=False,
        )


def _facts(row: dict[str, object]) -> str:
    accuracy = row["accuracy"]
    parts = [f"accuracy {accuracy:.1%}"] if isinstance(accuracy, float) else []
    clients = row.get("clients_sampled")
    if isinstance(clients, int) and clients:
        for name, arrow in (("uplink_payload_bytes", "up"), ("downlink_payload_bytes", "down")):
            sent = row[name]
            if isinstance(sent, int):
                parts.append(f"{arrow} {sent / clients / BYTES_PER_KB:.1f} kB")
    lost = sum(int(str(row.get(name, 0))) for name in ("clients_rejected", "clients_failed"))
    if lost:
        parts.append(f"[red]{lost} clients left out[/red]")
    return "  ".join(parts)
