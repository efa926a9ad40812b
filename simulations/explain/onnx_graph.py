"""What an ONNX file holds and computes: weights, also of few bits, and multiply-adds."""

import math
from collections.abc import Mapping
from typing import Any, final

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Shape = tuple[int, ...]

# onnx has no types of its own for what protobuf makes.
Model = Any
Node = Any

# Where the filters of a convolution stand among its inputs.
_CONVOLUTIONS = {"Conv": 1, "FusedConv": 1, "ConvInteger": 1, "QLinearConv": 3}
_PRODUCTS = {
    "Gemm",
    "FusedGemm",
    "QGemm",
    "MatMul",
    "FusedMatMul",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "QLinearMatMul",
    "DynamicQuantizeMatMul",
}
_RECURRENT = {"LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"}
_SCALE_PARTS = ("_scale", "_zero_point")


@final
class GraphFacts:
    """Weights and cost of a graph, found by running it on one row.

    Every intermediate result is asked for, so that shapes are those that the graph has when it
    runs, and weights are those that it computes with, however they are stored.

    Parameters
    ----------
    content : bytes
        The file.
    row : ndarray
        A batch of one row.
    """

    def __init__(self, content: bytes, row: Array) -> None:
        import onnx

        self._model = onnx.load_from_string(content)
        self._stored = {each.name: each for each in self._model.graph.initializer}
        self._values = _run_whole(self._model, row)
        self._input_shape = row.shape

    def weights(self) -> dict[str, Array]:
        """Give the weights by name, those of few bits as the numbers that they stand for.

        A weight is what a product or another step takes that the input has a part in. Where
        onnxruntime's tools made ``x_quantized`` of ``x``, with its scale and zero point, or turned
        a matrix, it is given as it was, as ``x``. Single numbers are none.

        Returns
        -------
        dict of str to ndarray
            float32.
        """
        fixed = self._fixed()
        found: dict[str, Array] = {}
        for node in self._model.graph.node:
            if set(node.output) & fixed:
                continue
            for place, name in enumerate(node.input):
                if name in fixed and not self._is_scale(name):
                    values = self._as_floats(name, node.op_type, place)
                    if values is not None and values.ndim > 0:
                        found |= _named(name, values)
        return found

    def multiply_adds(self) -> int:
        """Count multiplications of one weight or activation by another for one row.

        As `simulations.explain.cost.multiply_adds` counts those of a model of PyTorch.
        """
        return sum(self._of_node(node) for node in self._model.graph.node)

    def _fixed(self) -> set[str]:
        """Names of what does not depend on the input: stored arrays, and what is made of them."""
        fixed = set(self._stored)
        for node in self._model.graph.node:
            if set(filter(None, node.input)) <= fixed:
                fixed |= set(node.output)
        return fixed

    def _is_scale(self, name: str) -> bool:
        return any(
            name.endswith(part) and f"{name.removesuffix(part)}_quantized" in self._stored
            for part in _SCALE_PARTS
        )

    def _as_floats(self, name: str, operation: str, place: int) -> Array | None:
        values = self._value(name)
        if values.dtype.kind == "f":
            return values.astype(np.float32)
        scale_name, zero_name = (f"{name.removesuffix('_quantized')}{p}" for p in _SCALE_PARTS)
        if values.dtype.kind not in "iu" or scale_name not in self._stored:
            return None  # a shape
        scale, zero = self._value(scale_name), np.zeros(1, np.int32)
        if zero_name in self._stored:
            zero = self._value(zero_name).astype(np.int32)
        along = 0 if operation in _CONVOLUTIONS else -1
        if operation in _RECURRENT:
            scale, zero = (x if x.ndim < 2 else x[:, None, :] for x in (scale, zero))
        else:
            scale, zero = (_along(x, values.ndim, along) for x in (scale, zero))
        return np.asarray((values.astype(np.int32) - zero) * scale, dtype=np.float32)

    def _value(self, name: str) -> Array:
        from onnx import numpy_helper

        stored = self._stored.get(name)
        return self._values[name] if stored is None else numpy_helper.to_array(stored)

    def _shape(self, name: str) -> Shape:
        stored = self._stored.get(name)
        if stored is not None:
            return tuple(stored.dims)
        return tuple(self._values[name].shape) if name in self._values else self._input_shape

    def _of_node(self, node: Node) -> int:
        if node.op_type in _CONVOLUTIONS:
            filters = self._shape(node.input[_CONVOLUTIONS[node.op_type]])
            return math.prod(self._shape(node.output[0])) * math.prod(filters[1:])
        if node.op_type in _PRODUCTS:
            transposed = any(each.name == "transA" and each.i for each in node.attribute)
            inner = self._shape(node.input[0])[-2 if transposed else -1]
            return math.prod(self._shape(node.output[0])) * inner
        if node.op_type in _RECURRENT:
            steps, rows, _ = self._shape(node.input[0])
            return steps * rows * sum(math.prod(self._shape(name)) for name in node.input[1:3])
        return 0


def _named(name: str, values: Array) -> dict[str, Array]:
    stem = name.removesuffix("_DequantizeLinear_Output").removesuffix("_quantized")
    turned = stem.endswith("_Transposed")
    return {stem.removesuffix("_Transposed"): values.T if turned else values}


def _along(scale: Array, dimensions: int, axis: int) -> Array:
    """Shape one scale, or one for each slice along an axis, so that it meets the array."""
    if scale.size == 1:
        return scale.reshape(())
    shape = [1] * dimensions
    shape[axis] = scale.size
    return scale.reshape(shape)


def _run_whole(model: Model, row: Array) -> Mapping[str, Array]:
    """Run a copy of the graph, as it is written, that gives every intermediate result."""
    import onnx
    import onnxruntime as ort

    told = onnx.ModelProto()
    told.CopyFrom(model)
    known = {each.name for each in told.graph.output}
    names = [name for node in told.graph.node for name in node.output if name]
    told.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(
        told.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    outputs = [each.name for each in session.get_outputs()]
    results = session.run(outputs, {session.get_inputs()[0].name: row})
    return {name: np.asarray(each) for name, each in zip(outputs, results, strict=True)}
