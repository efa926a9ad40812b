"""Pruning: what patterns keep, when a schedule prunes, and that packing loses nothing."""

from itertools import pairwise

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from fedcompress.errors import ConfigError, LayoutError
from fedcompress.pruning import (
    Pattern,
    Schedule,
    across_layers,
    by_layer,
    fisher,
    fold,
    magnitude,
    masked,
    n_of_m,
    pack,
    remember,
    rows,
    taylor,
    unfold,
    unpack,
    with_regrown,
)
from fedcompress.randomness import rng_for

SHAPES = st.dictionaries(
    st.sampled_from(["a", "b", "c"]),
    st.lists(st.integers(1, 7), min_size=2, max_size=4).map(tuple),
    min_size=1,
)
KEEP = st.floats(0.01, 1.0)
PATTERNS: dict[str, Pattern] = {
    "by_layer": by_layer,
    "across_layers": across_layers,
    "rows": rows,
    "2:4": n_of_m(2, 4),
    "1:3": n_of_m(1, 3),
}


def scores_of(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, torch.Tensor]:
    draw = rng_for(seed, purpose="scores")
    # Few different numbers, so that there are ties.
    return {
        name: torch.from_numpy(draw.integers(0, 5, shape).astype(np.float32))
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize("name", PATTERNS)
@settings(max_examples=40)
@given(shapes=SHAPES, keeps=st.lists(KEEP, min_size=2, max_size=4), seed=st.integers(0, 99))
def test_masks_of_falling_shares_lie_within_each_other(
    name: str, shapes: dict[str, tuple[int, ...]], keeps: list[float], seed: int
) -> None:
    scores = scores_of(shapes, seed)
    before = {key: torch.ones(x.shape, dtype=torch.bool) for key, x in scores.items()}
    for keep in sorted(keeps, reverse=True):
        ranked = with_regrown(scores, scores, before, 0.0)
        mask = PATTERNS[name](ranked, keep)
        assert list(mask) == list(scores)
        for key, x in scores.items():
            assert mask[key].shape == x.shape
            assert mask[key].dtype == torch.bool
            assert bool(mask[key].any())
            assert not bool((mask[key] & ~before[key]).any())
        before = mask


@settings(max_examples=40)
@given(shapes=SHAPES, keep=KEEP, seed=st.integers(0, 99))
def test_the_highest_scores_are_kept(
    shapes: dict[str, tuple[int, ...]], keep: float, seed: int
) -> None:
    scores = scores_of(shapes, seed)
    for key, mask in by_layer(scores, keep).items():
        assert int(mask.sum()) == max(1, round(mask.numel() * keep))
        if not bool(mask.all()):
            assert float(scores[key][mask].min()) >= float(scores[key][~mask].max())
    for mask in rows(scores, keep).values():
        by_row = mask.reshape(len(mask), -1)
        assert bool((by_row.all(1) == by_row.any(1)).all())
        assert int(by_row.any(1).sum()) == max(1, round(len(mask) * keep))


def test_sparsity_follows_importance_across_layers() -> None:
    draw = rng_for(0)
    scores = {
        "fine": torch.from_numpy(draw.random((50, 40))),
        "idle": torch.from_numpy(draw.random((50, 40)) * 0.1),
    }
    mask = across_layers(scores, 0.3)
    kept = {name: int(x.sum()) for name, x in mask.items()}
    assert sum(kept.values()) == 1200
    assert kept["fine"] == 1160
    assert kept["idle"] == 40  # the least that a layer keeps


@settings(max_examples=40)
@given(
    shape=st.lists(st.integers(1, 9), min_size=2, max_size=4).map(tuple),
    seed=st.integers(0, 99),
    keep=KEEP,
)
def test_n_of_m_holds_along_the_inputs(shape: tuple[int, ...], seed: int, keep: float) -> None:
    scores = scores_of({"w": shape}, seed)
    mask = n_of_m(2, 4)(scores, keep)["w"]
    of_group = max(2, int(np.ceil(round(4 * keep, 9))))
    along = mask.movedim(1, -1).reshape(-1, shape[1])
    for start in range(0, shape[1], 4):
        group = along[:, start : start + 4]
        assert bool((group.sum(1) == min(of_group, group.shape[1])).all())


@settings(max_examples=60)
@given(shapes=SHAPES, seed=st.integers(0, 99), keep=KEEP)
def test_packing_loses_nothing_that_is_kept(
    shapes: dict[str, tuple[int, ...]], seed: int, keep: float
) -> None:
    scores = scores_of(shapes, seed)
    arrays = {name: x - 2 for name, x in scores.items()} | {"bias": torch.ones(3)}
    mask = by_layer(scores, keep)
    packed = pack(arrays, mask)
    assert {name: x.shape for name, x in packed.items()} == {
        name: (int(mask[name].sum()),) if name in mask else x.shape for name, x in arrays.items()
    }
    whole = unpack(packed, mask)
    assert list(whole) == list(arrays)
    for name, x in arrays.items():
        assert torch.equal(whole[name], x * mask[name] if name in mask else x)
        assert not bool(torch.signbit(whole[name][whole[name] == 0]).any())
    for name, x in pack(whole, mask).items():
        assert torch.equal(x, packed[name])
    for name, x in masked(arrays, mask).items():
        assert torch.equal(x, whole[name])


def test_a_mask_of_another_model_is_refused() -> None:
    arrays = {"w": torch.ones(2, 3)}
    with pytest.raises(LayoutError, match="'v', which the model has not"):
        pack(arrays, {"v": torch.ones(2, 3, dtype=torch.bool)})
    with pytest.raises(LayoutError, match=r"shape \(3, 2\), the array \(2, 3\)"):
        pack(arrays, {"w": torch.ones(3, 2, dtype=torch.bool)})
    with pytest.raises(LayoutError, match="keeps 6 entries of 'w', got"):
        unpack({"w": torch.ones(5)}, {"w": torch.ones(2, 3, dtype=torch.bool)})


@settings(max_examples=60)
@given(
    sparsity=st.floats(0, 0.999),
    first=st.integers(1, 20),
    more=st.integers(0, 30),
    every=st.integers(1, 9),
)
def test_a_schedule_rises_and_ends_at_its_sparsity(
    sparsity: float, first: int, more: int, every: int
) -> None:
    schedule = Schedule(sparsity, first, first + more, every)
    shares = [schedule.sparsity_at(r) for r in range(first + more + 5)]
    assert all(a <= b for a, b in pairwise(shares))
    assert shares[first - 1] == 0
    assert shares[-1] == sparsity == schedule.sparsity_at(first + more)
    for number in range(1, len(shares)):
        if shares[number] != shares[number - 1]:
            assert schedule.changes_at(number)
    assert schedule.changes_at(first)
    assert schedule.changes_at(first + more)
    assert not schedule.changes_at(first + more + 1)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"sparsity": 95}, r"sparsity must be in \[0, 0.999\], got 95; did you mean 0.95\?"),
        ({"sparsity": float("nan")}, "sparsity must be in"),
        ({"sparsity": 0.5, "first": 9, "last": 3}, "last is 3, before first = 9"),
        ({"sparsity": 0.5, "every": 0}, "every must be an integer from 1"),
        ({"sparsity": 0.5, "regrow": 1.0}, "regrow must be in"),
    ],
)
def test_schedules_that_cannot_be(given: dict[str, float], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Schedule(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", PATTERNS)
def test_regrowth_keeps_the_count_and_takes_what_changed_most(name: str) -> None:
    draw = rng_for(3)
    scores = {
        "w": torch.from_numpy(draw.random((24, 16))),
        "v": torch.from_numpy(draw.random((8, 8))),
    }
    growth = {key: torch.from_numpy(draw.standard_normal(x.shape)) for key, x in scores.items()}
    pattern = PATTERNS[name]
    before = pattern(scores, 0.4)
    without = pattern(with_regrown(scores, growth, before, 0.0), 0.4)
    after = pattern(with_regrown(scores, growth, before, 0.2), 0.4)
    assert sum(int(x.sum()) for x in after.values()) == sum(int(x.sum()) for x in without.values())
    if name == "by_layer":
        for key, mask in after.items():
            grown = mask & ~before[key]
            assert int(grown.sum()) == round(0.2 * int(before[key].sum()))
            left = ~mask & ~before[key]
            assert float(growth[key][grown].abs().min()) > float(growth[key][left].abs().max())


def test_importance_follows_the_updates() -> None:
    weights = {"w": torch.tensor([2.0, -1.0, 3.0])}
    assert magnitude(weights, {})["w"].tolist() == [2.0, 1.0, 3.0]
    assert torch.equal(taylor(weights, {})["w"], weights["w"].abs())
    first = remember({}, {"w": torch.tensor([0.5, 0.0, -1.0]), "count": torch.tensor(3)})
    assert taylor(weights, first)["w"].tolist() == [1.0, 0.0, 3.0]
    assert fisher(weights, first)["w"].tolist() == [1.0, 0.0, 9.0]
    second = remember(first, {"w": torch.tensor([-0.5, 1.0, -1.0])}, decay=0.5)
    assert taylor(weights, second)["w"].tolist() == [0.0, 0.5, 3.0]
    assert fisher(weights, second)["w"].tolist() == [1.0, 0.5, 9.0]
    with pytest.raises(ConfigError, match="decay"):
        remember({}, weights, decay=1.0)


def test_folding_undoes_itself_and_means_stay_means() -> None:
    draw = torch.Generator().manual_seed(0)
    sent = {"w": torch.rand(2000, generator=draw)}
    masks = [{"w": (torch.rand(2000, generator=draw) < sent["w"]).float()} for _ in range(8)]
    for mask in masks:
        assert torch.equal(unfold(fold(mask, sent), sent)["w"], mask["w"])
    mean = torch.stack([mask["w"] for mask in masks]).mean(0)
    of_folded = torch.stack([fold(mask, sent)["w"] for mask in masks]).mean(0)
    assert torch.equal(unfold({"w": of_folded}, sent)["w"], mean)  # of eight: exact in float32
    assert float(of_folded.mean()) < 0.3 < float(mean.mean())
