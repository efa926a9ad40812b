"""Subtractively dithered quantization."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedcompress.checks import check_positive
from fedcompress.errors import PayloadError
from fedcompress.noise import draw_seed, uniform_noise
from fedcompress.stage import Numbers, Stage
from fedcompress.stages.rounding import few_digits, round_to_multiples, spread_of
from fedcompress.stages.scale import read_scale
from fedcompress.streams import Forms, Layout, Scale, ScaleForm, Seed, SeedForm, Streams

# A symbol beyond these carries nothing that the working dtype does not round away.
_MOST_SYMBOLS = {torch.float32: float(1 << 24), torch.float64: float(1 << 30)}
_MOST_ROUNDED = float((1 << 31) - 1)


@dataclass(frozen=True, repr=False)
class Dither(Stage):
    """Add noise, round to multiples of a step, and take the same noise off again. Unbiased.

    Roberts (1962), "Picture coding using pseudo-random noise"; Schuchman (1964), "Dither
    signals and their effect on quantization noise"; Ziv (1985), "On universal quantization";
    Shlezinger et al. (2020), "UVeQFed" (for federated updates, the noise from a shared seed).
    The error is uniform over one step and independent of the update: a mean squared error of
    step²/12, half of what stochastic rounding has. Nothing is clipped.

    Parameters
    ----------
    step : float
        In units of the array's standard deviation, above 0.
    """

    name: ClassVar[str] = "dither"
    gives: ClassVar[Numbers] = "symbols"

    step: float

    def __post_init__(self) -> None:
        step = check_positive(self.name, "step", self.step)
        object.__setattr__(self, "step", step)  # 1 and 1.0 are one spec

    @property
    def unbiased(self) -> bool:
        """Always."""
        return True

    def encode(self, x: Tensor, rng: np.random.Generator) -> tuple[Tensor, Streams]:
        """Round ``x / step`` plus noise down; the side streams are the step and the seed."""
        largest, deviation = spread_of(x)
        step, seed = self._step_of(x.dtype, largest, deviation), draw_seed(rng)
        side = (Scale(torch.tensor([step], dtype=x.dtype, device=x.device)), Seed(seed))
        if step == 0:
            return torch.zeros_like(x, dtype=torch.int16), side
        most = min(2 * largest / step + 2, _MOST_ROUNDED)
        return round_to_multiples(x, step, seed, most), side

    def decode(self, x: Tensor, side: Streams, like: Layout) -> Tensor:
        """Take off the noise, put back the half by which rounding down is low, times the step."""
        scale, seed = side
        if not isinstance(seed, Seed):
            raise PayloadError(f"expected a seed, got a stream of {seed.kind}")
        step = read_scale((scale,))
        noise = uniform_noise(seed.value, like.size, like.device).reshape(like.shape)
        out = x.to(like.dtype).reshape(like.shape).sub_(noise).add_(0.5).mul_(step)
        limit = torch.finfo(like.dtype).max
        if abs(step) > limit / float(1 << 31):
            out.clamp_(-limit, limit)
        return out

    def side_forms(self, like: Layout) -> Forms:
        """Expect the step and the seed."""
        return (ScaleForm(1, like.dtype), SeedForm())

    def _step_of(self, dtype: torch.dtype, largest: float, deviation: float) -> float:
        """Give the step; 0 for an array of zeros, so that noise times it is zero as well."""
        if largest == 0:
            return 0.0
        step = few_digits(self.step * deviation) or largest
        step = max(step, largest / _MOST_SYMBOLS[dtype], torch.finfo(dtype).tiny)
        return float(torch.tensor(min(step, torch.finfo(dtype).max), dtype=dtype))
