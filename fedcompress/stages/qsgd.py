"""Stochastic quantization to fractions of the norm."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedcompress.checks import check_choice, check_integer
from fedcompress.noise import draw_seed, uniform_noise
from fedcompress.stage import Numbers, Stage
from fedcompress.stages.blocks import (
    by_block,
    largest,
    over_blocks,
    read_scales,
    scale_form,
    scale_stream,
    times_blocks,
)
from fedcompress.streams import Forms, Layout, Streams

_FRACTION_BITS = 7  # of the step of a bucket, as bfloat16 has; its variance grows by 1 % at most


@dataclass(frozen=True, repr=False)
class Qsgd(Stage):
    """Round every entry at random to a multiple of ``norm / levels`` of its bucket. Unbiased.

    Alistarh et al. (2017), "QSGD: communication-efficient SGD via gradient quantization and
    encoding". A bucket of d entries has a variance of at most ``min(d/levels², √d/levels)``
    times its squared norm. With ``norm="max"``, as in the paper's experiments, no entry takes
    more than ``levels`` steps; ``qsgd(1, norm="max")`` is TernGrad (Wen et al., 2017).

    Parameters
    ----------
    levels : int
        Steps from 0 to the norm, 1 to 32767.
    bucket : int, optional
        Consecutive entries that share a norm; without it, all of an array.
    norm : {"l2", "max"}
        Euclidean norm, or largest magnitude.
    """

    name: ClassVar[str] = "qsgd"
    gives: ClassVar[Numbers] = "symbols"
    contracting: ClassVar[str] = "give qsgd a bucket of fewer entries than levels squared"

    levels: int
    bucket: int | None = None
    norm: str = "l2"

    def __post_init__(self) -> None:
        check_integer(self.name, "levels", self.levels, 1, (1 << 15) - 1)
        if self.bucket is not None:
            check_integer(self.name, "bucket", self.bucket, 2, 1 << 30)
        check_choice(self.name, "norm", self.norm, ("l2", "max"))

    @property
    def unbiased(self) -> bool:
        """Always."""
        return True

    @property
    def expands(self) -> bool:
        """Unless the buckets are small enough that the variance stays below the squared norm."""
        most = self.levels**2 if self.norm == "l2" else 4 * self.levels**2
        return self.bucket is None or self.bucket >= most

    def encode(self, x: Tensor, rng: np.random.Generator) -> tuple[Tensor, Streams]:
        """Give the signed number of steps; the side stream is the step of each bucket."""
        flat = x.reshape(-1)
        norms = by_block(flat, self.bucket, largest if self.norm == "max" else _euclidean)
        # Rounding the sent step up, then by it, leaves the mean as it is and clips nothing.
        stream, steps = scale_stream(norms / self.levels, _FRACTION_BITS, up=True)
        noise = uniform_noise(draw_seed(rng), flat.numel(), x.device)
        rounded = over_blocks(flat, steps, self.bucket).add_(noise).floor_()
        # The largest entry over the step, plus noise, may itself round up to one step more.
        rounded.clamp_(-self.levels, self.levels)
        return rounded.to(torch.int32).reshape(x.shape), (stream,)

    def decode(self, x: Tensor, side: Streams, like: Layout) -> Tensor:
        """Multiply by the step of each bucket."""
        steps = read_scales(side[0], like, _FRACTION_BITS)
        out = x.to(like.dtype, copy=True).reshape(-1)
        return times_blocks(out, steps, self.bucket).reshape(like.shape)

    def side_forms(self, like: Layout) -> Forms:
        """Expect the steps."""
        return (scale_form(like, self.bucket),)


def _euclidean(blocks: Tensor) -> Tensor:
    """Give the norm of each row, also where squares leave the range of its dtype."""
    unit = 1.0
    if blocks.dtype == torch.float64:
        unit = float(blocks.abs().max()) or 1.0
        blocks = blocks / unit
    norms: Tensor = torch.linalg.vector_norm(blocks, dim=1, dtype=torch.float64).mul_(unit)
    return norms.clamp_(max=torch.finfo(blocks.dtype).max).to(blocks.dtype)
