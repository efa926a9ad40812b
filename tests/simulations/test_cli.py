"""The command line: what it prints, and that every mistake ends with one line and a status."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from typer.testing import CliRunner

from fedcompress import __version__
from simulations.cli import app, main

STUDY = """
seeds = [0, 1]
rounds = 2
[partition]
clients = 4
[model]
hidden = [8]
[engine]
kind = "local"
[[strategies]]
label = "dense"
[[strategies]]
label = "signs [EF]"
uplink = "error_feedback(sign() | entropy())"
"""


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    file = tmp_path / "mine.toml"
    file.write_text(STUDY)
    return file


def ended(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object
) -> tuple[int, str, str]:
    """Run the command in this process; give its status, output and errors."""
    monkeypatch.setattr(sys, "argv", ["fedcompress", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    captured = capsys.readouterr()
    return int(stopped.value.code or 0), captured.out, captured.err


def test_run_report_and_run_again(
    study_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    status, said, errors = ended(capsys, monkeypatch, "run", study_file, "--out", out)
    assert (status, errors) == (0, "")
    assert "signs [EF]" in said
    assert str(out / "report.html") in said
    assert (out / "report.html").is_file()
    assert len(list(out.glob("cells/*/result.json"))) == 4
    status, said, _ = ended(capsys, monkeypatch, "run", study_file, "--out", out, "--resume")
    assert status == 0
    assert said.count("finished before") == 4
    status, said, _ = ended(capsys, monkeypatch, "report", out)
    assert status == 0
    assert "dense" in said
    status, said, _ = ended(capsys, monkeypatch, "run", study_file, "--out", out, "--quiet")
    assert "finished before" not in said


MISTAKES: list[tuple[list[str], str]] = [
    (["--set", "trainin.rate=1"], "unknown key 'trainin'; did you mean 'training'?"),
    (["--set", "federation.fraction=5"], "got 5; did you mean 0.05?"),
    (["--set", "strategies.dense.uplink=topk(0.1)"], "did you mean 'top_k'?"),
    (["--set", "data.name=mnist", "--data-dir", "nowhere"], "there is no folder"),
    (["--set", "data.name=mnist"], "--data-dir"),
    (["--set", "strategies.0.server_options.eta=1"], "fedavg: there is no setting 'eta'"),
    (["--address", "127.0.0.1:1"], "no Ray cluster answers at 127.0.0.1:1"),
    (["--engine", "spark"], "'spark' is not one of 'local', 'ray'"),
    (["--workers", "none"], "engine.workers must be a number from 1 or \"auto\", got 'none'"),
    (["--resume"], "holds no run to resume"),
    (["--nonsense"], "--nonsense"),
]


@pytest.mark.parametrize(("arguments", "said"), MISTAKES)
def test_a_mistake_ends_with_one_line(
    arguments: list[str],
    said: str,
    study_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    status, output, errors = ended(
        capsys, monkeypatch, "run", study_file, "--out", tmp_path / "out", *arguments
    )
    assert status == 2
    assert said in errors
    assert errors.startswith("fedcompress: ")
    assert errors.count("\n") == 1
    assert output == ""
    assert not (tmp_path / "out" / "cells").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "no.toml"], "there is no file 'no.toml'"),
        (["run"], "STUDY"),
        (["report", "nowhere"], "nowhere"),
        (["try", "topk(1)", "x.npy"], "did you mean 'top_k'?"),
        (["try", "top_k(0.1)", "x.npy"], "there is no file 'x.npy'"),
        (["list", "nothing"], "'nothing' is not one of"),
    ],
)
def test_other_commands_end_with_one_line_too(
    arguments: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    status, _, errors = ended(capsys, monkeypatch, *arguments)
    assert status == 2
    assert said in errors
    assert errors.count("\n") == 1


def test_a_study_that_is_no_toml_is_named_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad.toml").write_text("rounds = \n")
    status, _, errors = ended(capsys, monkeypatch, "run", tmp_path / "bad.toml")
    assert status == 2
    assert "bad.toml is not valid TOML" in errors
    assert "line 1" in errors


def test_a_folder_of_another_study_is_refused(
    study_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    assert ended(capsys, monkeypatch, "run", study_file, "--out", out, "-q")[0] == 0
    change = ["--set", "training.learning_rate=0.2"]
    status, _, errors = ended(capsys, monkeypatch, "run", study_file, "--out", out, *change)
    assert status == 2
    assert "another study: training.learning_rate is 0.05 there and 0.2 here" in errors


def _no_file_above_6_kb() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))


@pytest.mark.slow
def test_a_full_disk_ends_with_one_line_and_leaves_no_result(
    study_file: Path, tmp_path: Path, root: Path
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "simulations.cli", "run", study_file, "--out", out]
    command += ["--set", "rounds=12"]
    full = subprocess.run(
        command,
        cwd=root,
        preexec_fn=_no_file_above_6_kb,
        capture_output=True,
        text=True,
        check=False,
    )
    assert full.returncode == 1
    assert full.stderr.startswith("fedcompress: disk full at ")
    assert full.stderr.count("\n") == 1
    assert not list(out.glob("cells/*/result.json"))
    again = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert (again.returncode, again.stderr) == (0, "")
    assert len(list(out.glob("cells/*/result.json"))) == 4


def test_try_measures_bytes_error_and_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    update = {"w": rng.normal(size=(50, 40)).astype("f4"), "b": np.zeros(3, "f4")}
    safetensors.numpy.save_file(update, tmp_path / "update.safetensors")
    np.save(tmp_path / "update.npy", update["w"])
    status, said, _ = ended(
        capsys, monkeypatch, "try", "quantize(4)", tmp_path / "update.safetensors", "--json"
    )
    facts = json.loads(said)
    assert status == 0
    assert facts["parameters"] == 2003
    assert facts["dense_bytes"] == 8012
    assert facts["payload_bytes"] == sum(facts["bytes_by_stream"].values())
    assert facts["ratio"] == pytest.approx(8012 / facts["payload_bytes"])
    assert 0 < facts["nmse"] < 0.2
    assert facts["encode_ms"] > 0
    status, said, _ = ended(capsys, monkeypatch, "try", "raw()", tmp_path / "update.npy")
    assert status == 0
    assert "bits per parameter" in said


def test_try_refuses_what_is_no_update(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.npy", "a.safetensors", "a.pt"):
        (tmp_path / name).write_bytes(b"\x80\x04nonsense")
        status, _, errors = ended(capsys, monkeypatch, "try", "raw()", tmp_path / name)
        assert status == 2
        assert name in errors
        assert errors.count("\n") == 1
    np.save(tmp_path / "nan.npy", np.array([1, np.nan], "f4"))
    status, _, errors = ended(capsys, monkeypatch, "try", "quantize(4)", tmp_path / "nan.npy")
    assert status == 1
    assert "NaN" in errors


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("stages", "top_k(fraction)"),
        ("coders", "entropy()"),
        ("methods", "fedpaq"),
        ("models", "lenet"),
        ("data", "digits"),
        ("studies", "quickstart"),
    ],
)
def test_list_names_and_says_what_it_is(what: str, expected: str) -> None:
    result = CliRunner().invoke(app, ["list", what])
    assert result.exit_code == 0
    assert expected in result.output


def test_version() -> None:
    assert CliRunner().invoke(app, ["--version"]).output.strip() == f"fedcompress {__version__}"


def test_init_writes_a_study_that_loads_and_an_app_that_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from simulations.study import load_study

    status, said, _ = ended(capsys, monkeypatch, "init", tmp_path / "new")
    assert status == 0
    assert str(tmp_path / "new" / "study.toml") in said
    assert len(load_study(tmp_path / "new" / "study.toml").strategies) == 3
    status, _, errors = ended(capsys, monkeypatch, "init", tmp_path / "new")
    assert status == 2
    assert "exists already" in errors
    _run_the_app(tmp_path / "new" / "app", monkeypatch)


def _run_the_app(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tomllib

    from flwr.app import Context, RecordDict

    from simulations.engines import LocalGrid

    settings = tomllib.loads((folder / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    monkeypatch.syspath_prepend(str(folder))
    module, _, name = settings["components"]["serverapp"].partition(":")
    server_app = getattr(__import__(module, fromlist=[name]), name)
    run_config = settings["config"]
    with LocalGrid(settings["components"]["clientapp"], 2, run_config=run_config) as grid:
        states = len(grid.client_states())
        server_app(grid, Context(1, 1, {}, RecordDict(), run_config))
        assert len(grid.client_states()) == 2 > states


@pytest.mark.slow
def test_help_answers_at_once(root: Path) -> None:
    started = time.perf_counter()
    environment = {**os.environ, "COLUMNS": "100"}
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "simulations.cli", "--help"],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Compressed federated learning" in done.stdout
    for heavy in ("torch", "flwr", "ray", "pandas", "matplotlib"):
        assert f" {heavy}\n" not in done.stderr, f"--help imports {heavy}"
    assert time.perf_counter() - started < 20
