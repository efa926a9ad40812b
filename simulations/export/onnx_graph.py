"""What is changed in an ONNX graph before it is written; none of it changes an answer."""

from collections import Counter
from typing import Any

import numpy as np

_LEAST_ENTRIES = 256  # of an array that is worth storing as levels
_MOST_LEVEL = 7
_NEAR = 1e-5

# onnx has no types of its own for what protobuf makes.
Model = Any
Graph = Any


def strip(model: Model) -> None:
    """Remove what the exporter tells of itself: up to two fifths of a small file."""
    graph = model.graph
    for node in graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for values in (graph.initializer, graph.input, graph.output):
        for value in values:
            del value.metadata_props[:]
            value.doc_string = ""
    del model.metadata_props[:]
    del graph.metadata_props[:]
    del graph.value_info[:]
    model.doc_string = graph.doc_string = ""


def relu_before_pool(graph: Graph) -> None:
    """Swap every ReLU that follows a max-pooling: they commute, and behind a convolution it fuses.

    It also keeps onnxruntime's QOperator quantizer, which drops a ReLU behind a pooling, from
    answering wrongly.
    """
    readers = Counter(name for node in graph.node for name in node.input)
    given = {output.name for output in graph.output}
    relus = {node.input[0]: node for node in graph.node if node.op_type == "Relu"}
    for pool in [node for node in graph.node if node.op_type == "MaxPool"]:
        between = pool.output[0]
        relu = relus.get(between)
        if relu is None or readers[between] > 1 or between in given or len(pool.output) > 1:
            continue
        source, end = pool.input[0], relu.output[0]
        relu.input[0], relu.output[0] = source, between
        pool.input[0], pool.output[0] = between, end
    _sort(graph)


def _sort(graph: Graph) -> None:
    """Put nodes behind those whose outputs they read."""
    made = {name for node in graph.node for name in node.output}
    done: set[str] = set()
    waiting, ordered = list(graph.node), []
    while waiting:
        ready = [n for n in waiting if all(i not in made or i in done for i in n.input)]
        ordered += ready
        done |= {name for node in ready for name in node.output}
        waiting = [node for node in waiting if not set(node.output) <= done]
    nodes = [type(node).FromString(node.SerializeToString()) for node in ordered]
    del graph.node[:]
    graph.node.extend(nodes)


def store_levels(model: Model) -> int:
    """Store rounded weights as four bits each; give how many arrays are stored so.

    An array of at most 16 different values becomes indices into them, one that has 15 symmetric
    levels along an axis becomes levels and scales. Both are exact, and onnxruntime makes floats
    of them when it loads the file.
    """
    from onnx import numpy_helper

    graph, count = model.graph, 0
    for array in list(graph.initializer):
        values = numpy_helper.to_array(array)
        if values.dtype != np.float32 or values.ndim < 2 or values.size < _LEAST_ENTRIES:
            continue
        found = _indices(array.name, values) or _levels(array.name, values)
        if found is None:
            continue
        arrays, nodes = found
        graph.initializer.remove(array)
        graph.initializer.extend(arrays)
        for place, node in enumerate(nodes):
            graph.node.insert(place, node)
        count += 1
    return count


def _indices(name: str, values: np.ndarray) -> tuple[list[Any], list[Any]] | None:
    from onnx import TensorProto, helper, numpy_helper

    table, places = np.unique(values, return_inverse=True)
    if table.size > 16:
        return None
    packed = _packed(f"{name}.indices", TensorProto.UINT4, places.reshape(values.shape))
    wide = helper.make_node("Cast", [packed.name], [f"{name}.places"], to=TensorProto.INT32)
    look_up = helper.make_node("Gather", [f"{name}.values", f"{name}.places"], [name])
    return [packed, numpy_helper.from_array(table, f"{name}.values")], [wide, look_up]


def _levels(name: str, values: np.ndarray) -> tuple[list[Any], list[Any]] | None:
    from onnx import TensorProto, helper, numpy_helper

    for axis in range(values.ndim):
        others = tuple(i for i in range(values.ndim) if i != axis)
        largest = np.abs(values).max(axis=others, keepdims=True)
        scale = np.where(largest > 0, largest / _MOST_LEVEL, 1).astype(np.float32)
        levels = np.rint(values / scale)
        if np.abs(levels * scale - values).max() > _NEAR * largest.max():
            continue
        packed = _packed(f"{name}.levels", TensorProto.INT4, levels.astype(np.int64))
        # Not DequantizeLinear: before a product onnxruntime would round what it multiplies with.
        wide = helper.make_node("Cast", [packed.name], [f"{name}.wide"], to=TensorProto.FLOAT)
        times = helper.make_node("Mul", [f"{name}.wide", f"{name}.scale"], [name])
        return [packed, numpy_helper.from_array(scale, f"{name}.scale")], [wide, times]
    return None


def _packed(name: str, dtype: int, numbers: np.ndarray) -> Any:  # noqa: ANN401
    """Make an array of four bits an entry, two in a byte, the first in the low half."""
    from onnx import helper

    halves = (numbers.reshape(-1) & 0xF).astype(np.uint8)
    halves = np.append(halves, np.zeros(halves.size % 2, np.uint8)).reshape(-1, 2)
    content = (halves[:, 0] | halves[:, 1] << 4).tobytes()
    return helper.make_tensor(name, dtype, numbers.shape, content, raw=True)
