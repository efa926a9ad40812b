"""Arrays in one block are what they are apart, and what is done to blocks gives the same bits."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedcompress import parse, protocol, rng_for
from fedcompress.aggregation import TreeSum
from fedcompress.block import Block, as_block, is_same, renamed, share, shared_name
from fedcompress.compressor import FlatParts
from fedcompress.dense import share_record, whole_block
from fedcompress.errors import NotFiniteError
from fedcompress.wire import fingerprint_layout

SHAPES = st.lists(st.lists(st.integers(1, 9), max_size=3).map(tuple), min_size=1, max_size=5)
FEEDBACK = "error_feedback(top_k(0.1) | quantize(4) | entropy())"


def arrays(shapes: list[tuple[int, ...]], seed: int = 0) -> dict[str, torch.Tensor]:
    rng = rng_for(seed, purpose="arrays")
    return {
        f"layer.{i}": torch.from_numpy(np.asarray(rng.standard_normal(shape), np.float32))
        for i, shape in enumerate(shapes)
    }


@given(SHAPES)
def test_a_block_is_its_arrays(shapes: list[tuple[int, ...]]) -> None:
    apart = arrays(shapes)
    block = as_block(apart)
    assert block is not None
    assert list(block) == list(apart)
    assert all(torch.equal(block[name], x) for name, x in apart.items())
    assert fingerprint_layout(block) == fingerprint_layout(apart)
    assert renamed(block.layout, "a/").names == ["a/" + name for name in apart]
    record = protocol.tensors_to_record(block)
    assert record == protocol.tensors_to_record(apart)
    for read in (record, share_record(record)):
        again = protocol.record_to_block(read)
        assert again is not None
        assert again.flat is block.flat


@pytest.mark.parametrize(
    "other", [{}, {"a": torch.ones(2, dtype=torch.float64)}, {"a": torch.ones(0)}, {"a": 1}]
)
def test_other_arrays_make_no_block(other: dict[str, torch.Tensor]) -> None:
    mixed = {name: torch.as_tensor(x) for name, x in other.items()}
    assert as_block(mixed) is None
    assert protocol.record_to_block(protocol.tensors_to_record(mixed)) is None


@given(SHAPES, st.integers(0, 3))
def test_updates_and_residuals_of_blocks_are_those_of_arrays(
    shapes: list[tuple[int, ...]], seed: int
) -> None:
    before, after = arrays(shapes, seed), arrays(shapes, seed + 1)
    block = as_block(before)
    trained = as_block(after)
    assert block is not None
    assert trained is not None
    update = protocol.update_of(protocol.tensors_to_record(trained), block)
    expected = protocol.difference(after, before)
    assert isinstance(update, Block)
    assert all(torch.equal(update[name], x) for name, x in expected.items())
    compressor = parse(FEEDBACK)
    state, plain_state = compressor.init(update), compressor.init(expected)
    for number in range(3):
        if number:  # once looked at, it is an update like any other
            update = protocol.update_of(protocol.tensors_to_record(trained), block)
            assert isinstance(update, Block)
            assert update.terms is not None
        payload, state = compressor.encode(update, state, rng_for(1, round=number))
        assert number == 0 or update.terms is not None  # it was reckoned with the residual
        plain, plain_state = compressor.encode(
            expected, dict(plain_state), rng_for(1, round=number)
        )
        assert payload == plain
        assert list(state) == list(plain_state)
        assert all(torch.equal(state[name], x) for name, x in plain_state.items())
        read = protocol.record_to_block(protocol.tensors_to_record(state))
        assert read is not None
        state = read


def test_what_is_not_finite_is_named() -> None:
    block = as_block(arrays([(3,), (2, 2)]))
    assert block is not None
    protocol.check_finite(block)
    protocol.check_finite(Block(block.layout, np.full(7, 3e38, np.float32)))
    block.flat[4] = np.nan
    with pytest.raises(NotFiniteError, match=r"layer\.1"):
        protocol.check_finite(block)


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_an_update_that_nobody_looked_at_is_checked_when_it_is(odd: float) -> None:
    before = as_block(arrays([(3,), (2, 2)]))
    after = as_block(arrays([(3,), (2, 2)], 1))
    assert before is not None
    assert after is not None
    after.flat[5] = odd
    compressor = parse(FEEDBACK)
    state = compressor.init(before)
    start = as_block(state)
    assert start is not None
    for begun in (state, start):
        update = protocol.update_of(protocol.tensors_to_record(after), before)
        protocol.check_finite(update)
        with pytest.raises(NotFiniteError, match=r"layer\.1.*training has diverged"):
            compressor.encode(update, begun, rng_for(0))
    after.flat[5] = 3e38
    before.flat[5] = -3e37
    start.flat[5] = 3e38
    update = protocol.update_of(protocol.tensors_to_record(after), before)
    with pytest.raises(NotFiniteError, match=r"layer\.1.*top_k"):
        compressor.encode(update, start, rng_for(0))


@given(SHAPES, st.lists(st.floats(0.1, 50), min_size=1, max_size=4))
def test_entries_are_added_flat_as_they_are_by_array(
    shapes: list[tuple[int, ...]], weights: list[float]
) -> None:
    like = arrays(shapes)
    flat, apart = TreeSum(like, len(weights)), TreeSum(like, len(weights))
    compressor = parse("top_k(0.3) | quantize(4)")
    for position, weight in enumerate(weights):
        update = arrays(shapes, position + 5)
        parts = compressor.encode_sections(update, {}, rng_for(position), False).parts
        assert isinstance(parts, FlatParts)
        assert len(parts) == len(shapes)
        flat.add(position, parts, weight)
        apart.add(position, dict(parts), weight)
    expected = apart.average()
    assert all(torch.equal(x, expected[name]) for name, x in flat.average().items())


def test_sameness_is_of_bytes() -> None:
    x = np.array([0.0, np.nan, 1.0], np.float32)
    assert is_same(x, x.copy())
    assert not is_same(x, np.array([-0.0, np.nan, 1.0], np.float32))
    assert is_same(np.zeros((), np.float32), np.zeros((), np.float32))


def test_a_shared_block_is_forgotten_with_its_array() -> None:
    flat = np.ones(3, np.float32)
    share(flat, "of three")
    assert shared_name(flat) == "of three"
    record = protocol.tensors_to_record(Block(as_block({"a": torch.ones(3)}).layout, flat))  # type: ignore[union-attr]
    whole = whole_block(share_record(record))
    assert whole is not None
    assert shared_name(whole[0]) == "of three"
    key = id(flat)
    del flat, record, whole
    gc.collect()
    from fedcompress import block

    assert key not in block._SHARED
