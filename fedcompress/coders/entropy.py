"""Entropy coding: every stream at about the entropy of its numbers."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from fedcompress.coder import Coder
from fedcompress.coders.floats import decode_values, encode_values
from fedcompress.coders.index_sets import decode_index_set, encode_index_set
from fedcompress.coders.raw import decode_plain, encode_plain
from fedcompress.coders.symbol_arrays import decode_symbols, encode_symbols
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
            case Symbols(values, states):
                return encode_symbols(values.cpu().numpy(), states)
            case IndexSet(indices, n, shape):
                return encode_index_set(indices.cpu().numpy(), n, shape)
            case Floats(values):
                return encode_values(values)
            case _:
                return encode_plain(stream)

    def decode(self, data: memoryview, form: Form) -> Stream:
        """Read one stream back."""
        match form:
            case SymbolForm(shape, states, as_entries):
                values = decode_symbols(data, shape, states, as_entries)
                return Symbols(torch.from_numpy(values.reshape(shape)), states)
            case IndexForm(n, shape):
                return IndexSet(torch.from_numpy(decode_index_set(data, n, shape)), n, shape)
            case FloatForm(shape, dtype):
                return Floats(decode_values(data, shape, dtype))
            case _:
                return decode_plain(data, form)
