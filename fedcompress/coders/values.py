"""Tensors as bytes, and floats coded byte plane by byte plane."""

import math

import numpy as np
import torch
from torch import Tensor

from fedcompress.coders.symbols import decode_integers, encode_integers
from fedcompress.errors import PayloadError
from fedcompress.wire import read_varint, write_varint


def tensor_bytes(x: Tensor) -> np.ndarray:
    """View a tensor as bytes (uint8), on the host, entries in row-major order."""
    if x.numel() == 0:
        return np.zeros(0, np.uint8)
    host = x.detach().cpu().contiguous().reshape(-1)
    return np.asarray(host.view(torch.uint8).numpy())


def tensor_from_bytes(
    data: memoryview | np.ndarray, shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    """Read a tensor from exactly its bytes; the tensor owns its memory."""
    size = math.prod(shape)
    if len(data) != size * dtype.itemsize:
        raise PayloadError(
            f"payload: {size} values of {dtype} take {size * dtype.itemsize} bytes, "
            f"got {len(data)}; the bytes are damaged"
        )
    if size == 0:
        return torch.empty(shape, dtype=dtype)
    owns = isinstance(data, np.ndarray) and data.flags.owndata
    raw = data if owns else np.array(np.frombuffer(data, np.uint8))
    return torch.from_numpy(raw).view(dtype).reshape(shape)


def encode_planes(x: Tensor) -> bytes:
    """Code values by byte plane, each at its entropy where that is smaller than raw."""
    width = x.dtype.itemsize
    planes = tensor_bytes(x).reshape(-1, width)
    parts: list[bytes] = []
    for i in range(width):
        coded = encode_integers(planes[:, i])
        parts += [write_varint(len(coded)), coded]
    return b"".join(parts)


def decode_planes(data: memoryview, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Read values that `encode_planes` coded."""
    size = int(np.prod(shape, dtype=np.int64))
    planes = np.empty((size, dtype.itemsize), np.uint8)
    position = 0
    for i in range(dtype.itemsize):
        length, position = read_varint(data, position)
        if length > len(data) - position:
            raise PayloadError("payload: a byte plane is cut short; the bytes are damaged")
        plane = decode_integers(data[position : position + length], size)
        if size and (int(plane.min()) < 0 or int(plane.max()) > 255):
            raise PayloadError("payload: a byte plane holds no bytes; it is damaged")
        planes[:, i] = plane
        position += length
    if position != len(data):
        raise PayloadError("payload: bytes left over behind values; they are damaged")
    return tensor_from_bytes(planes.reshape(-1), shape, dtype)
