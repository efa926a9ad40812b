"""Dependent quantization: levels of two quantizers that a state machine switches between.

Quantizer 0 has the even multiples of the step, quantizer 1 the odd ones and zero. An entry of
level k is reconstructed as sgn(k) · (2 |k| − q) steps, less a shrinkage, where q is the quantizer
and a level of zero stands for zero. Which quantizer is next follows from the parities of the
levels before, so that the two together are a lattice in many dimensions, denser than the integers.
Marcellin & Fischer (1990), "Trellis coded quantization of memoryless and Gauss–Markov sources";
Schwarz et al. (2019), "Hybrid video coding with trellis-coded quantization", for the form with
parities. The machine of four states is that of Versatile Video Coding; those of more are shift
registers like it, found by search for the least squared error.

Every row starts in state 0. Rows are searched sixteen at a time, one in each lane of a vector.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
from numba import njit

from fedcompress.kernels.jit import kernel

# States and two masks: the next state is the state shifted left, the first mask added (exclusive
# or) where its top bit falls out, the second where the level is odd. The top bit is the quantizer.
MACHINES = {4: (1, 2), 8: (7, 2), 16: (11, 2), 32: (3, 20)}
MOST_STEPS = 1 << 24  # of an entry, in units of the step; larger ones are clipped
COSTS = 8  # for each quantizer: of level 0, ±1 and ±2, and of each level more

_LANES = 16
_TILE = 64  # columns that are turned into lanes at once
_METRICS = 4  # least costs of an even and an odd level of either quantizer
_F = np.float32
_HUGE = _F(1e30)

# Indices into what lanes hold are unsigned, so that no one asks whether they count from the end:
# with that question in them loops become gathers and scatters. Signed numbers may not mix in.
_U = np.uint64
_LANE = _U(_LANES)
_NOT_NEGATIVE = (1 << 48) - 1  # a mask that answers that question where numbers are signed


@cache
def transitions(states: int) -> np.ndarray:
    """Give, for each state, the next after an even and an odd level, and the quantizer (int64)."""
    feedback, odd = MACHINES[states]
    now = np.arange(states, dtype=np.int64)
    quantizer = now // (states // 2)
    even = ((now << 1) & (states - 1)) ^ (quantizer * feedback)
    return np.stack([even, even ^ odd, quantizer], 1)


@cache
def _machine(states: int) -> np.ndarray:
    return transitions(states).astype(np.uint8)


def search(
    x: np.ndarray,
    costs: np.ndarray,
    shrinkage: np.ndarray,
    row_levels: np.ndarray,
    column_levels: np.ndarray,
    states: int,
) -> np.ndarray:
    """Give the levels (int32, the shape of ``x``) of least squared error plus cost, row by row.

    This is the algorithm of Viterbi (1967): no other levels have a smaller sum of
    ``(x − x̂)²`` and of the costs of the levels.

    Parameters
    ----------
    x : ndarray
        float32, shape (rows, columns), in units of the step.
    costs : ndarray
        float32, shape (classes, 8): for quantizer 0 and then 1 the cost of level 0, of ±1, of ±2,
        and of each level more.
    shrinkage : ndarray
        float32, shape (2, 2): for each quantizer what is taken off the magnitude of ±1, and of
        larger levels, in steps.
    row_levels, column_levels : ndarray
        int16; the class of an entry is the sum of its row's and its column's, clipped.
    states : int
        4, 8, 16 or 32.
    """
    distinct, column_index = np.unique(column_levels, return_inverse=True)
    return search_by_kind(x, costs, shrinkage, row_levels, column_index, distinct, states)


def search_by_kind(
    x: np.ndarray,
    costs: np.ndarray,
    shrinkage: np.ndarray,
    row_levels: np.ndarray,
    column_index: np.ndarray,
    distinct: np.ndarray,
    states: int,
) -> np.ndarray:
    """Search as `search` does, with the level of column j at ``distinct[column_index[j]]``."""
    levels = np.empty(x.shape, np.int32)
    if x.size:
        _searches(states)(
            x, costs, shrinkage.reshape(-1), row_levels, column_index, distinct, levels
        )
    return levels


def reconstruct(levels: np.ndarray, shrinkage: np.ndarray, states: int) -> np.ndarray:
    """Give the entries (float32) of levels, int16 or int32, shape (rows, columns), in steps."""
    return reconstruct_rows(levels.reshape(-1), levels.shape[1], shrinkage, states).reshape(
        levels.shape
    )


def reconstruct_rows(
    levels: np.ndarray, width: int, shrinkage: np.ndarray, states: int
) -> np.ndarray:
    """Reconstruct as `reconstruct` does flat rows of ``width``; the last may be shorter."""
    out = np.empty(levels.size, np.float32)
    feedback, odd = MACHINES[states]
    length = states.bit_length() - 1
    _reconstruct(levels, max(width, 1), shrinkage.reshape(-1), feedback, odd, length, out)
    return out


def quantizers(levels: np.ndarray, states: int) -> np.ndarray:
    """Give the quantizer (uint8, 0 or 1) of each entry of levels, shape (rows, columns)."""
    out = np.empty(levels.shape, np.uint8)
    _quantizers(levels, _machine(states), out)
    return out


def _forced(function: Callable[..., None]) -> Callable[..., None]:
    compiled: Callable[..., None] = njit(cache=True, error_model="numpy", forceinline=True)(
        function
    )
    return compiled


# In one buffer for all lanes stand the metrics, the costs of paths to each state, and the costs
# of paths one step longer. All offsets are constants where these two are inlined, and so the
# loops over lanes become vector code without tests for overlap.


@_forced
def _metrics(
    buffer: np.ndarray,
    values: np.ndarray,
    at: np.uint64,
    table: np.ndarray,
    entry: np.uint64,
    shrinkage: np.ndarray,
    choices: np.ndarray,
    to: np.uint64,
) -> None:
    """Find the best even and odd level of either quantizer for one entry in each lane.

    The squared error of levels of one parity from ±2 up is a parabola of which every other
    integer is allowed, so that rounding its vertex gives the best; it competes with 0 or ±1.
    Bits of ``choices`` say where it won. Two loops, one a quantizer, would take half as long again.
    """
    one, half = _F(1), _F(0.5)
    s00, s01, s10, s11 = shrinkage[0], shrinkage[1], shrinkage[2], shrinkage[3]
    for lane in range(_LANE):
        t = abs(values[at + lane])
        zero = table[entry + lane]
        first = table[entry + _LANE + lane]
        second = table[entry + _U(2 * _LANES) + lane]
        slope = table[entry + _U(3 * _LANES) + lane]
        u = t + s01
        vertex = u * _F(0.25) - slope * _F(0.0625)
        m = max(one, np.rint(vertex))
        e = u - _F(4) * m
        large = e * e + (second + (m - one) * (slope + slope))
        small = t * t + zero
        won = np.int32(large < small)
        buffer[lane] = min(large, small)
        m = max(one, np.rint(vertex - half))
        e = u - _F(4) * m - _F(2)
        large = e * e + (second + (m + m - one) * slope)
        e = t + s00 - _F(2)
        small = e * e + first
        won |= np.int32(large < small) << 1
        buffer[_LANE + lane] = min(large, small)
        zero = table[entry + _U(4 * _LANES) + lane]
        first = table[entry + _U(5 * _LANES) + lane]
        second = table[entry + _U(6 * _LANES) + lane]
        slope = table[entry + _U(7 * _LANES) + lane]
        u = t + s11 + one
        vertex = u * _F(0.25) - slope * _F(0.0625)
        m = max(one, np.rint(vertex))
        e = u - _F(4) * m
        large = e * e + (second + (m - one) * (slope + slope))
        small = t * t + zero
        won |= np.int32(large < small) << 2
        buffer[_U(2 * _LANES) + lane] = min(large, small)
        m = max(one, np.rint(vertex - half))
        e = u - _F(4) * m - _F(2)
        large = e * e + (second + (m + m - one) * slope)
        e = t + s10 - one
        small = e * e + first
        won |= np.int32(large < small) << 3
        buffer[_U(3 * _LANES) + lane] = min(large, small)
        choices[to + lane] = won


@_forced
def _extend(
    buffer: np.ndarray,
    first: int,
    count: int,
    states: int,
    feedback: int,
    odd: int,
    choices: np.ndarray,
    to: np.uint64,
) -> None:
    """Choose the better of the two ways into each of ``count`` states, in every lane."""
    for lane in range(_LANE):
        bits = np.int32(0)
        for i in range(count):
            state = first + i
            quantizer = state & 1
            top = quantizer * (states >> 1)
            from_even = ((state ^ (quantizer * feedback)) >> 1) | top
            from_odd = ((state ^ (quantizer * feedback) ^ odd) >> 1) | top
            even = (
                buffer[_U((_METRICS + from_even) * _LANES) + lane]
                + buffer[_U(2 * quantizer * _LANES) + lane]
            )
            uneven = (
                buffer[_U((_METRICS + from_odd) * _LANES) + lane]
                + buffer[_U((2 * quantizer + 1) * _LANES) + lane]
            )
            bits |= np.int32(uneven < even) << np.int32(i)
            buffer[_U((_METRICS + states + state) * _LANES) + lane] = min(uneven, even)
        choices[to + lane] = bits


def _search_of(states: int) -> Callable[..., None]:
    feedback, odd = MACHINES[states]
    top = states >> 1
    group = min(states, 8)  # states whose choices share a byte
    groups = states // group
    width = (1 + groups) * _LANES
    held, longer = _U(_METRICS * _LANES), _U((_METRICS + states) * _LANES)

    @kernel
    def run(
        x: np.ndarray,
        costs: np.ndarray,
        shrinkage: np.ndarray,
        row_levels: np.ndarray,
        column_index: np.ndarray,
        column_levels: np.ndarray,
        levels: np.ndarray,
    ) -> None:
        rows, columns = x.shape
        kinds = column_levels.size
        most = _F(MOST_STEPS)
        values = np.empty(columns * _LANES, np.float32)  # and levels in the end
        choices = np.empty(columns * width, np.uint8)
        table = np.empty(kinds * COSTS * _LANES, np.float32)
        buffer = np.empty((_METRICS + 2 * states) * _LANES, np.float32)
        state = np.empty(_LANES, np.int32)
        for row in range(0, rows, _LANES):
            lanes = min(_LANES, rows - row)
            for kind in range(kinds):
                for lane in range(_LANES):
                    level = np.int64(row_levels[min(row + lane, rows - 1)])
                    k = min(max(level + column_levels[kind], 0), costs.shape[0] - 1)
                    for i in range(COSTS):
                        table[(kind * COSTS + i) * _LANES + lane] = costs[k, i]
            for i in range(_LANE):
                buffer[held + i] = _F(0)
            for i in range(_LANE, _U(states * _LANES)):
                buffer[held + i] = _HUGE
            for start in range(0, columns, _TILE):
                stop = min(start + _TILE, columns)
                for lane in range(0, _LANES, 4):  # four rows make a store; the last row fills up
                    r0, r1 = _U(min(row + lane, rows - 1)), _U(min(row + lane + 1, rows - 1))
                    r2, r3 = _U(min(row + lane + 2, rows - 1)), _U(min(row + lane + 3, rows - 1))
                    for j in range(start, stop):
                        column, at = _U(j), _U(j * _LANES + lane)
                        values[at] = max(min(x[r0, column], most), -most)
                        values[at + _U(1)] = max(min(x[r1, column], most), -most)
                        values[at + _U(2)] = max(min(x[r2, column], most), -most)
                        values[at + _U(3)] = max(min(x[r3, column], most), -most)
                for j in range(start, stop):
                    entry = _U(column_index[j] * COSTS * _LANES)
                    to = _U(j * width)
                    _metrics(buffer, values, _U(j * _LANES), table, entry, shrinkage, choices, to)
                    to += _LANE
                    _extend(buffer, 0, group, states, feedback, odd, choices, to)
                    if groups > 1:
                        _extend(buffer, 8, 8, states, feedback, odd, choices, to + _LANE)
                    if groups > 2:
                        to += _LANE
                        _extend(buffer, 16, 8, states, feedback, odd, choices, to + _LANE)
                        to += _LANE
                        _extend(buffer, 24, 8, states, feedback, odd, choices, to + _LANE)
                    for i in range(_U(states * _LANES)):
                        buffer[held + i] = buffer[longer + i]
                # Differences are all that counts; taken early, they stay exact in long rows.
                for lane in range(_LANE):
                    least = buffer[held + lane]
                    for s in range(1, states):
                        least = min(least, buffer[held + _U(s * _LANES) + lane])
                    for s in range(states):
                        buffer[held + _U(s * _LANES) + lane] -= least
            for lane in range(_LANE):
                best = 0
                for s in range(1, states):
                    cost = buffer[held + _U(s * _LANES) + lane]
                    if cost < buffer[held + _U(best * _LANES) + lane]:
                        best = s
                state[lane] = best
            for tile in range((columns - 1) // _TILE, -1, -1):
                start = tile * _TILE
                stop = min(start + _TILE, columns)
                for j in range(stop - 1, start - 1, -1):
                    entry = (column_index[j] * COSTS * _LANES) & _NOT_NEGATIVE
                    at = (j * _LANES) & _NOT_NEGATIVE
                    to = (j * width) & _NOT_NEGATIVE
                    for lane in range(_LANES):
                        s = state[lane]
                        bits = np.int32(choices[to + _LANES + lane])
                        for g in range(1, groups):
                            byte = choices[to + (1 + g) * _LANES + lane]
                            bits |= np.int32(byte) << np.int32(8 * g)
                        parity = np.int32(bits >> (s & 31)) & 1
                        quantizer = s & 1
                        slope = table[entry + 3 * _LANES + lane]
                        slope1 = table[entry + 7 * _LANES + lane]
                        # The same operations as in _metrics, so that they round alike.
                        value = values[at + lane]
                        t = abs(value)
                        u = t + shrinkage[1]
                        u1 = t + shrinkage[3] + _F(1)
                        if quantizer != 0:
                            u, slope = u1, slope1
                        vertex = u * _F(0.25) - slope * _F(0.0625)
                        m = max(_F(1), np.rint(vertex - _F(parity) * _F(0.5)))
                        won = np.int32(choices[to + lane]) & (1 << (2 * quantizer + parity))
                        level = (m + m if won != 0 else _F(0)) + _F(parity)
                        values[at + lane] = -level if value < 0 else level
                        before = s ^ (quantizer * feedback) ^ (parity * odd)
                        state[lane] = (before >> 1) | (quantizer * top)
                for lane in range(lanes):
                    for j in range(start, stop):
                        levels[_U(row + lane), _U(j)] = np.int32(values[_U(j * _LANES + lane)])

    return run


_COMPILED = {states: _search_of(states) for states in MACHINES}


def _searches(states: int) -> Callable[..., None]:
    return _COMPILED[states]


@kernel
def _quantizers(levels: np.ndarray, machine: np.ndarray, out: np.ndarray) -> None:
    # Four rows in step, since within a row each state waits for the last.
    rows, columns = levels.shape
    for row in range(0, rows, 4):
        r1, r2, r3 = min(row + 1, rows - 1), min(row + 2, rows - 1), min(row + 3, rows - 1)
        s0, s1, s2, s3 = np.uint8(0), np.uint8(0), np.uint8(0), np.uint8(0)
        for column in range(columns):
            out[row, column] = machine[s0, 2]
            out[r1, column] = machine[s1, 2]
            out[r2, column] = machine[s2, 2]
            out[r3, column] = machine[s3, 2]
            s0 = machine[s0, levels[row, column] & 1]
            s1 = machine[s1, levels[r1, column] & 1]
            s2 = machine[s2, levels[r2, column] & 1]
            s3 = machine[s3, levels[r3, column] & 1]


@kernel
def _reconstruct(
    levels: np.ndarray,
    width: int,
    shrinkage: np.ndarray,
    feedback: int,
    odd: int,
    length: int,
    out: np.ndarray,
) -> None:
    """Reconstruct rows of ``width`` entries, of which the last may be shorter.

    Quantizers are found for 64 entries at once. The one of an entry is the sum, exclusive or, of
    some parities and some quantizers among the ``length`` entries before, as the masks say. So
    quantizers are as polynomials N / (1 + G), which is N (1 + G) (1 + G²) (1 + G⁴) and so on.
    """
    one, more = shrinkage[0], shrinkage[1]
    one_1, more_1 = shrinkage[2], shrinkage[3]
    last = _U(63)
    for begin in range(0, levels.size, width):
        end = min(begin + width, levels.size)
        parities, quantizers = _U(0), _U(0)
        for start in range(begin, end, 64):
            count = min(64, end - start)
            before, parities_before = quantizers, parities
            parities = _U(0)
            for i in range(count):
                parities |= _U(levels[_U(start + i)] & 1) << _U(i)
            quantizers = _U(0)
            for i in range(length):
                tap = _U(i)
                if odd >> (length - 1 - i) & 1:
                    quantizers ^= (parities << tap << _U(1)) ^ (parities_before >> (last - tap))
                if feedback >> (length - 1 - i) & 1:
                    quantizers ^= before >> (last - tap)
            step = 1
            while step < 64:
                total = quantizers
                for i in range(length):
                    if feedback >> (length - 1 - i) & 1 and (i + 1) * step < 64:
                        total ^= quantizers << _U((i + 1) * step)
                quantizers = total
                step *= 2
            for i in range(count):
                level = levels[_U(start + i)]
                second = np.int32(quantizers >> _U(i)) & np.int32(1)
                magnitude = np.int32(abs(level))
                small, large = (one_1, more_1) if second else (one, more)
                steps = _F(np.int32(2 * magnitude - second)) - (large if magnitude > 1 else small)
                steps = _F(0) if level == 0 else steps
                out[_U(start + i)] = -steps if level < 0 else steps
