"""Vectors of sixteen numbers and what is done with them, as instructions for the compiler.

Left to find vectors in a loop over a few channels, a compiler first asks at run time whether arrays
overlap, which takes longer than the loop. Here vectors are written out: products are fused with
their sums and sums have one order, so that results do not depend on how it optimises. A processor
whose vectors are shorter takes two or four instructions for each.

What is not vectors, numba's own ``builder`` and values, is written as in llvmlite.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, final

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.np.arrayobj import make_array

from simulations.training.conv_memory import LANES
from simulations.training.winograd import Matrix

Value = Any  # of llvmlite, which carries no types
_FLOAT, _WORD, _INDEX = ir.FloatType(), ir.IntType(64), ir.IntType(32)
_VECTOR = ir.VectorType(_FLOAT, LANES)

ARRAY = types.Array(types.float32, 1, "C")


@final
class Lanes:
    """Instructions on vectors of float32, in the function that a builder stands in."""

    def __init__(self, context: Any, builder: Any) -> None:
        self._context, self.builder = context, builder

    def pointer(self, array: Value) -> Value:
        """Give where a float32 array (n,) begins."""
        return make_array(ARRAY)(self._context, self.builder, array).data

    def at(self, base: Value, *terms: Value | int | tuple[Value, Value | int]) -> Value:
        """Give a sum of offsets; a pair stands for its product."""
        for term in terms:
            product = self.builder.mul(*map(self.word, term)) if isinstance(term, tuple) else term
            base = self.builder.add(base, self.word(product))
        return base

    def load(self, pointer: Value, offset: Value) -> Value:
        """Read a vector."""
        return self.builder.load(self._place(pointer, offset), typ=_VECTOR, align=4)

    def plus(self, pointer: Value, offset: Value, vector: Value) -> Value:
        """Give the sum of a vector and one that is read."""
        return self.builder.fadd(self.load(pointer, offset), vector)

    def store(self, vector: Value, pointer: Value, offset: Value) -> None:
        """Write a vector."""
        self.builder.store(vector, self._place(pointer, offset), align=4)

    def spread(self, pointer: Value, offset: Value) -> Value:
        """Read one number into every lane."""
        one = self.builder.load(self.builder.gep(pointer, [offset]), typ=_FLOAT, align=4)
        first = self.builder.insert_element(ir.Constant(_VECTOR, None), one, _INDEX(0))
        lanes = ir.Constant(ir.VectorType(_INDEX, LANES), [0] * LANES)
        return self.builder.shuffle_vector(first, first, lanes)

    def constant(self, number: float) -> Value:
        """Give a number in every lane."""
        return ir.Constant(_VECTOR, [ir.Constant(_FLOAT, number)] * LANES)

    def fused(self, a: Value, b: Value, c: Value) -> Value:
        """Give ``a * b + c``, rounded once."""
        kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
        name = f"llvm.fma.v{LANES}f32"
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        return self.builder.call(function, [a, b, c])

    def where(self, condition: Value, a: Value, b: Value) -> Value:
        """Choose by lane."""
        return self.builder.select(condition, a, b)

    def is_(self, comparison: str, a: Value, b: Value) -> Value:
        """Compare by lane; with what is no number nothing holds, and "uno" says there is one."""
        if comparison == "uno":
            return self.builder.fcmp_unordered("uno", a, b)
        return self.builder.fcmp_ordered(comparison, a, b)

    def positive_part(self, a: Value) -> Value:
        """Give ReLU, of NaN NaN."""
        zero = self.constant(0.0)
        return self.where(self.is_("<", a, zero), zero, a)

    def sum(self, vector: Value) -> Value:
        """Add up the lanes, halves first."""
        width = LANES
        while width > 1:
            width //= 2
            moved = ir.Constant(
                ir.VectorType(_INDEX, LANES), [(i + width) % LANES for i in range(LANES)]
            )
            other = self.builder.shuffle_vector(vector, vector, moved)
            vector = self.builder.fadd(vector, other)
        return self.builder.extract_element(vector, _INDEX(0))

    def linear(self, matrix: Matrix, vectors: Sequence[Value | None]) -> list[Value | None]:
        """Multiply vectors by a matrix of constants; None stands for zeros."""
        results: list[Value | None] = []
        for row in matrix:
            total = None
            for factor, vector in zip(row, vectors, strict=True):
                if vector is None or not factor:
                    continue
                if total is None:
                    scaled = self.builder.fmul(vector, self.constant(factor))
                    total = vector if factor == 1 else scaled
                elif factor == 1:
                    total = self.builder.fadd(total, vector)
                elif factor == -1:
                    total = self.builder.fsub(total, vector)
                else:
                    total = self.fused(vector, self.constant(factor), total)
            results.append(total)
        return results

    def on_both_sides(self, matrix: Matrix, grid: Sequence[Sequence[Value]]) -> list[list[Value]]:
        """Give ``matrix @ grid @ matrix.T`` for a square of vectors."""
        rows = [self.linear(matrix, row) for row in grid]
        columns = [self.linear(matrix, column) for column in zip(*rows, strict=True)]
        return [list(row) for row in zip(*columns, strict=True)]

    def products(
        self,
        a: Value,
        rows: Sequence[Value],
        outer: tuple[Value, Value],
        inner: tuple[Value, Value],
        b: tuple[Value, Value, Value],
        sums: list[list[Value]],
    ) -> list[list[Value]]:
        """Add products of numbers of a and vectors of b to sums.

        For each row of a, which begins at the offset given, and each of its ``outer`` times
        ``inner`` terms, given as how many and how far apart: the number times the vectors of b, of
        which those of the first term begin at an offset, and those of each next one a stride later.
        """
        memory, start, stride = b
        kept = [[self.variable(value) for value in row] for row in sums]
        with self.loop(outer[0]) as i, self.loop(inner[0]) as j:
            term = self.at(_WORD(0), (i, inner[0]), j)
            base = self.at(_WORD(0), (i, outer[1]), (j, inner[1]))
            there = self.at(start, (term, stride))
            factors = [self.load(memory, self.at(there, v * LANES)) for v in range(len(kept[0]))]
            for row, offset in zip(kept, rows, strict=True):
                number = self.spread(a, self.at(base, offset))
                for total, factor in zip(row, factors, strict=True):
                    self.set(total, self.fused(number, factor, self.get(total)))
        return [[self.get(total) for total in row] for row in kept]

    def variable(self, vector: Value) -> Value:
        """Make a variable, which the compiler keeps in a register where there are enough."""
        place = cgutils.alloca_once(self.builder, _VECTOR)
        self.set(place, vector)
        return place

    def set(self, variable: Value, vector: Value) -> None:
        """Change a variable."""
        self.builder.store(vector, variable)

    def get(self, variable: Value) -> Value:
        """Read a variable."""
        return self.builder.load(variable, typ=_VECTOR)

    @contextmanager
    def loop(self, count: Value) -> Iterator[Value]:
        """Build a loop's body; gives its counter."""
        with cgutils.for_range(self.builder, count, intp=_WORD) as loop:
            yield loop.index

    def word(self, number: Value | int) -> Value:
        """Give a whole number as instructions take it."""
        return _WORD(number) if isinstance(number, int) else number

    def _place(self, pointer: Value, offset: Value) -> Value:
        place = self.builder.gep(pointer, [offset])
        return self.builder.bitcast(place, _VECTOR.as_pointer())
