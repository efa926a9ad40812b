"""What an ONNX file holds and computes: weights, also of integers, and multiply-adds."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx

Array = np.ndarray[Any, np.dtype[Any]]
Shape = tuple[int, ...]

# Where the weights of each operation stand among its inputs: one for the filters of a convolution
# and the left side of a product, two for the input's and the state's weights of recurrent layers.
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
# Of operations that onnx does not know: inputs that say how integers are to be read.
_SCALES = {
    "DynamicQuantizeLSTM": {8, 9, 10, 11},
    "DynamicQuantizeMatMul": {2, 3},
    "MatMulIntegerToFloat": {2, 3, 4, 5},
    "QGemm": {1, 2, 4, 5, 7, 8},
}


def weights(model: "onnx.ModelProto") -> dict[str, Array]:
    """Give the weights by name, integers as the numbers that they stand for.

    An array ``x`` that onnxruntime's tools quantized stands in the file as ``x_quantized`` with
    its scale and zero point, and is given as ``x``. Where they turned a matrix first, it is turned
    back.

    Returns
    -------
    dict of str to ndarray
        float32.
    """
    from onnx import numpy_helper

    stored = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    found = {}
    for name in _weight_names(model, stored):
        values = _as_floats(name, stored, _axis(model, name))
        if values is not None:
            stem = name.removesuffix("_quantized")
            turned = stem.endswith("_Transposed")
            found[stem.removesuffix("_Transposed")] = values.T if turned else values
    return found


def _weight_names(model: "onnx.ModelProto", stored: Mapping[str, Array]) -> list[str]:
    """Names of the arrays that are no shapes, scales, zero points or other single numbers."""
    of_integers = {
        f"{name.removesuffix('_quantized')}{part}"
        for name in stored
        if name.endswith("_quantized")
        for part in ("_scale", "_zero_point")
    }  # a scale may also be a factor of the product
    read: dict[str, list[bool]] = {name: [] for name in stored if name not in of_integers}
    for node in model.graph.node:
        scales = _scale_places(node)
        for place, name in enumerate(node.input):
            if name in read:
                read[name].append(place in scales)
    return [
        name
        for name, as_scale in read.items()
        if as_scale
        and not all(as_scale)
        and stored[name].ndim > 0
        and (stored[name].dtype.kind == "f" or name.endswith("_quantized"))
    ]


def _scale_places(node: "onnx.NodeProto") -> set[int]:
    from onnx import defs

    if node.domain not in ("", "ai.onnx"):
        return _SCALES.get(node.op_type, set())
    if not defs.has(node.op_type, node.domain):
        return set()
    inputs = defs.get_schema(node.op_type, node.domain).inputs
    return {
        place for place, each in enumerate(inputs) if each.name.endswith(("scale", "zero_point"))
    }


def _as_floats(name: str, stored: Mapping[str, Array], axis: int | None) -> Array | None:
    values = stored[name]
    if values.dtype.kind == "f":
        return values.astype(np.float32)
    stem = name.removesuffix("_quantized")
    for prefix in (name, stem):  # biases, then weights
        scale, zero = stored.get(f"{prefix}_scale"), stored.get(f"{prefix}_zero_point")
        if scale is not None:
            zero = np.zeros(1, np.int32) if zero is None else zero.astype(np.int32)
            scale, zero = (_along(x, values.shape, axis) for x in (scale, zero))
            return np.asarray((values.astype(np.int32) - zero) * scale, dtype=np.float32)
    return None


def _along(scale: Array, shape: Shape, axis: int | None) -> Array:
    """Shape one scale, one for each slice, or a recurrent layer's, so that it meets the array."""
    if scale.size == 1:
        return scale.reshape(())
    if scale.ndim == 2 and len(shape) == 3:
        return scale[:, None, :]  # directions, gates
    if axis is None or shape[axis] != scale.size:
        axis = list(shape).index(scale.size)
    return scale.reshape([-1 if place == axis % len(shape) else 1 for place in range(len(shape))])


def _axis(model: "onnx.ModelProto", name: str) -> int | None:
    """Along which axis an array has its scales: said by what reads it."""
    for node in model.graph.node:
        if name in node.input:
            for attribute in node.attribute:
                if attribute.name == "axis" and node.op_type == "DequantizeLinear":
                    return int(attribute.i)
            return 0 if node.op_type in _CONVOLUTIONS else -1
    return None


def multiply_adds(model: "onnx.ModelProto", row: Array) -> int:
    """Count multiplications of one weight or activation by another for one row.

    The graph runs once, and each product is counted by the shapes that it then has; as
    `simulations.explain.cost.multiply_adds` counts those of a model of PyTorch.

    Parameters
    ----------
    model : onnx.ModelProto
        A graph of one input.
    row : ndarray
        A batch of one row.
    """
    shapes = _shapes_when_run(model, row)
    return sum(_of_node(node, shapes) for node in model.graph.node)


def _of_node(node: "onnx.NodeProto", shapes: Mapping[str, Shape]) -> int:
    if node.op_type in _CONVOLUTIONS:
        filters = shapes[node.input[_CONVOLUTIONS[node.op_type]]]
        return math.prod(shapes[node.output[0]]) * math.prod(filters[1:])
    if node.op_type in _PRODUCTS:
        transposed = any(each.name == "transA" and each.i for each in node.attribute)
        inner = shapes[node.input[0]][-2 if transposed else -1]
        return math.prod(shapes[node.output[0]]) * inner
    if node.op_type in _RECURRENT:
        steps, rows, _ = shapes[node.input[0]]
        return steps * rows * sum(math.prod(shapes[name]) for name in node.input[1:3])
    return 0


def _shapes_when_run(model: "onnx.ModelProto", row: Array) -> dict[str, Shape]:
    """Run a copy of the graph that gives every intermediate result, and note their shapes."""
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
    shapes = {name: tuple(np.shape(value)) for name, value in zip(outputs, results, strict=True)}
    shapes |= {each.name: tuple(each.dims) for each in told.graph.initializer}
    shapes[session.get_inputs()[0].name] = row.shape
    return shapes
