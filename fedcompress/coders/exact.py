"""Exact coding of any array: bytes transposed by significance, then Zstandard."""

import numpy as np
import torch
import zstandard
from torch import Tensor

from fedcompress.coders.values import tensor_bytes, tensor_from_bytes
from fedcompress.errors import PayloadError
from fedcompress.streams import Layout

_LEVEL = 3


def encode_exact(x: Tensor) -> bytes:
    """Code an array of any dtype bit for bit."""
    width = x.dtype.itemsize
    planes = tensor_bytes(x).reshape(-1, width).T.copy()
    return zstandard.ZstdCompressor(level=_LEVEL, write_content_size=False).compress(
        planes.tobytes()
    )


def decode_exact(data: memoryview, like: Layout) -> Tensor:
    """Read an array that `encode_exact` coded; never allocates more than ``like`` takes."""
    width = like.dtype.itemsize
    expected = like.size * width
    try:
        # One byte more than fits tells a frame that is too long from one that is just right.
        reader = zstandard.ZstdDecompressor(max_window_size=1 << 23).stream_reader(bytes(data))
        raw = reader.read(expected + 1)
    except zstandard.ZstdError as error:
        raise PayloadError(f"payload: Zstandard: {error}; the bytes are damaged") from error
    if len(raw) != expected:
        raise PayloadError(
            f"payload: exact bytes for {like.shape} take {expected} bytes, "
            f"got {len(raw)}{' or more' if len(raw) > expected else ''}; they are damaged"
        )
    if like.dtype == torch.bool and any(byte > 1 for byte in set(raw)):
        raise PayloadError("payload: booleans other than 0 and 1; the bytes are damaged")
    planes = np.frombuffer(raw, np.uint8).reshape(width, -1)
    return tensor_from_bytes(planes.T.reshape(-1), like.shape, like.dtype).to(like.device)
