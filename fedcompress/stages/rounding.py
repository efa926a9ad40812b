"""Rounding to multiples of a step, on the device where the array lies."""

import math

import numpy as np
import torch
from torch import Tensor

from fedcompress.noise import uniform_noise

_SHORT = float((1 << 15) - 1)


def spread_of(x: Tensor) -> tuple[float, float]:
    """Give the largest magnitude and the standard deviation of an array, 0 and 0 of an empty one.

    In float64, since the square of a large float32 overflows.
    """
    if x.numel() == 0:
        return 0.0, 0.0
    if x.device.type == "cpu":
        from fedcompress.kernels.uniform import spread

        total, squares, largest = spread(x.contiguous().reshape(-1).numpy())
        mean = total / x.numel()
        return largest, math.sqrt(max(squares / x.numel() - mean * mean, 0.0))
    return float(x.abs().max()), float(x.double().std(correction=0))


def few_digits(value: float) -> float:
    """Round to 16 binary digits, so that sums in another order give the same number."""
    mantissa, exponent = math.frexp(value)
    return math.ldexp(round(mantissa * 65536), exponent - 16)


def round_to_multiples(x: Tensor, step: float, seed: int | None, most: float) -> Tensor:
    """Round ``x / step``: to the nearest integer, or, given a seed, up or down without bias.

    Parameters
    ----------
    x : Tensor
        float32 or float64, any shape, any device.
    step : float
        Exact in the dtype of ``x``.
    seed : int, optional
        Unsigned, 64 bits: the noise that rounds up with the probability of the fraction.
    most : float
        Largest magnitude of the result; it must hold what rounding to nearest gives.

    Returns
    -------
    Tensor
        int16 if ``most`` fits, else int32; the same on every device.
    """
    dtype = torch.int16 if most <= _SHORT else torch.int32
    if x.device.type == "cpu":
        from fedcompress.kernels.uniform import round_nearest, round_stochastic

        flat = x.contiguous().reshape(-1).numpy()
        out = np.empty(flat.size, np.int16 if dtype == torch.int16 else np.int32)
        exact = flat.dtype.type(step)
        if seed is None:
            round_nearest(flat, exact, out)
        else:
            round_stochastic(flat, exact, np.uint64(seed), np.int32(most), out)
        return torch.from_numpy(out).reshape(x.shape)
    scaled = x / step
    if seed is None:
        return scaled.round_().to(dtype)
    noise = uniform_noise(seed, x.numel(), x.device).reshape(x.shape)
    return scaled.add_(noise).floor_().clamp_(-most, most).to(dtype)
