"""What all stages that keep some entries share: gather them, scatter them, add them."""

from abc import abstractmethod
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedcompress.errors import PayloadError
from fedcompress.stage import Stage
from fedcompress.streams import Forms, IndexForm, IndexSet, Layout, Streams


class Selection(Stage):
    """A stage that keeps some entries and sends which ones."""

    sparsifies: ClassVar[bool] = True

    @abstractmethod
    def select(self, x: Tensor, rng: np.random.Generator) -> Tensor:
        """Choose ascending positions (int64) of the flat array ``x`` to keep."""

    def encode(self, x: Tensor, rng: np.random.Generator) -> tuple[Tensor, Streams]:
        """Gather the kept entries; the side stream is their positions."""
        flat = x.reshape(-1)
        indices = self.select(flat, rng)
        return flat[indices], (IndexSet(indices, flat.numel()),)

    def decode(self, x: Tensor, side: Streams, like: Layout) -> Tensor:
        """Put the kept entries in their places; the others are zero."""
        out = torch.zeros(like.size, dtype=like.dtype, device=like.device)
        out[positions(side)] = x.to(like.dtype)
        return out.reshape(like.shape)

    def side_forms(self, like: Layout) -> Forms:
        """Expect the positions."""
        return (IndexForm(like.size),)

    def layout_after(self, like: Layout, side: Streams) -> Layout:
        """One entry for each position."""
        return Layout((int(positions(side).numel()),), like.dtype, like.device)

    def add_to(self, total: Tensor, x: Tensor, side: Streams, like: Layout, weight: float) -> None:
        """Add the kept entries only."""
        add_at(total, positions(side), x, weight)


def positions(side: Streams) -> Tensor:
    """Give the positions that a selection sent."""
    (stream,) = side
    if not isinstance(stream, IndexSet):
        raise PayloadError(f"expected positions, got a stream of {stream.kind}")
    return stream.indices


def add_at(total: Tensor, indices: Tensor, x: Tensor, weight: float) -> None:
    """Add ``weight * x`` at distinct ``indices`` of the contiguous ``total``, in place."""
    total.view(-1).index_add_(0, indices, x.to(total.dtype), alpha=weight)


def count_of(fraction: float, n: int) -> int:
    """Entries that a fraction of ``n`` means: the nearest integer, at least one."""
    return min(n, max(1, round(fraction * n)))
