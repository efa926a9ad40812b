"""`fedcompress simulate`."""

import json
import sys
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Literal

from rich.console import Console

from fedcompress.errors import ConfigError
from simulations.cli.faults import FAILED, INTERRUPTED
from simulations.cli.results import PIPED_WIDTH
from simulations.cli.table import print_table
from simulations.engines import RayGrid, SimulatedGrid
from simulations.flower_app import FlowerApp, read_flower_app
from simulations.recorded_grid import RoundRecord
from simulations.simulate import ServerAppError, Simulated, SimulateOptions, simulate

EDGE_ROUNDS = 10
"""Of a long run the table shows so many rounds at each end."""
DISPENSABLE = ("Clients/s", "Seconds", "Replies")
UNITS = ((1_000_000_000, "GB"), (1_000_000, "MB"), (1000, "kB"))


def simulate_command(
    folder: Path,
    *,
    clients: int | None,
    uplink: str | None,
    downlink: str | None,
    run_config: Sequence[str],
    engine: Literal["ray", "local"] | str,
    workers: str,
    address: str | None,
    seed: int,
    json_file: Path | None,
) -> None:
    """Run the app, then show its rounds, bytes and seconds.

    Raises
    ------
    ConfigError
        If a setting cannot work, or the app cannot be imported.
    SystemExit
        If the ServerApp raises, or the run is stopped.
    """
    app = read_flower_app(folder, run_config)
    options = SimulateOptions(
        clients=app.clients if clients is None else clients,
        uplink=uplink,
        downlink=downlink,
        engine="local" if engine == "local" else "ray",
        workers=_workers(workers),
        address=address,
        seed=seed,
    )
    options.check()
    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise ConfigError(f"--json {str(json_file)!r}: its folder does not exist; make it first")
    console = Console()
    console = console if console.is_terminal else Console(width=PIPED_WIDTH)

    def say_start(grid: SimulatedGrid) -> None:
        workers = f" on {grid.num_workers} workers" if isinstance(grid, RayGrid) else ""
        clients = f"{options.clients:,} client{'s' if options.clients > 1 else ''}"
        _say(console, f"{app.name}: {clients}{workers}")
        _say(console, f"uplink {uplink or _dense(downlink)}, downlink {downlink or 'dense'}")

    def show(simulated: Simulated) -> None:
        _show(simulated, options, console)
        if json_file is not None:
            json_file.write_text(_as_json(app, options, simulated), "utf-8")

    try:
        simulate(app, options, started=say_start, ended=show)
    except ServerAppError as error:
        sys.stderr.write(_explain(app, error))
        raise SystemExit(FAILED) from None
    except KeyboardInterrupt:
        sys.stderr.write("fedcompress: stopped; the same command begins anew\n")
        raise SystemExit(INTERRUPTED) from None


def _dense(downlink: str | None) -> str:
    return "dense" if downlink is None else "raw()"


def _workers(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f'--workers: must be a number from 1 or "auto", got {text!r}')
    return int(text)


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _show(simulated: Simulated, options: SimulateOptions, console: Console) -> None:
    """Print the table of rounds; nothing where no client answered."""
    total = simulated.total
    if not total.replies:
        return
    compared = options.compresses and simulated.dense_known
    scale, unit = next(
        (pair for pair in UNITS if max(total.uplink_bytes, total.downlink_bytes) >= pair[0]),
        UNITS[-1],
    )
    headings = ["Round", "Messages", "Replies", "Failed", f"Up {unit}", f"Down {unit}"]
    headings += ["Up ×", "Down ×"] if compared else []
    headings += ["Seconds", "Clients/s"]
    if not total.failed:
        headings.remove("Failed")
    rows = [tuple(headings)]
    for label, record in _labelled(simulated.rounds, total):
        cells = {} if record is None else _cells(record, scale, unit)
        rows.append((label, *(cells.get(heading, "…") for heading in headings[1:])))
    captions = {
        "Replies": "Messages and replies: evaluation included.",
        f"Up {unit}": f"{unit}: all that Flower's transport sends for them.",
        "Up ×": "×: the same messages with dense arrays ÷ what was sent.",
        "Clients/s": "Clients/s: replies per second of clients' work.",
    }
    print_table(
        rows, console, dispensable_first=DISPENSABLE, captions=captions, elsewhere="--json FILE"
    )
    for note in _notes(simulated, options, f"{total.evaluate_downlink_bytes / scale:,.2f} {unit}"):
        console.print(note, style="dim italic", highlight=False, markup=False)


def _labelled(
    rounds: list[RoundRecord], total: RoundRecord
) -> list[tuple[str, RoundRecord | None]]:
    labelled: list[tuple[str, RoundRecord | None]] = [
        ("before" if record.number == 0 else str(record.number), record) for record in rounds
    ]
    if len(labelled) > 2 * EDGE_ROUNDS + 1:
        labelled = [*labelled[:EDGE_ROUNDS], ("…", None), *labelled[-EDGE_ROUNDS:]]
    return [*labelled, ("all", total)]


def _cells(record: RoundRecord, scale: int, unit: str) -> dict[str, str]:
    return {
        "Messages": f"{record.messages:,}",
        "Replies": f"{record.replies:,}",
        "Failed": f"{record.failed:,}",
        f"Up {unit}": f"{record.uplink_bytes / scale:,.2f}",
        f"Down {unit}": f"{record.downlink_bytes / scale:,.2f}",
        "Up ×": _ratio(record.dense_uplink_bytes, record.uplink_bytes),
        "Down ×": _ratio(record.dense_downlink_bytes, record.downlink_bytes),
        "Seconds": f"{record.seconds:,.1f}",
        "Clients/s": f"{record.clients_per_second:,.0f}",
    }


def _ratio(dense_bytes: int, sent_bytes: int) -> str:
    return f"{dense_bytes / sent_bytes:.2f}" if sent_bytes else "–"


def _notes(simulated: Simulated, options: SimulateOptions, evaluated: str) -> list[str]:
    notes = []
    if options.downlink is not None and simulated.total.evaluate_downlink_bytes:
        notes.append(f"Evaluation is sent the exact model, dense: {evaluated} of what went down.")
    for (kind, outcome), count in Counter((f.kind, f.outcome) for f in simulated.faults).items():
        often = f"{count} times" if count > 1 else "once"
        notes.append(f"{kind.replace('_', ' ')}, {outcome.replace('_', ' ')}: {often}; see --json.")
    if not simulated.dense_known:
        notes.append("The app compresses by itself; what it would send dense is not known.")
    return notes


def _as_json(app: FlowerApp, options: SimulateOptions, simulated: Simulated) -> str:
    def figures(record: RoundRecord) -> dict[str, object]:
        values: dict[str, object] = {
            **asdict(record),
            "clients_per_second": record.clients_per_second,
        }
        if not simulated.dense_known:
            values["dense_uplink_bytes"] = values["dense_downlink_bytes"] = None
        return values

    total = figures(simulated.total)
    del total["number"]
    values = {
        "app": str(app.folder),
        "run_config": app.run_config,
        **asdict(options),
        "rounds": [figures(record) for record in simulated.rounds],
        "total": total,
        "faults": [fault._asdict() for fault in simulated.faults],
    }
    return json.dumps(values, indent=2) + "\n"


def _explain(app: FlowerApp, error: ServerAppError) -> str:
    """Say in one line what the ServerApp raised, and below it where."""
    cause = error.__cause__
    assert cause is not None
    what = " ".join(f"{type(cause).__name__}: {cause}".split())
    frames = _of_app(cause.__traceback__, app.folder)
    lines = "".join(traceback.format_exception(type(cause), cause, frames))
    return f"fedcompress: the ServerApp {app.serverapp!r} raised {what}\n{lines}"


def _of_app(frames: TracebackType | None, folder: Path) -> TracebackType | None:
    """Leave out the frames that lead to the app's own code; all of them stay if none is its."""
    first = frames
    while first is not None:
        if Path(first.tb_frame.f_code.co_filename).is_relative_to(folder):
            return first
        first = first.tb_next
    return frames
