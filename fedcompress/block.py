"""Named arrays of one dtype that lie one behind another in one flat array: a block.

The arrays of a small model take longer to be walked than to be read, so what is done to all of
them (a difference, a residual to be added, a copy into a client's state) is done to the block.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from io import BytesIO
from itertools import accumulate
from typing import final
from weakref import ref

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from fedcompress.errors import diverged

_FIRST = 64


@final
@dataclass(frozen=True, eq=False)
class BlockLayout:
    """How arrays of one dtype lie in one block, one after another.

    Attributes
    ----------
    dtype : numpy.dtype
        Of all of them.
    names : list of str
        The arrays.
    described : list of (name, shape, dtype)
        What they are.
    heads : list of bytes
        The header of each, with which its bytes begin where Flower carries them.
    stops : list of int
        Where each ends in the block, which is where the next begins.
    data_bytes : int
        Of all arrays together, headers included.
    """

    dtype: np.dtype
    names: list[str]
    described: list[tuple[str, tuple[int, ...], str]]
    heads: list[bytes]
    stops: list[int]
    data_bytes: int

    @cached_property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shape of each array."""
        return tuple(shape for _, shape, _ in self.described)

    def equals(self, other: "BlockLayout") -> bool:
        """Whether the same arrays lie in the same places."""
        return self is other or self.described == other.described


@lru_cache(maxsize=64)
def block_layout(
    dtype: np.dtype, names: tuple[str, ...], shapes: tuple[tuple[int, ...], ...]
) -> BlockLayout:
    """Lay arrays of these shapes one behind another."""
    heads = [npy_head(dtype, shape) for shape in shapes]
    stops = list(accumulate(math.prod(shape) for shape in shapes))
    return BlockLayout(
        dtype,
        list(names),
        [(name, shape, kind) for name, shape, (kind, _) in zip(names, shapes, heads, strict=True)],
        [head for _, head in heads],
        stops,
        sum(len(head) for _, head in heads) + stops[-1] * dtype.itemsize,
    )


@lru_cache(maxsize=64)
def renamed(layout: BlockLayout, prefix: str) -> BlockLayout:
    """Give the layout of the same arrays under names that begin with ``prefix``."""
    names = tuple(prefix + name for name in layout.names)
    return block_layout(layout.dtype, names, layout.shapes)


@lru_cache(maxsize=1024)
def npy_head(dtype: np.dtype, shape: tuple[int, ...]) -> tuple[str, bytes]:
    """Give the name of a dtype and the header of a contiguous array, as Flower writes both."""
    like = np.broadcast_to(np.zeros((), dtype), shape)
    buffer = BytesIO()
    header = npy.header_data_from_array_1_0(like)
    header["fortran_order"] = False
    npy.write_array_header_1_0(buffer, header)
    return str(dtype), buffer.getvalue()


@final
class Block(Mapping[str, Tensor]):
    """Named arrays, each a view of one flat array; nothing of it may be changed.

    Parameters
    ----------
    layout : BlockLayout
        What lies where.
    flat : numpy.ndarray
        The arrays one behind another.

    See `difference` for one that is reckoned later.
    """

    __slots__ = ("_flat", "_views", "layout", "terms")

    def __init__(self, layout: BlockLayout, flat: np.ndarray) -> None:
        self.layout = layout
        self.terms: tuple[np.ndarray, np.ndarray] | None = None
        """Two blocks, where this is their difference and nobody has reckoned it yet."""
        self._flat: np.ndarray | None = flat
        self._views: dict[str, Tensor] = {}

    @classmethod
    def difference(cls, layout: BlockLayout, after: np.ndarray, before: np.ndarray) -> "Block":
        """Make the block ``after − before``, float32, which is reckoned when somebody looks at it.

        Whoever adds something to it can do both at once. Looking raises `NotFiniteError` where
        training has led to NaN or infinity; a block whose ``terms`` are there was not looked at.
        """
        block = cls(layout, after)
        block._flat, block.terms = None, (after, before)
        return block

    @property
    def flat(self) -> np.ndarray:
        """The arrays one behind another."""
        if self._flat is None:
            assert self.terms is not None
            after, before = self.terms
            with np.errstate(over="ignore", invalid="ignore"):
                flat = after - before
                if not np.isfinite(flat.sum()):
                    self._check_finite(flat)
            self._flat, self.terms = flat, None
        return self._flat

    def _check_finite(self, flat: np.ndarray) -> None:
        start = 0
        for name, stop in zip(self.layout.names, self.layout.stops, strict=True):
            if not np.isfinite(flat[start:stop]).all():
                raise diverged(name)
            start = stop

    def __getitem__(self, name: str) -> Tensor:
        """Give one array."""
        if not self._views:
            # torch warns of memory that it must not write to.
            flat = self.flat if self.flat.flags.writeable else self.flat.copy()
            whole, start = torch.from_numpy(flat), 0
            for (key, shape, _), stop in zip(self.layout.described, self.layout.stops, strict=True):
                self._views[key] = whole[start:stop].view(shape)
                start = stop
        return self._views[name]

    def __iter__(self) -> Iterator[str]:
        """Walk the names."""
        return iter(self.layout.names)

    def __len__(self) -> int:
        """Count the arrays."""
        return len(self.layout.names)


def as_block(arrays: Mapping[str, Tensor]) -> Block | None:
    """Copy arrays into a block; None where they are not all float32, on the CPU and not empty."""
    if isinstance(arrays, Block):
        return arrays
    if not arrays or not all(_fits(x) for x in arrays.values()):
        return None
    shapes = tuple(tuple(x.shape) for x in arrays.values())
    layout = block_layout(np.dtype(np.float32), tuple(arrays), shapes)
    flat = np.concatenate([x.detach().numpy().reshape(-1) for x in arrays.values()])
    return Block(layout, flat)


def _fits(x: Tensor) -> bool:
    return x.dtype == torch.float32 and x.device.type == "cpu" and x.numel() > 0


def is_same(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two contiguous arrays of one dtype hold the same bytes."""
    if a is b:
        return True
    mine, others = a.reshape(-1).view(np.uint8), b.reshape(-1).view(np.uint8)
    # Arrays that differ mostly do so from the start.
    return mine[:_FIRST].tobytes() == others[:_FIRST].tobytes() and np.array_equal(mine, others)


# By the object: arrays do not hash. A number is free again when its array is gone.
_SHARED: dict[int, tuple[ref[np.ndarray], str]] = {}


def share(flat: np.ndarray, name: str) -> None:
    """Note that many clients of this process hold a block, so that it is kept once for all.

    Whoever keeps it may do so under its name, which no other block of a run has.
    """
    key = id(flat)
    _SHARED[key] = ref(flat, lambda _: _SHARED.pop(key, None)), name


def shared_name(flat: np.ndarray) -> str | None:
    """Give the name that `share` was told with a block; None for any other."""
    known = _SHARED.get(id(flat))
    return None if known is None else known[1]
