"""Weights of four bits in an ONNX graph are the very numbers that were rounded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

import onnxruntime
from onnx import TensorProto, helper, numpy_helper, save

from simulations.export.onnx_graph import store_levels


def matrix_model(weight: np.ndarray) -> object:
    """A graph that multiplies by a weight."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", weight.shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", weight.shape[1]])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def answer(model: object, path: Path, x: np.ndarray) -> np.ndarray:
    save(model, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


@pytest.mark.parametrize("kind", ["rows", "columns", "table", "floats"])
@pytest.mark.parametrize("shape", [(33, 17), (64, 32)])
def test_what_is_stored_is_what_was_there(
    kind: str, shape: tuple[int, int], tmp_path: Path
) -> None:
    draw = np.random.default_rng(0)
    levels = draw.integers(-7, 8, shape)
    levels[0], levels[:, 0] = 7, -7
    weight = {
        "rows": levels * draw.uniform(0.5, 2, (shape[0], 1)),
        "columns": levels * draw.uniform(0.5, 2, (1, shape[1])),
        "table": draw.standard_normal(16)[draw.integers(0, 16, shape)],
        "floats": draw.standard_normal(shape),
    }[kind].astype(np.float32)
    x = draw.standard_normal((5, shape[0])).astype(np.float32)
    model = matrix_model(weight)
    wanted = answer(model, tmp_path / "a.onnx", x)
    assert store_levels(model) == (kind != "floats")
    found = answer(model, tmp_path / "b.onnx", x)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    if kind != "floats":
        bytes_each = (tmp_path / "b.onnx").stat().st_size - 500
        assert bytes_each < weight.size * 0.5 + 4 * sum(shape)
