"""Numbers as they lie in memory: the baseline."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from fedcompress.coder import Coder
from fedcompress.coders.values import tensor_bytes, tensor_from_bytes
from fedcompress.errors import PayloadError
from fedcompress.streams import (
    FloatForm,
    Floats,
    Form,
    IndexForm,
    IndexSet,
    Scale,
    ScaleForm,
    Seed,
    SeedForm,
    Stream,
    SymbolForm,
    Symbols,
)

_EXACT = (torch.float32, torch.float64)  # dtypes that numpy has too


@dataclass(frozen=True, repr=False)
class Raw(Coder):
    """Send floats as they are, positions as 32 or 64-bit integers: the baseline, exact.

    The integers of a side stream take 32 bits each; an array of integers is refused.
    """

    name: ClassVar[str] = "raw"
    takes_symbols: ClassVar[bool] = False

    def encode(self, stream: Stream) -> bytes:
        """Code one stream."""
        match stream:
            case IndexSet(indices, n):
                return indices.cpu().numpy().astype(_index_dtype(n)).tobytes()
            case Symbols(values):
                return tensor_bytes(values.to(torch.int32)).tobytes()
            case _:
                return encode_plain(stream)

    def decode(self, data: memoryview, form: Form) -> Stream:
        """Read one stream back."""
        if isinstance(form, SymbolForm):
            return Symbols(tensor_from_bytes(data, form.shape, torch.int32))
        if not isinstance(form, IndexForm):
            return decode_plain(data, form)
        dtype = np.dtype(_index_dtype(form.n))
        if len(data) % dtype.itemsize or len(data) > form.n * dtype.itemsize:
            raise PayloadError(f"payload: {len(data)} bytes of positions out of {form.n}")
        indices = np.frombuffer(data, dtype).astype(np.int64)
        return checked_index_set(indices, form.n)


def checked_index_set(indices: np.ndarray, n: int) -> IndexSet:
    """Make an index set of positions from a payload, which must ascend within 0 to n − 1."""
    if indices.size and (
        int(indices[0]) < 0 or int(indices[-1]) >= n or bool(np.any(np.diff(indices) <= 0))
    ):
        raise PayloadError(f"payload: positions out of {n} do not ascend; the bytes are damaged")
    return IndexSet(torch.from_numpy(indices), n)


def encode_plain(stream: Stream) -> bytes:
    """Code floats, scales and seeds as they lie in memory."""
    match stream:
        case Scale(values) if values.device.type == "cpu" and values.dtype in _EXACT:
            return values.numpy().tobytes()
        case Floats(values) | Scale(values):
            return tensor_bytes(values).tobytes()
        case Seed(value):
            return value.to_bytes(8, "little")
    raise TypeError(f"no plain bytes for a stream of {stream.kind}")


def decode_plain(data: memoryview, form: Form) -> Stream:
    """Read what `encode_plain` coded."""
    match form:
        case FloatForm(shape, dtype):
            return Floats(tensor_from_bytes(data, shape, dtype))
        case ScaleForm(count, dtype):
            values = tensor_from_bytes(data, (count,), dtype)
            if not math.isfinite(values.sum().item()) and not bool(torch.isfinite(values).all()):
                raise PayloadError("payload: a scale is not finite; the bytes are damaged")
            return Scale(values)
        case SeedForm():
            if len(data) != 8:
                raise PayloadError(f"payload: a seed of {len(data)} bytes, not 8")
            return Seed(int.from_bytes(data, "little"))
    raise TypeError(f"no plain bytes for a form of {form.kind}")


def _index_dtype(n: int) -> str:
    return "<u4" if n <= 1 << 32 else "<u8"
