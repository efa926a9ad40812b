"""Masks as bytes: exact, short, and refused where they are damaged."""

import contextlib
import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from fedcompress.errors import PayloadError
from fedcompress.pruning import decode_mask, encode_mask, n_of_m
from fedcompress.randomness import rng_for
from fedcompress.wire import HEADER_BYTES

SHAPES = st.dictionaries(
    st.sampled_from(["a", "b.weight", "c"]),
    st.lists(st.integers(0, 9), max_size=4).map(tuple),
    max_size=3,
)


def random_masks(
    shapes: dict[str, tuple[int, ...]], share: float, seed: int
) -> dict[str, torch.Tensor]:
    draw = rng_for(seed, purpose="masks")
    return {
        name: torch.from_numpy(np.asarray(draw.random(shape) < share))
        for name, shape in shapes.items()
    }


@settings(max_examples=150)
@given(
    shapes=SHAPES,
    share=st.sampled_from([0.0, 0.01, 0.1, 0.5, 0.9, 1.0]),
    seed=st.integers(0, 99),
)
def test_what_was_coded_is_decoded(
    shapes: dict[str, tuple[int, ...]], share: float, seed: int
) -> None:
    mask = random_masks(shapes, share, seed)
    like = {name: torch.zeros(shape) for name, shape in shapes.items()}
    read = decode_mask(encode_mask(mask), like)
    assert list(read) == list(mask)
    for name, x in mask.items():
        assert torch.equal(read[name], x)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.5])
@pytest.mark.parametrize("shape", [(200, 300), (32, 40, 5, 5)])
def test_a_mask_costs_about_its_entropy(shape: tuple[int, ...], share: float) -> None:
    mask = random_masks({"w": shape}, share, 0)
    n = math.prod(shape)
    entropy_bound_bytes = -n * (share * math.log2(share) + (1 - share) * math.log2(1 - share)) / 8
    assert len(encode_mask(mask)) < 1.03 * entropy_bound_bytes + 60


def test_a_mask_by_rows_costs_next_to_nothing() -> None:
    mask = torch.zeros(100, 500, dtype=torch.bool)
    mask[::3] = True
    assert len(encode_mask({"w": mask})) < 500
    two_of_four = n_of_m(2, 4)({"w": torch.rand(100, 400)}, 0.5)
    assert len(encode_mask(two_of_four)) < 100 * 400 / 8 + 100


def test_damaged_masks_are_refused() -> None:
    mask = random_masks({"w": (40, 30), "k": (8, 4, 3, 3)}, 0.1, 1)
    data = encode_mask(mask)
    for size in range(len(data)):
        with pytest.raises(PayloadError):
            decode_mask(data[:size], mask)
    draw = rng_for(2)
    for _ in range(300):
        at = int(draw.integers(len(data)))
        other = data[:at] + bytes((data[at] ^ (1 << int(draw.integers(8))),)) + data[at + 1 :]
        with contextlib.suppress(PayloadError):
            decode_mask(other, mask)
            pytest.fail("one flipped bit was not noticed")
    with pytest.raises(PayloadError, match="other names, shapes"):
        decode_mask(data, {"w": mask["w"], "k": mask["k"].reshape(8, 36)})
    with pytest.raises(PayloadError, match="cut short"):
        decode_mask(data[: HEADER_BYTES - 1], mask)
