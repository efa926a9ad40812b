"""Graphs in onnxruntime on one thread: running them, and what of they consist when they run."""

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, final

import numpy as np
from torch import Tensor, nn

from fedcompress.errors import ConfigError
from simulations.export.onnx_file import write_onnx

Array = np.ndarray[Any, np.dtype[Any]]


@final
class Graph:
    """An ONNX graph in onnxruntime: one thread, all optimisations.

    Parameters
    ----------
    content : bytes
        The file.

    Attributes
    ----------
    kernels : dict of str to int
        Operations as they run, after fusing, and how often each stands in the graph.

    Raises
    ------
    ConfigError
        If onnxruntime cannot run it, or it takes more than one input.
    """

    def __init__(self, content: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            optimised = Path(folder) / "optimised.onnx"
            self._session = _session(content, optimised)
            self.kernels = _kernels(optimised)
        inputs = self._session.get_inputs()
        if len(inputs) != 1:
            raise ConfigError(f"the graph takes {len(inputs)} inputs, not one")
        self._input = inputs[0].name

    def __call__(self, inputs: Array) -> Array:
        """Give the first output: logits of shape (rows, classes)."""
        return np.asarray(self._session.run(None, {self._input: inputs})[0])


def _session(content: bytes, optimised: Path) -> Any:  # noqa: ANN401 - has no types
    import onnxruntime as ort
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.optimized_model_filepath = str(optimised)
    options.log_severity_level = 3
    faults = tuple(
        each
        for each in vars(state).values()
        if isinstance(each, type) and issubclass(each, Exception)
    )
    try:
        return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except faults as error:
        reason = (str(error).splitlines() or ["unknown"])[0].rpartition(" : ")[2]
        raise ConfigError(f"onnxruntime cannot run it: {reason}") from error


def _kernels(optimised: Path) -> dict[str, int]:
    import onnx

    graph = onnx.load(optimised).graph
    return dict(sorted(Counter(node.op_type for node in graph.node).items()))


def onnx_of(model: nn.Module, rows: Tensor) -> bytes:
    """Write a model of PyTorch as the float graph that an export would be.

    Parameters
    ----------
    model : torch.nn.Module
        On a CPU.
    rows : torch.Tensor
        A batch of inputs, of more than one row.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write_onnx(model, rows, path, quantize=None, calibration=rows)
        return path.read_bytes()
