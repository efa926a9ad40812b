"""Top-k sparsification."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from torch import Tensor

from fedcompress.checks import check_fraction, check_integer
from fedcompress.stage import Stage
from fedcompress.stages.quantize import Quantize
from fedcompress.stages.selection import Selection, count_of, largest, largest_of_blocks
from fedcompress.streams import Streams


@dataclass(frozen=True, repr=False)
class TopK(Selection):
    """Keep the largest-magnitude ``fraction`` of entries of each array. Biased.

    Aji & Heafield (2017), "Sparse communication for distributed gradient descent".

    Parameters
    ----------
    fraction : float
        Share of the entries to keep, in (0, 1]; at least one entry is kept.
    block : int, optional
        Length of the blocks of consecutive entries, of each of which that share is kept, at
        least one entry; 2 to 2**24. Default: the whole array is one block.
    """

    name: ClassVar[str] = "top_k"

    fraction: float
    block: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        fraction = check_fraction(self.name, "fraction", self.fraction)
        object.__setattr__(self, "fraction", fraction)  # 1 and 1.0 are one spec
        if self.block is not None:
            check_integer(self.name, "block", self.block, 2, 1 << 24)

    @property
    def unbiased(self) -> bool:
        """Only when nothing is dropped."""
        return self.fraction == 1

    def encode_through(
        self, following: Sequence[Stage], x: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, list[Streams]] | None:
        """Select and quantize in one call, where that follows."""
        if self.block is None and len(following) == 1 and isinstance(following[0], Quantize):
            return following[0].encode_largest(x, count_of(self.fraction, x.numel()), rng)
        return None

    def select(self, x: Tensor, rng: np.random.Generator) -> Tensor:
        """Choose the positions of the largest magnitudes."""
        del rng
        n = x.numel()
        if self.block is None or self.block >= n:
            return largest(x, count_of(self.fraction, n))
        last = n % self.block
        return largest_of_blocks(
            x,
            self.block,
            count_of(self.fraction, self.block),
            count_of(self.fraction, last) if last else 0,
        )
