"""Vectors that are coded as one array: biases and scales, too short to be worth a stream each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedcompress.compressor import Part
from fedcompress.streams import Layout

_MOST = 4096  # entries from which on a vector is worth streams of its own


def joined_names(layouts: Mapping[str, Layout]) -> list[tuple[str, ...]]:
    """Group the names of arrays: short vectors of one dtype together, all others by themselves.

    Groups stand in the order of their first arrays; both sides know them from the layouts.
    """
    groups: dict[object, list[str]] = {}
    for name, layout in layouts.items():
        short = len(layout.shape) == 1 and 0 < layout.size < _MOST
        key = layout.dtype if short and layout.dtype.is_floating_point else name
        groups.setdefault(key, []).append(name)
    return [tuple(names) for names in groups.values()]


def join(arrays: Sequence[Tensor]) -> Tensor:
    """Put vectors one behind another, on the device of the first; one array stays as it is."""
    if len(arrays) == 1:
        return arrays[0]
    return torch.cat([x.to(arrays[0].device) for x in arrays])


def joined_layout(layouts: Sequence[Layout]) -> Layout:
    """Give the layout of what `join` gives."""
    if len(layouts) == 1:
        return layouts[0]
    size = sum(layout.size for layout in layouts)
    return Layout((size,), layouts[0].dtype, layouts[0].device)


def split(part: Part, names: Sequence[str], like: Mapping[str, Layout]) -> dict[str, Part]:
    """Give the part of each array out of what was decoded for all of them."""
    if len(names) == 1:
        return {names[0]: part}
    pieces: dict[str, Part] = {}
    start = 0
    for name in names:
        pieces[name] = _Piece(part, start, like[name])
        start += like[name].size
    return pieces


@dataclass(frozen=True, eq=False)
class _Piece(Part):
    """One of several vectors that were coded as one."""

    whole: Part
    start: int
    like: Layout

    def dense(self) -> Tensor:
        piece = self.whole.dense()[self.start : self.start + self.like.size]
        return piece.to(self.like.device)

    def add_to(self, total: Tensor, weight: float) -> None:
        total.add_(self.dense(), alpha=weight)

    def is_finite(self) -> bool:
        return bool(torch.isfinite(self.dense()).all())
