"""A run's timeline as a trace that opens in Perfetto (ui.perfetto.dev) or chrome://tracing.

The file is Chrome's JSON array of events, one a line. Times are microseconds since the trace began.
"""

import gzip
import json
import time
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, final

from fedcompress.errors import ConfigError
from simulations.closing import Closing
from simulations.events import CellDone, CellStarted, Event, RoundDone
from simulations.timeline import ClientWork, RoundTimeline, bursts, by_worker_of

TraceEvent = dict[str, Any]
SERVER = 1
"""The server's pid, and its one thread's id; 0 is the idle thread wherever traces are read."""
_FIRST_WORKER = 2
"""Thread id of worker 0: no two rows have the same, whatever their process."""
_ENDINGS = (".json", ".json.gz")


def check_trace_path(path: Path) -> None:
    """Refuse a name that is no trace's, before a study file, say, is overwritten.

    Raises
    ------
    ConfigError
        If it ends in neither ``.json`` nor ``.json.gz``.
    """
    if not path.name.endswith(_ENDINGS):
        raise ConfigError(
            f"profile: the file must end in .json or .json.gz, got {str(path)!r}; "
            "name it trace.json, say"
        )


@final
class Trace(Closing):
    """Writes what a run tells; a context manager and a listener.

    Events go to ``FILE.partial`` as each round ends, which gets its name when all of it is on the
    disk. What a killed run leaves of it lacks the closing bracket alone, and opens as it is.

    Parameters
    ----------
    path : Path
        The file; compressed where the name ends in ``.gz``.

    Raises
    ------
    ConfigError
        If the name is no trace's; see `check_trace_path`.
    OSError
        If the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        check_trace_path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._partial = path.with_name(f"{path.name}.partial")
        self._file = self._partial.open("wb")
        self._packed = gzip.GzipFile("", "wb", 6, self._file, mtime=0) if self._is_packed else None
        self._began = time.monotonic()
        self._cell_began = self._began
        self._named: set[tuple[int, int]] = set()
        self._pids = {"": SERVER + 1}
        self._write("[\n")
        self._add([*_named(SERVER, SERVER, "server", "rounds")])

    @property
    def _is_packed(self) -> bool:
        return self._path.name.endswith(".gz")

    def __call__(self, event: Event) -> None:
        """Note an event."""
        now = time.monotonic()
        if isinstance(event, CellStarted):
            if self._cell_began == self._began:
                self._add([_of_server("start", *self._micros(self._began, now))])
            self._cell_began = now
        elif isinstance(event, RoundDone) and event.timeline is not None:
            self._add(self._round(event.timeline, event.row))
        elif isinstance(event, RoundDone):
            tested = now - event.row["evaluate_seconds"]
            self._add([_of_server("evaluate", *self._in_cell(tested, now))])
        elif isinstance(event, CellDone) and not event.skipped:
            name = f"{event.cell.label}, seed {event.cell.seed}"
            self._add([_of_server(name, *self._micros(self._cell_began, now))])

    def close(self) -> None:
        """End the file and give it its name; harmless when done already."""
        if self._file.closed:
            return
        # Closed by an event without a comma after it, since JSON has none before a bracket.
        last = _of_server("end", *self._micros(time.monotonic(), time.monotonic()))
        self._write(json.dumps(last) + "\n]\n")
        if self._packed is not None:
            self._packed.close()
        self._file.close()
        self._partial.replace(self._path)

    # ------------------------------------------------------------------ events of a round
    def _round(self, timeline: RoundTimeline, row: dict[str, Any]) -> Iterator[TraceEvent]:
        begin, end = self._in_cell(timeline.began, timeline.began + timeline.seconds)
        known = ("accuracy", "clients_sampled", "uplink_payload_bytes", "downlink_payload_bytes")
        facts = {name: row[name] for name in known if row.get(name) is not None}
        yield _of_server(f"round {timeline.number}", begin, end, facts)
        for phase in timeline.phases:
            own = self._micros(phase.began, phase.began + phase.seconds)
            yield _of_server(phase.name, *_within(own, (begin, end)))
        for worker, work in by_worker_of(timeline.work).items():
            pid, tid = self._pid(work[0].span.node), _FIRST_WORKER + worker
            if (pid, tid) not in self._named:
                self._named.add((pid, tid))
                node = work[0].span.node
                process = f"workers of {node[:8]}" if node else "workers"
                yield from _named(pid, tid, process, f"worker {worker}")
            for burst in bursts(work):
                yield from self._burst(burst, pid, tid, timeline.number)

    def _burst(
        self, burst: tuple[float, float, list[ClientWork]], pid: int, tid: int, number: int
    ) -> Iterator[TraceEvent]:
        """Show clients that were worked on at once one after another, each by its share."""
        began, ended, work = burst
        begin, end = self._micros(began, ended)
        if len(work) == 1:
            yield from _client(work[0], pid, tid, begin, end, number)
            return
        yield _complete(f"{len(work)} clients together", pid, tid, begin, end, {"round": number})
        total = sum(one.span.compute_seconds for one in work) or 1.0
        shares = accumulate((one.span.compute_seconds / total for one in work), initial=0.0)
        places = [min(begin + round(share * (end - begin)), end) for share in shares]
        for one, (first, last) in zip(work, pairwise(places), strict=True):
            yield from _client(one, pid, tid, first, last, number)

    def _pid(self, node: str) -> int:
        return self._pids.setdefault(node, len(self._pids) + SERVER + 1)

    # ------------------------------------------------------------------ the file
    def _micros(self, began: float, ended: float) -> tuple[int, int]:
        first = max(round((began - self._began) * 1e6), 0)
        return first, max(round((ended - self._began) * 1e6), first)

    def _in_cell(self, began: float, ended: float) -> tuple[int, int]:
        """Give microseconds that begin after the cell does.

        Its own event is written last. Of two events that begin at once a reader takes the one
        that stands first in the file for the outer one.
        """
        outer, _ = self._micros(self._cell_began, self._cell_began)
        first, last = self._micros(began, ended)
        return max(first, outer + 1), max(last, outer + 1)

    def _add(self, events: Sequence[TraceEvent] | Iterator[TraceEvent]) -> None:
        self._write("".join(json.dumps(event) + ",\n" for event in events))

    def _write(self, text: str) -> None:
        if self._packed is not None:
            self._packed.write(text.encode())
            self._packed.flush()
        else:
            self._file.write(text.encode())
        self._file.flush()


def _client(
    work: ClientWork, pid: int, tid: int, begin: int, end: int, number: int
) -> Iterator[TraceEvent]:
    """Yield a client's whole call, then training and encoding within it.

    A call ends with the app's encoding, which follows on training; what comes before is reading
    the message and taking the model in.
    """
    name = f"client {work.client if work.client is not None else work.span.node_id}"
    facts = {
        "round": number,
        "node_id": work.span.node_id,
        "compute_seconds": work.span.compute_seconds,
        "uplink_bytes": work.uplink_bytes,
    }
    yield _complete(name, pid, tid, begin, end, facts)
    encoding = max(end - round(work.encode_seconds * 1e6), begin)
    training = max(encoding - round(work.train_seconds * 1e6), begin)
    for part, first, last in (("train", training, encoding), ("encode", encoding, end)):
        if last > first:
            yield _complete(part, pid, tid, first, last)


def _within(inner: tuple[int, int], outer: tuple[int, int]) -> tuple[int, int]:
    begin, end = (min(max(time, outer[0]), outer[1]) for time in inner)
    return begin, end


def _of_server(name: str, begin: int, end: int, facts: dict[str, Any] | None = None) -> TraceEvent:
    return _complete(name, SERVER, SERVER, begin, end, facts)


def _complete(
    name: str, pid: int, tid: int, begin: int, end: int, facts: dict[str, Any] | None = None
) -> TraceEvent:
    event = {"name": name, "ph": "X", "ts": begin, "dur": end - begin, "pid": pid, "tid": tid}
    return event if facts is None else event | {"args": facts}


def _named(pid: int, tid: int, process: str, thread: str) -> Iterator[TraceEvent]:
    names: tuple[tuple[str, dict[str, Any]], ...] = (
        ("process_name", {"name": process}),
        ("process_sort_index", {"sort_index": pid}),
        ("thread_name", {"name": thread}),
    )
    for kind, facts in names:
        yield {"name": kind, "ph": "M", "ts": 0, "pid": pid, "tid": tid, "args": facts}
