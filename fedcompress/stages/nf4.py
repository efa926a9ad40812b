"""Four-bit NormalFloat."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedcompress.checks import check_integer
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
from fedcompress.stages.levels import look_up, nearest
from fedcompress.streams import Forms, Layout, Streams

_FRACTION_BITS = 3  # of a scale; more cost more than they save
# Quantiles of the standard normal over their largest, eight of them not negative, zero among
# them; as published, since a payload must not hang on how a library computes quantiles.
_LEVELS = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
_ZERO = 7


@dataclass(frozen=True, repr=False)
class Nf4(Stage):
    """Round to the nearest of sixteen quantiles of a normal, scaled by block. Biased.

    Dettmers et al. (2023), "QLoRA: efficient finetuning of quantized LLMs" (4-bit NormalFloat).
    A block is scaled by its largest magnitude, rounded to four significant bits; an array of
    one block only sends it exactly. Zero stays zero.

    Parameters
    ----------
    block : int
        Consecutive entries that share a scale, 2 or more; the paper's choice is 64.
    """

    name: ClassVar[str] = "nf4"
    gives: ClassVar[Numbers] = "symbols"

    block: int = 64

    def __post_init__(self) -> None:
        check_integer(self.name, "block", self.block, 2, 1 << 30)

    @property
    def unbiased(self) -> bool:
        """Rounding to nearest is not."""
        return False

    def encode(self, x: Tensor, rng: np.random.Generator) -> tuple[Tensor, Streams]:
        """Give the level of each entry, −7 to 8; the side stream is the scale of each block."""
        del rng
        flat = x.reshape(-1)
        stream, scales = scale_stream(by_block(flat, self.block, largest), _FRACTION_BITS, up=False)
        scaled = over_blocks(flat, scales, self.block).to(torch.float32)
        return nearest(scaled, _levels(x.device), _ZERO).reshape(x.shape), (stream,)

    def decode(self, x: Tensor, side: Streams, like: Layout) -> Tensor:
        """Look the levels up and multiply by the scale of the block."""
        scales = read_scales(side[0], like, _FRACTION_BITS)
        levels = look_up(x.reshape(-1), _levels(like.device), _ZERO).to(like.dtype)
        return times_blocks(levels, scales, self.block).reshape(like.shape)

    def side_forms(self, like: Layout) -> Forms:
        """Expect the scales."""
        return (scale_form(like, self.block),)


def _levels(device: torch.device) -> Tensor:
    return torch.tensor(_LEVELS, dtype=torch.float32, device=device)
