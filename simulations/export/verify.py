"""Check an exported file as its user meets it: in a fresh process, without this package."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
from torch import Tensor

import simulations
from fedcompress.errors import FedcompressError

NEAR = 1e-4
"""Largest difference of a logit, relative to the largest logit, that is rounding."""

_LOAD: Mapping[str, str] = {
    "onnx": """
import onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
name = session.get_inputs()[0].name
def predict(x):
    return session.run(None, {name: x})[0]
""",
    "torch-export": """
import torch
torch.set_num_threads(1)
module = torch.export.load(path).module()
def predict(x):
    with torch.no_grad():
        return module(torch.from_numpy(x)).numpy()
""",
    "safetensors": """
import torch
from safetensors.torch import load_file
torch.set_num_threads(1)
stored = load_file(path)
arrays = {}
for name, array in stored.items():
    if name + ".scale" in stored:
        arrays[name] = array * stored[name + ".scale"]
    elif name + ".values" in stored:
        arrays[name] = stored[name + ".values"][array.long()]
    elif not name.endswith((".scale", ".values")) or name.rpartition(".")[0] not in stored:
        arrays[name] = array
module = torch.export.load(graph).module()
module.load_state_dict(arrays)
def predict(x):
    with torch.no_grad():
        return module(torch.from_numpy(x)).numpy()
""",
    "archive": """
import pathlib, torch
from simulations.export.archive import load_archive
torch.set_num_threads(1)
module = load_archive(pathlib.Path(path))
def predict(x):
    with torch.no_grad():
        return module(torch.from_numpy(x)).numpy()
""",
}
_SCRIPT = """
import sys
path, graph, given, made = sys.argv[1:]
{load}
import numpy
x = numpy.load(given)
numpy.save(made, numpy.concatenate([predict(x[i:i + 128]) for i in range(0, len(x), 128)]))
names = {{name.partition(".")[0] for name in sys.modules}}
sys.stdout.write(",".join(sorted(names & {{"fedcompress", "simulations", "strategies"}})))
"""
STANDARD = ("onnx", "safetensors", "torch-export")
"""Kinds of file that are read without this package."""


@final
@dataclass(frozen=True)
class Verified:
    """What a fresh process made of a file.

    Attributes
    ----------
    rows : int
        Test rows that it answered.
    same_class : float
        Share of them on which it names the class that the model that was written names.
    max_difference : float
        Largest difference of a logit to that model's.
    accuracy, dense_accuracy : float
        Share of right answers, of the file and of the trained model that it was made from.
    agreement : float
        Share of rows on which these two name the same class.
    alone : bool
        Whether the process ran without this package, as it must for standard formats.
    """

    rows: int
    same_class: float
    max_difference: float
    accuracy: float
    dense_accuracy: float
    agreement: float
    alone: bool


def verify(
    path: Path,
    kind: str,
    inputs: Tensor,
    classes: np.ndarray,
    *,
    written: Tensor,
    dense: Tensor,
    graph: bytes = b"",
    exact: bool = True,
) -> Verified:
    """Let a fresh process answer test rows by a file, and compare.

    Parameters
    ----------
    path : Path
        The file.
    kind : {"onnx", "safetensors", "torch-export", "archive"}
        Its format.
    inputs : Tensor
        Test rows as models take them, shape (rows, ...).
    classes : ndarray
        Their classes.
    written, dense : Tensor
        Logits of the model that was written, and of the trained model, shape (rows, classes).
    graph : bytes
        Program of the same model, for safetensors, which holds none; its weights are not used.
    exact : bool
        Whether only rounding may differ from `written`.

    Raises
    ------
    FedcompressError
        If the process fails, loads this package where it must not, or answers otherwise.
    """
    made, loaded = answer(path, kind, inputs, graph)
    difference = float(np.abs(made - written.numpy()).max())
    same = made.argmax(1) == written.numpy().argmax(1)
    alone = not loaded
    if kind in STANDARD and not alone:
        raise FedcompressError(
            f"export: {path.name} was read with {loaded}; it must be read without"
        )
    near = difference <= NEAR * max(1.0, float(written.abs().max()))
    # Between two classes that are nearly equal rounding may decide.
    if not np.isfinite(made).all() or (exact and not near):
        raise FedcompressError(
            f"export: {path.name} does not answer as the model that was written: logits differ by "
            f"{difference:.2g}, {(~same).sum()} of {len(same)} classes"
        )
    return Verified(
        rows=len(inputs),
        same_class=float(same.mean()),
        max_difference=difference,
        accuracy=float((made.argmax(1) == classes).mean()),
        dense_accuracy=float((dense.numpy().argmax(1) == classes).mean()),
        agreement=float((made.argmax(1) == dense.numpy().argmax(1)).mean()),
        alone=alone,
    )


def answer(path: Path, kind: str, inputs: Tensor, graph: bytes = b"") -> tuple[np.ndarray, str]:
    """Let a fresh process answer rows by a file; give logits, and which packages of ours it had.

    Raises
    ------
    FedcompressError
        If the process fails; says how it ended.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given, made, program = folder / "x.npy", folder / "y.npy", folder / "graph.pt2"
        np.save(given, inputs.numpy())
        program.write_bytes(graph)
        script = _SCRIPT.format(load=_LOAD[kind])
        environment = dict(os.environ)
        isolated = ["-I"] if kind in STANDARD else []
        if not isolated:
            root = str(Path(simulations.__file__).parents[1])
            environment["PYTHONPATH"] = os.pathsep.join([root, *filter(None, sys.path)])
        arguments = [str(each) for each in (path.absolute(), program, given, made)]
        ended = subprocess.run(
            [sys.executable, *isolated, "-c", script, *arguments],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if ended.returncode != 0:
            last = ended.stderr.strip().rpartition("\n")[2]
            raise FedcompressError(f"export: a fresh process could not use {path.name}: {last}")
        return np.load(made), ended.stdout.strip()
