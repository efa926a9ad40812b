"""Floats, coded by sign and octave or byte plane by byte plane."""

import numpy as np
import torch
from torch import Tensor

from fedcompress.coders.magnitudes import decode_magnitudes, encode_magnitudes
from fedcompress.coders.values import (
    decode_planes,
    encode_planes,
    tensor_bytes,
    tensor_from_bytes,
)


def encode_values(x: Tensor) -> bytes:
    """Code values by sign and octave, or by byte plane where there is more to gain.

    By byte plane a first byte of 0, an empty plane, stands for no values only; before values
    it says that they are coded by sign and octave.
    """
    coded = encode_magnitudes(tensor_bytes(x), tuple(x.shape), x.dtype)
    return encode_planes(x) if coded is None else b"\0" + coded


def decode_values(data: memoryview, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Read values that `encode_values` coded."""
    if int(np.prod(shape, dtype=np.int64)) == 0 or len(data) == 0 or data[0] != 0:
        return decode_planes(data, shape, dtype)
    return tensor_from_bytes(decode_magnitudes(data[1:], shape, dtype), shape, dtype)
