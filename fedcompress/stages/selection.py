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
        return flat[indices], (IndexSet(indices, flat.numel(), tuple(x.shape)),)

    def decode(self, x: Tensor, side: Streams, like: Layout) -> Tensor:
        """Put the kept entries in their places; the others are zero."""
        out = torch.zeros(like.size, dtype=like.dtype, device=like.device)
        out[positions(side)] = x.to(like.dtype)
        return out.reshape(like.shape)

    def side_forms(self, like: Layout) -> Forms:
        """Expect the positions."""
        return (IndexForm(like.size, like.shape),)

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


def largest(x: Tensor, k: int) -> Tensor:
    """Give ascending positions (int64) of the k largest magnitudes of a flat array.

    Of equal magnitudes the first ones count, on every device.
    """
    if x.device.type == "cpu":
        from fedcompress.kernels import select

        return torch.from_numpy(select.largest(x.contiguous().numpy(), k))
    return largest_by_sorting(x, k)


def largest_by_sorting(x: Tensor, k: int) -> Tensor:
    """Do as `largest` does, on any device."""
    magnitude = x.abs()
    least = magnitude.topk(k, sorted=False).values.min()
    # Which of several equal entries a library picks hangs on the processor; we take the first.
    above = torch.nonzero(magnitude > least).reshape(-1)
    equal = torch.nonzero(magnitude == least).reshape(-1)[: k - above.numel()]
    return torch.cat([above, equal]).sort().values


def largest_of_blocks(x: Tensor, block: int, k: int, last_k: int) -> Tensor:
    """Give ascending positions (int64) of the k largest magnitudes of every block.

    Blocks are ``block`` consecutive entries of a flat array; of the shorter one at the end the
    ``last_k`` largest count. Of equal magnitudes the first ones count, on every device.
    """
    whole = x.numel() // block * block
    rows = x[:whole].reshape(-1, block)
    if x.device.type == "cpu":
        from fedcompress.kernels import select

        found = torch.from_numpy(select.largest_of_rows(rows.contiguous().numpy(), k))
    else:
        found = largest_of_rows_by_sorting(rows, k)
    if last_k == 0:
        return found
    return torch.cat([found, largest(x[whole:], last_k) + whole])


def largest_of_rows_by_sorting(x: Tensor, k: int) -> Tensor:
    """Give ascending flat positions of the k largest magnitudes of every row, on any device."""
    magnitude = x.abs()
    least = magnitude.topk(k, dim=1, sorted=False).values.amin(1, keepdim=True)
    above, equal = magnitude > least, magnitude == least
    ties = k - above.sum(1, keepdim=True)
    kept = above | (equal & (equal.cumsum(1) <= ties))
    return torch.nonzero(kept.reshape(-1)).reshape(-1)


def at_least(x: Tensor, magnitude: float) -> Tensor:
    """Give ascending positions (int64) of magnitudes of at least ``magnitude``, above 0."""
    if x.device.type == "cpu":
        from fedcompress.kernels import select

        return torch.from_numpy(select.at_least(x.contiguous().numpy(), magnitude))
    return torch.nonzero(x.abs() >= magnitude).reshape(-1)


def add_at(total: Tensor, indices: Tensor, x: Tensor, weight: float) -> None:
    """Add ``weight * x`` at distinct ``indices`` of the contiguous ``total``, in place."""
    total.view(-1).index_add_(0, indices, x.to(total.dtype), alpha=weight)


def count_of(fraction: float, n: int) -> int:
    """Entries that a fraction of ``n`` means: the nearest integer, at least one."""
    return min(n, max(1, round(fraction * n)))
