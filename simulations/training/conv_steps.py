"""Forward and backward pass of one sample through one convolution, and products of matrices.

The first convolution, of few channels, is computed as it is defined; others by minimal filtering
(`winograd`), whose tiles of 2 × 2 outputs are the windows that are pooled. A layer is a row of
`ConvMemory.convolutions`; all other numbers are places in the memory ``m``, or counts.
"""

from typing import Any

import numpy as np
from numba import njit

from simulations.training import conv_parts as parts
from simulations.training.conv_memory import (
    BIAS,
    FILTERS,
    FOUND,
    HEIGHT,
    HIGH,
    INPUTS,
    LANES,
    OUTPUTS,
    TAPS,
    TRANSFORMED,
    TURNED,
    WIDE,
    WIDTH,
)
from simulations.training.kernel_parts import ZERO

Array = np.ndarray[Any, np.dtype[Any]]

# Sums are in the order that is written, so that they do not depend on how they are compiled.
step = njit(nogil=True, error_model="numpy")

# As many sums as a processor needs at once to be busy, and has registers for.
_SET_ROWS, _ADD_ROWS = 7, 8
_set_block, _set_half = (parts.product(_SET_ROWS, n, adds=False) for n in (2, 1))
_add_block, _add_half = (parts.product(_ADD_ROWS, n, adds=True) for n in (2, 1))
_set_one, _add_one = (parts.product(1, 1, adds=adds) for adds in (False, True))
_inner_block, _inner_one = (parts.inner_product(4, n) for n in (4, 1))
_window, _two_windows = (parts.direct_forward(n) for n in (1, 2))
_spread = parts.spread_gradient()
_direct_gradient_3, _direct_gradient_5 = (parts.direct_filter_gradient(n) for n in (3, 5))
_filter_3, _filter_5 = (parts.transform_filter(n) for n in (3, 5))
_filter_gradient_3, _filter_gradient_5 = (parts.filter_gradient(n) for n in (3, 5))
_data_3, _data_5 = (parts.transform_data(n) for n in (3, 5))
_data_gradient_3, _data_gradient_5 = (parts.data_gradient(n) for n in (3, 5))
_outputs_3, _outputs_5 = (parts.transformed_forward(n) for n in (3, 5))
_output_gradient_3, _output_gradient_5 = (parts.transformed_gradient(n) for n in (3, 5))


@step
def set_product(
    m: Array, c: int, c_row: int, rows: int, width: int, a: int, a_row: int, a_column: int,
    b: int, b_row: int, terms: int,
) -> None:  # fmt: skip
    """Set C (rows, width) to A (rows, terms) times B (terms, width), width in whole vectors."""
    for n in range(0, width, 2 * LANES):
        is_whole = n + 2 * LANES <= width
        if rows < _SET_ROWS:
            for v in range(n, min(n + 2 * LANES, width), LANES):
                for r in range(rows):
                    to, left = c + r * c_row + v, a + r * a_row
                    _set_one(m, (to, c_row, left, a_row, a_column, b + v, b_row, terms))
            continue
        for start in range(0, rows, _SET_ROWS):
            r = min(start, rows - _SET_ROWS)  # rather some rows twice than one by one
            to, left = c + r * c_row + n, a + r * a_row
            if is_whole:
                _set_block(m, (to, c_row, left, a_row, a_column, b + n, b_row, terms))
            else:
                _set_half(m, (to, c_row, left, a_row, a_column, b + n, b_row, terms))


@step
def add_product(
    m: Array, c: int, c_row: int, rows: int, width: int, a: int, a_row: int, a_column: int,
    b: int, b_row: int, terms: int,
) -> None:  # fmt: skip
    """Add A (rows, terms) times B (terms, width) to C (rows, width), width in whole vectors."""
    blocks = rows - rows % _ADD_ROWS
    for n in range(0, width, 2 * LANES):
        for r in range(0, blocks, _ADD_ROWS):
            to, left = c + r * c_row + n, a + r * a_row
            if n + 2 * LANES <= width:
                _add_block(m, (to, c_row, left, a_row, a_column, b + n, b_row, terms))
            else:
                _add_half(m, (to, c_row, left, a_row, a_column, b + n, b_row, terms))
        for r in range(blocks, rows):
            for v in range(n, min(n + 2 * LANES, width), LANES):
                to, left = c + r * c_row + v, a + r * a_row
                _add_one(m, (to, c_row, left, a_row, a_column, b + v, b_row, terms))


@step
def set_inner_products(
    m: Array, c: int, c_row: int, rows: int, units: int, a: int, b: int, terms: int
) -> None:
    """Set C (rows, units) to A (rows, terms) times B (units, terms) turned.

    Rows are taken by fours, terms in whole vectors: there is memory behind the last row.
    """
    for r in range(0, rows, 4):
        to, left = c + r * c_row, a + r * terms
        for u in range(0, units - 3, 4):
            _inner_block(m, (to + u, c_row, left, terms, b + u * terms, terms, terms))
        for u in range(units - units % 4, units):
            _inner_one(m, (to + u, c_row, left, terms, b + u * terms, terms, terms))


@step
def transform_filters(m: Array, layer: Array) -> None:
    """Prepare a layer for a batch."""
    taps, ins, outs = layer[TAPS], layer[INPUTS], layer[OUTPUTS]
    size = ins * outs
    for at in range(0, size, LANES):
        if taps == 5:
            _filter_5(m, (layer[FILTERS] + at, size, layer[TRANSFORMED] + at, size))
        else:
            _filter_3(m, (layer[FILTERS] + at, size, layer[TRANSFORMED] + at, size))
    frequencies = (taps + 1) * (taps + 1)
    for f in range(frequencies):
        u, t = layer[TRANSFORMED] + f * size, layer[TURNED] + f * size
        straight, turned = (
            m[u : u + size].reshape((ins, outs)),
            m[t : t + size].reshape((outs, ins)),
        )
        for o in range(outs):
            for i in range(ins):
                turned[o, i] = straight[i, o]
    m[layer[FOUND] : layer[FOUND] + frequencies * size] = ZERO


@step
def _transform_input(m: Array, layer: Array, x: int, to: int) -> None:
    taps, ins, wide, tiles = layer[TAPS], layer[INPUTS], layer[WIDE], layer[HIGH] * layer[WIDE]
    row = layer[WIDTH] * ins
    for t in range(tiles):
        start = x + 2 * (t // wide) * row + 2 * (t % wide) * ins
        for i in range(0, ins, LANES):
            if taps == 5:
                _data_5(m, (start + i, row, ins, to + t * ins + i, tiles * ins))
            else:
                _data_3(m, (start + i, row, ins, to + t * ins + i, tiles * ins))


@step
def forward(
    m: Array, layer: Array, x: int, out: int, out_row: int, chosen: int, scratch: int
) -> None:
    """Convolve a sample x and pool it, into rows of out that are some numbers apart."""
    taps, ins, outs = layer[TAPS], layer[INPUTS], layer[OUTPUTS]
    wide, tiles = layer[WIDE], layer[HIGH] * layer[WIDE]
    _transform_input(m, layer, x, scratch)
    frequencies, size = (taps + 1) * (taps + 1), tiles * outs
    products = scratch + frequencies * tiles * ins
    for f in range(frequencies):
        set_product(
            m, products + f * size, outs, tiles, outs, scratch + f * tiles * ins, ins, 1,
            layer[TRANSFORMED] + f * ins * outs, outs, ins,
        )  # fmt: skip
    for t in range(tiles):
        there = out + (t // wide) * out_row + (t % wide) * outs
        for o in range(0, outs, LANES):
            at = t * outs + o
            if taps == 5:
                _outputs_5(m, (products + at, size, layer[BIAS] + o, there + o, chosen + at))
            else:
                _outputs_3(m, (products + at, size, layer[BIAS] + o, there + o, chosen + at))


@step
def backward(
    m: Array, layer: Array, bias: int, x: int, g: int, out: int, out_row: int, chosen: int,
    scratch: int, below: int, with_filters: bool,
) -> None:  # fmt: skip
    """Set the gradient of x below, add to the bias's, and to the transformed filters' if asked."""
    taps, ins, outs = layer[TAPS], layer[INPUTS], layer[OUTPUTS]
    wide, tiles = layer[WIDE], layer[HIGH] * layer[WIDE]
    _transform_input(m, layer, x, scratch)  # again: to keep it for a batch takes longer
    frequencies, size, input_size = (taps + 1) * (taps + 1), tiles * outs, tiles * ins
    products = scratch + frequencies * input_size
    for t in range(tiles):
        place = (t // wide) * out_row + (t % wide) * outs
        for o in range(0, outs, LANES):
            at, there = t * outs + o, place + o
            numbers = (
                g + there, out + there, chosen + at, bias + o, products + at, size,
            )  # fmt: skip
            if taps == 5:
                _output_gradient_5(m, numbers)
            else:
                _output_gradient_3(m, numbers)
    for f in range(frequencies):
        # The gradient of the filters first: that of the data goes where the data were.
        data, gradient = scratch + f * input_size, products + f * size
        if with_filters:
            found = layer[FOUND] + f * ins * outs
            add_product(m, found, outs, ins, outs, data, 1, ins, gradient, outs, tiles)
        set_product(
            m, data, ins, tiles, ins, gradient, outs, 1, layer[TURNED] + f * ins * outs, ins, outs,
        )  # fmt: skip
    row = layer[WIDTH] * ins
    m[below : below + layer[HEIGHT] * row] = ZERO
    for t in range(tiles):
        to = below + 2 * (t // wide) * row + 2 * (t % wide) * ins
        for i in range(0, ins, LANES):
            if taps == 5:
                _data_gradient_5(m, (scratch + t * ins + i, input_size, to + i, row, ins))
            else:
                _data_gradient_3(m, (scratch + t * ins + i, input_size, to + i, row, ins))


@step
def add_filter_gradients(m: Array, layer: Array, into: int) -> None:
    """Add what a batch found to the gradients of a layer's filters."""
    size = layer[INPUTS] * layer[OUTPUTS]
    for at in range(0, size, LANES):
        if layer[TAPS] == 5:
            _filter_gradient_5(m, (layer[FOUND] + at, size, into + layer[FILTERS] + at, size))
        else:
            _filter_gradient_3(m, (layer[FOUND] + at, size, into + layer[FILTERS] + at, size))


@step
def first_forward(m: Array, layer: Array, x: int, out: int, out_row: int, chosen: int) -> None:
    """Do what `forward` does, directly."""
    taps, ins, outs, wide = layer[TAPS], layer[INPUTS], layer[OUTPUTS], layer[WIDE]
    row = layer[WIDTH] * ins
    for y in range(layer[HIGH]):
        for o in range(0, outs, LANES):
            for start in range(0, wide, 2):
                z = max(min(start, wide - 2), 0)
                numbers = (
                    x + 2 * y * row + 2 * z * ins, row, ins,
                    layer[FILTERS] + o, outs, taps, taps * ins, layer[BIAS] + o,
                    out + y * out_row + z * outs + o, outs,
                    chosen + (y * wide + z) * outs + o, outs,
                )  # fmt: skip
                if wide > 1:
                    _two_windows(m, numbers)
                else:
                    _window(m, numbers)


@step
def add_direct_gradients(
    m: Array,
    layer: Array,
    into: int,
    x: int,
    g: int,
    out: int,
    out_row: int,
    chosen: int,
    scratch: int,
) -> None:
    """Add to the gradients of a layer's filters and bias, as they are defined."""
    ins, outs, wide = layer[INPUTS], layer[OUTPUTS], layer[WIDE]
    for y in range(layer[HIGH]):
        for z in range(wide):
            for o in range(0, outs, LANES):
                place = y * out_row + z * outs + o
                kept = chosen + (y * wide + z) * outs + o
                to = scratch + (4 * y * wide + 2 * z) * outs + o
                _spread(
                    m,
                    (
                        g + place,
                        out + place,
                        kept,
                        into + layer[BIAS] + o,
                        to,
                        2 * wide * outs,
                        outs,
                    ),
                )
    for o in range(0, outs, LANES):
        for i in range(ins):
            numbers = (
                into + layer[FILTERS] + i * outs + o, ins * outs, x + i, layer[WIDTH] * ins, ins,
                scratch + o, outs, 2 * layer[HIGH], 2 * wide,
            )  # fmt: skip
            if layer[TAPS] == 5:
                _direct_gradient_5(m, numbers)
            else:
                _direct_gradient_3(m, numbers)
