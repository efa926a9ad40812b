"""Random words by their number: SplitMix64 (Steele, Lea & Flood, 2014) at any position."""

import numpy as np

from fedcompress.kernels.jit import inlined

_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


@inlined
def word(seed: np.uint64, number: int) -> np.uint64:
    """Give word ``number`` (64 bits) of the stream that ``seed`` begins."""
    z = seed + np.uint64(number) * _STEP
    z = (z ^ (z >> np.uint64(30))) * _FIRST
    z = (z ^ (z >> np.uint64(27))) * _SECOND
    return z ^ (z >> np.uint64(31))
