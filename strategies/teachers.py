"""The clients' models as teachers: read from the replies of a round, and checked."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Message
from torch import Tensor, nn

from fedcompress.errors import ConfigError

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Teacher:
    """One client's model of one round.

    Attributes
    ----------
    node_id : int
        Node that sent it.
    arrays : dict of str to Array
        Its arrays as they came; they are decoded when needed, one model at a time.
    weight : float
        Its weight in the ensemble, above 0.
    examples : float or None
        Number of examples that it told, by which a mean weighs it.
    """

    node_id: int
    arrays: dict[str, Array]
    weight: float
    examples: float | None

    def tensors(self) -> dict[str, Tensor]:
        """Decode the arrays."""
        return tensors_of(self.arrays)


class UnusableReplyError(ValueError):
    """A reply cannot be a teacher; the message says why."""


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Map the names of a model's arrays to their shapes."""
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def tensors_of(arrays: Mapping[str, Array]) -> dict[str, Tensor]:
    """Decode arrays to tensors of their own, in the same order."""
    return {name: torch.from_numpy(np.array(array.numpy())) for name, array in arrays.items()}


def arrays_like(tensors: Mapping[str, Tensor], like: ArrayRecord) -> ArrayRecord:
    """Write tensors as dense arrays, in the dtypes of others of the same names.

    Averaging may have widened them; integers are rounded.
    """
    arrays = {}
    for name, tensor in tensors.items():
        values = tensor.detach().cpu().numpy()
        dtype = np.dtype(like[name].dtype if name in like else values.dtype)
        if dtype.kind in "iub" and values.dtype.kind == "f":
            values = np.rint(values)
        arrays[name] = Array(np.asarray(values.astype(dtype)))
    return ArrayRecord(arrays)


def read_teacher(reply: Message, shapes: Shapes, examples_key: str, *, weighted: bool) -> Teacher:
    """Take a client's model out of its reply.

    Parameters
    ----------
    reply : Message
        A reply with content, its single ArrayRecord dense.
    shapes : mapping of str to tuple of int
        Names and shapes that the model must have.
    examples_key : str
        Metric that holds the client's number of examples.
    weighted : bool
        Whether that number weighs the teacher; otherwise every teacher weighs 1.

    Returns
    -------
    Teacher

    Raises
    ------
    UnusableReplyError
        If the arrays are missing, of another layout or not finite, or the weight cannot be one.
    """
    records = list(reply.content.array_records.values())
    if len(records) != 1:
        raise UnusableReplyError(f"it holds {len(records)} array records; send exactly 1")
    fault = layout_fault(records[0], shapes)
    if fault is not None:
        raise UnusableReplyError(f"{fault}; train the model that the server sends")
    for name, array in records[0].items():
        _check_values(name, array, shapes[name])
    examples = _read_examples(reply, examples_key)
    if weighted and not examples:
        raise UnusableReplyError(
            f"its metrics have no positive number {examples_key!r} to weigh it by; report the "
            "number of examples, or use weighting='uniform'"
        )
    weight = examples if weighted and examples else 1.0
    return Teacher(reply.metadata.src_node_id, dict(records[0].items()), weight, examples)


def layout_fault(record: ArrayRecord, shapes: Shapes) -> str | None:
    """Say how an ArrayRecord differs from the names and shapes wanted, or None."""
    for name in shapes:
        if name not in record:
            return f"it lacks the array {name!r}"
    for name, array in record.items():
        if name not in shapes:
            return f"it has an array {name!r}, unknown to the model of `Distilled`"
        if tuple(array.shape) != tuple(shapes[name]):
            return (
                f"its {name!r} has shape {tuple(array.shape)}, that of the model of `Distilled` "
                f"{tuple(shapes[name])}"
            )
    return None


def check_layout(arrays: ArrayRecord, shapes: Shapes) -> None:
    """Raise `ConfigError` unless the global model has the layout that the factory makes."""
    fault = layout_fault(arrays, shapes)
    if fault is not None:
        raise ConfigError(
            f"Distilled: the global model does not fit: {fault}; give `model` the factory that "
            "makes the global model"
        )


def _check_values(name: str, array: Array, shape: tuple[int, ...]) -> None:
    try:
        values = array.numpy()
    except (TypeError, ValueError, EOFError, OSError) as error:
        raise UnusableReplyError(f"its {name!r} is no dense array: {error}") from error
    if values.shape != tuple(shape):
        raise UnusableReplyError(f"its {name!r} says shape {tuple(shape)} but holds {values.shape}")
    if values.dtype.kind not in "fiub":
        raise UnusableReplyError(f"its {name!r} holds {values.dtype}; send numbers")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise UnusableReplyError(f"its {name!r} holds NaN or infinity; train with smaller steps")


def _read_examples(reply: Message, examples_key: str) -> float | None:
    for record in reply.content.metric_records.values():
        value = record.get(examples_key)
        if isinstance(value, int | float):
            if not 0 <= value < float("inf"):
                raise UnusableReplyError(f"its {examples_key!r} is {value}; count the examples")
            return float(value)
    return None
