"""Exact coding of any array: bytes transposed by significance, then Zstandard."""

import numpy as np
import torch
import zstandard
from torch import Tensor

from fedcompress.coders.values import tensor_bytes, tensor_from_bytes
from fedcompress.errors import PayloadError
from fedcompress.streams import Layout

_LEVEL = 3
_LEAST_WINDOW = 1 << 10  # Zstandard knows no smaller one


def encode_exact(x: Tensor) -> bytes:
    """Code an array of any dtype bit for bit."""
    width = x.dtype.itemsize
    planes = tensor_bytes(x).reshape(-1, width).T.copy()
    return zstandard.ZstdCompressor(level=_LEVEL).compress(planes.tobytes())


def decode_exact(data: memoryview, like: Layout) -> Tensor:
    """Read an array that `encode_exact` coded; never allocates more than ``like`` takes."""
    width = like.dtype.itemsize
    expected = like.size * width
    try:
        frame = zstandard.get_frame_parameters(data)
        if frame.content_size != expected or frame.window_size > max(expected, _LEAST_WINDOW):
            raise PayloadError(
                f"payload: exact bytes for {like.shape} take {expected} bytes, the section says "
                f"{frame.content_size}; it is damaged"
            )
        raw = zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise PayloadError(f"payload: Zstandard: {error}; the bytes are damaged") from error
    if len(raw) != expected:
        raise PayloadError(
            f"payload: exact bytes for {like.shape} take {expected} bytes, got {len(raw)}"
        )
    planes = np.frombuffer(raw, np.uint8).reshape(width, -1)
    if like.dtype == torch.bool and int(planes.max(initial=0)) > 1:
        raise PayloadError("payload: booleans other than 0 and 1; the bytes are damaged")
    return tensor_from_bytes(planes.T.flatten(), like.shape, like.dtype).to(like.device)
