"""Structured sparsification: whole rows or filters."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedcompress.checks import check_fraction
from fedcompress.stage import Stage
from fedcompress.stages.selection import count_of, largest, positions
from fedcompress.streams import Forms, IndexForm, IndexSet, Layout, Streams


@dataclass(frozen=True, repr=False)
class TopRows(Stage):
    """Keep the ``fraction`` of rows of each array with the largest L2 norm. Biased.

    A row is what stands under one index of the first dimension: the inputs of a unit, a filter
    of a convolution; of an array of one dimension, an entry. Ranking filters by norm is from Li
    et al. (2017), "Pruning filters for efficient ConvNets"; structured updates in federated
    learning from Konečný et al. (2016). Positions cost next to nothing, since there is one for a
    whole row.

    Parameters
    ----------
    fraction : float
        Share of the rows to keep, in (0, 1]; at least one row is kept.
    """

    name: ClassVar[str] = "top_rows"
    sparsifies: ClassVar[bool] = True

    fraction: float

    def __post_init__(self) -> None:
        fraction = check_fraction(self.name, "fraction", self.fraction)
        object.__setattr__(self, "fraction", fraction)  # 1 and 1.0 are one spec

    @property
    def unbiased(self) -> bool:
        """Only when nothing is dropped."""
        return self.fraction == 1

    def encode(self, x: Tensor, rng: np.random.Generator) -> tuple[Tensor, Streams]:
        """Gather the kept rows; the side stream says which."""
        del rng
        rows = x.reshape(_matrix(tuple(x.shape)))
        indices = largest(_norms(rows), count_of(self.fraction, rows.shape[0]))
        kept = rows[indices].reshape(indices.numel(), *x.shape[1:])
        return kept, (IndexSet(indices, rows.shape[0]),)

    def decode(self, x: Tensor, side: Streams, like: Layout) -> Tensor:
        """Put the kept rows in their places; the others are zero."""
        out = torch.zeros(like.size, dtype=like.dtype, device=like.device)
        self.add_to(out, x.to(like.dtype), side, like, 1.0)
        return out.reshape(like.shape)

    def side_forms(self, like: Layout) -> Forms:
        """Expect the positions of rows."""
        return (IndexForm(_matrix(like.shape)[0]),)

    def layout_after(self, like: Layout, side: Streams) -> Layout:
        """As many rows as positions."""
        return Layout((int(positions(side).numel()), *like.shape[1:]), like.dtype, like.device)

    def add_to(self, total: Tensor, x: Tensor, side: Streams, like: Layout, weight: float) -> None:
        """Add the kept rows only."""
        rows, matrix = positions(side), _matrix(like.shape)
        kept = x.reshape(rows.numel(), matrix[1]).to(total.dtype)
        total.view(matrix).index_add_(0, rows, kept, alpha=weight)


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Give the number of rows and their length, also where there are none."""
    return shape[0] if shape else 1, math.prod(shape[1:])


def _norms(rows: Tensor) -> Tensor:
    """Give numbers ordered as the L2 norms of the rows are (float64)."""
    if rows.shape[1] == 1 or rows.numel() == 0:
        return rows.reshape(-1).abs().double()
    if rows.dtype == torch.float64:  # whose squares may leave the range, unlike those of float32
        rows = rows / rows.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
    if rows.device.type == "cpu":
        from fedcompress.kernels.squares import row_sums

        return torch.from_numpy(row_sums(rows.contiguous().numpy()))
    return rows.double().square().sum(1)
