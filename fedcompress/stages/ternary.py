"""Ternary quantization."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedcompress.checks import check_positive
from fedcompress.stage import Numbers, Stage
from fedcompress.stages.scale import read_scale
from fedcompress.streams import Forms, Layout, Scale, ScaleForm, Streams


@dataclass(frozen=True, repr=False)
class Ternary(Stage):
    """Send −1, 0 or 1 for every entry and the mean magnitude of those not 0. Biased.

    Li & Liu (2016), "Ternary weight networks". Entries at or below ``threshold`` times the
    mean magnitude become 0; the scale is the mean over the kept entries only, which is what
    makes the mean squared error least for the chosen signs: 1 − ‖kept‖₁² / (k ‖x‖₂²) of the
    squared norm, with k entries kept.

    Parameters
    ----------
    threshold : float
        In units of the array's mean magnitude, above 0; the paper's choice is 0.7.
    """

    name: ClassVar[str] = "ternary"
    gives: ClassVar[Numbers] = "symbols"

    threshold: float = 0.7

    def __post_init__(self) -> None:
        threshold = check_positive(self.name, "threshold", self.threshold)
        object.__setattr__(self, "threshold", threshold)  # 1 and 1.0 are one spec

    @property
    def unbiased(self) -> bool:
        """Never: what is small is dropped."""
        return False

    def encode(self, x: Tensor, rng: np.random.Generator) -> tuple[Tensor, Streams]:
        """Give the signs of the kept entries; the side stream is their mean magnitude."""
        del rng
        # Summed in float64, since the sum of large float32 overflows.
        mean = float(x.abs().sum(dtype=torch.float64)) / max(x.numel(), 1)
        kept = torch.nn.functional.hardshrink(x, self.threshold * mean)
        symbols = torch.sign(kept).to(torch.int8)
        count = int(symbols.count_nonzero())
        scale = float(kept.abs_().sum(dtype=torch.float64)) / max(count, 1)
        return symbols, (Scale(torch.tensor([scale], dtype=torch.float64).to(x)),)

    def decode(self, x: Tensor, side: Streams, like: Layout) -> Tensor:
        """Multiply the symbols by the mean magnitude."""
        return x.to(like.dtype).mul_(read_scale(side)).reshape(like.shape)

    def side_forms(self, like: Layout) -> Forms:
        """Expect the mean magnitude."""
        return (ScaleForm(1, like.dtype),)
