"""Random masks drawn from probabilities."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedcompress.errors import OutOfRangeError, PayloadError
from fedcompress.noise import draw_seed, uniform_noise
from fedcompress.stage import Numbers, Stage
from fedcompress.streams import Layout, Streams

_ROUNDING = 1e-6  # a probability may come as a difference of two sums


@dataclass(frozen=True, repr=False)
class BernoulliMask(Stage):
    """Send each probability as one draw, 0 or 1. Unbiased; takes entries in [0, 1] only.

    Isik et al. (2023), "Sparse random networks for communication-efficient federated learning"
    (FedPM): clients train the probabilities with which the weights of a random network are
    kept, and send masks drawn from them; the mean of the masks estimates the mean of the
    probabilities. At most one bit a parameter, behind `entropy` the entropy of the share of
    ones. Updates of weights are no probabilities: the stage refuses entries below 0 or above 1.
    """

    name: ClassVar[str] = "bernoulli_mask"
    gives: ClassVar[Numbers] = "symbols"
    contracting: ClassVar[str] = "send masks without a residual"

    @property
    def unbiased(self) -> bool:
        """Always: the mean of a draw is its probability."""
        return True

    @property
    def expands(self) -> bool:
        """A rare 1 errs by far more than its small probability."""
        return True

    def encode(self, x: Tensor, rng: np.random.Generator) -> tuple[Tensor, Streams]:
        """Draw; there is no side stream."""
        if x.numel() == 0:
            return x.to(torch.int8), ()
        low, high = (float(end) for end in torch.aminmax(x))
        if low < -_ROUNDING or high > 1 + _ROUNDING:
            raise OutOfRangeError(
                f"bernoulli_mask: takes probabilities in [0, 1], got entries from {low:g} to "
                f"{high:g}; send the probabilities themselves, such as the sigmoid of scores"
            )
        noise = uniform_noise(draw_seed(rng), x.numel(), x.device)
        return (noise.reshape(x.shape) < x).to(torch.int8), ()

    def decode(self, x: Tensor, side: Streams, like: Layout) -> Tensor:
        """Give the mask as numbers."""
        del side
        if x.numel() and (int(x.min()) < 0 or int(x.max()) > 1):
            raise PayloadError("payload: a mask of other symbols than 0 and 1; it is damaged")
        return x.to(like.dtype).reshape(like.shape)
