"""One exported graph for all tests: exporting takes seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from simulations.explain.runtime import onnx_of
from simulations.models import build_model

IMAGE = (1, 28, 28)


@pytest.fixture(scope="session")
def lenet() -> nn.Module:
    return build_model("lenet", IMAGE, 10, seed=0).eval()


@pytest.fixture(scope="session")
def images() -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).normal(size=(64, *IMAGE)).astype(np.float32)


@pytest.fixture(scope="session")
def lenet_onnx(
    lenet: nn.Module, images: np.ndarray[Any, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("graphs") / "lenet.onnx"
    path.write_bytes(onnx_of(lenet, torch.from_numpy(images)))
    return path


@pytest.fixture(scope="session")
def quantized(
    lenet_onnx: Path, images: np.ndarray[Any, Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Return a function that quantizes the graph as onnxruntime's tools do: `qdq`, `dynamic`."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_dynamic,
        quantize_static,
    )

    folder = tmp_path_factory.mktemp("quantized")

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._left = iter([{"input": images}])

        def get_next(self) -> dict[str, Any] | None:
            return next(self._left, None)

    def quantize(how: str) -> Path:
        path = folder / f"{how}.onnx"
        if path.exists():
            return path
        if how == "dynamic":
            quantize_dynamic(
                lenet_onnx,
                path,
                weight_type=QuantType.QInt8,
                op_types_to_quantize=["Gemm", "MatMul"],
            )
        else:
            quantize_static(
                lenet_onnx,
                path,
                Reader(),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
            )
        return path

    return quantize
