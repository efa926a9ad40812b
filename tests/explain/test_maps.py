"""Maps of weights and of what models look at."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from simulations.explain.layers import MOST_BLOCKS, layer_facts, named_as_in_module
from simulations.explain.saliency import map_shape, occlusion_maps, places, similarity

RNG = np.random.default_rng(0)


def test_a_model_beside_itself_has_no_error() -> None:
    weights = {"conv.weight": RNG.normal(size=(4, 3, 5, 5)), "conv.bias": RNG.normal(size=4)}
    conv, bias = layer_facts(weights, weights)
    assert (conv.error, bias.error) == (0, 0)
    assert conv.sparsity == 0
    assert (conv.nonzero, conv.shape) == (300, (4, 3, 5, 5))
    assert bias.kept_blocks is None
    assert conv.kept_blocks == [[1.0] * 8] * 4


def test_zeros_and_what_was_taken_out_are_sparsity() -> None:
    dense = {"w": np.ones((4, 6))}
    (zeroed,) = layer_facts({"w": np.ones((4, 6)) * [1, 0, 0, 0, 0, 0]}, dense)
    (smaller,) = layer_facts({"w": np.ones((2, 2))}, dense)
    assert (zeroed.sparsity, smaller.sparsity) == (0.8333, 0.8333)
    assert (zeroed.error, smaller.error) == (0.8333, None)
    assert smaller.dense_shape == (4, 6)


def test_another_architecture_is_beside_nothing() -> None:
    (own,) = layer_facts({"w": np.array([[0.0, 1.0]])}, None)
    assert (own.dense_shape, own.error, own.sparsity) == (None, None, 0.5)


def test_what_an_exporter_turned_and_numbered_has_its_name_back() -> None:
    module = {"query.weight": RNG.normal(size=(4, 3)), "norm.bias": np.zeros(3)}
    graph = {"val_1": module["query.weight"].T, "norm.bias": module["norm.bias"]}
    changed = {"val_1": graph["val_1"] + 1, "norm.bias": np.ones(3), "val_9": np.ones((2, 2))}
    named = named_as_in_module(changed, graph, module)
    assert named.keys() == {"query.weight", "norm.bias", "val_9"}
    np.testing.assert_array_equal(named["query.weight"], module["query.weight"] + 1)


@given(
    arrays.arrays(
        np.float64, st.tuples(st.integers(1, 20), st.integers(1, 20)), elements=st.floats(-9, 9)
    )
)
def test_blocks_hold_every_weight_once(changed: np.ndarray) -> None:
    dense = np.ones_like(changed)
    (facts,) = layer_facts({"w": changed}, {"w": dense})
    assert facts.kept_blocks is not None
    assert facts.error_blocks is not None
    rows, columns = (min(size, MOST_BLOCKS) for size in changed.shape)
    assert np.shape(facts.kept_blocks) == np.shape(facts.error_blocks) == (rows, columns)
    heights, widths = (
        np.diff(np.append(np.arange(n) * size // n, size))
        for n, size in zip((rows, columns), changed.shape, strict=True)
    )
    area = np.outer(heights, widths)
    assert (area * facts.kept_blocks).sum() == pytest.approx(np.count_nonzero(changed), rel=1e-3)
    error = ((changed - 1) ** 2).mean()
    assert (area * facts.error_blocks).sum() / area.sum() == pytest.approx(error, rel=1e-3)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((1, 28, 28), (7, 7)),
        ((1, 8, 8), (4, 4)),
        ((3, 32, 32), (7, 7)),
        ((80,), (1, 20)),
        ((7,), (1, 7)),
    ],
)
def test_places_cover_a_sample_once(shape: tuple[int, ...], expected: tuple[int, int]) -> None:
    covered = np.zeros((1, *shape), dtype=int)
    for place in places(shape):
        covered[place] += 1
    assert (covered == 1).all()
    assert map_shape(shape) == expected
    assert len(places(shape)) == expected[0] * expected[1]


def test_a_linear_models_map_is_what_its_places_add() -> None:
    weights = RNG.normal(size=(64, 3))
    inputs = RNG.normal(size=(5, 1, 8, 8))
    classes = np.array([0, 1, 2, 0, 1])
    maps = occlusion_maps(lambda x: x.reshape(len(x), -1) @ weights, inputs, classes, 0)
    added = inputs.reshape(5, 64) * weights[:, classes].T
    expected = added.reshape(5, 4, 2, 4, 2).sum((2, 4)).reshape(5, 16)
    np.testing.assert_allclose(maps, expected, atol=1e-9)


def test_similarity_is_one_with_itself_at_any_scale_and_minus_one_upside_down() -> None:
    maps = RNG.normal(size=(6, 16))
    assert similarity(maps, maps) == pytest.approx(1)
    assert similarity(1e3 * maps, maps) == pytest.approx(1)
    assert similarity(-maps, maps) == pytest.approx(-1)


def test_maps_without_any_rank_say_nothing() -> None:
    maps = RNG.normal(size=(2, 16))
    assert similarity(np.zeros((2, 16)), maps) is None
    half = np.stack([np.zeros(16), maps[1]])
    assert similarity(half, maps) == pytest.approx(1)
