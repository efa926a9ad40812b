"""Dependent quantization: the search finds the optimum, and levels stand for what they should."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcompress.coders.symbol_arrays import decode_symbols, encode_symbols
from fedcompress.kernels.trellis import (
    MACHINES,
    MOST_STEPS,
    quantizers,
    reconstruct,
    reconstruct_rows,
    search,
    transitions,
)
from fedcompress.rows import row_width

STATES = sorted(MACHINES)
NONE = np.zeros((2, 2), np.float32)
FREE = np.zeros((1, 8), np.float32)


def costs_of(rng: np.random.Generator, classes: int, scale: float) -> np.ndarray:
    return (scale * rng.random((classes, 8))).astype(np.float32)


def find(x: np.ndarray, states: int, costs: np.ndarray = FREE, shrinkage: np.ndarray = NONE):
    rows, columns = x.shape
    by_row, by_column = np.zeros(rows, np.int16), np.zeros(columns, np.int16)
    return search(x.astype(np.float32), costs, shrinkage, by_row, by_column, states)


def path_costs(x, paths, states, costs, shrinkage):
    """Squared error plus cost of each path, by their definition.

    ``x`` has shape (columns,), ``paths`` (count, columns), ``costs`` (columns, 8).
    """
    machine = transitions(states)
    state, total = np.zeros(len(paths), np.int64), np.zeros(len(paths))
    for value, level, row in zip(x, paths.T, costs.astype(np.float64), strict=True):
        quantizer, k = machine[state, 2], np.abs(level)
        zero, first, second, slope = row.reshape(2, 4)[quantizer].T
        steps = np.sign(level) * (2 * k - quantizer - shrinkage[quantizer, (k > 1).astype(int)])
        rate = np.where(k == 0, zero, np.where(k == 1, first, second + (k - 2) * slope))
        total += (float(value) - np.where(k == 0, 0, steps)) ** 2 + rate
        state = machine[state, level & 1]
    return total


@pytest.mark.parametrize("states", STATES)
def test_search_finds_the_cheapest_of_all_paths(states):
    rng = np.random.default_rng(states)
    for trial in range(12):
        columns = 1 + trial % 4
        x = (2.5 * rng.standard_normal((3, columns))).astype(np.float32)
        costs = costs_of(rng, 4, (0.0, 1.0, 4.0, 12.0)[trial % 4])
        shrinkage = (rng.random((2, 2)) / 2 - 0.1).astype(np.float32)
        by_row = rng.integers(-1, 3, 3).astype(np.int16)
        by_column = rng.integers(-1, 3, columns).astype(np.int16)
        levels = search(x, costs, shrinkage, by_row, by_column, states)
        every = np.array(list(product(range(8), repeat=columns)))
        for row in range(3):
            own = costs[np.clip(by_row[row] + by_column, 0, 3)]
            signs = np.where(x[row] < 0, -1, 1)
            found = path_costs(x[row], levels[row : row + 1], states, own, shrinkage)[0]
            assert found <= path_costs(x[row], signs * every, states, own, shrinkage).min() + 1e-4


@pytest.mark.parametrize("states", STATES)
@settings(deadline=None, max_examples=25)
@given(st.integers(1, 40), st.integers(1, 150), st.integers(0, 2**31))
def test_rows_are_searched_each_by_itself(states, rows, columns, seed):
    rng = np.random.default_rng(seed)
    x = (3 * rng.standard_normal((rows, columns))).astype(np.float32)
    costs = costs_of(rng, 6, 3.0)
    by_row = rng.integers(0, 4, rows).astype(np.int16)
    by_column = rng.integers(0, 3, columns).astype(np.int16)
    together = search(x, costs, NONE, by_row, by_column, states)
    for row in {0, rows // 2, rows - 1}:
        part = slice(row, row + 1)
        alone = search(x[part], costs, NONE, by_row[part], by_column, states)
        np.testing.assert_array_equal(together[part], alone)


@pytest.mark.parametrize("states", STATES)
@settings(deadline=None, max_examples=25)
@given(st.integers(1, 9), st.integers(1, 70), st.integers(0, 2**31))
def test_search_inverts_reconstruct(states, rows, columns, seed):
    rng = np.random.default_rng(seed)
    levels = rng.integers(-6, 7, (rows, columns)).astype(np.int32)
    levels[rng.random(levels.shape) < 0.5] = 0
    shrinkage = np.array([[0.25, 0.125], [-0.0625, 0.25]], np.float32)
    x = reconstruct(levels, shrinkage, states)
    np.testing.assert_array_equal(find(x, states, shrinkage=shrinkage), levels)
    np.testing.assert_array_equal(reconstruct(levels.astype(np.int16), shrinkage, states), x)


@pytest.mark.parametrize("states", STATES)
def test_levels_stand_for_multiples_of_the_step(states):
    rng = np.random.default_rng(5)
    levels = rng.integers(-4, 5, (7, 33)).astype(np.int32)
    machine = transitions(states)
    expected = np.zeros(levels.shape, np.uint8)
    for row in range(7):
        state = 0
        for column in range(33):
            expected[row, column] = machine[state, 2]
            state = machine[state, levels[row, column] & 1]
    chosen = quantizers(levels, states)
    np.testing.assert_array_equal(chosen, expected)
    multiples = np.sign(levels) * (2 * np.abs(levels) - chosen)
    np.testing.assert_array_equal(reconstruct(levels, NONE, states), multiples)


def test_four_states_are_those_of_versatile_video_coding():
    assert transitions(4).tolist() == [[0, 2, 0], [2, 0, 0], [1, 3, 1], [3, 1, 1]]


@pytest.mark.parametrize(("states", "least"), [(4, 0.98), (8, 1.08), (16, 1.14), (32, 1.2)])
def test_gain_over_a_uniform_quantizer_of_the_same_rate(states, least):
    """Four and eight states reach .99 and 1.09 dB (Marcellin & Fischer, 1990), none 1.53."""
    x = np.random.default_rng(0).uniform(-900, 900, (64, 4096)).astype(np.float32)
    error = float(np.mean((reconstruct(find(x, states), NONE, states) - x) ** 2))
    # At high rate the levels are as many as those of a quantizer of twice the step.
    assert least < 10 * np.log10(2**2 / 12 / error) < 1.53


@pytest.mark.parametrize("states", STATES)
def test_long_rows_and_large_entries(states):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, 30_000)).astype(np.float32)
    x[:, ::1000] *= 1e5
    x[0, 7], x[1, 9] = 1e30, -1e30
    levels = find(x, states)
    assert levels[0, 7] >= MOST_STEPS // 2 - 1
    assert levels[1, 9] <= 1 - MOST_STEPS // 2
    error = np.abs(reconstruct(levels, NONE, states) - np.clip(x, -MOST_STEPS, MOST_STEPS))
    assert error.max() <= 2
    assert float(np.mean(error**2)) < 0.28


def test_nothing_to_quantize():
    for shape in ((0, 5), (3, 0)):
        assert find(np.zeros(shape), 8).shape == shape
        assert reconstruct(np.zeros(shape, np.int32), NONE, 8).shape == shape


@pytest.mark.parametrize("states", [4, 8, 16])
@pytest.mark.parametrize("shape", [(64, 200), (7, 30), (40, 25, 7, 7), (9000,), (3, 5)])
def test_entries_from_the_coder_are_those_of_the_levels(
    shape: tuple[int, ...], states: int
) -> None:
    rng = np.random.default_rng(states)
    for spread, zeros, far in ((0.3, 0.0, 0), (3.0, 0.5, 0), (8.0, 0.9, 3)):
        levels = np.rint(rng.standard_normal(shape) * spread).astype(np.int32)
        levels[rng.random(shape[0]) < zeros] = 0
        levels.reshape(-1)[rng.integers(0, levels.size, far)] = rng.integers(-40_000, 40_000, far)
        data = memoryview(encode_symbols(levels, states))
        plain = decode_symbols(data, shape, states)
        assert np.array_equal(plain, levels.reshape(-1))
        found = decode_symbols(data, shape, states, as_entries=True)
        width = row_width(shape)
        wanted = reconstruct_rows(levels.reshape(-1), width, np.zeros((2, 2), np.float32), states)
        if found.dtype == np.float32:
            assert found.tobytes() == wanted.tobytes()
        else:
            assert np.array_equal(found, plain)
