"""A checkpoint is a whole round, whatever happened to the process that wrote it."""

from __future__ import annotations

import math
import resource
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideAdaptiveClipping,
    FedAdam,
    FedAvg,
    FedAvgM,
    Strategy,
)

from fedcompress.errors import ConfigError
from simulations.checkpoint import Checkpoint, drop, load_strategy_state, strategy_state
from simulations.cli.faults import explain
from simulations.engines import LocalGrid
from simulations.engines.state_files import StateFiles, UnreadStates


def same(left: Any, right: Any) -> bool:
    if isinstance(left, np.ndarray):
        return (
            isinstance(right, np.ndarray)
            and left.dtype == right.dtype
            and left.shape == right.shape
            and left.tobytes() == right.tobytes()
        )
    if isinstance(left, dict) and not isinstance(left, ArrayRecord):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return type(left) is type(right) and all(map(same, left, right))
    return type(left) is type(right) and (left == right or math.isnan(left))


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    record = ArrayRecord()
    record["payload"] = Array("uint8", (3,), "fedcompress.v1", b"abc")
    server = {
        "arrays": {"weight": np.arange(6, dtype=np.float32).reshape(2, 3).T, "n": np.array(3)},
        "empty": [np.zeros((0, 4), np.int64), {}, [], (), None],
        "half": np.ones(3, np.float16),
        "flags": np.array([True, False]),
        "held": {7: 1, 12345678901234567890: 2},
        "numbers": [1, 2.5, float("nan"), float("inf"), True, "text", b"\x00\xff", (1, (2,))],
        "array": {"dict": 1},
        "record": record,
    }
    with Checkpoint(tmp_path / "checkpoint.sqlite") as checkpoint:
        assert checkpoint.load() is None
        checkpoint.save(3, server, {1: b"one", 2: b"two"})
        checkpoint.save(4, server, {2: b"second", 2**63 - 1: b""})
    with Checkpoint(tmp_path / "checkpoint.sqlite") as checkpoint:
        loaded = checkpoint.load()
    assert loaded is not None
    number, found, states = loaded
    assert number == 4
    assert same(found, server)
    assert states == {1: b"one", 2: b"second", 2**63 - 1: b""}


def test_a_kill_while_writing_leaves_a_whole_round(tmp_path: Path, root: Path) -> None:
    path = tmp_path / "checkpoint.sqlite"
    script = textwrap.dedent(f"""
        import numpy as np
        from pathlib import Path
        from simulations.checkpoint import Checkpoint
        checkpoint = Checkpoint(Path({str(path)!r}))
        number = 0 if checkpoint.load() is None else checkpoint.load()[0]
        print("ready", flush=True)
        while True:
            number += 1
            weight = np.full(200_000, number, np.float32)
            states = {{node: number.to_bytes(4, "little") * 20_000 for node in range(10)}}
            checkpoint.save(number, {{"weight": weight, "number": number}}, states)
    """)
    before = 0
    for pause in (0.05, 0.11, 0.17, 0.23):
        with subprocess.Popen(
            [sys.executable, "-c", script], cwd=root, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            time.sleep(pause)
            process.send_signal(signal.SIGKILL)
        with Checkpoint(path) as checkpoint:
            loaded = checkpoint.load()
        if loaded is None:
            assert before == 0
            continue
        number, server, states = loaded
        assert number >= before
        before = number
        assert server["number"] == number
        assert (server["weight"] == number).all()
        assert states == {node: number.to_bytes(4, "little") * 20_000 for node in range(10)}
    assert before > 0


def test_what_cannot_be_stored_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    with Checkpoint(tmp_path / "checkpoint.sqlite") as checkpoint:
        checkpoint.save(1, {}, {1: b"one"})
        with pytest.raises(ConfigError, match=r"cannot store server\['a'\]\[1\], a set"):
            checkpoint.save(2, {"a": [1, {2}]}, {1: b"two"})
        assert checkpoint.load() == (1, {}, {1: b"one"})


def test_states_that_are_not_read_yet_are_saved_as_bytes_are(tmp_path: Path) -> None:
    files = StateFiles()
    path = tmp_path / "checkpoint.sqlite"
    expected = {3: b"in a file" * 30_000, 2: b"bytes", 1: b""}
    try:
        for node_id, state in expected.items():
            files.write(node_id, state)
        with Checkpoint(path) as checkpoint:
            checkpoint.save(1, {}, UnreadStates(files, [3, 2, 1]))
            files.clear()
            checkpoint.save(2, {}, {})
            assert checkpoint.load() == (2, {}, expected)
            checkpoint.save(3, {}, {2: b"again"})
        with Checkpoint(path) as checkpoint:
            assert checkpoint.load() == (3, {}, {**expected, 2: b"again"})
    finally:
        files.close()


def test_states_out_of_date_do_not_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulations.checkpoint.LEAST_LOG_BYTES", 1_000)
    rng = np.random.default_rng(0)
    held: dict[int, bytes] = {}
    path = tmp_path / "checkpoint.sqlite"
    for number in range(1, 40):
        changed = {int(node): rng.bytes(int(rng.integers(0, 500))) for node in rng.choice(9, 3)}
        held |= changed
        with Checkpoint(path) as checkpoint:
            checkpoint.save(number, {}, changed)
            assert checkpoint.load() == (number, {}, held)
        [log] = tmp_path.glob("checkpoint.sqlite-states*")
        assert log.stat().st_size <= 1_000 + 2 * sum(map(len, held.values()))
    assert log.name != "checkpoint.sqlite-states0"
    drop(path)
    assert list(tmp_path.iterdir()) == []
    drop(path)


def test_a_save_that_fails_leaves_the_states_of_before(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.sqlite"
    with Checkpoint(path) as checkpoint:
        checkpoint.save(1, {}, {1: b"one", 2: b"two"})
        files = StateFiles()
        files.write(1, b"other" * 1_000)
        files.write(2, b"gone")
        Path(str(files.path(2))).unlink()
        with pytest.raises(FileNotFoundError):
            checkpoint.save(2, {}, UnreadStates(files, [1, 2]))
        files.close()
        assert checkpoint.load() == (1, {}, {1: b"one", 2: b"two"})
        with no_file_above(60_000), pytest.raises(OSError, match=str(path)):
            checkpoint.save(2, {}, {1: bytes(100_000)})
        assert checkpoint.load() == (1, {}, {1: b"one", 2: b"two"})
        checkpoint.save(3, {}, {2: b"three"})
        assert checkpoint.load() == (3, {}, {1: b"one", 2: b"three"})
    (tmp_path / "checkpoint.sqlite-states0").write_bytes(b"on")
    with Checkpoint(path) as checkpoint, pytest.raises(ConfigError, match=r"cut short.*remove"):
        checkpoint.load()


def test_a_checkpoint_of_version_1_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.sqlite"
    with Checkpoint(path) as checkpoint:
        checkpoint.save(5, {"x": 1}, {})
    with closing(sqlite3.connect(path)) as old, old:
        old.execute("CREATE TABLE client (node_id INTEGER PRIMARY KEY, state BLOB NOT NULL)")
        old.execute("INSERT INTO client VALUES (4, x'616263')")
        old.execute("DROP TABLE log")
        old.execute("DROP TABLE state")
        old.execute("PRAGMA user_version = 1")
    for _ in range(2):
        with Checkpoint(path) as checkpoint:
            assert checkpoint.load() == (5, {"x": 1}, {4: b"abc"})


def test_other_files_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("this is no database, and longer than the header of one " * 20)
    with pytest.raises(ConfigError, match=r"cannot use .*other"):
        Checkpoint(other)
    newer = tmp_path / "newer"
    with sqlite3.connect(newer) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(ConfigError, match="has version 99, expected 2"):
        Checkpoint(newer)
    with pytest.raises(OSError, match="nowhere"):
        Checkpoint(tmp_path / "nowhere" / "checkpoint.sqlite")


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """Let writing fail as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_no_fault_of_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.sqlite"
    with Checkpoint(path) as checkpoint:
        checkpoint.save(1, {"x": np.zeros(10)}, {1: b"one"})
        with no_file_above(60_000), pytest.raises(OSError, match=str(path)) as full:
            checkpoint.save(2, {"x": np.zeros(100_000)}, {1: b"two"})
        told = explain(full.value)
        assert told is not None
        line, status = told
        assert status == 1
        assert line.startswith("disk full")
        assert line.endswith("free some space and run the same command again to go on")
    with Checkpoint(path) as checkpoint:
        loaded = checkpoint.load()
    assert loaded is not None
    assert (loaded[0], loaded[2]) == (1, {1: b"one"})
    with no_file_above(100), pytest.raises(OSError, match="new"):
        Checkpoint(tmp_path / "new.sqlite")


def test_a_damaged_checkpoint_is_to_be_removed(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.sqlite"
    with Checkpoint(path) as checkpoint:
        checkpoint.save(1, {"x": np.zeros(50_000)}, {})
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\xaa" * (len(whole) - 4096))
    with (
        pytest.raises(ConfigError, match=r"damaged or no checkpoint.*remove it"),
        Checkpoint(path) as checkpoint,
    ):
        checkpoint.load()


def test_a_checkpoint_in_use_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint.sqlite"
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", partial(connect, timeout=0.1))
    with Checkpoint(path) as checkpoint, closing(connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(ConfigError, match="in use by another process; wait"):
            checkpoint.save(1, {}, {})


def replies(number: int) -> list[Message]:
    LocalGrid("engine_client:app", 4)  # this process may build messages
    rng = np.random.default_rng(number)
    answers = []
    for node_id in (1, 2, 3):
        request = Message(RecordDict(), node_id, "train")
        arrays = ArrayRecord({"weight": Array(rng.standard_normal(8).astype(np.float32))})
        content = RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": node_id})})
        answers.append(Message(content, reply_to=request))
    return answers


def strategies(name: str) -> Strategy:
    everyone: dict[str, Any] = {"fraction_train": 1.0, "min_available_nodes": 2}
    built: dict[str, Strategy] = {
        "avg": FedAvg(**everyone),
        "adam": FedAdam(**everyone),
        "momentum": FedAvgM(server_momentum=0.9, server_learning_rate=0.5, **everyone),
        "private": DifferentialPrivacyServerSideAdaptiveClipping(
            FedAdam(**everyone), noise_multiplier=0.0, num_sampled_clients=3
        ),
    }
    return built[name]


@pytest.mark.parametrize("name", ["avg", "adam", "momentum", "private"])
def test_a_strategy_goes_on_as_if_never_stopped(name: str, tmp_path: Path) -> None:
    grid = LocalGrid("engine_client:app", 4)
    unbroken, arrays = strategies(name), ArrayRecord({"weight": Array(np.ones(8, np.float32))})
    resumed = strategies(name)
    for number in (1, 2, 3, 4):
        for strategy in (unbroken, resumed):
            list(strategy.configure_train(number, arrays, ConfigRecord(), grid))
        results = [s.aggregate_train(number, replies(number))[0] for s in (unbroken, resumed)]
        assert results[0] is not None
        assert results[0] == results[1]
        arrays = results[0]
        with Checkpoint(tmp_path / "checkpoint.sqlite") as checkpoint:
            checkpoint.save(number, {"strategy": strategy_state(resumed)}, {})
            loaded = checkpoint.load()
        assert loaded is not None
        resumed = strategies(name)
        load_strategy_state(resumed, loaded[1]["strategy"])


def test_another_strategys_state_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"FedAvg has no .*; resume with the settings"):
        load_strategy_state(strategies("avg"), strategy_state(strategies("adam")))
    with pytest.raises(ConfigError, match="wraps another, or none"):
        load_strategy_state(strategies("avg"), strategy_state(strategies("private")))
