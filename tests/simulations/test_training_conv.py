"""The compiled training of convolutions is eager training, for every shape that it takes."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedcompress import rng_for
from simulations.data import FederatedData, load_data
from simulations.models import build_model
from simulations.training import LocalResult, TrainingOptions, choose_path, train_locally
from simulations.training.conv import conv_stack
from simulations.training.winograd import minimal_filtering

CPU = torch.device("cpu")
# One after the other: a batch of one, one not full, a full one, several, more than any before.
SIZES = (1, 7, 16, 45, 64)
OPTIONS = [
    TrainingOptions(batch_size=16, local_epochs=2),
    TrainingOptions(batch_size=16, momentum=0.5, weight_decay=0.01, proximal_mu=0.1),
    TrainingOptions("adam", 0.003, batch_size=16, weight_decay=0.01),
    TrainingOptions("adamw", 0.003, batch_size=16, weight_decay=0.1, local_epochs=2),
]


class Functional(nn.Module):
    """Written with functions, ReLU before pooling, 3 taps; 7 and 20 channels fill no vector."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 7, 3, padding="same")
        self.second = nn.Conv2d(7, 20, 3, padding=2)
        self.dense = nn.Linear(20 * 3 * 3, 17, bias=False)
        self.head = nn.Linear(17, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.first(x)), (2, 2), stride=2)
        x = torch.max_pool2d(self.second(x).relu(), 2)
        logits: Tensor = self.head(torch.tanh(self.dense(torch.flatten(x, 1))))
        return logits


def block(ins: int, outs: int, taps: int, padding: int = 0) -> list[nn.Module]:
    return [nn.Conv2d(ins, outs, taps, padding=padding), nn.MaxPool2d(2, 2), nn.ReLU(inplace=True)]


def sequence(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


# With the shape of the images that each takes.
MODELS: dict[str, tuple[tuple[int, int, int], Callable[[], nn.Module]]] = {
    "lenet": ((1, 8, 8), lambda: build_model("lenet", (1, 8, 8), 10, seed=0)),
    "lenet in color": ((3, 12, 9), lambda: build_model("lenet", (3, 12, 9), 10, seed=0)),
    "functional": ((1, 8, 8), Functional),
    "one convolution": (
        (2, 7, 9),
        lambda: sequence(*block(2, 16, 3), nn.Flatten(), nn.Linear(16 * 2 * 3, 10)),
    ),
    "three convolutions, an odd rest": (
        (1, 23, 19),
        lambda: sequence(
            *block(1, 16, 5, 1),
            *block(16, 40, 3, 1),
            *block(40, 33, 5, 2),
            nn.Flatten(),
            nn.Linear(33 * 2 * 2, 21),
            nn.Sigmoid(),
            nn.Linear(21, 10),
        ),
    ),
    "one window": (
        (1, 6, 6),
        lambda: sequence(*block(1, 3, 5), nn.Flatten(), nn.Linear(3, 10)),
    ),
}


@pytest.fixture(scope="module")
def digits() -> FederatedData:
    return load_data("digits")


def images(digits: FederatedData, shape: tuple[int, int, int]) -> FederatedData:
    """Give random images of a shape in place of the digits."""
    if shape == digits.sample_shape:
        return digits
    pixels = np.random.default_rng(0).integers(0, 256, (200, *shape), dtype=np.uint8)
    mean, std = (0.4, 0.5, 0.6)[: shape[0]], (0.2, 0.3, 0.25)[: shape[0]]
    labels = digits.train_y[:200]
    return replace(digits, train_x=pixels, train_y=labels, pixel_mean=mean, pixel_std=std)


def model_of(name: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MODELS[name][1]()


def trained(
    name: str, data: FederatedData, options: TrainingOptions, path: str
) -> list[tuple[dict[str, Tensor], LocalResult]]:
    """Train clients of all sizes one after the other, each from the same start."""
    model = model_of(name)
    start = {key: value.clone() for key, value in model.state_dict().items()}
    found = []
    for size in SIZES:
        model.load_state_dict(start)
        rng = rng_for(0, client=size)
        result = train_locally(model, data, np.arange(size), options, rng, path=path)  # type: ignore[arg-type]
        found.append(({k: v.clone() for k, v in model.state_dict().items()}, result))
    return found


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: f"{o.optimizer}-{o.momentum}")
@pytest.mark.parametrize("name", MODELS)
def test_compiled_convolutions_are_eager_ones(
    digits: FederatedData, name: str, options: TrainingOptions
) -> None:
    data = images(digits, MODELS[name][0])
    assert choose_path("auto", model_of(name), data, CPU) == "compiled"
    start = model_of(name).state_dict()
    compiled = trained(name, data, options, "compiled")
    for (model, result), (other, expected) in zip(
        compiled, trained(name, data, options, "eager"), strict=True
    ):
        assert (result.num_examples, result.steps) == (expected.num_examples, expected.steps)
        assert result.loss == pytest.approx(expected.loss, rel=1e-5)
        # Adam makes steps of what rounding leaves of gradients that are 0.
        allowed = 1e-4 if options.optimizer == "sgd" else 2e-2
        for key, value in model.items():
            moved = (other[key] - start[key]).norm()
            assert moved > 0
            assert (value - other[key]).norm() <= allowed * moved


def test_compiled_convolutions_in_bits(digits: FederatedData) -> None:
    first = trained("lenet", digits, OPTIONS[0], "compiled")
    again = trained("lenet", digits, OPTIONS[0], "compiled")
    for (model, _), (other, _) in zip(first, again, strict=True):
        assert all(torch.equal(model[key], other[key]) for key in model)


def test_what_is_no_number_stays_so(digits: FederatedData) -> None:
    for path in ("eager", "compiled"):
        model = model_of("lenet")
        with torch.no_grad():
            model.conv2.weight[3, 2, 1, 1] = torch.nan  # type: ignore[index,union-attr]
        result = train_locally(
            model,
            digits,
            np.arange(9),
            TrainingOptions(),
            rng_for(0),
            path=path,  # type: ignore[arg-type]
        )
        assert np.isnan(result.loss)
        assert model.head.weight.isnan().all()  # type: ignore[operator,union-attr]


def test_a_target_that_is_no_class_is_told(digits: FederatedData) -> None:
    data = replace(digits, train_y=np.where(np.arange(len(digits.train_y)) == 5, 10, 0))
    with pytest.raises(IndexError, match="target is no class of the model, which has 10"):
        train_locally(model_of("lenet"), data, np.arange(9), TrainingOptions(), rng_for(0))


def test_a_model_that_was_loaded_anew_is_trained_from_there(digits: FederatedData) -> None:
    model, other = model_of("lenet"), model_of("lenet")
    rows, options = np.arange(40), TrainingOptions()
    train_locally(model, digits, rows, options, rng_for(0))
    fresh = {key: value.clone() for key, value in other.state_dict().items()}
    model.load_state_dict(fresh, assign=True)
    train_locally(model, digits, rows, options, rng_for(0))
    train_locally(other, digits, rows, options, rng_for(0))
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def frozen() -> nn.Module:
    model = model_of("lenet")
    next(model.parameters()).requires_grad_(False)
    return model


def behind(*layers: nn.Module) -> nn.Module:
    return sequence(*layers, nn.Flatten(), nn.LazyLinear(10))


NOT_TAKEN: list[Callable[[], nn.Module]] = [
    frozen,
    lambda: build_model("resnet", (1, 8, 8), 10, seed=0),
    lambda: behind(nn.Conv2d(1, 4, 3), nn.MaxPool2d(2)),
    lambda: behind(nn.Conv2d(1, 4, 3), nn.ReLU()),
    lambda: behind(nn.Conv2d(1, 4, 3), nn.MaxPool2d(2), nn.GELU()),
    lambda: behind(nn.Conv2d(1, 4, 3), nn.AvgPool2d(2), nn.ReLU()),
    lambda: behind(nn.Conv2d(1, 4, 3), nn.MaxPool2d(3), nn.ReLU()),
    lambda: behind(nn.Conv2d(1, 4, 3), nn.MaxPool2d(2, stride=1), nn.ReLU()),
    lambda: behind(nn.Conv2d(1, 4, 3), nn.MaxPool2d(2, ceil_mode=True), nn.ReLU()),
    lambda: behind(nn.Conv2d(1, 4, 4), nn.MaxPool2d(2), nn.ReLU()),
    lambda: behind(nn.Conv2d(1, 4, (3, 5)), nn.MaxPool2d(2), nn.ReLU()),
    lambda: behind(nn.Conv2d(1, 4, 3, stride=2), nn.MaxPool2d(2), nn.ReLU()),
    lambda: behind(nn.Conv2d(1, 4, 3, dilation=2), nn.MaxPool2d(2), nn.ReLU()),
    lambda: behind(nn.Conv2d(1, 4, 3, bias=False), nn.MaxPool2d(2), nn.ReLU()),
    lambda: behind(nn.Conv2d(1, 4, 3, padding_mode="circular"), nn.MaxPool2d(2), nn.ReLU()),
    lambda: behind(*block(1, 4, 3), nn.Dropout()),
    lambda: behind(*block(1, 4, 3), nn.Conv2d(4, 4, 1)),
    lambda: behind(nn.BatchNorm2d(1), *block(1, 4, 3)),
    lambda: sequence(*block(1, 4, 3), nn.Linear(3, 2), nn.Flatten(), nn.Linear(24, 10)),
    lambda: sequence(*block(1, 4, 3), nn.Flatten(), nn.Linear(36, 10), nn.ReLU()),
    lambda: sequence(*block(1, 4, 3), nn.Flatten()),
]


@pytest.mark.parametrize("build", NOT_TAKEN)
def test_what_is_no_stack_of_convolutions_is_told_apart(
    digits: FederatedData, build: Callable[[], nn.Module]
) -> None:
    model = build()
    if any(isinstance(module, nn.LazyLinear) for module in model.modules()):
        model(torch.zeros(1, *digits.sample_shape))
    assert conv_stack(model) is None
    assert choose_path("auto", model, digits, CPU) == "eager"


def test_images_that_do_not_fit_are_told_by_the_model(digits: FederatedData) -> None:
    model = build_model("lenet", (1, 12, 12), 10, seed=0)
    assert conv_stack(model) is not None
    assert choose_path("auto", model, digits, CPU) == "eager"
    with pytest.raises(RuntimeError, match="shapes"):
        train_locally(model, digits, np.arange(9), TrainingOptions(), rng_for(0))


@pytest.mark.parametrize("taps", [3, 5])
def test_minimal_filtering_is_correlation(taps: int) -> None:
    outputs, filters, data = (np.array(matrix) for matrix in minimal_filtering(taps))
    rng = np.random.default_rng(0)
    d, g = rng.normal(size=taps + 1), rng.normal(size=taps)
    found = outputs.T @ ((filters @ g) * (data @ d))
    np.testing.assert_allclose(found, np.correlate(d, g, mode="valid"), rtol=1e-12)


@pytest.mark.parametrize("taps", [1, 4, 6])
def test_minimal_filtering_of_other_sizes_is_refused(taps: int) -> None:
    with pytest.raises(ValueError, match=f"taps must be 3 or 5, got {taps}"):
        minimal_filtering(taps)
