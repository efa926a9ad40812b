"""Runs: what they leave behind, killed ones that go on, and folders that are not theirs."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fedcompress.errors import ConfigError
from simulations.events import CellDone, Event, RoundDone
from simulations.records import append_rows, keep_rounds, read_rows, without_seconds, write_json
from simulations.runner import run_study
from simulations.study import Study, checked_study

STRATEGIES: list[dict[str, Any]] = [
    {"label": "dense"},
    {"label": "STC", "method": "stc", "method_options": {"fraction": 0.05}},
    {"label": "FedAdam", "server": "fedadam", "uplink": "error_feedback(quantize(2) | pack())"},
    {
        "label": "distilled",
        "method": "feddf",
        "uplink": "quantize(step=1.0) | entropy()",
        "distill": {"steps": 5},
        "student": {"hidden": [4], "steps": 10},
    },
]


def small_study(**changes: Any) -> Study:
    values = {
        "name": "small",
        "seeds": [0],
        "rounds": 4,
        "partition": {"clients": 6, "min_samples": 5},
        "model": {"hidden": [8]},
        "federation": {"fraction": 0.5},
        "proxy": {"samples": 60},
        "engine": {"kind": "local"},
        "checkpoint_seconds": 0,
        "strategies": STRATEGIES,
    }
    return checked_study(values | changes, "study")


def results_of(folder: Path) -> dict[str, Any]:
    """Everything that a run leaves, but for what a clock measured."""
    found: dict[str, Any] = {}
    for cell in sorted((folder / "cells").iterdir()):
        for name in ("rounds.jsonl", "clients.jsonl"):
            found[f"{cell.name}/{name}"] = without_seconds(read_rows(cell / name))
        found[f"{cell.name}/result"] = without_seconds(
            [json.loads((cell / "result.json").read_text())]
        )
        for model in cell.glob("*.safetensors"):
            found[f"{cell.name}/{model.name}"] = model.read_bytes()
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    run_study(small_study(), folder)
    return folder


def test_records_add_up(finished: Path) -> None:
    about = json.loads((finished / "study.json").read_text())
    assert about["study"]["name"] == "small"
    assert about["data"]["fingerprint"]
    assert about["versions"]["torch"]
    for cell in (finished / "cells").iterdir():
        rounds, clients = read_rows(cell / "rounds.jsonl"), read_rows(cell / "clients.jsonl")
        assert [row["round"] for row in rounds] == [0, 1, 2, 3, 4]
        for row in rounds[1:]:
            own = [client for client in clients if client["round"] == row["round"]]
            assert len(own) == row["clients_sampled"] == row["clients_aggregated"] == 3
            assert sum(c["uplink_payload_bytes"] for c in own) == row["uplink_payload_bytes"]
            assert sum(row["uplink_bytes_by_stream"].values()) == row["uplink_payload_bytes"]
            assert all(c["client"] == c["node_id"] - 1 for c in own)
            assert all(c["uplink_message_bytes"] > c["uplink_payload_bytes"] for c in own)
        result = json.loads((cell / "result.json").read_text())
        assert result["finished"] is True
        assert result["final_accuracy"] == pytest.approx(sum(r["accuracy"] for r in rounds[1:]) / 4)
        assert not list(cell.glob("checkpoint*"))


def test_compressed_strategies_send_less_and_a_student_is_smaller(finished: Path) -> None:
    def sent(name: str) -> dict[str, Any]:
        return read_rows(finished / "cells" / f"{name}-seed0" / "rounds.jsonl")[-1]

    dense = sent("dense")
    assert dense["downlink_payload_bytes"] == 3 * dense["dense_bytes"]
    assert sent("stc")["uplink_payload_bytes"] < dense["uplink_payload_bytes"] / 10
    student = json.loads((finished / "cells/distilled-seed0/result.json").read_text())["student"]
    assert student["parameters"] < student["teacher_parameters"]
    assert (finished / "cells/distilled-seed0/student.safetensors").is_file()


def test_a_second_run_skips_what_is_finished(finished: Path) -> None:
    before = results_of(finished)
    events: list[Event] = []
    run_study(small_study(), finished, listen=events.append)
    assert all(isinstance(event, CellDone) and event.skipped for event in events)
    assert results_of(finished) == before


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("stop_after", [1, 2, 3])
@pytest.mark.parametrize("checkpoint_seconds", [0, 1000])
def test_stopped_in_each_cell_and_resumed_equals_uninterrupted(
    finished: Path, tmp_path: Path, stop_after: int, checkpoint_seconds: float
) -> None:
    study = small_study(checkpoint_seconds=checkpoint_seconds)
    stopped: set[str] = set()

    def stop(event: Event) -> None:
        here = isinstance(event, RoundDone) and event.row["round"] == stop_after
        if here and event.cell.label not in stopped:
            stopped.add(event.cell.label)
            raise StoppedError

    for _ in STRATEGIES:
        with pytest.raises(StoppedError):
            run_study(study, tmp_path / "run", listen=stop)
    run_study(study, tmp_path / "run", listen=stop)
    assert results_of(tmp_path / "run") == results_of(finished)


@pytest.mark.slow
def test_killed_at_any_point_and_resumed_equals_uninterrupted(
    finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    file = tmp_path / "study.json"
    file.write_text(json.dumps(small_study().model_dump(mode="json")))
    program = (
        "import json, sys; from simulations.study import checked_study; "
        "from simulations.runner import run_study; "
        "run_study(checked_study(json.load(open(sys.argv[1])), 'study'), sys.argv[2])"
    )

    def recorded() -> int:
        return sum(path.stat().st_size for path in out.glob("cells/*/*.jsonl"))

    kills = 0
    while kills < 5:
        before = recorded()
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(file), str(out)],
            cwd=Path(__file__).parents[2],
            stderr=subprocess.PIPE,
        )
        # Killed once it has written more than there was: somewhere, between any two lines of code.
        wanted = before + 2500 * (1 + kills % 3)
        while process.poll() is None and recorded() < wanted:
            time.sleep(0.002)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        _, said = process.communicate()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, said.decode()
    run_study(small_study(), out)
    assert kills >= 2
    assert results_of(out) == results_of(finished)


def test_a_torn_line_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    append_rows(path, [{"round": 1}, {"round": 2}])
    with path.open("a") as file:
        file.write('{"round": 3, "accu')
    assert read_rows(path) == [{"round": 1}, {"round": 2}]
    keep_rounds(path, 1)
    assert path.read_text() == '{"round": 1}\n'


def test_a_half_written_result_is_no_result(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    torn = folder / "cells" / "stc-seed0" / "result.json"
    torn.write_text(torn.read_text()[:40])
    run_study(small_study(), folder)
    assert results_of(folder) == results_of(finished)


def test_a_folder_of_another_study_is_refused(finished: Path) -> None:
    before = results_of(finished)
    with pytest.raises(ConfigError, match=r"holds another study: rounds is 4 there and 5 here"):
        run_study(small_study(rounds=5), finished)
    assert results_of(finished) == before


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds other files \(thesis\.tex\)"):
        run_study(small_study(), tmp_path)


def test_engine_and_checkpoints_are_no_part_of_a_study(finished: Path) -> None:
    run_study(small_study(checkpoint_seconds=3, engine={"kind": "ray"}), finished)


def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    study = small_study(rounds=1)

    def intrude(_: Event) -> None:
        with pytest.raises(ConfigError, match="another run is writing"):
            run_study(study, tmp_path / "run")

    run_study(study, tmp_path / "run", listen=intrude)


def test_writing_json_that_is_not_finite_fails_before_the_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}


@pytest.mark.ray
@pytest.mark.slow
def test_one_ray_for_all_cells_gives_the_records_and_models_of_one_process(
    finished: Path, tmp_path: Path
) -> None:
    run_study(small_study(engine={"kind": "ray", "workers": 2}), tmp_path / "run")
    assert results_of(tmp_path / "run") == results_of(finished)
