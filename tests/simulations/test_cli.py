"""The command line: what it prints, and that every mistake ends with one line and a status."""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from rich.console import Console
from typer.testing import CliRunner

from fedcompress import __version__, parse
from simulations.cli import app, main
from simulations.cli.arrays import read_arrays
from simulations.cli.progress import StudyProgress
from simulations.cli.table import print_table
from simulations.events import CellStarted, RoundDone
from simulations.study import load_study

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
@pytest.mark.parametrize("checkpoint_seconds", [10, 0])
def test_a_full_disk_ends_with_one_line_and_leaves_no_result(
    checkpoint_seconds: int, study_file: Path, tmp_path: Path, root: Path
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "simulations.cli", "run", study_file, "--out", out]
    command += ["--set", "rounds=12", "--set", f"checkpoint_seconds={checkpoint_seconds}"]
    full = subprocess.run(
        command,
        cwd=root,
        preexec_fn=_no_file_above_6_kb,
        capture_output=True,
        text=True,
        check=False,
    )
    assert full.returncode == 1
    assert full.stderr.startswith("fedcompress: disk full")
    assert "remove" not in full.stderr
    assert full.stderr.count("\n") == 1
    assert not list(out.glob("cells/*/result.json"))
    again = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert (again.returncode, again.stderr) == (0, "")
    assert len(list(out.glob("cells/*/result.json"))) == 4


@pytest.mark.slow
def test_ctrl_c_ends_with_one_line_and_the_same_command_goes_on(
    study_file: Path, tmp_path: Path, root: Path
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "simulations.cli", "run", study_file, "--out", out]
    command += ["--set", "rounds=500", "--set", "checkpoint_seconds=0"]
    with subprocess.Popen(
        command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        deadline = time.monotonic() + 60
        while not list(out.glob("cells/*/checkpoint.sqlite")):
            assert running.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=60)
    assert running.returncode == 130
    assert errors == "fedcompress: stopped; the same command goes on from here\n"


def test_a_table_too_wide_loses_columns_and_then_stacks(tmp_path: Path) -> None:
    label = "error feedback, top-k 1 % and 4 bit [both ways]"
    headings = (
        "Strategy",
        "Accuracy %",
        "Change",
        "Up kB",
        "Up+down ×",
        "All traffic ×",
        "Seconds",
    )
    row = (label, "91.23 ± 0.45", "−0.12", "12.3", "100×", "66.7×", "10.0")
    shown = {}
    for width in (160, 100, 80, 40):
        console = Console(width=width, file=io.StringIO(), record=True)
        print_table([headings, row], console)
        shown[width] = console.export_text()
    assert all(label in text for text in shown.values())
    assert all("91.23 ± 0.45" in text for text in shown.values())
    assert "Not shown" not in shown[160]
    assert "Not shown in this width, but in the report: All traffic ×" in " ".join(
        shown[100].split()
    )
    assert "66.7×" not in shown[100]
    assert "100×" not in shown[80]
    assert "Not shown" not in shown[40]
    assert "  All traffic ×  66.7×\n" in shown[40]
    for width, text in shown.items():
        assert all(len(line) <= width for line in text.splitlines() if label not in line)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_progress_never_wraps_nor_jumps(width: int, study_file: Path) -> None:
    study = load_study(str(study_file), ["rounds=12"])
    cell = next(cell for cell in study.cells() if cell.label == "signs [EF]")
    console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None)
    row = {"accuracy": 0.5, "clients_sampled": 4, "uplink_payload_bytes": 4_000}
    places = set()
    with StudyProgress(study, console) as progress:
        progress(CellStarted(cell, 0))
        for number, down in ((1, 4_000), (12, 40_000_000)):
            progress(RoundDone(cell, {**row, "round": number, "downlink_payload_bytes": down}))
            paper = Console(width=width, file=io.StringIO(), record=True)
            paper.print(progress.bars.get_renderable())
            lines = paper.export_text().splitlines()
            assert len(lines) == 3
            assert f"signs [EF], seed {cell.seed}" in lines[0]
            assert "accuracy  50.0%" in lines[1]
            assert ("down" in lines[1]) == (width >= 80)
            places.add(tuple(line.index("0:00:0") for line in lines))
    assert len(places) == 1


def test_a_finished_study_keeps_its_report(
    study_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = ("run", study_file, "--out", tmp_path / "out", "--set", "seeds=[0]")
    assert "no record is newer" not in ended(capsys, monkeypatch, *run)[1]
    page = tmp_path / "out" / "report.html"
    written = page.stat().st_mtime_ns
    assert "no record is newer" in ended(capsys, monkeypatch, *run)[1]
    assert page.stat().st_mtime_ns == written
    assert "no record is newer" not in ended(capsys, monkeypatch, "report", tmp_path / "out")[1]
    assert page.stat().st_mtime_ns > written
    (rounds, *_) = (tmp_path / "out").glob("cells/*/rounds.jsonl")
    rounds.unlink()
    status, said, _ = ended(capsys, monkeypatch, "report", tmp_path / "out")
    assert status == 0
    assert "damaged: rounds.jsonl is missing; remove" in said


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
        assert "pickle" not in errors
    np.save(tmp_path / "nan.npy", np.array([1, np.nan], "f4"))
    status, _, errors = ended(capsys, monkeypatch, "try", "quantize(4)", tmp_path / "nan.npy")
    assert status == 1
    assert "array 'nan' holds NaN or infinity in 1 of 2 entries; give" in errors
    assert "learning rate" not in errors
    status, said, _ = ended(capsys, monkeypatch, "try", "raw()", tmp_path / "nan.npy", "--json")
    assert status == 0
    assert json.loads(said)["nmse"] is None
    np.save(tmp_path / "complex.npy", np.ones(3, "c8"))
    safetensors.numpy.save_file({"complex": np.ones(3, "c8")}, tmp_path / "complex.safetensors")
    for ending in ("npy", "safetensors"):
        file = tmp_path / f"complex.{ending}"
        status, _, errors = ended(capsys, monkeypatch, "try", "raw()", file)
        assert status == 2
        assert "is complex, and updates are real" in errors
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    status, _, errors = ended(capsys, monkeypatch, "try", "raw()", tmp_path / "objects.npy")
    assert status == 2
    assert "holds object" in errors
    assert "pickle" not in errors


def test_try_reads_either_byte_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for place, dtype in enumerate((">f4", "<f4")):
        np.save(tmp_path / f"{place}.npy", np.arange(6, dtype=dtype).reshape(2, 3))
    one, other = (read_arrays(tmp_path / f"{place}.npy")[str(place)] for place in (0, 1))
    assert one.equal(other)
    status, _, errors = ended(capsys, monkeypatch, "try", "raw()", tmp_path / "0.npy")
    assert (status, errors) == (0, "")


@pytest.mark.parametrize("shape", [(10**12,), (4, 10**30), (-1,), (7,)])
def test_try_believes_no_header(
    shape: tuple[int, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with (tmp_path / "huge.npy").open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.write(bytes(24))
    status, _, errors = ended(capsys, monkeypatch, "try", "raw()", tmp_path / "huge.npy")
    assert status == 2
    assert "huge.npy" in errors
    assert "save" in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("stages", "ternary(threshold=0.7)"),
        ("coders", "entropy()"),
        ("wrappers", "error_feedback(compressor, decay=1.0, clip=None)"),
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
    assert "``" not in result.output


def test_help_says_what_arguments_and_defaults_are() -> None:
    for command, said in (
        ("run", "STUDY is a study file"),
        ("run", "runs/NAME"),
        ("report", "FOLDER is the folder"),
        ("list", "WHAT is one of these"),
        ("try", "SPEC is a compressor"),
        ("try", "FILE is an update"),
        ("init", "FOLDER is where to write"),
    ):
        assert said in CliRunner().invoke(app, [command, "--help"]).output


def test_alone_the_command_shows_its_help(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    status, said, errors = ended(capsys, monkeypatch)
    assert (status, errors) == (0, "")
    assert "Compressed federated learning" in said


def test_version() -> None:
    assert CliRunner().invoke(app, ["--version"]).output.strip() == f"fedcompress {__version__}"


def test_init_writes_a_study_that_loads_and_an_app_that_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    status, said, _ = ended(capsys, monkeypatch, "init", tmp_path / "new")
    assert status == 0
    assert str(tmp_path / "new" / "study.toml") in said
    assert f"flwr run {tmp_path / 'new' / 'app'} --stream" in said
    study = load_study(tmp_path / "new" / "study.toml")
    assert len(study.strategies) == 3
    for spec in (strategy.uplink for strategy in study.strategies):
        assert spec is None or parse(spec).unbiased or "error_feedback" in spec
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
