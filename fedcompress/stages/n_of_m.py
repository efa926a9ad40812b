"""N:M sparsification."""

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedcompress.checks import check_integer
from fedcompress.errors import PayloadError, SpecError
from fedcompress.stage import Stage
from fedcompress.stages.selection import add_at, largest_of_blocks
from fedcompress.streams import Forms, Layout, Streams, SymbolForm, Symbols

_MOST_PATTERNS = 1 << 14


@dataclass(frozen=True, repr=False)
class NOfM(Stage):
    """Keep the ``n`` largest magnitudes of every ``m`` consecutive entries. Biased.

    Mishra et al. (2021), "Accelerating sparse deep neural networks" (2:4, which hardware runs
    fast); Zhou et al. (2021), "Learning N:M fine-grained structured sparse neural networks from
    scratch". Where in its group the kept entries lie is one of C(m, n) patterns, at most
    log2 C(m, n) bits a group and less where some patterns are commoner. Of equal magnitudes the
    first ones are kept. Groups follow the array in memory order, the last one may be shorter.

    Parameters
    ----------
    n : int
        Entries to keep of each group, 1 to m − 1.
    m : int
        Entries of a group, 2 to 64; C(m, n) may be 16384 at the most.
    """

    name: ClassVar[str] = "n_of_m"
    sparsifies: ClassVar[bool] = True

    n: int
    m: int

    def __post_init__(self) -> None:
        check_integer(self.name, "m", self.m, 2, 64)
        check_integer(self.name, "n", self.n, 1, self.m - 1)
        if math.comb(self.m, self.n) > _MOST_PATTERNS:
            raise SpecError(
                f"n_of_m: {self.n} of {self.m} has {math.comb(self.m, self.n)} patterns, more than "
                f"{_MOST_PATTERNS}; take a smaller m, or top_k({self.n / self.m:g}, block={self.m})"
            )

    @property
    def unbiased(self) -> bool:
        """Never: the smaller ones are dropped."""
        return False

    def encode(self, x: Tensor, rng: np.random.Generator) -> tuple[Tensor, Streams]:
        """Gather the kept entries; the side stream holds the pattern of each group."""
        del rng
        flat = x.reshape(-1)
        kept = largest_of_blocks(flat, self.m, self.n, min(self.n, flat.numel() % self.m))
        return flat[kept], (Symbols(self._patterns_of(kept, flat.numel())),)

    def decode(self, x: Tensor, side: Streams, like: Layout) -> Tensor:
        """Put the kept entries in their places; the others are zero."""
        out = torch.zeros(like.size, dtype=like.dtype, device=like.device)
        out[self._positions(side, like)] = x.to(like.dtype)
        return out.reshape(like.shape)

    def side_forms(self, like: Layout) -> Forms:
        """Expect one pattern a group."""
        return (SymbolForm((-(-like.size // self.m),)),)

    def layout_after(self, like: Layout, side: Streams) -> Layout:
        """Give the layout of n entries a group, once their patterns are checked."""
        self._numbers(side, like)
        groups, over = divmod(like.size, self.m)
        return Layout((groups * self.n + min(self.n, over),), like.dtype, like.device)

    def add_to(self, total: Tensor, x: Tensor, side: Streams, like: Layout, weight: float) -> None:
        """Add the kept entries only."""
        add_at(total, self._positions(side, like), x, weight)

    def _patterns_of(self, kept: Tensor, size: int) -> Tensor:
        """Number the pattern of each group: the combinatorial number system (Lehmer, 1964)."""
        table = _terms(self.n, self.m)
        groups = -(-size // self.m)
        if kept.device.type == "cpu":
            from fedcompress.kernels import patterns

            numbers = np.empty(groups, np.int16)
            patterns.number(kept.numpy(), table.numpy(), numbers)
            return torch.from_numpy(numbers)
        order = torch.arange(kept.numel(), device=kept.device)
        terms = table.to(kept.device)[kept % self.m, order % self.n]
        sums = torch.zeros(groups, dtype=torch.int64, device=kept.device)
        return sums.index_add_(0, order // self.n, terms).to(torch.int16)

    def _numbers(self, side: Streams, like: Layout) -> Tensor:
        """Give the number of each group's pattern."""
        (stream,) = side
        if not isinstance(stream, Symbols):
            raise PayloadError(f"expected patterns, got a stream of {stream.kind}")
        numbers = stream.values
        if numbers.numel() == 0:
            return numbers
        most, over = math.comb(self.m, self.n), like.size % self.m
        # The first patterns are those of a shorter group, which may have room for one only.
        last = max(1, math.comb(over, self.n)) if over else most
        if int(numbers.min()) < 0 or int(numbers.max()) >= most or int(numbers[-1]) >= last:
            raise PayloadError(
                f"payload: a pattern that {self.n} of {self.m} has not; the bytes are damaged"
            )
        return numbers

    def _positions(self, side: Streams, like: Layout) -> Tensor:
        numbers = self._numbers(side, like)
        table = _places(self.n, self.m)
        groups, over = divmod(like.size, self.m)
        size = groups * self.n + min(self.n, over)
        if numbers.device.type == "cpu":
            from fedcompress.kernels import patterns

            found = np.empty(size, np.int64)
            patterns.places(numbers.contiguous().numpy(), table.numpy(), self.m, found)
            return torch.from_numpy(found)
        starts = self.m * torch.arange(numbers.numel(), device=numbers.device)
        places = table.to(numbers.device)[numbers.to(torch.int64)]
        return (places + starts[:, None]).reshape(-1)[:size]


@lru_cache(maxsize=8)
def _terms(n: int, m: int) -> Tensor:
    """Give what a place adds to the number of a pattern as its i-th (m, n)."""
    return torch.tensor([[math.comb(place, i + 1) for i in range(n)] for place in range(m)])


@lru_cache(maxsize=8)
def _places(n: int, m: int) -> Tensor:
    """Give the places of every pattern (patterns, n), in the order of their numbers."""
    patterns = sorted(combinations(range(m), n), key=lambda places: places[::-1])
    return torch.tensor(patterns, dtype=torch.int64)
