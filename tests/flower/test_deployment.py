"""The same apps on Flower's own engines: its simulation, and a SuperLink with two SuperNodes."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from simulations.cell import Cell
from simulations.cell_run import run_cell
from simulations.client_app import without_folder
from simulations.engines import LocalGrid
from simulations.materials import materials_of
from simulations.study import study_of
from simulations.study_folder import StudyFolder

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
ROUNDS = 2
SETTINGS = {
    "rounds": ROUNDS,
    "seed": 5,
    "partition.clients": 2,
    "federation.fraction": 1.0,
    "model.hidden": "32",
    "strategy.uplink": "error_feedback(top_k(0.05) | quantize(4) | entropy())",
    "strategy.downlink": "error_feedback(quantize(8) | entropy())",
}
pytestmark = pytest.mark.flower


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def flower(tmp_path: Path) -> dict[str, str]:
    """Give an environment with a Flower home of its own: no telemetry, nothing installed."""
    home = tmp_path / "flower"
    home.mkdir()
    return {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ADDRESS": "local",  # else Flower's simulation joins any cluster on this machine
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    }


class Processes:
    """Programs that a test started; all are ended with it, by force if need be."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self._folder, self._env = folder, env
        self._running: list[subprocess.Popen[bytes]] = []

    def start(self, name: str, *args: str) -> None:
        with (self._folder / f"{name}.log").open("wb") as log:
            self._running.append(
                subprocess.Popen(
                    [str(BIN / args[0]), *args[1:]],
                    cwd=self._folder,
                    env=self._env,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )

    def logs(self) -> str:
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}"
            for path in self._folder.glob("*.log")
        )

    def stop(self) -> None:
        for process in self._running:
            process.send_signal(signal.SIGTERM)
        for process in self._running:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(10)
        self._stop_daemons()

    def _stop_daemons(self) -> None:
        """End the SuperLink that `flwr run` leaves running behind its simulation."""
        home = f"FLWR_HOME={self._env['FLWR_HOME']}".encode()
        for path in Path("/proc").glob("[0-9]*/environ"):
            pid = int(path.parent.name)
            with contextlib.suppress(OSError):
                if pid != os.getpid() and home in path.read_bytes().split(b"\0"):
                    os.kill(pid, signal.SIGKILL)


@pytest.fixture
def processes(tmp_path: Path, flower: dict[str, str]) -> Iterator[Processes]:
    started = Processes(tmp_path, flower)
    yield started
    started.stop()


def wait_for(port: int, seconds: float = 40) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)  # a port tells nobody that it has opened
    raise TimeoutError(f"nothing listens on port {port} after {seconds} s")


def run_config(records: Path) -> str:
    settings = {**SETTINGS, "records": str(records)}
    return " ".join(f"{key}={json.dumps(value)}" for key, value in settings.items())


def rows(records: Path, name: str) -> list[dict[str, object]]:
    (path,) = records.glob(f"cells/*/{name}.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def by_client(records: Path) -> dict[tuple[int, int], dict[str, object]]:
    return {(row["round"], row["client"]): row for row in rows(records, "clients")}  # type: ignore[misc]


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """Run the same cell on LocalGrid."""
    # Flower lays its overrides over what pyproject.toml says.
    app = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]

    def dotted(table: dict[str, object], prefix: str = "") -> dict[str, object]:
        flat: dict[str, object] = {}
        for key, value in table.items():
            name = f"{prefix}{key}"
            flat |= dotted(value, f"{name}.") if isinstance(value, dict) else {name: value}
        return flat

    cell = Cell.from_run_config(without_folder({**dotted(app), **SETTINGS}))  # type: ignore[arg-type]
    folder = tmp_path / "local"
    grid = LocalGrid("simulations.client_app:app", 2, run_config=cell.to_run_config())
    claimed = StudyFolder(folder)
    with claimed.claim(study_of(cell), materials_of(cell).data):
        run_cell(cell, grid, claimed.cell(cell))
    return folder


def assert_same_payloads(records: Path, local: Path) -> None:
    ours, theirs = by_client(local), by_client(records)
    assert ours.keys() == theirs.keys() == {(r, c) for r in range(1, ROUNDS + 1) for c in (0, 1)}
    for key, row in ours.items():
        other = theirs[key]
        assert other["status"] == row["status"] == "ok"
        assert row["uplink_payload_checksum"] is not None
        for field in (
            "uplink_payload_checksum",
            "uplink_payload_bytes",
            "downlink_payload_bytes",
            "downlink_catchup_bytes",
            "train_loss",
        ):
            assert other[field] == row[field], (key, field)
    assert [r["accuracy"] for r in rows(local, "rounds")] == [
        r["accuracy"] for r in rows(records, "rounds")
    ]


def test_superlink_and_supernodes_send_what_local_grid_sends(
    processes: Processes, flower: dict[str, str], tmp_path: Path, local: Path
) -> None:
    port, records = free_port(), tmp_path / "records"
    (Path(flower["FLWR_HOME"]) / "config.toml").write_text(
        f'[superlink]\ndefault = "test"\n[superlink.test]\naddress = "127.0.0.1:{port}"\n'
        "insecure = true\n"
    )
    processes.start(
        "superlink",
        *("flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port)),
        "--disable-runtime-dependency-installation",
    )
    wait_for(port)
    for i in range(2):
        processes.start(
            f"supernode-{i}",
            *("flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}"),
            *("--host", "127.0.0.1", "--port", str(free_port())),
            *("--node-config", f"partition-id={i} num-partitions=2"),
        )
    finished = subprocess.run(
        [BIN / "flwr", "run", ".", "test", "--stream", "--run-config", run_config(records)],
        cwd=ROOT,
        env=flower,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr + processes.logs()
    assert list(records.glob("cells/*/result.json")), finished.stdout + processes.logs()
    assert_same_payloads(records, local)
    for row in by_client(records).values():
        assert row["uplink_message_bytes"] > row["uplink_payload_bytes"]  # type: ignore[operator]


@pytest.mark.usefixtures("processes")
def test_flwr_run_on_flowers_own_simulation(
    flower: dict[str, str], tmp_path: Path, local: Path
) -> None:
    records = tmp_path / "records"
    (Path(flower["FLWR_HOME"]) / "config.toml").write_text(
        '[superlink]\ndefault = "local"\n[superlink.local]\n'
        "options.num-supernodes = 2\noptions.backend.client-resources.num-cpus = 1\n"
    )
    finished = subprocess.run(
        [
            *(BIN / "flwr", "run", ".", "local", "--stream"),
            *("--run-config", run_config(records)),
        ],
        cwd=ROOT,
        env=flower,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert list(records.glob("cells/*/result.json")), finished.stdout + finished.stderr
    assert_same_payloads(records, local)
