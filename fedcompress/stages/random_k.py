"""Random sparsification."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedcompress.checks import check_choice, check_fraction
from fedcompress.errors import PayloadError
from fedcompress.stage import Stage
from fedcompress.stages.selection import add_at, count_of
from fedcompress.streams import Forms, Layout, Seed, SeedForm, Streams


@dataclass(frozen=True, repr=False)
class RandomK(Stage):
    """Keep a random ``fraction`` of entries, known to both sides by a seed. Unbiased.

    Konečný et al. (2016), "Federated learning: strategies for improving communication
    efficiency" (random mask); Wangni et al. (2018). Eight bytes say which entries.

    Parameters
    ----------
    fraction : float
        Share of the entries to keep, in (0, 1]; at least one entry is kept.
    rescale : {"yes", "no"}
        Whether kept entries are multiplied by n/k, which makes the stage unbiased. Inside
        `error_feedback` say ``"no"``: there the residual brings back what was dropped.
    """

    name: ClassVar[str] = "random_k"
    sparsifies: ClassVar[bool] = True
    contracting: ClassVar[str] = 'write random_k(…, rescale="no")'

    fraction: float
    rescale: str = "yes"

    def __post_init__(self) -> None:
        fraction = check_fraction(self.name, "fraction", self.fraction)
        object.__setattr__(self, "fraction", fraction)  # 1 and 1.0 are one spec
        check_choice(self.name, "rescale", self.rescale, ("yes", "no"))

    @property
    def unbiased(self) -> bool:
        """When rescaled, or when nothing is dropped."""
        return self.rescale == "yes" or self.fraction == 1

    @property
    def expands(self) -> bool:
        """When rescaled: a kept entry is then n/k times too large."""
        return self.rescale == "yes" and self.fraction < 1

    def encode(self, x: Tensor, rng: np.random.Generator) -> tuple[Tensor, Streams]:
        """Gather the drawn entries; the side stream is the seed."""
        flat = x.reshape(-1)
        seed = int(rng.integers(0, 1 << 64, dtype=np.uint64))
        return flat[self._draw(seed, flat.numel()).to(x.device)], (Seed(seed),)

    def decode(self, x: Tensor, side: Streams, like: Layout) -> Tensor:
        """Put the kept entries in their places, rescaled; the others are zero."""
        out = torch.zeros(like.size, dtype=like.dtype, device=like.device)
        self.add_to(out, x, side, like, 1.0)
        return out.reshape(like.shape)

    def side_forms(self, like: Layout) -> Forms:
        """Expect the seed."""
        del like
        return (SeedForm(),)

    def layout_after(self, like: Layout, side: Streams) -> Layout:
        """One entry for each position drawn."""
        del side
        return Layout((count_of(self.fraction, like.size),), like.dtype, like.device)

    def add_to(self, total: Tensor, x: Tensor, side: Streams, like: Layout, weight: float) -> None:
        """Add the kept entries only."""
        (stream,) = side
        if not isinstance(stream, Seed):
            raise PayloadError(f"expected a seed, got a stream of {stream.kind}")
        indices = self._draw(stream.value, like.size).to(like.device)
        if self.rescale == "yes" and indices.numel():
            limit = torch.finfo(x.dtype).max
            x = (x * (like.size / indices.numel())).clamp_(-limit, limit)
        add_at(total, indices, x, weight)

    def _draw(self, seed: int, n: int) -> Tensor:
        """Draw k distinct positions, ascending; only raw generator words enter.

        What numpy makes of those words may change with its version, the words may not.
        """
        k = count_of(self.fraction, n)
        drop = k > n - k
        wanted = n - k if drop else k
        words = np.random.Philox(key=np.array([seed, 0x72616E646F6D6B], np.uint64))
        chosen = np.zeros(0, np.uint64)
        while chosen.size < wanted:
            drawn = words.random_raw(wanted + wanted // 8 + 16) % np.uint64(n)
            both = np.concatenate([chosen, drawn])
            _, first = np.unique(both, return_index=True)
            chosen = both[np.sort(first)]
        picked = np.sort(chosen[:wanted].astype(np.int64))
        if drop:
            keep = np.ones(n, bool)
            keep[picked] = False
            picked = np.flatnonzero(keep)
        return torch.from_numpy(picked)
