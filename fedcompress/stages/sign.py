"""Sign quantization, scaled or bare."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedcompress.checks import check_choice
from fedcompress.stage import Numbers, Stage
from fedcompress.stages.scale import read_scale
from fedcompress.streams import Forms, Layout, Scale, ScaleForm, Streams


@dataclass(frozen=True, repr=False)
class Sign(Stage):
    """Send the sign of every entry and the mean magnitude of the array. Biased.

    Seide et al. (2014), "1-bit stochastic gradient descent"; Karimireddy et al. (2019),
    "Error feedback fixes SignSGD" (the mean magnitude as the scale, which makes the mean
    squared error least: 1 − ‖x‖₁² / (n ‖x‖₂²) of the squared norm). Behind `top_k` this is
    the sparse ternary compression of Sattler et al. (2019). Zero counts as positive.

    Parameters
    ----------
    scale : {"mean", "none"}
        ``"none"`` sends no magnitude and decodes to ±1: signSGD (Bernstein et al., 2018), whose
        step is the learning rate of the server. Not for `error_feedback`.
    """

    name: ClassVar[str] = "sign"
    gives: ClassVar[Numbers] = "symbols"
    contracting: ClassVar[str] = "write sign(), which sends the mean magnitude"

    scale: str = "mean"

    def __post_init__(self) -> None:
        check_choice(self.name, "scale", self.scale, ("mean", "none"))

    @property
    def unbiased(self) -> bool:
        """Never: all magnitudes become one."""
        return False

    @property
    def expands(self) -> bool:
        """Without a scale: ±1 may be far more than the entries."""
        return self.scale == "none"

    def encode(self, x: Tensor, rng: np.random.Generator) -> tuple[Tensor, Streams]:
        """Give 1 where ``x`` is not negative, else 0; the side stream is the mean magnitude."""
        del rng
        symbols = (x >= 0).to(torch.int8)
        if self.scale == "none":
            return symbols, ()
        # Summed in float64, since the sum of large float32 overflows.
        mean = float(x.abs().sum(dtype=torch.float64)) / max(x.numel(), 1)
        return symbols, (Scale(torch.tensor([mean], dtype=torch.float64).to(x)),)

    def decode(self, x: Tensor, side: Streams, like: Layout) -> Tensor:
        """Give ± the mean magnitude, or ±1."""
        signs = x.to(like.dtype).mul_(2).sub_(1).reshape(like.shape)
        return signs.mul_(read_scale(side)) if side else signs

    def side_forms(self, like: Layout) -> Forms:
        """Expect the mean magnitude."""
        return (ScaleForm(1, like.dtype),) if self.scale == "mean" else ()
