"""Top-k sparsification across the whole update."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedcompress.checks import check_fraction
from fedcompress.stage import Stage
from fedcompress.stages.selection import Selection, count_of, largest
from fedcompress.streams import IndexSet, Streams


@dataclass(frozen=True, repr=False)
class GlobalTopK(Selection):
    """Keep the largest-magnitude ``fraction`` of entries of the whole update. Biased.

    Aji & Heafield (2017) compare it with selecting array by array; Shi et al. (2019),
    "Understanding top-k sparsification in distributed deep learning", select across a model. An
    array whose entries are small sends none of them. Stands first in its chain, from where it
    sees the update; elsewhere it selects in each array by itself, as `top_k` does.

    Parameters
    ----------
    fraction : float
        Share of the entries of the update to keep, in (0, 1]; at least one entry is kept. Of
        equal magnitudes those of the first arrays count, and in an array the first ones.
    """

    name: ClassVar[str] = "global_top_k"

    fraction: float

    def __post_init__(self) -> None:
        fraction = check_fraction(self.name, "fraction", self.fraction)
        object.__setattr__(self, "fraction", fraction)  # 1 and 1.0 are one spec

    @property
    def unbiased(self) -> bool:
        """Only when nothing is dropped."""
        return self.fraction == 1

    def for_update(self, update: Mapping[str, Tensor]) -> Stage:
        """Choose in all arrays at once."""
        arrays = list(update.values())
        if len(arrays) < 2:
            return self
        device = arrays[0].device
        flat = torch.cat([x.reshape(-1).to(device) for x in arrays])
        found = largest(flat, count_of(self.fraction, flat.numel()))
        ends = np.cumsum([x.numel() for x in arrays])
        cuts = torch.searchsorted(found, torch.from_numpy(ends).to(device)).tolist()
        chosen: dict[int, Tensor] = {}
        for x, end, first, last in zip(arrays, ends, [0, *cuts], cuts, strict=False):
            chosen[id(x)] = (found[first:last] - (int(end) - x.numel())).to(x.device)
        return _Chosen(self, chosen)

    def select(self, x: Tensor, rng: np.random.Generator) -> Tensor:
        """Choose the positions of the largest magnitudes of one array."""
        del rng
        return largest(x, count_of(self.fraction, x.numel()))


@dataclass(frozen=True, repr=False, eq=False)
class _Chosen(Selection):
    """The stage for one update, which has been chosen from already."""

    name: ClassVar[str] = GlobalTopK.name

    whole: GlobalTopK
    found: Mapping[int, Tensor]  # positions by the identity of the array that holds them

    @property
    def unbiased(self) -> bool:
        return self.whole.unbiased

    def encode(self, x: Tensor, rng: np.random.Generator) -> tuple[Tensor, Streams]:
        indices = self.found.get(id(x))
        if indices is None:
            return self.whole.encode(x, rng)
        return x.reshape(-1)[indices], (IndexSet(indices, x.numel(), tuple(x.shape)),)

    def select(self, x: Tensor, rng: np.random.Generator) -> Tensor:
        return self.whole.select(x, rng)
