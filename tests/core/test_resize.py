"""A model rebuilt to other shapes loads them and computes with them; the given one stays."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedcompress.errors import LayoutError
from fedcompress.resize import fit_to
from simulations.models import MODELS, build_model

WINDOW, IMAGES = (20,), (1, 12, 12)


def shape_for(name: str) -> tuple[int, ...]:
    return WINDOW if name in ("lstm", "transformer") else IMAGES


def build(name: str, width: float, seed: int = 0) -> nn.Module:
    return build_model(name, shape_for(name), 10, seed=seed, hidden=(16, 16), width=width).eval()


def batch(name: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if shape_for(name) == WINDOW:
        return torch.randint(0, 10, (3, *WINDOW), generator=generator)
    return torch.rand(3, *IMAGES, generator=generator)


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(x.shape) for name, x in model.state_dict().items()}


@pytest.mark.parametrize("width", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_another_width_is_rebuilt(name: str, width: float) -> None:
    wide, wanted = build(name, 1.0), build(name, width, seed=1)
    before = shapes_of(wide)
    fitted = fit_to(wide, shapes_of(wanted))
    fitted.load_state_dict(wanted.state_dict())
    x = batch(name)
    with torch.no_grad():
        assert torch.equal(fitted(x), wanted(x))
    assert shapes_of(wide) == before
    assert repr(fitted) == repr(wanted)
    for key, tensor in wanted.state_dict().items():
        assert fitted.state_dict()[key].stride() == tensor.stride()


class Every(nn.Module):
    """Layers that the simulator's models lack."""

    def __init__(self, channels: int, units: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, channels, 3, padding=1)
        self.each = nn.Conv2d(channels, 2 * channels, 3, padding=1, groups=channels)
        self.groups = nn.GroupNorm(2, 2 * channels)
        self.back = nn.ConvTranspose2d(2 * channels, channels, 2, groups=2)
        self.rows = nn.LayerNorm(channels)
        self.scale = nn.Parameter(torch.rand(channels))
        self.gru = nn.GRU(channels, units, num_layers=2, batch_first=True, bidirectional=True)
        self.short = nn.LSTM(2 * units, units, proj_size=max(1, units // 2), batch_first=True)
        self.embed = nn.Embedding(7, max(1, units // 2))
        self.head = nn.Linear(max(1, units // 2), 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.back(F.relu(self.groups(self.each(self.first(x))))).flatten(2).transpose(1, 2)
        y, _ = self.gru(self.rows(y) * self.scale)
        y, _ = self.short(y)
        return self.head(y[:, -1])


@pytest.mark.parametrize(("channels", "units"), [(2, 4), (4, 6), (6, 2)])
def test_every_layer_that_has_sizes_learns_them(channels: int, units: int) -> None:
    given, wanted = Every(4, 8).double(), Every(channels, units).double()
    fitted = fit_to(given, shapes_of(wanted))
    fitted.load_state_dict(wanted.state_dict())
    x = torch.rand(2, 2, 5, 5, dtype=torch.float64)
    assert torch.equal(fitted(x), wanted(x))
    assert repr(fitted) == repr(wanted)
    assert fitted.head.weight is fitted.embed.weight


def test_what_keeps_its_shape_keeps_its_values() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    fitted = fit_to(model, {**shapes_of(model), "0.weight": (4, 9)})
    assert torch.equal(fitted[1].weight, model[1].weight)
    assert fitted[0].weight.count_nonzero() == 0
    fitted[1].weight.data.add_(1)
    assert not torch.equal(fitted[1].weight, model[1].weight)


def test_frozen_parameters_stay_frozen() -> None:
    model = nn.Linear(3, 4)
    model.weight.requires_grad_(False)
    fitted = fit_to(model, {"weight": (2, 3), "bias": (2,)})
    assert not fitted.weight.requires_grad
    assert fitted.bias.requires_grad


@pytest.mark.parametrize(
    ("model", "changed", "said"),
    [
        (nn.Linear(3, 4), {"more": (2,)}, "unknown arrays \\['more'\\]"),
        (nn.Linear(3, 4), {"weight": (4, 3, 1)}, "weight has shape \\(4, 3\\), got \\(4, 3, 1\\)"),
        (nn.Conv2d(4, 8, 3, groups=4), {"weight": (6, 2, 3, 3)}, "4 groups, which 6 channels"),
        (nn.GroupNorm(4, 8), {"weight": (6,), "bias": (6,)}, "4 groups, which 6 channels"),
        (nn.LSTM(2, 3), {"weight_ih_l0": (11, 2)}, "prune whole units"),
        (nn.MultiheadAttention(8, 2), {"in_proj_weight": (12, 8)}, "how many heads"),
    ],
)
def test_what_cannot_be_is_refused(
    model: nn.Module, changed: dict[str, tuple[int, ...]], said: str
) -> None:
    with pytest.raises(LayoutError, match=said):
        fit_to(model, {**shapes_of(model), **changed})


@pytest.mark.parametrize("name", ["mlp", "lenet", "resnet"])
def test_what_torch_pruning_leaves_is_rebuilt(name: str) -> None:
    pruning = pytest.importorskip("torch_pruning")
    model, x = build(name, 1.0), batch(name)
    plain = build(name, 1.0)
    head = model.layers[-1] if name == "mlp" else model.head
    pruning.pruner.BasePruner(
        model,
        x,
        importance=pruning.importance.GroupMagnitudeImportance(),
        pruning_ratio=0.5,
        ignored_layers=[head],
    ).step()
    fitted = fit_to(plain, shapes_of(model))
    fitted.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.allclose(fitted(x), model(x), atol=1e-5)
