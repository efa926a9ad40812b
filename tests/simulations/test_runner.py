"""Runs: what they leave behind, killed ones that go on, and folders that are not theirs."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from fedcompress.errors import ConfigError, FedcompressError
from simulations.engines import RayGrid
from simulations.events import CellDone, Event, RoundDone
from simulations.readiness import check_device
from simulations.records import append_rows, keep_rounds, read_rows, without_seconds, write_json
from simulations.runner import open_grid, run_study
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


def rewrite(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(file.read_text())
    change(values)
    write_json(file, values)


def test_a_run_of_a_version_that_trained_otherwise_is_not_gone_on_with(
    finished: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    rewrite(folder / "study.json", lambda about: about["study"]["training"].pop("path"))
    run_study(small_study(), folder)  # nothing is left to train
    (folder / "cells" / "stc-seed0" / "result.json").unlink()
    with pytest.raises(ConfigError, match=r"an earlier version \(commit .*before there was train"):
        run_study(small_study(), folder)
    assert not (folder / "cells" / "stc-seed0" / "result.json").exists()


def test_settings_that_came_later_are_those_of_before(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    rewrite(
        folder / "study.json", lambda about: about["study"]["partition"].pop("samples_per_client")
    )
    (folder / "cells" / "stc-seed0" / "result.json").unlink()
    run_study(small_study(), folder)
    assert results_of(folder) == results_of(finished)
    other = {"clients": 6, "min_samples": 5, "samples_per_client": 9}
    with pytest.raises(ConfigError, match=r"partition.samples_per_client is 50 there and 9 here"):
        run_study(small_study(partition=other), folder)


def test_a_resumed_run_trains_by_the_program_it_began_with(tmp_path: Path) -> None:
    study = small_study(strategies=STRATEGIES[:1])

    def stop(event: Event) -> None:
        if isinstance(event, RoundDone) and event.row["round"] == 2:
            raise KeyboardInterrupt

    for program in ("eager", "compiled"):
        folder = tmp_path / program
        with pytest.raises(KeyboardInterrupt):
            run_study(study, folder, listen=stop)
        # As if another machine, or another version, had decided.
        rewrite(folder / "training_path.json", partial(dict.update, path=program))
        run_study(study, folder)
        result = json.loads((folder / "cells" / "dense-seed0" / "result.json").read_text())
        assert result["training_path"] == program
    resnet = small_study(strategies=STRATEGIES[:1], model={"name": "resnet", "width": 0.25})
    with pytest.raises(KeyboardInterrupt):
        run_study(resnet, tmp_path / "resnet", listen=stop)
    rewrite(tmp_path / "resnet" / "training_path.json", partial(dict.update, path="compiled"))
    with pytest.raises(ConfigError, match="has trained by the program 'compiled', which cannot"):
        run_study(resnet, tmp_path / "resnet")


def test_what_an_engine_may_be_told_reaches_it(tmp_path: Path) -> None:
    engine = {"kind": "ray", "workers": 1, "state_bytes": 0, "client_timeout_seconds": 30.0}
    settings = small_study(engine=engine).engine
    with open_grid(settings, 4, small_study().cells()[0].to_run_config()) as grid:
        assert isinstance(grid, RayGrid)
        assert (grid._client_timeout, grid._states._limit) == (30.0, 0)
    with pytest.raises(ConfigError, match="state_bytes"):
        small_study(engine={"state_bytes": -1})
    with pytest.raises(ConfigError, match="client_timeout_seconds"):
        small_study(engine={"client_timeout_seconds": 0})


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds other files \(thesis\.tex\)"):
        run_study(small_study(), tmp_path)


def test_engine_and_checkpoints_are_no_part_of_a_study(finished: Path) -> None:
    run_study(small_study(checkpoint_seconds=3, engine={"kind": "ray"}), finished)


def test_what_cannot_run_here_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large, small = {"hidden": [400]}, {"hidden": [4]}
    faults: list[tuple[dict[str, Any], str]] = [
        ({"device": "cuda"}, r"device: 'cuda' is not available here"),
        ({"device": "mps"}, r"device: 'mps' is not available here; use device = 'cpu'"),
        ({"data": {"data_dir": "/no/such"}}, r"data\.data_dir: there is no folder '/no/such'"),
        ({"partition": {"clients": 3000}}, "clients"),
        ({"model": {"name": "lstm"}}, "model: lstm takes windows of characters"),
        (
            {"strategies": [{"student": small}, {"label": "b", "student": large}]},
            r"strategies\.b\.student: it has \d+ parameters, the global model \d+; choose a ",
        ),
        (
            {"strategies": [{"label": "b", "student": {"name": "lstm"}}]},
            r"strategies\.b\.student: model: lstm takes windows",
        ),
    ]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for changes, said in faults:
        with pytest.raises(ConfigError, match=said):
            run_study(small_study(**changes), tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_a_cuda_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for device in ("cpu", "cuda", "cuda:1"):
        check_device(device)
    with pytest.raises(
        ConfigError, match="there is no 'cuda:2'; this machine has cuda:0 to cuda:1"
    ):
        check_device("cuda:2")


def failing_study(**changes: Any) -> Study:
    """All updates of its clients are infinite."""
    chosen = {"training": {"learning_rate": 1e38}, "strategies": [STRATEGIES[0]], "seeds": [3]}
    return small_study(**chosen | changes)


def test_a_cell_without_a_usable_update_has_no_result(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(FedcompressError) as caught:
        run_study(failing_study(), tmp_path)
    assert "strategy 'dense', seed 3: no round had a usable update" in str(caught.value)
    assert "first reason: update of" in str(caught.value)
    cell = tmp_path / "cells" / "dense-seed3"
    assert not (cell / "result.json").exists()
    assert not list(cell.glob("checkpoint*"))
    for number in range(1, 5):
        round_lines = (r.getMessage() for r in caplog.records)
        lines = [line for line in round_lines if line.startswith(f"round {number}: ")]
        assert sum("3 of 3 clients: update of" in line for line in lines) == 1
        assert not [line for line in lines if "node" in line]


def test_clients_that_raise_are_one_line_for_each_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr("simulations.exchanges.whole.train_locally", fail)
    study = small_study(strategies=STRATEGIES[1:2], rounds=1)
    with pytest.raises(FedcompressError, match="first reason: RuntimeError: no memory"):
        run_study(study, tmp_path)
    said = [r.getMessage() for r in caplog.records if "no memory" in r.getMessage()]
    assert sum("Traceback" in line for line in said) == 1
    assert said[-1] == "round 1: 3 of 3 clients: RuntimeError: no memory"
    assert len(said) == 2
    with caplog.at_level("DEBUG"), pytest.raises(FedcompressError):
        run_study(study, tmp_path)
    assert any("Traceback" in r.getMessage() and r.levelname == "DEBUG" for r in caplog.records)


def test_a_study_without_a_usable_round_may_be_corrected(tmp_path: Path) -> None:
    with pytest.raises(FedcompressError):
        run_study(failing_study(), tmp_path)
    run_study(failing_study(training={}, seeds=[4], rounds=1), tmp_path)
    assert [cell.name for cell in (tmp_path / "cells").iterdir()] == ["dense-seed4"]
    about = json.loads((tmp_path / "study.json").read_text())
    assert about["study"]["rounds"] == 1
    with pytest.raises(ConfigError, match="holds another study"):
        run_study(failing_study(), tmp_path)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: None, "rounds.jsonl is missing"),
        (lambda text: text.replace('"round"', "round", 1), "rounds.jsonl cannot be read"),
        (lambda text: text[: text.index("\n") + 1], "rounds.jsonl holds 1 of 5 rounds"),
    ],
)
def test_a_finished_cell_without_its_records_is_said_to_be_damaged(
    finished: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[str], str | None],
    said: str,
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    rounds = folder / "cells" / "stc-seed0" / "rounds.jsonl"
    left = damage(rounds.read_text())
    rounds.unlink()
    if left is not None:
        rounds.write_text(left)
    run_study(small_study(), folder)
    (line,) = [r.getMessage() for r in caplog.records if "damaged" in r.getMessage()]
    assert line == (f"{rounds.parent} is finished but damaged: {line.partition('damaged: ')[2]}")
    assert said in line
    assert line.endswith("; remove that folder and run again")
    shutil.rmtree(rounds.parent)
    run_study(small_study(), folder)
    assert results_of(folder) == results_of(finished)


def test_proxy_data_may_be_another_data_set(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8)
    for split in ("train", "test"):
        columns = {"image": [Image.fromarray(x) for x in pixels], "label": [0, 1] * 10}
        kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
        table = datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))
        (tmp_path / "noise").mkdir(exist_ok=True)
        table.to_parquet(tmp_path / "noise" / f"{split}.parquet")
    run = tmp_path / "run"
    chosen = {"rounds": 1, "strategies": STRATEGIES[3:]}
    proxy = {"data": str(tmp_path / "noise"), "samples": 12}
    run_study(small_study(proxy=proxy, **chosen), run)
    rows = read_rows(run / "cells" / "distilled-seed0" / "rounds.jsonl")
    assert rows[-1]["clients_aggregated"] == 3
    assert (run / "cells" / "distilled-seed0" / "student.safetensors").is_file()
    nowhere = {"data": str(tmp_path / "no"), "samples": 12}
    with pytest.raises(ConfigError, match="there is no folder"):
        run_study(small_study(proxy=nowhere, **chosen), tmp_path / "other")
    assert not (tmp_path / "other").exists()


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
