"""Uniform noise by position from a seed."""

import numpy as np

from fedcompress.kernels.jit import kernel
from fedcompress.kernels.splitmix import word


@kernel
def fill_noise(seed: np.uint64, out: np.ndarray) -> None:
    """Fill ``out`` (float32, flat) with multiples of 2**-24 in [0, 1), exact in float32."""
    for i in range(out.size):
        top = np.int32(word(seed, i) >> np.uint64(40))
        out[i] = np.float32(top) * np.float32(2.0**-24)
