"""Entropy coding: every stream at about the entropy of its numbers."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from fedcompress.coder import Coder
from fedcompress.coders.classes import decode_by_class, encode_by_class
from fedcompress.coders.index_sets import decode_index_set, encode_index_set
from fedcompress.coders.pack import symbols_as_int32
from fedcompress.coders.raw import decode_plain, encode_plain
from fedcompress.coders.symbols import decode_integers, encode_integers
from fedcompress.coders.values import decode_planes, encode_planes
from fedcompress.errors import PayloadError
from fedcompress.streams import (
    FloatForm,
    Floats,
    Form,
    IndexForm,
    IndexSet,
    Stream,
    SymbolForm,
    Symbols,
)

_ALIKE, _BY_CLASS = 0, 1


@dataclass(frozen=True, repr=False)
class Entropy(Coder):
    """Code symbols, positions and values at about their entropy (asymmetric numeral systems)."""

    name: ClassVar[str] = "entropy"

    def encode(self, stream: Stream) -> bytes:
        """Code one stream."""
        match stream:
            case Symbols(values):
                return _encode_symbols(values.cpu().numpy())
            case IndexSet(indices, n):
                return encode_index_set(indices.cpu().numpy(), n)
            case Floats(values):
                return encode_planes(values)
            case _:
                return encode_plain(stream)

    def decode(self, data: memoryview, form: Form) -> Stream:
        """Read one stream back."""
        match form:
            case SymbolForm(shape):
                values = symbols_as_int32(_decode_symbols(data, shape))
                return Symbols(torch.from_numpy(values.reshape(shape)))
            case IndexForm(n):
                return IndexSet(torch.from_numpy(decode_index_set(data, n)), n)
            case FloatForm(shape, dtype):
                return Floats(decode_planes(data, shape, dtype))
            case _:
                return decode_plain(data, form)


def _encode_symbols(values: np.ndarray) -> bytes:
    if values.size == 0:
        return b""
    if values.ndim >= 2:
        by_class = encode_by_class(values.reshape(values.shape[0], -1).astype(np.int64))
        if by_class is not None:
            return bytes((_BY_CLASS,)) + by_class
    return bytes((_ALIKE,)) + encode_integers(values)


def _decode_symbols(data: memoryview, shape: tuple[int, ...]) -> np.ndarray:
    count = int(np.prod(shape, dtype=np.int64))
    if count == 0:
        return decode_integers(data, count)
    if len(data) == 0 or data[0] not in (_ALIKE, _BY_CLASS):
        raise PayloadError("payload: symbols in no known coding; the bytes are damaged")
    if data[0] == _ALIKE:
        return decode_integers(data[1:], count)
    if len(shape) < 2:
        raise PayloadError("payload: classes of rows for an array without rows; it is damaged")
    return decode_by_class(data[1:], shape[0], count // shape[0])
