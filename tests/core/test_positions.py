"""Positions and kept values cost what they are worth, and come back exactly."""

import math
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcompress import rng_for
from fedcompress.coders.floats import decode_values, encode_values
from fedcompress.coders.gaps import encode_gaps
from fedcompress.coders.index_sets import decode_index_set, encode_index_set
from fedcompress.coders.values import encode_planes, tensor_bytes
from fedcompress.errors import PayloadError
from fedcompress.wire import write_varint

SHAPES = [(1,), (2,), (60,), (3, 1), (1, 50), (8, 9), (16, 4, 3, 3), (5, 40), (700, 3)]


def entropy_bits(count: int, n: int) -> float:
    """Bits of the number of sets of this size."""
    return (math.lgamma(n + 1) - math.lgamma(count + 1) - math.lgamma(n - count + 1)) / math.log(2)


def clustered(rows: int, columns: int, count: int, spread: float, seed: int = 0) -> np.ndarray:
    """Positions that some rows and columns attract more than others."""
    draw = rng_for(seed, purpose="clustered")
    odds = draw.gamma(spread, size=(rows, 1)) * draw.gamma(spread, size=(1, columns))
    scores = draw.exponential(size=(rows, columns)) / np.maximum(odds, 1e-12)
    return np.sort(np.argsort(scores, axis=None)[:count])


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(SHAPES), st.floats(0, 1), st.integers(0, 1 << 30), st.booleans())
def test_any_set_comes_back(
    shape: tuple[int, ...], share: float, seed: int, shape_known: bool
) -> None:
    n = math.prod(shape)
    count = round(share * n)
    indices = np.sort(rng_for(seed).permutation(n)[:count])
    given_shape = shape if shape_known else ()
    data = encode_index_set(indices, n, given_shape)
    decoded = decode_index_set(memoryview(data), n, given_shape)
    assert decoded.dtype == np.int64
    np.testing.assert_array_equal(decoded, indices)


@pytest.mark.parametrize("spread", [0.1, 0.5, 3.0])
@pytest.mark.parametrize(("rows", "columns", "count"), [(200, 784, 1568), (64, 576, 3000)])
def test_rows_and_columns_come_back(rows: int, columns: int, count: int, spread: float) -> None:
    indices = clustered(rows, columns, count, spread)
    data = encode_index_set(indices, rows * columns, (rows, columns))
    decoded = decode_index_set(memoryview(data), rows * columns, (rows, columns))
    np.testing.assert_array_equal(decoded, indices)


def test_positions_of_busy_rows_and_columns_cost_less_than_random_ones() -> None:
    """Check against what exact odds of every row and column would cost, which nobody sends."""
    draw = rng_for(3)
    rows, columns = draw.gamma(0.3, size=(300, 1)), draw.gamma(0.3, size=(1, 1000))
    odds = np.minimum(rows * columns * 0.1, 0.9)
    kept = draw.random(odds.shape) < odds
    indices = np.flatnonzero(kept)
    with np.errstate(divide="ignore"):
        known_bits = -float(np.log2(np.where(kept, odds, 1 - odds)).sum())
    bits = 8 * len(encode_index_set(indices, kept.size, kept.shape))
    random_bits = entropy_bits(indices.size, kept.size)
    assert bits < 0.75 * random_bits
    assert bits < known_bits + 0.5 * math.log2(indices.size) * 1300 + 200


def in_kernels(outputs: int, inputs: int, side: int, share: float, seed: int = 0) -> np.ndarray:
    """Positions of a convolution of which whole patches of neighbouring taps are kept."""
    draw = rng_for(seed, purpose="in_kernels")
    kept = np.zeros((outputs, inputs, side, side), bool)
    for out, into in np.argwhere(draw.random((outputs, inputs)) < share):
        top, left = draw.integers(side, size=2)
        kept[out, into, top : top + 2, left : left + 2] = True
    return np.flatnonzero(kept)


@pytest.mark.parametrize(("side", "share"), [(3, 0.02), (5, 0.05), (2, 0.03)])
def test_neighbouring_taps_cost_less_than_scattered_ones(side: int, share: float) -> None:
    shape = (64, 48, side, side)
    n = math.prod(shape)
    indices = in_kernels(*shape[:3], share)
    data = encode_index_set(indices, n, shape)
    np.testing.assert_array_equal(decode_index_set(memoryview(data), n, shape), indices)
    assert 8 * len(data) < 0.75 * entropy_bits(indices.size, n)
    assert len(data) < 0.9 * len(encode_index_set(indices, n, (64, n // 64)))


@pytest.mark.parametrize("count", [1, 2, 5, 20, 32])
@pytest.mark.parametrize("n", [40, 512, 100_000])
def test_a_few_positions_cost_the_logarithm_of_their_number(count: int, n: int) -> None:
    indices = np.sort(rng_for(count).permutation(n)[:count])
    assert len(encode_index_set(indices, n)) <= entropy_bits(count, n) / 8 + 1 + 3


@pytest.mark.parametrize("fraction", [0.001, 0.01, 0.2, 0.5, 0.95])
@pytest.mark.parametrize("shape", [(300_000,), (500, 600)])
def test_random_positions_cost_their_entropy(fraction: float, shape: tuple[int, ...]) -> None:
    n = 300_000
    indices = np.sort(rng_for(5).permutation(n)[: round(fraction * n)])
    bits = 8 * len(encode_index_set(indices, n, shape))
    assert bits <= 1.01 * entropy_bits(indices.size, n) + 200


def test_positions_of_wire_version_1_are_still_read() -> None:
    indices = clustered(50, 80, 300, 0.3)
    old = write_varint(300) + encode_gaps(indices, 4000)
    np.testing.assert_array_equal(decode_index_set(memoryview(old), 4000, (50, 80)), indices)


@pytest.mark.parametrize(
    ("indices", "shape"),
    [
        (clustered(100, 200, 400, 0.2), (100, 200)),
        (clustered(100, 200, 400, 50.0), (100, 200)),
        (clustered(100, 200, 5000, 0.2), (100, 200)),
        (in_kernels(32, 25, 5, 0.06), (32, 25, 5, 5)),
    ],
    ids=["rows", "gaps", "bitmap", "kernels"],
)
def test_damaged_positions_are_refused_or_ascend(
    indices: np.ndarray, shape: tuple[int, ...]
) -> None:
    draw = rng_for(6)
    data = encode_index_set(indices, 20_000, shape)
    refused = 0
    for _ in range(1500):
        damaged = bytearray(data)
        for _ in range(int(draw.integers(1, 4))):
            damaged[int(draw.integers(len(damaged)))] = int(draw.integers(256))
        if draw.random() < 0.3:
            damaged = damaged[: int(draw.integers(len(damaged)))]
        try:
            found = decode_index_set(memoryview(bytes(damaged)), 20_000, shape)
        except PayloadError:
            refused += 1
            continue
        assert found.size == 0 or (found[0] >= 0 and found[-1] < 20_000)
        assert np.all(np.diff(found) > 0)
    assert refused > 300


@pytest.mark.parametrize(
    "dtype",
    [torch.float8_e4m3fn, torch.bfloat16, torch.float16, torch.float32, torch.float64],
)
@pytest.mark.parametrize("count", [0, 1, 3, 50, 3000, 9000, 70_000])
def test_values_come_back_bit_for_bit(dtype: torch.dtype, count: int) -> None:
    draw = torch.from_numpy(rng_for(count).standard_normal(count))
    special = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 1e-45, -3e38, 1.0])
    for x in (draw**3, draw.abs() + 1, draw.round(), torch.cat([special.double(), draw])):
        values = x.to(dtype).contiguous()
        data = encode_values(values)
        decoded = decode_values(memoryview(data), tuple(values.shape), dtype)
        assert decoded.dtype == dtype
        np.testing.assert_array_equal(tensor_bytes(decoded), tensor_bytes(values))
        old = decode_values(memoryview(encode_planes(values)), tuple(values.shape), dtype)
        np.testing.assert_array_equal(tensor_bytes(old), tensor_bytes(values))


@pytest.mark.parametrize("count", [300, 1500, 20_000])
def test_kept_values_cost_sign_octave_and_what_is_below(count: int) -> None:
    """Check against the entropy of sign and quarter octave and 8 further bits of a float16."""
    x = torch.from_numpy(rng_for(9).standard_normal(100 * count)) ** 3
    kept = x[x.abs().topk(count).indices.sort().values]
    values = (kept / kept.abs().max() * 2**14).half()
    (codes,) = np.unique(tensor_bytes(values).view(np.uint16) >> 8, return_counts=True)[1:]
    share = codes / codes.sum()
    bound_bits = count * (8 - float((share * np.log2(share)).sum()))
    # A model of some thirty octaves learns for about as many half logarithms of the count.
    assert 8 * len(encode_values(values)) <= bound_bits + 30 * math.log2(count) + 100


def test_few_values_are_not_larger_than_raw() -> None:
    values = torch.tensor(struct.unpack("<3e", b"abcdef")).half()
    assert len(encode_values(values)) <= 6 + 2
