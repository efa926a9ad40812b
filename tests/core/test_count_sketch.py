"""Count sketches are linear, and give back what is large."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcompress import count_sketch as make
from fedcompress import parse, rng_for
from fedcompress.count_sketch import CountSketch, _hash
from fedcompress.errors import LayoutError, NotFiniteError, SpecError
from fedcompress.testing import check_compressor


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(rng_for(seed, purpose="x").standard_normal(shape).astype(np.float32))


@pytest.mark.parametrize(
    "spec",
    [
        "count_sketch(5, 200, 50)",
        "count_sketch(1, 1, 1)",
        'count_sketch(4, 300, 5, seed=9, table=cast("float16") | raw())',
        'route({"*bias": raw()}, default=count_sketch(3, 100, 10, table=eden(4) | pack()))',
    ],
)
def test_laws(spec: str) -> None:
    check_compressor(spec)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 400), st.integers(1, 300), st.floats(-3, 3))
def test_the_sum_of_sketches_is_the_sketch_of_the_sum(
    rows: int, columns: int, n: int, weight: float
) -> None:
    compressor = CountSketch(rows, columns, 5)
    x = {"a": normal(n), "b": normal(7, 3, seed=1)}
    y = {"a": normal(n, seed=2), "b": normal(7, 3, seed=3)}
    both = {name: x[name] + weight * y[name] for name in x}
    summed = compressor.sketch(x) + weight * compressor.sketch(y)
    torch.testing.assert_close(summed, compressor.sketch(both), rtol=1e-4, atol=1e-4)


def test_a_server_reads_the_large_entries_of_a_sum_of_tables() -> None:
    """An entry that is small in each of ten updates, and large in their sum."""
    compressor = parse("count_sketch(5, 2000, 1)")
    assert isinstance(compressor, CountSketch)
    total = torch.zeros(5, 2000)
    for i in range(10):
        update = {"w": normal(100, 100, seed=i) * 0.1, "b": normal(20, seed=100 + i) * 0.1}
        update["b"][3] += 0.4
        payload, _ = compressor.encode(update, {}, rng_for(i))
        total += compressor.read_table(payload, update)
    found = compressor.recover(total, update)
    assert int(found["b"].argmax()) == 3
    assert float(found["b"][3]) == pytest.approx(4.0, abs=1.5)
    assert not bool(found["w"].any())


def test_heavy_entries_come_back() -> None:
    update = {"w": normal(300, 100) * 0.01, "b": normal(50, seed=1) * 0.01}
    update["w"].view(-1)[::3000] = 5.0
    update["b"][7] = -8.0
    decoded = make(5, 1000, 11).encode_and_decode(update, {}, rng_for(1))[2]
    kept = torch.zeros(300, 100, dtype=torch.bool)
    kept.view(-1)[::3000] = True
    assert torch.equal(decoded["w"] != 0, kept)
    torch.testing.assert_close(decoded["w"][kept], torch.full((10,), 5.0), rtol=0, atol=0.2)
    assert float(decoded["b"][7]) == pytest.approx(-8.0, abs=0.2)
    assert int((decoded["b"] != 0).sum()) == 1


def test_estimates_err_by_the_norm_over_the_root_of_the_columns() -> None:
    update = {"x": normal(20_000)}
    norm = float(update["x"].norm())
    for columns in (500, 5000):
        decoded = make(5, columns, 20_000).encode_and_decode(update, {}, rng_for(1))[2]
        error = (decoded["x"] - update["x"]).double()
        # A row's error has variance ‖x‖² / columns; the median of five normals has 0.287 of it.
        expected = (0.287 * norm**2 / columns) ** 0.5
        assert float(error.square().mean().sqrt()) == pytest.approx(expected, rel=0.1)
        assert abs(float(error.mean())) < 4 * expected / 20_000**0.5 + 0.02 * expected


def test_the_hash_is_even_and_the_same_on_every_device() -> None:
    x = normal(5000)
    compressor = CountSketch(3, 64, 1, seed=12)
    table = torch.zeros(3, 64, dtype=torch.float64)
    for row in range(3):
        columns, signs = _hash(12, row, 0, x, 64)
        table[row].index_add_(0, columns, x.double() * signs)
        assert (
            float(torch.bincount(columns, minlength=64).double().std()) < 1.5 * (5000 / 64) ** 0.5
        )
        assert abs(float(signs.sum())) < 4 * 5000**0.5
    torch.testing.assert_close(compressor.sketch({"x": x}), table.float())


def test_what_is_sent() -> None:
    update = {"w": normal(100, 100), "steps": torch.tensor(3), "none": torch.zeros(0)}
    compressor = parse("count_sketch(5, 100, 10)")
    payload, state = compressor.encode(update, {}, rng_for(1))
    assert not state
    assert compressor.breakdown(payload, update)["floats"] == 5 * 100 * 4
    assert payload == compressor.encode(update, {}, rng_for(2))[0]  # nothing is drawn


def test_errors() -> None:
    with pytest.raises(SpecError, match="columns must be an integer"):
        parse("count_sketch(5, 0, 1)")
    with pytest.raises(SpecError, match="remembers nothing"):
        parse("count_sketch(5, 10, 1, table=error_feedback(sign()))")
    with pytest.raises(SpecError, match="leave error_feedback out"):
        parse("error_feedback(count_sketch(5, 10, 1))")
    with pytest.raises(NotFiniteError, match="'x': holds NaN"):
        make(5, 10, 1).sketch({"x": torch.tensor([torch.nan])})
    with pytest.raises(LayoutError, match="use the spec that made it"):
        make(5, 10, 1).recover(torch.zeros(5, 11), {"x": torch.zeros(3)})
