"""Live progress of a study: cells, rounds and clients done, their rates, and the time left."""

import time
from collections import deque
from collections.abc import Callable
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

from simulations.events import CellDone, CellStarted, ClientsDone, Event, RoundDone
from simulations.report.text import bytes_text
from simulations.study import Study

BYTES_PER_KB = 1000
WIDE = 100
"""From this many columns on there is room for the time left in each line."""
WIDER = 120
"""And from this many on for long bars."""
LINE_EVERY_SECONDS = 30.0
LONG_ROUND_SECONDS = 1.0
"""In shorter rounds a bar of clients would only flicker."""
ROUNDS_REMEMBERED = 10
NATURAL_CLIENTS = 9_999
"""So many, at most, where the data say how many there are."""

Clock = Callable[[], float]


@final
class StudyProgress:
    """Shows what a run tells: bars for cells, rounds of the cell, and clients of the round.

    Every column but the last has one width throughout, so that nothing jumps; the last says
    what the cell is called, and as much of the round's facts as the terminal has room for.

    Parameters
    ----------
    study : Study
        What runs.
    console : Console
        Where to show it; without a terminal, one line for each cell and, of cells that take long,
        one now and then.
    clock : callable
        Gives seconds.
    """

    def __init__(self, study: Study, console: Console, clock: Clock = time.monotonic) -> None:
        self._console = console
        self._pace = _Pace(len(study.cells()), clock)
        self._clock = clock
        self._printed = clock()
        self._seen: CellStarted | None = None
        self._row: dict[str, object] = {}
        bar = 24 if console.width >= WIDER else 12 if console.width >= WIDE else 7
        largest = max(self._pace.cells, study.rounds, study.partition.clients or NATURAL_CLIENTS)
        counts = 2 * len(str(largest)) + 1
        columns: list[ProgressColumn] = [
            TextColumn("{task.description}", table_column=Column(width=len("clients"))),
            BarColumn(bar_width=bar),
            MofNCompleteColumn(table_column=Column(width=counts, justify="right", no_wrap=True)),
            _Elapsed(),
        ]
        if console.width >= WIDE:
            columns.append(_Left(clock))
        self._is_wide = console.width >= WIDE
        left = _Left.WIDTH if self._is_wide else 0
        fixed = len("clients") + bar + counts + _Elapsed.WIDTH + left + len(columns)
        self._room = max(console.width - fixed, 1)
        self.bars = Progress(
            *columns,
            TextColumn("{task.fields[facts]}", table_column=Column(no_wrap=True)),
            console=console,
            transient=True,
        )
        self._study = self.bars.add_task("cells", total=self._pace.cells, facts="", ends=None)
        self._rounds = self.bars.add_task("rounds", total=study.rounds, facts="", ends=None)
        self._clients = self.bars.add_task("clients", total=None, facts="", ends=None)

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
        if self._console.is_terminal:
            self.bars.start()  # with the first event: a mistake in a setting stands alone
        if isinstance(event, CellStarted):
            self._begin(event)
        elif isinstance(event, ClientsDone):
            self._show_clients(event)
        elif isinstance(event, RoundDone):
            self._show_round(event)
        else:
            self._end(event)

    def _begin(self, event: CellStarted) -> None:
        self._seen = event
        self._row = {}
        self._pace.begin(event.cell.rounds - event.rounds_done)
        name = _short_name(event.cell.label, event.cell.seed, self._room)
        self.bars.update(self._study, facts=escape(name))
        done, rounds = event.rounds_done, event.cell.rounds
        self.bars.reset(self._rounds, total=rounds, completed=done, facts="", ends=None)
        self.bars.reset(self._clients, total=None, facts="", ends=None)
        if event.rounds_done:
            self._print(event, f"goes on after round {event.rounds_done}")

    def _show_clients(self, event: ClientsDone) -> None:
        spent = self._pace.in_round
        if spent < LONG_ROUND_SECONDS or not event.done:
            return
        left = spent / event.done * (event.asked - event.done)
        if self.bars.tasks[self._clients].completed > event.done:  # the round before
            self.bars.reset(self._clients, total=event.asked, completed=event.done)
        self._show_left(left)
        self.bars.update(
            self._clients,
            total=event.asked,
            completed=event.done,
            facts=self._rates(event.done / spent, None),
        )
        self._print_now_and_then(event.done, event.asked, event.done / spent)

    def _show_round(self, event: RoundDone) -> None:
        row = self._row = event.row
        seconds = row.get("round_seconds")
        self._pace.round_done(counts=row["round"] > 0)
        facts = _facts(row, self._room)
        self.bars.update(self._rounds, completed=row["round"], facts=facts)
        self._show_left(self._pace.round_seconds)
        if not seconds:
            return
        asked = row["clients_sampled"]
        answered = asked - row["clients_failed"]
        uplink = row["uplink_payload_bytes"] / seconds
        facts = self._rates(answered / seconds, uplink)
        self.bars.update(self._clients, total=asked, completed=answered, facts=facts)
        self._print_now_and_then(None, asked, answered / seconds)

    def _show_left(self, of_round: float) -> None:
        now = self._clock()
        self.bars.update(self._clients, ends=now + of_round)
        if self._pace.is_known:
            self.bars.update(self._rounds, ends=now + self._pace.left_of_cell)
            self.bars.update(self._study, ends=now + self._pace.left_of_run)

    def _rates(self, clients: float, uplink: float | None) -> str:
        """Write clients and bytes a second, and the time left where no column does."""
        if uplink is None:
            seconds, sent = self._row.get("round_seconds"), self._row.get("uplink_payload_bytes")
            if isinstance(seconds, float) and isinstance(sent, int) and seconds:
                uplink = sent / seconds
        parts = [_clients_text(clients)]
        if uplink is not None:
            parts.append(f"up {bytes_text(uplink):>7}/s")
        if not self._is_wide and self._pace.is_known:
            parts.append(_left_text(self._pace.left_of_run))
        return _fitting([(part, "") for part in parts], self._room)

    def _end(self, event: CellDone) -> None:
        self._pace.cell_done(skipped=event.skipped)
        self.bars.advance(self._study)
        accuracy = event.result["final_accuracy"]
        reached = "no accuracy" if accuracy is None else f"accuracy {accuracy:.2%}"
        when = "finished before" if event.skipped else f"{event.result['total_seconds']:.1f} s"
        self._print(event, f"{reached}, {when}")

    # ------------------------------------------------------------------ lines
    def _print_now_and_then(self, done: int | None, asked: int, rate: float) -> None:
        """Without bars, say how far a long cell is."""
        now = self._clock()
        if self._console.is_terminal or now - self._printed < LINE_EVERY_SECONDS:
            return
        event, number = self._seen, self._row.get("round")
        if event is None or not isinstance(number, int):
            return
        parts = [f"round {number} of {event.cell.rounds}"]
        if done is not None:
            parts.append(f"{done} of {asked} clients of the next one")
        accuracy = self._row.get("accuracy")
        if isinstance(accuracy, float):
            parts.append(f"accuracy {accuracy:.1%}")
        parts.append(_clients_text(rate).strip())
        if self._pace.is_known:
            parts.append(_left_text(self._pace.left_of_run).strip())
        self._print(event, ", ".join(parts))

    def _print(self, event: CellStarted | CellDone, text: str) -> None:
        self._printed = self._clock()
        self._console.print(
            f"{event.cell.label}, seed {event.cell.seed}: {text}", highlight=False, markup=False
        )


@final
class _Pace:
    """How fast a run goes, and so how long it will take."""

    def __init__(self, cells: int, clock: Clock) -> None:
        self.cells = cells
        self._clock = clock
        self._cells_left = cells
        self._rounds_left = 0
        self._rounds: deque[float] = deque(maxlen=ROUNDS_REMEMBERED)
        self._cell_seconds: list[float] = []
        self._cell_began = self._round_began = clock()

    def begin(self, rounds: int) -> None:
        """Note that a cell of so many rounds begins."""
        self._rounds_left = rounds
        self._rounds.clear()
        self._cell_began = self._round_began = self._clock()

    def round_done(self, *, counts: bool) -> None:
        """Note that a round has ended; the test before the first one does not count."""
        now = self._clock()
        if counts:
            self._rounds.append(now - self._round_began)
            self._rounds_left -= 1
        self._round_began = now

    def cell_done(self, *, skipped: bool) -> None:
        """Note that a cell has a result."""
        self._cells_left -= 1
        self._rounds_left = 0
        if not skipped:
            self._cell_seconds.append(self._clock() - self._cell_began)

    @property
    def is_known(self) -> bool:
        """Whether a round has ended, in this cell."""
        return bool(self._rounds)

    @property
    def in_round(self) -> float:
        """Seconds since the round began."""
        return self._clock() - self._round_began

    @property
    def round_seconds(self) -> float:
        """Mean seconds of the last rounds."""
        return sum(self._rounds) / len(self._rounds) if self._rounds else 0.0

    @property
    def left_of_cell(self) -> float:
        """Seconds until the cell's last round has ended."""
        return max(self._rounds_left * self.round_seconds - self.in_round, 0.0)

    @property
    def left_of_run(self) -> float:
        """Seconds until the last cell has: the others are taken to last as those before."""
        this_one = self._clock() - self._cell_began + self.left_of_cell
        each = sum([*self._cell_seconds, this_one]) / (len(self._cell_seconds) + 1)
        return self.left_of_cell + max(self._cells_left - 1, 0) * each


@final
class _Elapsed(ProgressColumn):
    """Hours, minutes and seconds in one width, however long it takes."""

    WIDTH = 9

    def __init__(self) -> None:
        super().__init__(table_column=Column(width=self.WIDTH, no_wrap=True))

    def render(self, task: Task) -> Text:
        """Write the time since the task began."""
        elapsed = task.finished_time if task.finished else task.elapsed
        return Text(_time_text(elapsed or 0), style="progress.elapsed")


@final
class _Left(ProgressColumn):
    """The time left, in one width; it runs down between two events."""

    WIDTH = 14

    def __init__(self, clock: Clock) -> None:
        super().__init__(table_column=Column(width=self.WIDTH, no_wrap=True))
        self._clock = clock

    def render(self, task: Task) -> Text:
        """Write the time until the task ends, nothing while that is unknown."""
        ends = task.fields["ends"]
        text = "" if ends is None or task.finished else _left_text(max(ends - self._clock(), 0.0))
        return Text(text, style="progress.remaining")


def _time_text(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:3}:{minutes:02}:{rest:02}"


def _left_text(seconds: float) -> str:
    return f"{_time_text(seconds)} left"


def _clients_text(rate: float) -> str:
    return f"{rate:6,.1f} clients/s" if rate < 100 else f"{rate:6,.0f} clients/s"


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
    return _fitting(parts, room)


def _fitting(parts: list[tuple[str, str]], room: int) -> str:
    """Join texts and their styles as far as there is room, the first one in any case."""
    shown: list[str] = []
    used = 0
    for text, style in parts:
        used += len(text) + (2 if shown else 0)
        if shown and used > room:
            break
        shown.append(f"[{style}]{text}[/]" if style else text)
    return "  ".join(shown)
