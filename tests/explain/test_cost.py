"""Multiply-adds and weights are those that a person counts, of modules and of graphs alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from simulations.explain.cost import multiply_adds
from simulations.explain.onnx_graph import GraphFacts
from simulations.explain.runtime import Graph, onnx_of
from simulations.export.levels import round_weights
from simulations.export.onnx_file import write_onnx
from simulations.models import build_model, model_arrays

LENET = 16 * 25 * 28 * 28 + 32 * 16 * 25 * 14 * 14 + 32 * 7 * 7 * 64 + 64 * 10
RESNET = (
    16 * 9 * 28 * 28
    + 2 * 16 * 16 * 9 * 28 * 28
    + (32 * 16 * 9 + 32 * 32 * 9 + 32 * 16) * 14 * 14
    + (64 * 32 * 9 + 64 * 64 * 9 + 64 * 32) * 7 * 7
    + 64 * 10
)
LSTM = 80 * 4 * 128 * (8 + 128) + 128 * 90
CONV4 = (
    64 * 9 * 28 * 28 + 128 * 64 * 9 * 14 * 14 + 256 * 128 * 9 * 7 * 7 + 512 * 256 * 9 * 3 * 3 + 5120
)
# Four heads of 16 over 80 places; of the second block the last place alone.
TRANSFORMER = (
    (4 * 64 * 64 + 2 * 4 * 80 * 16 + 2 * 64 * 256) * 80
    + (2 * 80 + 2) * 64 * 64
    + 2 * 4 * 80 * 16
    + 2 * 64 * 256
    + 64 * 90
)
BY_HAND = [
    ("mlp", (1, 28, 28), 10, (200, 200), 784 * 200 + 200 * 200 + 200 * 10),
    ("lenet", (1, 28, 28), 10, (), LENET),
    ("resnet", (1, 28, 28), 10, (), RESNET),
    ("conv4", (1, 28, 28), 10, (), CONV4),
    ("lstm", (80,), 90, (128,), LSTM),
    ("transformer", (80,), 90, (64, 64), TRANSFORMER),
]


def row_of(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.zeros(1, *shape, dtype=torch.int64 if len(shape) == 1 else torch.float32)


@pytest.mark.parametrize(("name", "shape", "classes", "hidden", "expected"), BY_HAND)
def test_multiply_adds_are_those_counted_by_hand(
    name: str, shape: tuple[int, ...], classes: int, hidden: tuple[int, ...], expected: int
) -> None:
    model = build_model(name, shape, classes, seed=0, hidden=hidden).eval()
    assert multiply_adds(model, row_of(shape)) == expected


def test_attention_counts_its_products() -> None:
    class Attention(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.scaled_dot_product_attention(x, x, x)

    heads, window, size = 2, 5, 8
    counted = multiply_adds(Attention(), torch.randn(1, heads, window, size))
    assert counted == 2 * heads * window * window * size


def test_a_graph_costs_and_holds_what_its_module_does(
    lenet: nn.Module, lenet_onnx: Path, images: np.ndarray[Any, Any]
) -> None:
    facts = GraphFacts(lenet_onnx.read_bytes(), images[:1])
    assert facts.multiply_adds() == LENET
    held, own = facts.weights(), model_arrays(lenet)
    assert held.keys() == own.keys()
    for name, values in own.items():
        np.testing.assert_array_equal(held[name], values)


@pytest.mark.parametrize("how", ["qdq", "dynamic"])
def test_integers_are_read_as_the_numbers_they_stand_for(
    how: str,
    quantized: Callable[[str], Path],
    lenet: nn.Module,
    images: np.ndarray[Any, Any],
) -> None:
    facts = GraphFacts(quantized(how).read_bytes(), images[:1])
    assert facts.multiply_adds() == LENET
    held, own = facts.weights(), model_arrays(lenet)
    assert sum(x.size for x in held.values()) == sum(x.size for x in own.values())
    for name, values in own.items():
        np.testing.assert_allclose(held[name], values, atol=np.abs(values).max() / 127)
    assert not np.array_equal(held["dense.weight"], own["dense.weight"])


@pytest.mark.parametrize("kind", ["int4", "codebook"])
def test_weights_of_four_bits_are_read(
    kind: str, lenet: nn.Module, images: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    small = round_weights(lenet, kind)
    rows = torch.from_numpy(images)
    write_onnx(small, rows, tmp_path / "small.onnx", quantize=kind, calibration=rows)
    facts = GraphFacts((tmp_path / "small.onnx").read_bytes(), images[:1])
    held, own = facts.weights(), model_arrays(small)
    assert held.keys() == own.keys()
    for name, values in own.items():
        np.testing.assert_allclose(held[name], values, atol=1e-6)
    assert facts.multiply_adds() == LENET


def test_integer_kernels_are_named(quantized: Callable[[str], Path], lenet_onnx: Path) -> None:
    assert "QLinearConv" in Graph(quantized("qdq").read_bytes()).kernels
    assert not any("QLinear" in name for name in Graph(lenet_onnx.read_bytes()).kernels)


@pytest.mark.slow
def test_a_recurrent_graph_costs_what_its_module_does(tmp_path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = build_model("lstm", (80,), 90, seed=0, hidden=(128,)).eval()
    content = onnx_of(model, torch.zeros(4, 80, dtype=torch.int64))
    (tmp_path / "lstm.onnx").write_bytes(content)
    row = np.zeros((1, 80), np.int64)
    assert GraphFacts(content, row).multiply_adds() == LSTM
    quantize_dynamic(tmp_path / "lstm.onnx", tmp_path / "int8.onnx", weight_type=QuantType.QInt8)
    facts = GraphFacts((tmp_path / "int8.onnx").read_bytes(), row)
    assert facts.multiply_adds() == LSTM
    held = sum(x.size for x in facts.weights().values())
    # Each layer of ONNX has a second bias, which PyTorch has as well.
    assert held == sum(p.numel() for p in model.parameters())
