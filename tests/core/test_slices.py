"""Slices: a narrow model is the first units of a wide one, and means count those that hold them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedcompress.errors import LayoutError
from fedcompress.slices import add_into, is_whole, mean_of_slices, slice_map, take
from simulations.models import MODELS, build_model

WINDOW, IMAGES = (12,), (1, 12, 12)
WIDTHS = [1.0, 0.75, 0.5, 0.25]


def is_of_characters(name: str) -> bool:
    return name in ("lstm", "transformer")


def build(name: str, width: float, seed: int = 0) -> nn.Module:
    shape = WINDOW if is_of_characters(name) else IMAGES
    hidden = (32, 32) if name == "transformer" else (16, 16)
    return build_model(name, shape, 10, seed=seed, hidden=hidden, width=width).eval()


def batch(name: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if is_of_characters(name):
        return torch.randint(0, 10, (5, *WINDOW), generator=generator)
    return torch.rand(5, *IMAGES, generator=generator)


def warmed(model: nn.Module, name: str) -> nn.Module:
    """Give normalisation layers statistics and scales that differ from unit to unit."""
    model.train()
    for _ in range(3):
        model(batch(name))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.rand_like(parameter) / 10)
    return model.eval()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", MODELS)
def test_a_slice_computes_what_the_wide_model_does_with_its_other_units_at_zero(
    name: str, width: float
) -> None:
    wide, narrow = warmed(build(name, 1.0), name), build(name, width, seed=1)
    where = slice_map(wide, narrow)
    narrow.load_state_dict(take(wide.state_dict(), where))
    alone = {n: torch.zeros(x.shape, dtype=torch.float64) for n, x in wide.state_dict().items()}
    count = {n: torch.zeros_like(x) for n, x in alone.items()}
    add_into(alone, count, narrow.state_dict(), where, 1.0)
    wide.load_state_dict(alone)
    with torch.no_grad():
        assert torch.allclose(narrow(batch(name)), wide(batch(name)), atol=1e-5)
    assert is_whole(alone, where) == (width == 1.0)


@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_a_slice_are_those_at_its_entries(name: str) -> None:
    wide, narrow = warmed(build(name, 1.0), name), build(name, 0.5, seed=1)
    where = slice_map(wide, narrow)
    named = dict(wide.named_parameters())
    values = take({**wide.state_dict(), **named}, where)
    torch.func.functional_call(narrow, values, (batch(name),)).square().sum().backward()
    narrow.load_state_dict(take(wide.state_dict(), where))
    narrow(batch(name)).square().sum().backward()
    own = dict(narrow.named_parameters())
    for key, parameter in named.items():
        assert parameter.grad is not None
        at_slice = take({key: parameter.grad}, {key: where[key]})[key]
        assert torch.allclose(at_slice, own[key].grad, atol=1e-5)
        assert parameter.grad.count_nonzero() == at_slice.count_nonzero()


@settings(max_examples=30, deadline=None)
@given(
    widths=st.lists(st.sampled_from(WIDTHS), min_size=1, max_size=5),
    weights=st.lists(st.integers(0, 9), min_size=5, max_size=5),
    name=st.sampled_from(["mlp", "lstm", "resnet"]),
)
def test_each_entry_is_the_mean_over_those_that_hold_it(
    widths: list[float], weights: list[int], name: str
) -> None:
    wide = build(name, 1.0)
    previous = wide.state_dict()
    models = [build(name, width, seed=place) for place, width in enumerate(widths, 1)]
    maps = [slice_map(wide, model) for model in models]
    parts = [
        (where, model.state_dict(), float(weight))
        for where, model, weight in zip(maps, models, weights, strict=False)
    ]
    mean = mean_of_slices(previous, iter(parts))
    for key, before in previous.items():
        total, count = torch.zeros_like(before, dtype=torch.float64), torch.zeros(before.shape)
        for where, part, weight in parts:
            # Laid over the wide array by other means than those under test.
            there = torch.zeros(before.shape, dtype=torch.bool)
            if before.dim():
                rows = torch.arange(before.shape[0])[where[key][0]]
                there[rows] = torch.ones((), dtype=torch.bool)
                for axis in range(1, before.dim()):
                    there.transpose(0, axis)[part[key].shape[axis] :] = False
            else:
                there.fill_(True)
            total[there] += weight * part[key].double().flatten()
            count[there] += weight
        expected = torch.where(count > 0, total / count.clamp(min=1e-9), before.double())
        if not before.is_floating_point():
            expected = expected.round()
        assert mean[key].dtype == before.dtype
        assert torch.allclose(mean[key].double(), expected, atol=1e-6)
        assert torch.equal(mean[key][count == 0], before[count == 0])


@pytest.mark.parametrize(
    ("wide", "narrow", "said"),
    [
        (nn.Linear(4, 3), nn.Linear(4, 5), "weight has shape \\(5, 4\\), which does not fit"),
        (nn.Linear(4, 3), nn.Linear(4, 2, bias=False), "\\['bias'\\] in the wide one alone"),
        (nn.Linear(4, 3), nn.Conv1d(4, 3, 1), "weight has shape"),
        (
            nn.LSTM(4, 3, bidirectional=True),
            nn.LSTM(4, 2, bidirectional=True),
            "no first units",
        ),
    ],
)
def test_what_is_no_slice_is_refused(wide: nn.Module, narrow: nn.Module, said: str) -> None:
    with pytest.raises(LayoutError, match=said):
        slice_map(wide, narrow)
