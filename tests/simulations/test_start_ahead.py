"""What workers are forked from is started before the command imports what takes long."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedcompress.errors import ConfigError
from simulations import runner
from simulations.cli import ahead
from simulations.engines import RayGrid
from simulations.engines.fork_start import ForkServer

LOCAL = '[engine]\nkind = "local"\n'


@pytest.mark.parametrize(
    ("told", "assignments", "engine", "address", "forks"),
    [
        ("", [], None, None, True),
        ("rounds = 3\n[engine]\nworkers = 2\n", ["rounds=1"], None, None, True),
        ('[engine]\nkind = "ray"\ngpus_per_worker = 0.0\n', [], None, None, True),
        (LOCAL, [], "ray", None, True),
        (LOCAL, [], None, None, False),
        ("", [], "local", None, False),
        ("", [], None, "10.0.0.1:6379", False),
        ('[engine]\naddress = "auto"\n', [], None, None, False),
        ("[engine]\ngpus_per_worker = 0.5\n", [], None, None, False),
        ("", ["engine.address=auto"], None, None, False),
        ("engine = 3\n", [], None, None, False),
        ("rounds = = 3\n", [], None, None, False),
    ],
)
def test_only_workers_that_are_forked_are_prepared(
    tmp_path: Path,
    told: str,
    assignments: list[str],
    engine: str | None,
    address: str | None,
    forks: bool,
) -> None:
    study = tmp_path / "study.toml"
    study.write_text(told)
    assert ahead._forks(str(study), assignments, engine, address) == forks


def test_studies_that_come_along_are_known_and_others_are_not() -> None:
    assert ahead._forks("quickstart", [], None, None)
    assert not ahead._forks("no_such_study", [], None, None)
    assert ahead.CLIENT_APP == runner.CLIENT_APP


def test_starting_imports_nothing_that_takes_long(root: Path) -> None:
    script = (
        "import sys; import simulations.cli.app, simulations.cli.ahead; "
        "import simulations.engines.fork_start; "
        "print(*sorted({'torch', 'flwr', 'numpy', 'fedcompress', 'ray'} & set(sys.modules)))"
    )
    said = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True
    )
    assert said.stdout.split() == []


def test_a_server_that_nobody_needs_ends_at_once() -> None:
    with ForkServer("simulations.client_app:app") as server:
        began = time.monotonic()
    assert server._process.returncode is not None
    assert time.monotonic() - began < 2


@pytest.mark.ray
def test_a_grid_takes_the_server_that_was_started_for_its_app() -> None:
    server = ForkServer("simulations.client_app:app")
    with pytest.raises(ConfigError, match="server: it was started for the app 'simulations"):
        RayGrid("another:app", 2, workers=1, server=server)
    with RayGrid("simulations.client_app:app", 2, workers=1, use_ray=False, server=server) as grid:
        assert server._process.returncode is None
        assert grid.num_workers == 1
    assert server._process.returncode is not None
    server.close()
