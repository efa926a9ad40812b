"""Units of every family of models: what is found to fall with a unit is of no use without it."""

import pytest
import torch

from fedcompress.pruning import magnitude, masked, units
from simulations.models import build_model
from simulations.models.unit_groups import unit_groups

IMAGES, WINDOW = (1, 12, 12), (10,)
# Sizes of the layers that have units.
FAMILIES = {
    "mlp": (IMAGES, {"hidden": (12, 9)}, [12, 9]),
    "lenet": (IMAGES, {"width": 0.25}, [4, 8, 16]),
    "conv4": ((1, 16, 16), {"width": 0.0625}, None),
    "resnet": (IMAGES, {"width": 0.25}, None),
    "lstm": (WINDOW, {"hidden": (7, 7)}, [7, 7]),
    "transformer": (WINDOW, {"hidden": (32, 32)}, [2, 128, 2, 128]),
}


def inputs(shape: tuple[int, ...]) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    if len(shape) == 1:
        return torch.randint(0, 11, (40, *shape), generator=draw)
    return torch.randn(40, *shape, generator=draw)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_reads_a_pruned_unit_does_nothing(name: str) -> None:
    shape, settings, sizes = FAMILIES[name]
    model = build_model(name, shape, 11, seed=0, **settings)
    x = inputs(shape)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    groups = unit_groups(model, x)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    if sizes is not None:
        assert [len(next(iter(group.values()))) for group in groups] == sizes
    weights = {key: p.detach() for key, p in model.named_parameters()}
    mask = units(groups)(magnitude(weights, {}), 0.5)
    kept = sum(int(one.sum()) for one in mask.values())
    if groups and name != "resnet":
        assert kept < 0.75 * sum(one.numel() for one in mask.values())
    # Only what makes units is 0 here: columns that read them stay.
    made = {key: torch.ones_like(one) for key, one in mask.items()}
    for group in groups:
        own = next(iter(group))
        rows = group[own]
        gone = [int(u) for u in range(len(rows)) if not bool(mask[own[0]][rows[u][0]].any())]
        assert len(gone) == len(rows) - max(1, round(len(rows) * 0.5))
        for (key, axis), positions in list(group.items()):
            if axis == 0:
                made[key][positions[gone].reshape(-1)] = False
    model.eval()
    outputs = []
    for one in (made, mask):
        model.load_state_dict({**before, **masked(weights, one)})
        with torch.no_grad():
            outputs.append(model(x))
    torch.testing.assert_close(outputs[0], outputs[1])


def test_falling_shares_lie_within_each_other() -> None:
    model = build_model("lenet", IMAGES, 11, seed=0, width=0.25)
    pattern = units(unit_groups(model, inputs(IMAGES)))
    weights = {key: p.detach() for key, p in model.named_parameters()}
    before = {key: torch.ones(x.shape, dtype=torch.bool) for key, x in weights.items()}
    for keep in (0.8, 0.5, 0.2):
        scores = {k: torch.where(before[k], x.abs(), -1.0) for k, x in weights.items()}
        mask = pattern(scores, keep)
        assert not any(bool((mask[key] & ~before[key]).any()) for key in mask)
        before = mask
