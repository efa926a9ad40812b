"""ONNX: float32, int8 that runs on integer kernels, and weights of four bits."""

import logging
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from fedcompress.errors import FedcompressError
from simulations.export.onnx_graph import relu_before_pool, store_levels, strip
from simulations.records import write_whole

INPUT, OUTPUT = "input", "logits"
INTEGER_KERNELS = (
    "ConvInteger",
    "DynamicQuantizeLSTM",
    "DynamicQuantizeMatMul",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "QGemm",
    "QLinearConv",
    "QLinearMatMul",
)
_FLOAT_KERNELS = ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "LSTM")
_WITHOUT_RANGES = ("LSTM", "Softmax")  # static quantization leaves these slow, or in floats
_CALIBRATION_BATCH = 64
_OPSET_OF_FOUR_BITS = 21


def write_onnx(
    model: nn.Module, example: Tensor, path: Path, *, quantize: str | None, calibration: Tensor
) -> int:
    """Write a model as ONNX, for any batch size.

    Parameters
    ----------
    model : nn.Module
        The model, its weights rounded already where they are stored in four bits.
    example : Tensor
        Two or more inputs.
    path : Path
        The file, written whole or not at all.
    quantize : {"int8", "int4", "codebook"} or None
        ``int8`` computes in integers; the others store weights in four bits and compute in
        float32.
    calibration : Tensor
        Inputs that measure the ranges of activations for int8.

    Returns
    -------
    int
        Bytes of the file.

    Raises
    ------
    FedcompressError
        If int8 would leave a weight in floats.
    """
    four_bits = quantize in ("int4", "codebook")
    proto = _exported(model, example, _OPSET_OF_FOUR_BITS if four_bits else None)
    if quantize == "int8":
        proto = _integers(proto, calibration)
    elif four_bits:
        store_levels(proto)
    content = proto.SerializeToString()
    write_whole(path, content)
    return len(content)


def _exported(model: nn.Module, example: Tensor, opset: int | None) -> Any:  # noqa: ANN401
    batch = torch.export.Dim("batch", min=1)
    with _quiet():
        program = torch.onnx.export(
            model.eval(),
            (example,),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: batch},),
            external_data=False,
            opset_version=opset,
            verbose=False,
        )
    if program is None:
        raise FedcompressError("export: torch gave no ONNX program; another version of torch may")
    proto = program.model_proto
    strip(proto)
    relu_before_pool(proto.graph)
    return proto


def _integers(proto: Any, calibration: Tensor) -> Any:  # noqa: ANN401
    """Quantize: by measured ranges where kernels take them, else as each batch comes."""
    import onnx
    from onnxruntime.quantization import (
        QuantFormat,
        QuantType,
        quantize_dynamic,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder, _quiet():
        source, inferred, made = (Path(folder) / name for name in ("a", "b", "c"))
        onnx.save(proto, source)
        quant_pre_process(str(source), str(inferred), skip_symbolic_shape=True)
        if any(node.op_type in _WITHOUT_RANGES for node in proto.graph.node):
            quantize_dynamic(str(inferred), str(made), weight_type=QuantType.QInt8)
        else:
            quantize_static(
                str(inferred),
                str(made),
                _reader(calibration),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
            )
        quantized = onnx.load(made)
        strip(quantized)
        onnx.save(quantized, made)
        kernels, in_floats = kernels_of(made)
    if in_floats or not set(kernels) & set(INTEGER_KERNELS):
        raise FedcompressError(
            f"export: int8 would leave {', '.join(in_floats) or 'every layer'} in floats; "
            "export this model without --quantize int8"
        )
    return quantized


def _reader(calibration: Tensor) -> Any:  # noqa: ANN401
    from onnxruntime.quantization import CalibrationDataReader

    @final
    class _Reader(CalibrationDataReader):  # type: ignore[misc]
        """Hands out the calibration rows, batch by batch."""

        def __init__(self) -> None:
            self._batches = iter(torch.split(calibration, _CALIBRATION_BATCH))

        def get_next(self) -> dict[str, np.ndarray] | None:
            """Give the next batch, None at the end."""
            batch = next(self._batches, None)
            return None if batch is None else {INPUT: batch.numpy()}

    return _Reader()


def kernels_of(path: Path) -> tuple[dict[str, int], list[str]]:
    """Tell which kernels onnxruntime runs a file with, after its own optimisation.

    Returns
    -------
    kernels : dict of str to int
        How often each kernel stands in the optimised graph.
    in_floats : list of str
        Kernels that multiply by a weight in floats.
    """
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        graph = onnx.load(options.optimized_model_filepath).graph
    weights = {
        array.name
        for array in graph.initializer
        if array.data_type == onnx.TensorProto.FLOAT and len(array.dims) >= 2
    }
    in_floats = {
        node.op_type
        for node in graph.node
        if node.op_type in _FLOAT_KERNELS and weights & set(node.input)
    }
    return dict(Counter(node.op_type for node in graph.node)), sorted(in_floats)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the exporters say of their own insides off the terminal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)
