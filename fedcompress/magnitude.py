"""Powers of two taken out of arrays, so that squares and sums of any finite array stay finite."""

import math

import torch
from torch import Tensor

_MOST_EXPONENT = 40  # of a magnitude whose square times the entries of an array float32 holds


def without_exponent(x: Tensor) -> tuple[Tensor, int]:
    """Bring the largest magnitude near 1 where it is far from it.

    Parameters
    ----------
    x : Tensor
        float32 or float64, finite, at least one entry.

    Returns
    -------
    x : Tensor
        ``x`` itself, or ``x`` over a power of two.
    exponent : int
        Of that power; 0 for magnitudes of about 1, as most are.
    """
    low, high = torch.aminmax(x)
    exponent = math.frexp(max(-float(low), float(high)))[1]
    if abs(exponent) <= _MOST_EXPONENT:
        return x, 0
    return times_power(x.double(), -exponent).to(x.dtype), exponent


def times_power(x: Tensor, exponent: int) -> Tensor:
    """Multiply float64 by a power of two, in two steps as one alone may not be finite."""
    return x * 2.0 ** (exponent // 2) * 2.0 ** (exponent - exponent // 2)
