"""The weighted mean of the clients' models, as a tree of sums that never changes its shape.

Sums of floats depend on their order. Here it is given by the positions of a round's messages
alone: the updates of one block of neighbours are added from left to right, and blocks are added
by a binary tree over all of them. So whoever computes blocks or whole branches, in one process
or in many, and in whatever order, gets the same bits in the end.

Weights enter as shares of a power of two, that of the largest weight in the sum: no share is
above 1 whatever the weights, and going from one power to another scales exactly, so the largest
weight of the round need not be known beforehand.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fedcompress.block import Block, block_layout
from fedcompress.compressor import FlatParts, Part
from fedcompress.errors import PayloadError
from fedcompress.stages.selection import add_at

_BLOCKS = ((32, 1), (128, 4), (1024, 8))  # (up to so many messages, positions in a block)
_LARGEST_BLOCK = 32


def block_size(messages: int) -> int:
    """Give how many neighbouring positions make a block, in a round of so many messages."""
    return next((size for limit, size in _BLOCKS if messages <= limit), _LARGEST_BLOCK)


@dataclass(eq=False)
class Sum:
    """Updates times their weights, and the weights: both in units of two to the ``exponent``.

    ``buffers`` are one flat tensor for each dtype; `FlatLayout` says where an array lies in them.
    ``is_own`` says whether they may be overwritten.
    """

    exponent: int
    share: float
    buffers: list[Tensor]
    is_own: bool = True

    def raise_to(self, exponent: int) -> None:
        """Change to the unit of a larger exponent."""
        if exponent > self.exponent:
            scale = math.ldexp(1.0, self.exponent - exponent)
            self.own()
            for buffer in self.buffers:
                buffer.mul_(scale)
            self.share *= scale
            self.exponent = exponent

    def own(self) -> None:
        """Copy the buffers if they are not this sum's own."""
        if not self.is_own:
            self.buffers = [buffer.clone() for buffer in self.buffers]
            self.is_own = True


def joined_sum(a: Sum | None, b: Sum | None) -> Sum | None:
    """Add two sums; either may be overwritten. None is the sum of nothing."""
    if a is None or b is None:
        return b if a is None else a
    if not a.is_own:
        a, b = b, a
    exponent = max(a.exponent, b.exponent)
    a.raise_to(exponent)
    b.raise_to(exponent)
    a.own()
    for mine, other in zip(a.buffers, b.buffers, strict=True):
        mine.add_(other)
    a.share += b.share
    return a


@dataclass(frozen=True, eq=False)
class Node:
    """A branch of the tree: blocks ``index << level`` up to the next branch of this level."""

    level: int
    index: int
    total: Sum | None


@dataclass(frozen=True, eq=False)
class FlatArrays:
    """A client's arrays as the buffers of a `FlatLayout`; they are only read."""

    buffers: list[Tensor]

    def is_finite(self) -> bool:
        """Whether no entry is NaN or infinite."""
        # A finite sum needs no second look; a sum may also overflow though every entry is finite.
        return all(math.isfinite(x.sum().item()) or bool(x.isfinite().all()) for x in self.buffers)


Given = Mapping[str, Part] | FlatArrays


class FlatLayout:
    """Where each array of a model lies in flat buffers, one for each dtype that sums have.

    Parameters
    ----------
    like : Mapping[str, Tensor]
        Arrays of the names, shapes, dtypes and devices of the global model.
    """

    def __init__(self, like: Mapping[str, Tensor]) -> None:
        groups: dict[tuple[torch.dtype, torch.device], int] = {}
        sizes: list[int] = []
        self._places: dict[str, tuple[int, int, int, torch.Size]] = {}
        for name, x in like.items():
            group = groups.setdefault((_sum_dtype(x.dtype), x.device), len(groups))
            if group == len(sizes):
                sizes.append(0)
            self._places[name] = (group, sizes[group], sizes[group] + x.numel(), x.shape)
            sizes[group] += x.numel()
        self.buffers = [(*kind, size) for kind, size in zip(groups, sizes, strict=True)]

    @property
    def is_one_of_float32(self) -> bool:
        """Whether all arrays lie in one buffer of float32, in their order."""
        return [dtype for dtype, _, _ in self.buffers] == [torch.float32]

    def zeros(self) -> list[Tensor]:
        """Make buffers of zeros."""
        return [
            torch.zeros(size, dtype=dtype, device=device) for dtype, device, size in self.buffers
        ]

    def flatten(self, arrays: Mapping[str, Tensor]) -> "FlatArrays":
        """Copy arrays of this layout into flat buffers."""
        groups: list[list[Tensor]] = [[] for _ in self.buffers]
        for name, (group, *_) in self._places.items():
            groups[group].append(arrays[name].reshape(-1).to(self.buffers[group][0]))
        return FlatArrays([torch.cat(group) for group in groups])

    def block(self, buffers: Sequence[Tensor]) -> Block | None:
        """Give the arrays as the block that one buffer of float32 is; None for others."""
        if not self.is_one_of_float32 or buffers[0].device.type != "cpu" or not len(buffers[0]):
            return None
        shapes = tuple(tuple(shape) for *_, shape in self._places.values())
        layout = block_layout(np.dtype(np.float32), tuple(self._places), shapes)
        return Block(layout, buffers[0].numpy())

    def views(self, buffers: Sequence[Tensor]) -> dict[str, Tensor]:
        """Give every array as a view of the buffers."""
        return {
            name: buffers[group][start:stop].view(shape)
            for name, (group, start, stop, shape) in self._places.items()
        }


@dataclass(eq=False)
class _Block:
    """A block that is not whole yet: the sum of its first positions, and what came too early."""

    position: int
    total: Sum | None = None
    views: dict[str, Tensor] = field(default_factory=dict)
    early: dict[int, tuple[Given, float] | None] = field(default_factory=dict)

    def add(self, parts: Given, weight: float, layout: FlatLayout) -> None:
        if weight == 0:
            return
        share, exponent = math.frexp(weight)
        if self.total is None and isinstance(parts, FlatArrays):
            self.total = Sum(exponent, share, [x * share for x in parts.buffers])
            return
        if self.total is None:
            self.total = Sum(exponent, 0.0, layout.zeros())
        self.total.raise_to(exponent)
        share = math.ldexp(share, exponent - self.total.exponent)
        if isinstance(parts, FlatArrays):
            for mine, x in zip(self.total.buffers, parts.buffers, strict=True):
                mine.add_(x, alpha=share)
        elif isinstance(parts, FlatParts) and layout.is_one_of_float32:
            add_at(self.total.buffers[0], parts.positions, parts.entries, share)
        else:
            self.views = self.views or layout.views(self.total.buffers)
            for name, view in self.views.items():
                parts[name].add_to(view, share)
        self.total.share += share


class TreeSum:
    """The weighted sum of a round's updates, or of some of its blocks.

    Every update is added in O(entries sent) to the sum of its block; a model's worth of work
    comes once a block. Whole branches are kept as one sum, so that neighbouring blocks added in
    turn take the memory of as many models as the tree has levels.

    Parameters
    ----------
    like : Mapping[str, Tensor]
        The model that the updates were taken against; for sums alone, arrays of its layout.
    messages : int
        Number of the round's messages: updates have positions below it.
    """

    def __init__(self, like: Mapping[str, Tensor], messages: int) -> None:
        self._like = like
        self._messages = messages
        self._size = block_size(messages)
        self._layout = FlatLayout(like)
        self._blocks = -(-messages // self._size)
        self._open: dict[int, _Block] = {}
        self._given: set[int] = set()  # blocks that are whole
        self._passed = 0
        self._nodes: dict[tuple[int, int], Sum | None] = {}

    def add(self, position: int, parts: Given, weight: float) -> None:
        """Add the update, or the model, of one position, in any order of positions.

        Raises
        ------
        PayloadError
            If there is no such position, or it was given before.
        """
        self._give(position, (parts, weight))

    def miss(self, position: int) -> None:
        """Say that no update will come at a position."""
        self._give(position, None)

    def no_more_before(self, position: int) -> None:
        """Say that nothing more will come for all lower positions."""
        for earlier in range(self._passed, position):
            if not self._has(earlier):
                self.miss(earlier)
        self._passed = max(self._passed, position)

    def put(self, node: Node) -> None:
        """Take a branch that was summed elsewhere; its memory is free again afterwards.

        Raises
        ------
        PayloadError
            If the tree has no such branch, or something of it is there already.
        """
        blocks = range(node.index << node.level, min((node.index + 1) << node.level, self._blocks))
        taken = self._given | self._open.keys()
        if not blocks or not taken.isdisjoint(blocks):
            raise PayloadError(f"sum: branch {node.index} of level {node.level} is there already")
        self._given.update(blocks)
        self._fold(node.level, node.index, node.total)

    @property
    def has_begun(self) -> bool:
        """Whether some block has been given a part of its positions."""
        return bool(self._open)

    def take_nodes(self) -> list[Node]:
        """Take the fewest branches that hold all blocks so far; what they lack will not come."""
        for block in list(self._open):
            self._close(block)
        nodes = [Node(level, index, total) for (level, index), total in self._nodes.items()]
        self._nodes.clear()
        return nodes

    def mean(self) -> Mapping[str, Tensor]:
        """Give the mean model: reference + mean update; of integers, the mean as float64.

        Positions that nothing was said of count as missing. Some weight must be above 0.
        """
        average = self.average()
        if isinstance(average, Block) and isinstance(self._like, Block):
            with np.errstate(over="ignore", invalid="ignore"):
                return Block(average.layout, self._like.flat + average.flat)
        return {
            name: x + average[name].to(x.dtype) if x.is_floating_point() else average[name]
            for name, x in self._like.items()
        }

    def average(self) -> Mapping[str, Tensor]:
        """Give the mean of what was added, in the dtypes of sums; see `mean`."""
        for block in range(self._blocks):
            if block not in self._given:
                self._close(block)
        (total,) = self._nodes.values()
        if total is None:
            raise PayloadError("mean: no update has a weight above 0")
        buffers = [buffer / total.share for buffer in total.buffers]
        return self._layout.block(buffers) or self._layout.views(buffers)

    def _give(self, position: int, given: tuple[Given, float] | None) -> None:
        index = position // self._size
        if not 0 <= position < self._messages or self._has(position):
            raise PayloadError(f"sum: position {position} is not awaited (any more)")
        block = self._open.setdefault(index, _Block(index * self._size))
        block.early[position] = given
        while block.position in block.early:
            ready = block.early.pop(block.position)
            block.position += 1
            if ready is not None:
                block.add(*ready, self._layout)
        if block.position == min((index + 1) * self._size, self._messages):
            self._close(index)

    def _has(self, position: int) -> bool:
        if position // self._size in self._given:
            return True
        block = self._open.get(position // self._size)
        return block is not None and (position < block.position or position in block.early)

    def _close(self, index: int) -> None:
        block = self._open.pop(index, None)
        total = None
        if block is not None:
            for position in sorted(block.early):
                if (late := block.early[position]) is not None:
                    block.add(*late, self._layout)
            total = block.total
        self._given.add(index)
        self._fold(0, index, total)

    def _fold(self, level: int, index: int, total: Sum | None) -> None:
        """Keep a branch, joined with its neighbours into the largest branch that is whole."""
        while (width := -(-self._blocks // (1 << level))) > 1:
            neighbour = index ^ 1
            if neighbour < width:
                if (level, neighbour) not in self._nodes:
                    break
                total = joined_sum(self._nodes.pop((level, neighbour)), total)
            level, index = level + 1, index // 2
        if total is not None:
            total.own()
        self._nodes[level, index] = total


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype.is_floating_point and dtype.itemsize <= 4 else torch.float64
