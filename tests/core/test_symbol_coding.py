"""Symbols come back as they were, at no more bits than their structure is worth."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcompress.coders.symbol_arrays import decode_symbols, encode_symbols


def round_trip(values: np.ndarray, states: int = 0) -> int:
    """Check that symbols come back; give the bytes they took."""
    data = encode_symbols(values, states)
    np.testing.assert_array_equal(
        decode_symbols(memoryview(data), values.shape, states), values.reshape(-1)
    )
    return len(data)


def order_0_bits(values: np.ndarray) -> float:
    counts = np.unique(values, return_counts=True)[1]
    return float(-(counts * np.log2(counts / values.size)).sum())


def layer(seed: int, shape: tuple[int, ...], spread: float) -> np.ndarray:
    """Draw symbols whose rows and columns differ in scale."""
    draw = np.random.default_rng(seed)
    rows, columns = shape[0], int(np.prod(shape[1:]))
    scale = np.exp(spread * draw.normal(size=(rows, 1)) + spread * draw.normal(size=(1, columns)))
    return np.rint(draw.standard_t(4, size=(rows, columns)) * scale).astype(np.int32).reshape(shape)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 40),
    columns=st.integers(1, 500),
    spread=st.sampled_from([0.0, 0.5, 2.0]),
    scale=st.sampled_from([0, 0.02, 0.5, 3, 100, 1e5, 1e8]),
    offset=st.sampled_from([0, 0, 3, -70_000]),
    states=st.sampled_from([0, 0, 4, 8, 16]),
)
def test_any_matrix_comes_back(
    seed: int, rows: int, columns: int, spread: float, scale: float, offset: int, states: int
) -> None:
    values = np.clip(layer(seed, (rows, columns), spread) * scale, -1e9, 1e9).astype(np.int32)
    round_trip(values + offset, states)


@pytest.mark.parametrize(
    "shape",
    [(1,), (17,), (4096,), (4097,), (10_000,), (3, 5000), (64, 16, 3, 3), (40, 784), (12, 98, 5)],
)
@pytest.mark.parametrize("states", [0, 8])
@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64])
def test_every_shape_and_dtype_comes_back(
    shape: tuple[int, ...], states: int, dtype: type[np.signedinteger]
) -> None:
    draw = np.random.default_rng(len(shape))
    round_trip(np.rint(draw.laplace(size=shape) * 2).astype(dtype), states)


@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_a_layer_costs_less_than_its_histogram_where_rows_differ(spread: float) -> None:
    values = layer(3, (200, 300), spread)
    bits = 8 * round_trip(values)
    assert bits <= (1.01 if spread == 0 else 0.87) * order_0_bits(values)


def test_overhead_at_ten_thousand_parameters_is_below_two_per_cent() -> None:
    for scale in (0.3, 1.0, 4.0):
        values = np.rint(np.random.default_rng(0).laplace(size=(100, 100)) * scale).astype(np.int32)
        assert 8 * round_trip(values) <= 1.02 * order_0_bits(values)


def test_neighbours_that_change_alike_cost_less() -> None:
    draw = np.random.default_rng(5)
    smooth = draw.normal(size=(64, 30, 1, 1)) + 0.4 * draw.normal(size=(64, 30, 3, 3))
    taps = np.rint(3 * smooth).astype(np.int32)
    mixed = draw.permuted(taps.reshape(64, -1), axis=1).reshape(taps.shape)
    assert round_trip(taps) < 0.75 * round_trip(mixed)
    image = np.cumsum(np.cumsum(draw.normal(size=(60, 28, 28)), 1), 2)
    image -= image.mean((1, 2), keepdims=True)
    pixels = np.rint(image / image.std() * 4).astype(np.int32).reshape(60, 784)
    mixed = draw.permuted(pixels, axis=1)
    assert round_trip(pixels) < 0.6 * round_trip(mixed)


def test_wide_alphabets_cost_what_they_are_worth() -> None:
    draw = np.random.default_rng(6)
    uniform = draw.integers(0, 256, 100_000).astype(np.int32)
    assert 8 * round_trip(uniform) <= 8.05 * uniform.size
    normal = np.rint(draw.normal(size=50_000) * 2000).astype(np.int32)
    entropy = np.log2(2000 * np.sqrt(2 * np.pi * np.e))
    assert 8 * round_trip(normal) <= 1.01 * entropy * normal.size


def test_rare_symbols_far_out_are_kept() -> None:
    values = np.zeros((100, 200), np.int32)
    values[::7, ::11] = 1
    values[3, 5], values[90, 100], values[50, 50] = 30_000, -2_000_000, 121
    for states in (0, 8):
        round_trip(values, states)
