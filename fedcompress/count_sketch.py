"""Count sketches: linear summaries of a whole update, from which its large entries are read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedcompress.chain import as_compressor, chain, narrow
from fedcompress.checks import check_integer
from fedcompress.coders.raw import Raw
from fedcompress.compressor import (
    Arrays,
    Compressor,
    Encoded,
    Part,
    State,
    all_inside,
    as_tensors,
)
from fedcompress.errors import LayoutError, NotFiniteError, SpecError
from fedcompress.spec_text import call_text
from fedcompress.splitmix import random_words
from fedcompress.stages.selection import add_at, largest
from fedcompress.streams import Layout
from fedcompress.wire import SectionReader

_RAW = chain(Raw())
_TABLE = "table"
_CHUNK = 1 << 20


@dataclass(frozen=True, repr=False)
class CountSketch(Compressor):
    """Send one count sketch of all floating-point arrays; decode its ``k`` largest entries. Biased.

    Charikar, Chen & Farach-Colton (2002), "Finding frequent items in data streams"; Rothchild
    et al. (2020), "FetchSGD: communication-efficient federated learning with sketching". Each
    row of the table adds every entry, with a random sign, to a column drawn by a hash; an entry
    is estimated as the median over rows of what its columns hold. It is linear: the sum of the
    sketches of updates is the sketch of their sum, so that a server may add tables and read the
    large entries of the sum once; see `sketch`, `read_table` and `recover`.

    Parameters
    ----------
    rows : int
        Independent hashes, 1 to 64; an odd number is best, 5 is usual.
    columns : int
        Columns of the table, 1 to 2**31 − 1. The estimate of an entry errs by about the norm of
        all others over √columns.
    k : int
        Entries that are decoded; all others are zero.
    seed : int
        Seed of the hash, 0 to 2**63 − 1: part of the spec, since all sketches that are to be
        added share it.
    table : Compressor
        What sends the table.
    """

    name: ClassVar[str] = "count_sketch"
    expands: ClassVar[bool] = True

    rows: int
    columns: int
    k: int
    seed: int = 0
    table: Compressor = _RAW

    def __post_init__(self) -> None:
        check_integer(self.name, "rows", self.rows, 1, 64)
        check_integer(self.name, "columns", self.columns, 1, (1 << 31) - 1)
        check_integer(self.name, "k", self.k, 1, 1 << 62)
        check_integer(self.name, "seed", self.seed, 0, (1 << 63) - 1)
        object.__setattr__(self, "table", as_compressor(self.table, f"{self.name}: table"))
        if any(inner.corrects or inner.recalls for inner in all_inside(self.table)):
            raise SpecError(
                f"count_sketch: table={self.table} would remember earlier tables; write a chain "
                "that remembers nothing"
            )

    def inside(self) -> Sequence[Compressor]:
        """Give what sends the table."""
        return (self.table,)

    @property
    def unbiased(self) -> bool:
        """Never: only ``k`` entries are decoded, and the hash is fixed."""
        return False

    def sketch(self, update: Arrays) -> Tensor:
        """Sketch the floating-point arrays of an update.

        Returns
        -------
        Tensor
            Shape (rows, columns), float32, or float64 where any array is.

        Raises
        ------
        NotFiniteError
            If an array holds NaN or infinity.
        """
        floats, _ = _split(as_tensors(update))
        table = self._empty(floats).double().zero_()
        first = 0
        for name, x in floats.items():
            if not bool(torch.isfinite(x).all()):
                raise NotFiniteError(
                    f"array {name!r}: holds NaN or infinity, which count_sketch cannot code; "
                    "leave this client out, or lower its learning rate"
                )
            _add(table, self.seed, x.reshape(-1).to(_dtype(floats)), first)
            first += x.numel()
        return narrow(table, _dtype(floats))

    def recover(self, table: Tensor, like: Arrays) -> dict[str, Tensor]:
        """Read the ``k`` largest entries out of a sketch, or of a sum of sketches.

        Parameters
        ----------
        table : Tensor
            From `sketch` or `read_table`, or a linear combination of such.
        like : Mapping[str, Tensor or ndarray]
            Arrays of the names, shapes and dtypes that were sketched.

        Returns
        -------
        dict[str, Tensor]
            The floating-point arrays.
        """
        if table.shape != (self.rows, self.columns):
            raise LayoutError(
                f"count_sketch: a table of shape {tuple(table.shape)} is not one of {self}; "
                "use the spec that made it"
            )
        parts = self._parts({_TABLE: table}, _split(as_tensors(like))[0])
        return {name: part.dense() for name, part in parts.items()}

    def read_table(self, payload: bytes, like: Arrays) -> Tensor:
        """Decode a payload as far as the sketch, which can be added to others."""
        tensors = as_tensors(like)
        reader = SectionReader(payload, str(self), tensors)
        return self._read_tables(reader, _split(tensors)[0])[_TABLE]

    def init_state(self, like: Mapping[str, Tensor]) -> State:
        """Give the empty state: a sketch remembers nothing."""
        del like
        return {}

    def encode_sections(
        self,
        update: Mapping[str, Tensor],
        state: State,
        rng: np.random.Generator,
        want_decoded: bool,
    ) -> Encoded:
        """Send the table, then arrays of integers and booleans exactly."""
        floats, rest = _split(update)
        sent = self.table.encode_sections(_tables(floats, self.sketch), {}, rng, want_decoded)
        others = _RAW.encode_sections(rest, {}, rng, want_decoded)
        sections = [*sent.sections, *others.sections]
        if sent.decoded is None or others.decoded is None:
            return Encoded(sections, state, None)
        parts = self._parts(sent.decoded, floats)
        decoded = {
            name: parts[name].dense() if name in parts else others.decoded[name] for name in update
        }
        return Encoded(sections, state, decoded)

    def read_sections(
        self, reader: SectionReader, like: Mapping[str, Tensor]
    ) -> Mapping[str, Part]:
        """Read the table and find its largest entries; then the exact arrays."""
        floats, rest = _split(like)
        parts = self._parts(self._read_tables(reader, floats), floats)
        parts |= _RAW.read_sections(reader, rest)
        return {name: parts[name] for name in like}

    def __str__(self) -> str:
        return call_text(self)

    def __repr__(self) -> str:
        return str(self)

    def _read_tables(
        self, reader: SectionReader, floats: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        like = _tables(floats, self._empty)
        return {name: part.dense() for name, part in self.table.read_sections(reader, like).items()}

    def _empty(self, floats: Mapping[str, Tensor]) -> Tensor:
        first = next(iter(floats.values()))
        return first.new_empty((self.rows, self.columns), dtype=_dtype(floats))

    def _parts(self, tables: Mapping[str, Tensor], floats: Mapping[str, Tensor]) -> dict[str, Part]:
        """Find the largest entries of all arrays, and give each array its own."""
        if not floats:
            return {}
        n = sum(x.numel() for x in floats.values())
        estimates = _estimate(tables[_TABLE], self.seed, n)
        kept = largest(estimates, min(self.k, n))
        values = estimates[kept]
        parts: dict[str, Part] = {}
        first = 0
        for name, x in floats.items():
            own = (kept >= first) & (kept < first + x.numel())
            parts[name] = _Sparse(kept[own] - first, narrow(values[own], x.dtype), Layout.of(x))
            first += x.numel()
        return parts


@dataclass(frozen=True, eq=False)
class _Sparse(Part):
    """The entries of an array that are not zero."""

    indices: Tensor
    values: Tensor
    like: Layout

    def dense(self) -> Tensor:
        out = torch.zeros(self.like.size, dtype=self.like.dtype, device=self.like.device)
        out[self.indices] = self.values.to(out.dtype)
        return out.reshape(self.like.shape)

    def add_to(self, total: Tensor, weight: float) -> None:
        add_at(total, self.indices, self.values, weight)

    def is_finite(self) -> bool:
        return bool(torch.isfinite(self.values).all())


def _add(table: Tensor, seed: int, x: Tensor, first: int) -> None:
    """Add entries ``first``, ``first + 1``, … of a vector to its sketch, in float64."""
    if table.device.type == "cpu":
        from fedcompress.kernels.count_sketch import add

        add(table.numpy(), np.uint64(seed), x.contiguous().numpy(), first)
        return
    for row in range(len(table)):
        for start in range(0, x.numel(), _CHUNK):
            part = x[start : start + _CHUNK]
            columns, signs = _hash(seed, row, first + start, part, table.shape[1])
            table[row].index_add_(0, columns, part.double() * signs)


def _estimate(table: Tensor, seed: int, n: int) -> Tensor:
    """Estimate all ``n`` entries of the vector that was sketched: medians over the rows."""
    out = table.new_empty(n)
    if table.device.type == "cpu":
        from fedcompress.kernels.count_sketch import estimate

        estimate(table.contiguous().numpy(), np.uint64(seed), out.numpy(), 0)
        return out
    rows = len(table)
    for start in range(0, n, _CHUNK):
        part = out[start : start + _CHUNK]
        found = []
        for row in range(rows):
            columns, signs = _hash(seed, row, start, part, table.shape[1])
            found.append(table[row][columns] * signs)
        ranked = torch.stack(found).sort(0).values
        upper = ranked[rows // 2]
        part.copy_(upper if rows % 2 else upper / 2 + ranked[rows // 2 - 1] / 2)
    return out


def _hash(seed: int, row: int, first: int, part: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """Draw a column and a sign for each of the entries that begin at ``first``."""
    own = int(random_words(seed, torch.tensor(row))) % (1 << 64)
    numbers = torch.arange(first, first + part.numel(), device=part.device)
    drawn = random_words(own, numbers)
    upper = drawn >> 32 & 0xFFFFFFFF
    return upper * columns >> 32, (1 - 2 * (drawn & 1)).to(part.dtype)


def _tables(
    floats: Mapping[str, Tensor], make: Callable[[Mapping[str, Tensor]], Tensor]
) -> dict[str, Tensor]:
    """Give the one table of an update, or none for one without floating-point entries."""
    return {_TABLE: make(floats)} if floats else {}


def _split(arrays: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Give the arrays that hold floating-point entries, and the others."""
    floats = {k: x for k, x in arrays.items() if x.is_floating_point() and x.numel()}
    return floats, {name: x for name, x in arrays.items() if name not in floats}


def _dtype(floats: Mapping[str, Tensor]) -> torch.dtype:
    wide = any(x.dtype == torch.float64 for x in floats.values())
    return torch.float64 if wide else torch.float32
