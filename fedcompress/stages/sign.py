"""Scaled sign quantization."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedcompress.stage import Numbers, Stage
from fedcompress.stages.scale import read_scale
from fedcompress.streams import Forms, Layout, Scale, ScaleForm, Streams


@dataclass(frozen=True, repr=False)
class Sign(Stage):
    """Send the sign of every entry and the mean magnitude of the array. Biased.

    Seide et al. (2014), "1-bit stochastic gradient descent"; Karimireddy et al. (2019),
    "Error feedback fixes SignSGD" (the mean magnitude as the scale). Behind `top_k` this is
    the sparse ternary compression of Sattler et al. (2019). Zero counts as positive.
    """

    name: ClassVar[str] = "sign"
    gives: ClassVar[Numbers] = "symbols"

    @property
    def unbiased(self) -> bool:
        """Never: all magnitudes become one."""
        return False

    def encode(self, x: Tensor, rng: np.random.Generator) -> tuple[Tensor, Streams]:
        """Give 1 where ``x`` is not negative, else 0; the side stream is the mean magnitude."""
        del rng
        magnitude = float(x.abs().double().mean()) if x.numel() else 0.0
        scale = torch.tensor([magnitude], dtype=torch.float64).to(x)
        return (x >= 0).to(torch.int32), (Scale(scale),)

    def decode(self, x: Tensor, side: Streams, like: Layout) -> Tensor:
        """Give ± the mean magnitude."""
        return x.to(like.dtype).mul_(2).sub_(1).mul_(read_scale(side)).reshape(like.shape)

    def side_forms(self, like: Layout) -> Forms:
        """Expect the mean magnitude."""
        return (ScaleForm(1, like.dtype),)
