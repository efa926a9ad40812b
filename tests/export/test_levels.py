"""What int8, int4 and a codebook make of weights."""

from __future__ import annotations

import pytest
import torch

from simulations.export import Deployable
from simulations.export.levels import (
    BITS,
    KINDS,
    is_weight,
    restored_arrays,
    round_weights,
    rounding_of,
    stored_arrays,
)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_stored_is_what_is_rounded(kind: str, deployable: Deployable) -> None:
    model = deployable.model
    rounded = round_weights(model, kind).state_dict()
    restored = restored_arrays(stored_arrays(model, kind))
    assert restored.keys() == rounded.keys()
    for name, value in rounded.items():
        assert torch.equal(restored[name], value), name


@pytest.mark.parametrize("kind", KINDS)
def test_rounding_twice_changes_nothing(kind: str, deployable: Deployable) -> None:
    once = round_weights(deployable.model, kind)
    twice = round_weights(once, kind).state_dict()
    for name, value in once.state_dict().items():
        torch.testing.assert_close(twice[name], value, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_levels_are_as_few_as_said(kind: str, deployable: Deployable) -> None:
    for name, weight in round_weights(deployable.model, kind).named_parameters():
        if not is_weight(weight):
            continue
        if kind in BITS:
            most = max(len(row.unique()) for row in weight.flatten(1))
            assert most <= 2 ** BITS[kind] - 1, name
        else:
            assert len(weight.unique()) <= 16, name


@pytest.mark.parametrize("kind", KINDS)
def test_zero_stays_zero(kind: str) -> None:
    weight = torch.randn(40, 30, generator=torch.Generator().manual_seed(0))
    weight[torch.rand(40, 30, generator=torch.Generator().manual_seed(1)) < 0.7] = 0
    weight[3] = 0
    weight = weight.reshape(10, 4, 5, 6).to(memory_format=torch.channels_last)
    rounded = rounding_of(kind)("w", weight)
    assert bool((rounded[weight == 0] == 0).all())
