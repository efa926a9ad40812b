"""Fixed-width packing: no model, no library, the same size for the same count."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedcompress.coder import Coder
from fedcompress.coders.bits import pack_bits, packed_size, unpack_bits, width_of
from fedcompress.coders.raw import checked_index_set, decode_plain, encode_plain
from fedcompress.errors import PayloadError
from fedcompress.streams import Form, IndexForm, IndexSet, Stream, SymbolForm, Symbols
from fedcompress.wire import read_signed, read_varint, write_signed, write_varint

_BITMAP, _LIST = 0, 1
_NARROW = 30  # two such numbers add up within 32 bits


@dataclass(frozen=True, repr=False)
class Pack(Coder):
    """Pack symbols and positions into as few bits as the widest of them needs."""

    name: ClassVar[str] = "pack"

    def encode(self, stream: Stream) -> bytes:
        """Code one stream."""
        match stream:
            case Symbols(values):
                return _pack_symbols(values.cpu())
            case IndexSet(indices, n):
                return _pack_positions(indices.cpu().numpy(), n)
            case _:
                return encode_plain(stream)

    def decode(self, data: memoryview, form: Form) -> Stream:
        """Read one stream back."""
        match form:
            case SymbolForm(shape):
                return Symbols(torch.from_numpy(_unpack_symbols(data, shape)))
            case IndexForm(n):
                return _unpack_positions(data, n)
            case _:
                return decode_plain(data, form)


def _pack_symbols(values: Tensor) -> bytes:
    if values.numel() == 0:
        return b""
    low, high = (int(end) for end in torch.aminmax(values))
    flat = values.numpy().reshape(-1)
    width = width_of(high - low)
    if low:
        flat = np.subtract(flat, low, dtype=np.int32 if width < 32 else np.int64)
    return write_signed(low) + bytes((width,)) + pack_bits(flat, width)


def _unpack_symbols(data: memoryview, shape: tuple[int, ...]) -> np.ndarray:
    count = int(np.prod(shape, dtype=np.int64))
    if count == 0:
        if len(data):
            raise PayloadError("payload: bytes where no symbol is expected; they are damaged")
        return np.zeros(shape, np.int32)
    low, position = read_signed(data, 0)
    width = data[position] if position < len(data) else 255
    if width > 32 or abs(low) > 1 << 31:
        raise PayloadError("payload: packed symbols wider than 32 bits; the bytes are damaged")
    if width <= _NARROW and abs(low) < 1 << _NARROW:
        values = unpack_bits(data[position + 1 :], count, width, np.int32)
        values += low
    else:
        values = symbols_as_int32(unpack_bits(data[position + 1 :], count, width) + low)
    return values.reshape(shape)


def symbols_as_int32(values: np.ndarray) -> np.ndarray:
    """Narrow symbols from a payload, which must fit 32 bits."""
    if values.size and (int(values.min()) < -(1 << 31) or int(values.max()) >= 1 << 31):
        raise PayloadError("payload: symbols wider than 32 bits; the bytes are damaged")
    return np.asarray(values.astype(np.int32))


def _pack_positions(indices: np.ndarray, n: int) -> bytes:
    width = width_of(max(n - 1, 0))
    if indices.size * width >= n:
        bitmap = np.zeros(n, np.uint8)
        bitmap[indices] = 1
        return bytes((_BITMAP,)) + pack_bits(bitmap, 1)
    return bytes((_LIST,)) + write_varint(indices.size) + pack_bits(indices, width)


def _unpack_positions(data: memoryview, n: int) -> IndexSet:
    if len(data) == 0:
        raise PayloadError("payload: no bytes for a set of positions; it was cut short")
    if data[0] == _BITMAP:
        return IndexSet(torch.from_numpy(np.flatnonzero(unpack_bits(data[1:], n, 1))), n)
    if data[0] != _LIST:
        raise PayloadError(f"payload: unknown packing {data[0]} of positions; it is damaged")
    count, position = read_varint(data, 1)
    width = width_of(max(n - 1, 0))
    if count > n or packed_size(count, width) != len(data) - position:
        raise PayloadError(f"payload: {count} positions out of {n} do not fit; it is damaged")
    return checked_index_set(unpack_bits(data[position:], count, width), n)
