"""Entropy coding: every stream at about the entropy of its numbers."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from fedcompress.coder import Coder
from fedcompress.coders.index_sets import decode_index_set, encode_index_set
from fedcompress.coders.pack import symbols_as_int32
from fedcompress.coders.raw import decode_plain, encode_plain
from fedcompress.coders.symbols import decode_integers, encode_integers
from fedcompress.coders.values import decode_planes, encode_planes
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


@dataclass(frozen=True, repr=False)
class Entropy(Coder):
    """Code symbols, positions and values at about their entropy (asymmetric numeral systems)."""

    name: ClassVar[str] = "entropy"

    def encode(self, stream: Stream) -> bytes:
        """Code one stream."""
        match stream:
            case Symbols(values):
                return encode_integers(values.cpu().numpy())
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
                count = int(np.prod(shape, dtype=np.int64))
                values = symbols_as_int32(decode_integers(data, count))
                return Symbols(torch.from_numpy(values.reshape(shape)))
            case IndexForm(n):
                return IndexSet(torch.from_numpy(decode_index_set(data, n)), n)
            case FloatForm(shape, dtype):
                return Floats(decode_planes(data, shape, dtype))
            case _:
                return decode_plain(data, form)
