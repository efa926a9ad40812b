"""The inner loops of convolutions and of products of matrices, as functions for compiled code.

Every part takes a float32 array (n,), in which all lies that it reads and writes, and a tuple of
int64: offsets and strides in it, in numbers, and how many there are of what. Channels lie
innermost, in whole vectors. Filters are square; pooling takes the largest of 2 × 2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from simulations.training.conv_memory import LANES
from simulations.training.lanes import ARRAY, Lanes, Value
from simulations.training.winograd import OUTPUTS, minimal_filtering

Part = Callable[[Any, tuple[int, ...]], None]  # called from compiled code alone
_POSITIONS = [(y, x) for y in range(OUTPUTS) for x in range(OUTPUTS)]  # of a pooling window


def _part(build: Callable[..., None]) -> Part:
    """Make a part of what builds its instructions from a pointer and numbers."""

    def typed(typing: Any, memory: Any, numbers: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            lanes = Lanes(context, builder)
            build(lanes, lanes.pointer(values[0]), *cgutils.unpack_tuple(builder, values[1]))
            return context.get_dummy_value()

        return types.void(ARRAY, types.UniTuple(types.int64, len(numbers))), code

    part: Any = intrinsic(typed)
    return part  # type: ignore[no-any-return]


def product(rows: int, vectors: int, *, adds: bool) -> Part:
    """Multiply some rows by some columns: C = A @ B, or C += A @ B.

    Numbers: where C begins and how far apart its rows are; where A begins, how far apart its rows
    and its columns are; where B begins and how far apart its rows are; the columns of A.
    """

    def build(
        lanes: Lanes, memory: Value, c: Value, c_row: Value, a: Value, a_row: Value,
        a_column: Value, b: Value, b_row: Value, terms: Value,
    ) -> None:  # fmt: skip
        places = [
            [lanes.at(c, (c_row, row), vector * LANES) for vector in range(vectors)]
            for row in range(rows)
        ]
        sums = [[lanes.constant(0.0)] * vectors for _ in places]
        starts = [lanes.at(a, (a_row, row)) for row in range(rows)]
        once = (lanes.word(1), lanes.word(0))
        found = lanes.products(memory, starts, once, (terms, a_column), (memory, b, b_row), sums)
        for row, sums_of_row in zip(places, found, strict=True):
            for place, total in zip(row, sums_of_row, strict=True):
                # The sum first: each of its terms is small beside what it is added to.
                lanes.store(lanes.plus(memory, place, total) if adds else total, memory, place)

    return _part(build)


def inner_product(rows: int, columns: int) -> Part:
    """Multiply some rows of A by some rows of B: C[i, j] is the sum of A[i] * B[j].

    Numbers: where C begins and how far apart its rows are, the same of A and of B, and their
    columns, a multiple of `LANES`.
    """

    def build(
        lanes: Lanes, memory: Value, c: Value, c_row: Value, a: Value, a_row: Value,
        b: Value, b_row: Value, terms: Value,
    ) -> None:  # fmt: skip
        builder, zero = lanes.builder, lanes.constant(0.0)
        sums = [[lanes.variable(zero) for _ in range(columns)] for _ in range(rows)]
        with lanes.loop(builder.sdiv(terms, lanes.word(LANES))) as i:
            there = lanes.at(lanes.word(0), (i, LANES))
            left = [lanes.load(memory, lanes.at(a, there, (a_row, r))) for r in range(rows)]
            right = [lanes.load(memory, lanes.at(b, there, (b_row, c))) for c in range(columns)]
            for row, x in zip(sums, left, strict=True):
                for total, y in zip(row, right, strict=True):
                    lanes.set(total, lanes.fused(x, y, lanes.get(total)))
        for r, row in enumerate(sums):
            for j, total in enumerate(row):
                place = builder.gep(memory, [lanes.at(c, (c_row, r), j)])
                builder.store(lanes.sum(lanes.get(total)), place)

    return _part(build)


def _pool_and_keep(
    lanes: Lanes, memory: Value, outputs: list[Value], bias: Value, out: Value, chosen: Value
) -> None:
    """Store the largest of four outputs, its bias added and through ReLU, and which one it was."""
    best, which = outputs[0], lanes.constant(0.0)
    for position in range(1, len(outputs)):
        other = outputs[position]
        is_new = lanes.builder.or_(lanes.is_(">", other, best), lanes.is_("uno", other, other))
        best = lanes.where(is_new, other, best)
        which = lanes.where(is_new, lanes.constant(float(position)), which)
    best = lanes.plus(memory, bias, best)
    lanes.store(lanes.positive_part(best), memory, out)
    lanes.store(which, memory, chosen)


def _through_pool(
    lanes: Lanes, memory: Value, gradient: Value, out: Value, chosen: Value, bias: Value
) -> list[Value]:
    """Give the gradients of four outputs, and add their sum to the bias's."""
    zero = lanes.constant(0.0)
    is_cut = lanes.is_("<=", lanes.load(memory, out), zero)
    passed = lanes.where(is_cut, zero, lanes.load(memory, gradient))
    lanes.store(lanes.plus(memory, bias, passed), memory, bias)
    which = lanes.load(memory, chosen)
    return [
        lanes.where(lanes.is_("==", which, lanes.constant(float(position))), passed, zero)
        for position in range(len(_POSITIONS))
    ]


def direct_forward(windows: int) -> Part:
    """Convolve and pool some neighbouring windows, one vector of channels.

    Numbers: where the first window's input begins, how far apart rows and columns of the input
    are; where the filters begin, how far apart they are from tap to tap; rows of taps, and taps in
    a row times channels; the bias; where pooled values go, and how far apart; the same of the
    choices.
    """

    def build(
        lanes: Lanes, memory: Value, x: Value, x_row: Value, x_column: Value, w: Value,
        w_tap: Value, taps_high: Value, taps_wide: Value, bias: Value, out: Value,
        out_column: Value, chosen: Value, chosen_column: Value,
    ) -> None:  # fmt: skip
        starts = [
            lanes.at(x, (x_row, i), (x_column, OUTPUTS * window + j))
            for window in range(windows)
            for i, j in _POSITIONS
        ]
        zeros = [[lanes.constant(0.0)] for _ in starts]
        found = lanes.products(
            memory,
            starts,
            (taps_high, x_row),
            (taps_wide, lanes.word(1)),
            (memory, w, w_tap),
            zeros,
        )
        sums = [total for (total,) in found]
        for window in range(windows):
            own = sums[window * len(_POSITIONS) : (window + 1) * len(_POSITIONS)]
            to = lanes.at(out, (out_column, window))
            _pool_and_keep(lanes, memory, own, bias, to, lanes.at(chosen, (chosen_column, window)))

    return _part(build)


def spread_gradient() -> Part:
    """Write the gradients of four outputs from that of the largest, one vector of channels.

    Numbers: the gradient, the pooled value, the choice, the bias's gradient; where the first
    output's gradient goes, how far apart rows and columns are.
    """

    def build(
        lanes: Lanes, memory: Value, gradient: Value, out: Value, chosen: Value, bias: Value,
        to: Value, row: Value, column: Value,
    ) -> None:  # fmt: skip
        parts = _through_pool(lanes, memory, gradient, out, chosen, bias)
        for (i, j), part in zip(_POSITIONS, parts, strict=True):
            lanes.store(part, memory, lanes.at(to, (row, i), (column, j)))

    return _part(build)


def direct_filter_gradient(taps: int) -> Part:
    """Add to the gradient of filters of taps × taps for one input channel, one vector of outputs.

    Numbers: the filters' gradient, how far apart it is from tap to tap; where the input begins, how
    far apart its rows and columns are; where the outputs' gradients begin, how far apart they are;
    rows and columns of the outputs.
    """

    def build(
        lanes: Lanes, memory: Value, w: Value, w_tap: Value, x: Value, x_row: Value,
        x_column: Value, g: Value, g_column: Value, height: Value, width: Value,
    ) -> None:  # fmt: skip
        all_taps = [(i, j) for i in range(taps) for j in range(taps)]
        starts = [lanes.at(x, (x_row, i), (x_column, j)) for i, j in all_taps]
        places = [lanes.at(w, (w_tap, tap)) for tap in range(len(all_taps))]
        sums = [[lanes.constant(0.0)] for _ in places]
        found = lanes.products(
            memory, starts, (height, x_row), (width, x_column), (memory, g, g_column), sums
        )
        for place, (total,) in zip(places, found, strict=True):
            lanes.store(lanes.plus(memory, place, total), memory, place)

    return _part(build)


def _read_square(
    lanes: Lanes, memory: Value, start: Value, row: Value, column: Value, size: int
) -> list[list[Value]]:
    return [
        [lanes.load(memory, lanes.at(start, (row, i), (column, j))) for j in range(size)]
        for i in range(size)
    ]


def _write_square(
    lanes: Lanes, memory: Value, square: list[list[Value]], start: Value, step: Value
) -> None:
    values = [value for row in square for value in row]
    for place, value in enumerate(values):
        lanes.store(value, memory, lanes.at(start, (step, place)))


def transform_filter(taps: int) -> Part:
    """Transform filters of taps × taps, one vector. Numbers: from, step of taps; to, step."""
    _, filters, _ = minimal_filtering(taps)

    def build(lanes: Lanes, memory: Value, w: Value, w_tap: Value, to: Value, step: Value) -> None:
        row = lanes.builder.mul(w_tap, lanes.word(taps))
        square = _read_square(lanes, memory, w, row, w_tap, taps)
        _write_square(lanes, memory, lanes.on_both_sides(filters, square), to, step)

    return _part(build)


def filter_gradient(taps: int) -> Part:
    """Add to the gradient of filters, one vector. Numbers: from, step; to, step of taps."""
    _, filters, _ = minimal_filtering(taps)
    back = tuple(zip(*filters, strict=True))

    def build(
        lanes: Lanes, memory: Value, found: Value, step: Value, w: Value, w_tap: Value
    ) -> None:
        row = lanes.builder.mul(step, lanes.word(taps + 1))
        square = _read_square(lanes, memory, found, row, step, taps + 1)
        sums = [value for line in lanes.on_both_sides(back, square) for value in line]
        for tap, value in enumerate(sums):
            place = lanes.at(w, (w_tap, tap))
            lanes.store(lanes.plus(memory, place, value), memory, place)

    return _part(build)


def transform_data(taps: int) -> Part:
    """Transform a tile of the input, one vector. Numbers: from, row, column; to, step."""
    _, _, data = minimal_filtering(taps)

    def build(
        lanes: Lanes, memory: Value, x: Value, x_row: Value, x_column: Value, to: Value, step: Value
    ) -> None:
        square = _read_square(lanes, memory, x, x_row, x_column, taps + 1)
        _write_square(lanes, memory, lanes.on_both_sides(data, square), to, step)

    return _part(build)


def data_gradient(taps: int) -> Part:
    """Add to the gradient of a tile, one vector. Numbers: from, step; to, row, column."""
    _, _, data = minimal_filtering(taps)
    back = tuple(zip(*data, strict=True))

    def build(
        lanes: Lanes, memory: Value, found: Value, step: Value, x: Value, row: Value, column: Value
    ) -> None:
        found_row = lanes.builder.mul(step, lanes.word(taps + 1))
        square = _read_square(lanes, memory, found, found_row, step, taps + 1)
        for i, line in enumerate(lanes.on_both_sides(back, square)):
            for j, value in enumerate(line):
                place = lanes.at(x, (row, i), (column, j))
                lanes.store(lanes.plus(memory, place, value), memory, place)

    return _part(build)


def transformed_forward(taps: int) -> Part:
    """Give a tile's four outputs pooled, one vector. Numbers: from, step; bias; out; chosen."""
    outputs, _, _ = minimal_filtering(taps)
    back = tuple(zip(*outputs, strict=True))

    def build(
        lanes: Lanes,
        memory: Value,
        found: Value,
        step: Value,
        bias: Value,
        out: Value,
        chosen: Value,
    ) -> None:
        row = lanes.builder.mul(step, lanes.word(taps + 1))
        square = _read_square(lanes, memory, found, row, step, taps + 1)
        four = [value for line in lanes.on_both_sides(back, square) for value in line]
        _pool_and_keep(lanes, memory, four, bias, out, chosen)

    return _part(build)


def transformed_gradient(taps: int) -> Part:
    """Transform the gradient of a tile's pooled output, one vector.

    Numbers: the gradient, the pooled value, the choice, the bias's gradient; to, step.
    """
    outputs, _, _ = minimal_filtering(taps)

    def build(
        lanes: Lanes, memory: Value, gradient: Value, out: Value, chosen: Value, bias: Value,
        to: Value, step: Value,
    ) -> None:  # fmt: skip
        four = _through_pool(lanes, memory, gradient, out, chosen, bias)
        square = [four[:OUTPUTS], four[OUTPUTS:]]
        _write_square(lanes, memory, lanes.on_both_sides(outputs, square), to, step)

    return _part(build)
