"""Uniform noise that both sides of a wire draw from one seed, the same on every machine."""

import numpy as np
import torch
from torch import Tensor

from fedcompress.splitmix import random_words


def draw_seed(rng: np.random.Generator) -> int:
    """Draw an unsigned 64-bit seed."""
    return int(rng.integers(0, 1 << 64, dtype=np.uint64))


def uniform_noise(seed: int, n: int, device: torch.device) -> Tensor:
    """Give ``n`` numbers in [0, 1) for a seed: float32, multiples of 2**-24.

    They are the top bits of the words of `fedcompress.kernels.splitmix`, functions of seed and
    position alone. Only integer operations and exact products enter, so that every device gives
    the same bits.
    """
    if device.type == "cpu":
        from fedcompress.kernels.noise import fill_noise

        out = torch.empty(n)
        fill_noise(np.uint64(seed), out.numpy())
        return out
    words = random_words(seed, torch.arange(n, device=device))
    # The mask takes off the sign, which a shift of signed words draws in.
    return ((words >> 40) & 0xFFFFFF).to(torch.float32).mul_(2.0**-24)
