"""Every format: it is what was written, in a fresh process, and as small and whole as promised."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedcompress.distill import kl_divergence, predict_logits
from fedcompress.errors import ConfigError, FedcompressError
from simulations.export import Deployable, Recipe, export_model, load_safetensors
from simulations.export.export import write
from simulations.export.levels import round_weights
from simulations.export.steps import prepare
from simulations.export.verify import answer, verify

pytest.importorskip("onnxruntime")


@pytest.mark.parametrize(
    ("kind", "quantize"),
    [
        *(("safetensors", quantize) for quantize in (None, "int8", "codebook")),
        *(("torch-export", quantize) for quantize in (None, "int4")),
        *(("archive", quantize) for quantize in (None, "int4", "codebook")),
    ],
)
def test_a_fresh_process_answers_as_the_model_that_was_written(
    kind: str, quantize: str | None, deployable: Deployable, tmp_path: Path
) -> None:
    done = export_model(deployable, Recipe(quantize=quantize), kind, tmp_path / "m")
    verified = done.verified
    assert verified.max_difference < 1e-4
    assert verified.same_class == 1.0
    assert verified.alone == (kind != "archive")
    assert done.bytes == (tmp_path / "m").stat().st_size
    if quantize is not None:
        assert done.bytes < 0.42 * done.dense_bytes  # a program has a graph, too
    told = json.loads((tmp_path / "m.json").read_text())
    assert told["file"] == "m"
    assert told["kind"] == kind
    assert told["recipe"]["quantize"] == quantize
    assert told["bytes"] == done.bytes
    assert told["verified"]["rows"] == verified.rows


@pytest.mark.slow
@pytest.mark.parametrize("quantize", [None, "int4", "codebook"])
def test_onnx_answers_as_the_model_that_was_written(
    quantize: str | None, deployable: Deployable, tmp_path: Path
) -> None:
    done = export_model(deployable, Recipe(quantize=quantize), "onnx", tmp_path / "m.onnx")
    assert done.verified.max_difference < 1e-4
    assert done.verified.same_class == 1.0
    assert done.verified.alone
    most = 1.05 if quantize is None else 0.2
    assert done.bytes < most * done.dense_bytes


@pytest.mark.slow
def test_int8_runs_on_integer_kernels(deployable: Deployable, tmp_path: Path) -> None:
    done = export_model(deployable, Recipe(quantize="int8"), "onnx", tmp_path / "m.onnx")
    assert done.kernels["QLinearConv"] == 2
    assert done.kernels["QGemm"] == 2
    assert not {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul"} & done.kernels.keys()
    assert done.bytes < 0.5 * done.dense_bytes
    assert done.verified.agreement > 0.98


class PoolThenRelu(nn.Module):
    """A network whose ReLU stands behind the pooling, with many activations below zero."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3, padding=1)
        self.head = nn.Linear(16 * 16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(F.max_pool2d(self.conv(x) - 2, 2)).flatten(1))


@pytest.mark.slow
@pytest.mark.parametrize("quantize", [None, "int8"])
def test_a_relu_behind_a_pooling_is_kept(quantize: str | None, tmp_path: Path) -> None:
    from simulations.export.onnx_file import write_onnx

    torch.manual_seed(0)
    model = PoolThenRelu().eval()
    inputs = torch.randn(64, 1, 8, 8)
    file = tmp_path / "m.onnx"
    write_onnx(model, inputs[:2], file, quantize=quantize, calibration=inputs)
    made, loaded = answer(file, "onnx", inputs)
    with torch.no_grad():
        wanted = model(inputs).numpy()
    assert loaded == ""
    error = np.abs(made - wanted).max() / np.abs(wanted).max()
    assert error < (1e-5 if quantize is None else 0.05)


@pytest.mark.slow
def test_recurrent_weights_are_integers_too(tmp_path: Path) -> None:
    from simulations.export.onnx_file import kernels_of, write_onnx
    from simulations.models import build_model

    model = build_model("lstm", (12,), 40, seed=0, hidden=(32,)).eval()
    inputs = torch.randint(0, 40, (64, 12))
    file = tmp_path / "m.onnx"
    write_onnx(model, inputs[:2], file, quantize="int8", calibration=inputs)
    kernels, in_floats = kernels_of(file)
    assert kernels["DynamicQuantizeLSTM"] == 1
    assert in_floats == []
    made, _ = answer(file, "onnx", inputs)
    with torch.no_grad():
        wanted = model(inputs).numpy()
    assert np.abs(made - wanted).max() < 0.05 * np.abs(wanted).max()


def test_a_file_that_answers_otherwise_is_refused(deployable: Deployable, tmp_path: Path) -> None:
    file = tmp_path / "m.pt2"
    export_model(deployable, Recipe(), "torch-export", file)
    data = deployable.data
    inputs = data.inputs(data.test_x[:20])
    with torch.no_grad():
        logits = deployable.model(inputs)
    with pytest.raises(FedcompressError, match="does not answer as the model"):
        verify(file, "torch-export", inputs, data.test_y[:20], written=logits + 1, dense=logits)
    file.write_bytes(b"nothing")
    with pytest.raises(FedcompressError, match="could not use"):
        answer(file, "torch-export", inputs)


def test_standard_files_are_read_without_this_package(
    deployable: Deployable, tmp_path: Path
) -> None:
    """The reader of the documentation, by itself."""
    export_model(deployable, Recipe(quantize="int8"), "safetensors", tmp_path / "m")
    script = """
import sys
from safetensors.torch import load_file
stored = load_file(sys.argv[1])
w = stored["conv1.weight"] * stored["conv1.weight.scale"]
assert "fedcompress" not in sys.modules and w.shape == (32, 1, 5, 5), w.shape
"""
    command = [sys.executable, "-I", "-c", script, str(tmp_path / "m")]
    subprocess.run(command, check=True, cwd=tmp_path)


@pytest.mark.parametrize("share", [3, 8])
def test_an_archive_meets_its_budget(share: int, student: Deployable, tmp_path: Path) -> None:
    budget = write(student, student.model, Recipe(), "safetensors", tmp_path / "a") // share
    done = export_model(student, Recipe(tune=1), "archive", tmp_path / "m.fca", budget=budget)
    assert done.bytes <= budget
    assert done.verified.same_class == 1.0


def test_a_budget_that_cannot_be_met_names_the_least(student: Deployable, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the least that this model takes in this format is"):
        export_model(student, Recipe(), "archive", tmp_path / "m.fca", budget=300)
    with pytest.raises(ConfigError, match="the least that this model takes in this format is"):
        export_model(student, Recipe(), "safetensors", tmp_path / "m", budget=300)
    assert list(tmp_path.iterdir()) == []


def test_other_formats_meet_a_budget_by_rows(student: Deployable, tmp_path: Path) -> None:
    recipe = Recipe(quantize="int8")
    whole = write(student, student.model, recipe, "safetensors", tmp_path / "a")
    done = export_model(student, recipe, "safetensors", tmp_path / "b", budget=whole - 200)
    assert done.bytes <= whole - 200
    assert done.recipe == replace(recipe, rows=done.recipe.rows)
    assert done.recipe.rows > 0


def test_tuning_for_levels_is_no_worse_than_rounding(deployable: Deployable) -> None:
    inputs = deployable.data.inputs(deployable.data.test_x)
    wanted = predict_logits(deployable.model, inputs)
    lost = []
    for tune in (0, 8):
        recipe = Recipe(quantize="int4", tune=tune)
        model = round_weights(prepare(deployable, recipe, "archive"), "int4")
        lost.append(float(kl_divergence(predict_logits(model, inputs), wanted, 1.0)))
    assert lost[1] < lost[0]


@pytest.mark.parametrize("quantize", [None, "int4", "codebook"])
def test_pruned_arrays_load_into_a_model_of_any_width(
    quantize: str | None, student: Deployable, tmp_path: Path
) -> None:
    recipe = Recipe(rows=0.5, quantize=quantize)
    model = prepare(student, recipe, "safetensors")
    write(student, model, recipe, "safetensors", tmp_path / "m")
    loaded = load_safetensors(tmp_path / "m", student.model)
    inputs = student.data.inputs(student.data.test_x[:50])
    wanted = model if quantize is None else round_weights(model, quantize)
    with torch.no_grad():
        assert torch.equal(loaded(inputs), wanted(inputs))
    content = (tmp_path / "m").read_bytes()
    (tmp_path / "m").write_bytes(content[:-5])
    with pytest.raises(ConfigError, match="damaged"):
        load_safetensors(tmp_path / "m", student.model)
