"""`fedcompress explain` on a run with exported files: measured, on the page, faults in one line."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from simulations.cell import Cell
from simulations.cli import main
from simulations.explain.explained import Explanation
from simulations.explain.runtime import onnx_of
from simulations.materials import materials_of
from simulations.models import load_arrays
from simulations.report.write import write_report
from simulations.runner import run_study
from simulations.study import load_study

STUDY = """
name = "explained"
seeds = [3]
rounds = 3
[partition]
kind = "iid"
clients = 4
[model]
hidden = [24]
[proxy]
samples = 100
[engine]
kind = "local"
[[strategies]]
label = "dense"
student = { hidden = [6], steps = 60 }
"""
CELL = "dense-seed3"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose cell has a student and some exports, of which one is cut short."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    folder = tmp_path_factory.mktemp("explained")
    (folder / "study.toml").write_text(STUDY)
    run_study(load_study(str(folder / "study.toml")), folder / "out")
    path = folder / "out/cells" / CELL
    exports = path / "exports"
    exports.mkdir()
    cell = Cell.checked(json.loads((path / "cell.json").read_text()), "cell")
    materials = materials_of(cell)
    model = materials.new_model(cell.model, cell.seed).eval()
    arrays = safetensors.torch.load_file(path / "model.safetensors")
    load_arrays(model, arrays)
    rows = materials.data.inputs(materials.data.test_x[:8])
    (exports / "float.onnx").write_bytes(onnx_of(model, rows))
    quantize_dynamic(exports / "float.onnx", exports / "int8.onnx", weight_type=QuantType.QInt8)
    told = {"recipe": {"quantize": "int8"}, "model": "global", "verified": {"rows": 9}}
    (exports / "int8.onnx.json").write_text(json.dumps(told))
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (rows,), dynamic_shapes=({0: batch},))
    torch.export.save(program, exports / "global.pt2")
    pruned = {
        name: torch.where(x.abs() < x.abs().median(), 0, x) if x.ndim > 1 else x
        for name, x in arrays.items()
    }
    safetensors.torch.save_file(pruned, exports / "pruned.safetensors")
    (exports / "cut.onnx").write_bytes((exports / "float.onnx").read_bytes()[:500])
    (exports / "cut.pt2").write_bytes((exports / "global.pt2").read_bytes()[:500])
    (exports / "cut.safetensors").write_bytes((exports / "pruned.safetensors").read_bytes()[:50])
    return folder / "out"


def said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["fedcompress", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    captured = capsys.readouterr()
    return int(stopped.value.code or 0), captured.out, captured.err


@pytest.fixture(scope="module")
def explained(finished: Path) -> tuple[Path, str, dict[str, Any]]:
    """The run after `fedcompress explain`, what was printed, and what was written."""
    with pytest.MonkeyPatch.context() as patch:
        printed = finished.parent / "printed.txt"
        patch.setattr(sys, "argv", ["fedcompress", "explain", str(finished)])
        patch.setattr(sys, "stdout", printed.open("w"))
        with pytest.raises(SystemExit) as stopped:
            main()
        sys.stdout.close()
    assert stopped.value.code == 0
    told = json.loads((finished / "cells" / CELL / "explain.json").read_text())
    return finished, printed.read_text(), told


def model_of(told: dict[str, Any], name: str) -> dict[str, Any]:
    return next(each for each in told["models"] if each["name"] == name)


def test_every_file_is_measured_beside_the_dense_model(
    explained: tuple[Path, str, dict[str, Any]],
) -> None:
    folder, printed, told = explained
    names = [each["name"] for each in told["models"]]
    assert names == [
        "dense",
        "student",
        "float.onnx",
        "global.pt2",
        "int8.onnx",
        "pruned.safetensors",
    ]
    dense, same = model_of(told, "dense"), model_of(told, "float.onnx")
    assert dense["agreement"] == same["agreement"] == 1.0
    assert dense["saliency_similarity"] == pytest.approx(1)
    assert same["saliency_similarity"] == pytest.approx(1, abs=0.02)
    assert model_of(told, "global.pt2")["parameters"] == dense["parameters"] == 64 * 24 + 24 + 250
    for each in told["models"]:
        size = (folder / "cells" / CELL / each["file"]).stat().st_size
        assert each["file_bytes"] == size
        assert each["latency"].keys() == {"1", "64"}
        assert each["multiply_adds"] == (
            64 * 6 + 60 if each["name"] == "student" else 64 * 24 + 240
        )
    result = json.loads((folder / "cells" / CELL / "result.json").read_text())
    assert model_of(told, "student")["accuracy"] == pytest.approx(result["student"]["accuracy"])
    assert "int8.onnx" in printed
    assert str(folder / "report.html") in printed


def test_what_was_taken_away_is_found(explained: tuple[Path, str, dict[str, Any]]) -> None:
    told = explained[2]
    pruned = model_of(told, "pruned.safetensors")
    (layer,) = [each for each in pruned["layers"] if each["name"] == "layers.1.weight"]
    assert layer["sparsity"] == pytest.approx(0.5, abs=0.01)
    assert 0 < layer["error"] < 0.5
    int8 = model_of(told, "int8.onnx")
    assert any("Integer" in name or "DynamicQuantize" in name for name in int8["kernels"])
    errors = {each["name"]: each["error"] for each in int8["layers"]}
    assert 0 < errors["layers.1.weight"] < 1e-3
    assert int8["recipe"] == {"quantize": "int8"}
    assert int8["verified"] is True


def test_files_cut_short_are_named_and_the_others_measured(
    explained: tuple[Path, str, dict[str, Any]],
) -> None:
    _, printed, told = explained
    assert {each["file"] for each in told["problems"]} == {
        "exports/cut.onnx",
        "exports/cut.pt2",
        "exports/cut.safetensors",
    }
    for each in told["problems"]:
        assert each["file"] in printed
        assert each["reason"]


def test_latency_was_measured_in_turns(explained: tuple[Path, str, dict[str, Any]]) -> None:
    told = explained[2]
    assert told["order"] == [each["name"] for each in told["models"]]
    assert told["turns"]["1"] >= 12
    assert model_of(told, "dense")["latency"]["1"]["speedup"] == 1


def test_what_is_written_is_read_back(explained: tuple[Path, str, dict[str, Any]]) -> None:
    told = explained[2]
    assert json.loads(json.dumps(Explanation.from_json(told).to_json())) == told


def test_the_report_tells_of_it_and_has_the_same_bytes_again(
    explained: tuple[Path, str, dict[str, Any]],
) -> None:
    folder = explained[0]
    text = (folder / "report.html").read_bytes()
    for name in ("int8.onnx", "pruned.safetensors", "Which weights are gone", "cut.onnx"):
        assert name.encode() in text
    table = (folder / "tables" / "deployment.md").read_text("utf-8")
    assert "| int8.onnx |" in table
    assert "half its 95 % interval over test rows" in table
    assert "half its 95 % interval over test rows" in text.decode()
    write_report(folder)
    assert (folder / "report.html").read_bytes() == text


FAULTS = [
    (["nowhere"], "no folder nowhere"),
    (["OUT", "--cell", "dense-seed4"], "has no cell 'dense-seed4'; use one of dense-seed3"),
    (["OUT", "--rows", "0"], "--rows must be at least 1, got 0"),
]


@pytest.mark.parametrize(("arguments", "reason"), FAULTS)
def test_a_mistake_ends_with_one_line(
    arguments: list[str],
    reason: str,
    finished: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [str(finished) if word == "OUT" else word for word in arguments]
    status, _, errors = said(monkeypatch, capsys, "explain", *words)
    assert status == 2
    assert reason in errors
    assert errors.count("\n") == 1


def test_a_missing_package_is_named(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    status, _, errors = said(monkeypatch, capsys, "explain", finished)
    assert status == 2
    assert "onnxruntime is not installed; pip install 'fedcompress[export]'" in errors


def test_an_unfinished_cell_is_refused(
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(finished, tmp_path / "out")
    (tmp_path / "out/cells" / CELL / "result.json").unlink()
    status, _, errors = said(monkeypatch, capsys, "explain", tmp_path / "out")
    assert status == 2
    assert "finished; `fedcompress run … --resume`" in errors
