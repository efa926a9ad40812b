"""Models: sizes, seeds, and their state as arrays and back."""

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from torch import nn

from fedcompress.errors import ConfigError, LayoutError
from simulations.model_record import load_record, model_record
from simulations.models import (
    MODELS,
    build_model,
    drop_statistics,
    estimate_statistics,
    load_arrays,
    model_arrays,
)

IMAGES = (1, 28, 28)
WINDOW = (80,)


def shape_for(name: str) -> tuple[int, ...]:
    return WINDOW if name in ("lstm", "transformer") else IMAGES


def build(name: str, seed: int = 0, width: float = 1.0) -> nn.Module:
    return build_model(name, shape_for(name), 10, seed=seed, hidden=(16, 16), width=width)


def batch(name: str, size: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    if shape_for(name) == WINDOW:
        return torch.randint(0, 10, (size, *WINDOW), generator=generator)
    return torch.rand(size, *IMAGES, generator=generator)


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_mlp_has_the_published_size() -> None:
    assert parameters(build_model("mlp", IMAGES, 10, seed=0)) == 199_210


@pytest.mark.parametrize(
    ("width", "size"), [(1, 1_556_874), (1 / 2, 391_370), (1 / 4, 98_922), (1 / 16, 6_594)]
)
def test_conv4_has_the_sizes_of_heterofl(width: float, size: int) -> None:
    assert parameters(build_model("conv4", IMAGES, 10, seed=0, width=width)) == size


def test_a_transformer_attends_to_every_place_and_to_its_order() -> None:
    model = build("transformer").eval()
    tokens = batch("transformer", 1)
    with torch.no_grad():
        for place in (0, 40, 79):
            other = tokens.clone()
            other[0, place] = (other[0, place] + 1) % 10
            assert not torch.equal(model(other), model(tokens))
        assert not torch.allclose(model(tokens.flip(1)[:, [*range(1, 80), 0]]), model(tokens))


def test_a_transformer_without_some_heads_is_one_whose_heads_say_nothing() -> None:
    wide, narrow = (
        build_model("transformer", WINDOW, 10, seed=0, hidden=(32, 32), width=w) for w in (1.0, 0.5)
    )
    cut = {name: tuple(slice(n) for n in x.shape) for name, x in narrow.state_dict().items()}
    kept = {name: torch.zeros_like(x) for name, x in wide.state_dict().items()}
    for name, x in wide.state_dict().items():
        kept[name][cut[name]] = x[cut[name]]
    narrow.load_state_dict({name: x[cut[name]] for name, x in wide.state_dict().items()})
    wide.load_state_dict(kept)
    tokens = batch("transformer")
    torch.testing.assert_close(wide(tokens), narrow(tokens))


@pytest.mark.parametrize("name", ["conv4", "resnet"])
def test_static_statistics_are_those_of_the_rows_they_are_estimated_on(name: str) -> None:
    model, x = build(name, width=0.25), batch(name, 60)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    layout = {key: (array.shape, array.dtype) for key, array in model_arrays(model).items()}
    drop_statistics(model)
    assert not any("running" in key or "tracked" in key for key in model_arrays(model))
    with torch.no_grad():
        by_batch = model.eval()(x)  # without statistics a batch's own count, in tests too
    estimate_statistics(model, x, batch_size=60)
    with torch.no_grad():
        after = model(x)
    assert not model.training
    assert {key: (a.shape, a.dtype) for key, a in model_arrays(model).items()} == layout
    # A running variance is the unbiased one, and the last layers have few numbers a channel.
    torch.testing.assert_close(after, by_batch, rtol=0.05, atol=0.05)
    load_arrays(build(name, width=0.25), model_arrays(model))


def test_static_statistics_need_normalisation() -> None:
    with pytest.raises(ConfigError, match="LeNet has no batch normalisation"):
        drop_statistics(build("lenet"))


@pytest.mark.parametrize("name", MODELS)
def test_logits_have_a_row_per_sample(name: str) -> None:
    assert build(name)(batch(name)).shape == (3, 10)


@pytest.mark.parametrize("name", ["mlp", "lenet", "resnet"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (2, 9, 13)])
def test_image_models_take_any_image(name: str, shape: tuple[int, ...]) -> None:
    model = build_model(name, shape, 7, seed=0)
    assert model(torch.rand(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize("name", MODELS)
def test_the_seed_decides_and_torch_is_left_alone(name: str) -> None:
    before = torch.get_rng_state()
    first, again, other = (model_arrays(build(name, seed)) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(np.array_equal(first[key], again[key]) for key in first)
    assert any(not np.array_equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", MODELS)
def test_width_scales(name: str) -> None:
    assert (
        parameters(build(name, width=0.5))
        < parameters(build(name))
        < parameters(build(name, width=2))
    )


@pytest.mark.parametrize("name", MODELS)
def test_arrays_round_trip(name: str) -> None:
    source, target = build(name, seed=1), build(name, seed=2)
    arrays = model_arrays(source)
    assert all(array.flags.c_contiguous for array in arrays.values())
    for array in arrays.values():
        array.setflags(write=False)
    load_arrays(target, arrays)
    after = model_arrays(target)
    assert list(after) == list(arrays) == list(source.state_dict())
    for key, array in arrays.items():
        assert after[key].dtype == array.dtype
        assert np.array_equal(after[key], array)
        assert not np.shares_memory(after[key], array)
    assert torch.equal(source.eval()(batch(name)), target.eval()(batch(name)))


@pytest.mark.parametrize("name", ["lenet", "resnet"])
def test_weights_stay_channels_last(name: str) -> None:
    model = build(name)
    load_arrays(model, model_arrays(build(name, seed=1)))
    weight = next(p for p in model.parameters() if p.dim() == 4 and p.shape[1] > 1)
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_tensors_are_taken_too() -> None:
    source, target = build("mlp", seed=1), build("mlp", seed=2)
    load_arrays(target, source.state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=1)
    )


def test_normalisation_has_statistics_and_integer_counters() -> None:
    model = build("resnet")
    model(batch("resnet"))
    arrays = model_arrays(model)
    counters = [key for key, array in arrays.items() if array.dtype == np.int64]
    assert counters
    assert all(key.endswith("num_batches_tracked") and arrays[key] == 1 for key in counters)
    assert any(key.endswith("running_var") for key in arrays)


def test_averaged_counters_take_the_nearest_integer() -> None:
    model = build("resnet")
    arrays = model_arrays(model)
    arrays["norm.num_batches_tracked"] = np.array(6.9999999)
    load_arrays(model, arrays)
    assert model_arrays(model)["norm.num_batches_tracked"] == 7


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"layers.1.weight": None}, r"missing arrays \['layers.1.weight'\]"),
        ({"extra": np.zeros(1)}, r"unknown arrays \['extra'\]"),
        ({"layers.1.bias": np.zeros(3)}, r"layers.1.bias has shape \(16,\), got \(3,\)"),
    ],
)
def test_arrays_of_another_model_are_refused(
    change: dict[str, np.ndarray | None], told: str
) -> None:
    model = build("mlp")
    arrays = {key: array.copy() + 1 for key, array in model_arrays(model).items()}
    before = {key: array.copy() for key, array in model_arrays(model).items()}
    merged = {**arrays, **change}
    given = {key: array for key, array in merged.items() if array is not None}
    with pytest.raises(LayoutError, match=told):
        load_arrays(model, given)
    assert all(np.array_equal(before[key], array) for key, array in model_arrays(model).items())


@pytest.mark.parametrize(
    ("name", "shape", "settings", "told"),
    [
        ("lennet", IMAGES, {}, "did you mean 'lenet'"),
        ("perceptron", IMAGES, {}, "use one of mlp, lenet, resnet, conv4, lstm, transformer"),
        ("transformer", IMAGES, {}, "transformer takes windows of characters"),
        ("transformer", WINDOW, {"hidden": (64, 32)}, "blocks of one size, got (64, 32)"),
        ("conv4", (1, 7, 7), {}, "at least 8 × 8 pixels"),
        ("lstm", IMAGES, {}, "lstm takes windows of characters"),
        ("lenet", WINDOW, {}, "use lstm"),
        ("lenet", (1, 3, 3), {}, "at least 4 × 4 pixels"),
        ("mlp", IMAGES, {"width": 0.0}, "width must be above 0, got 0.0"),
        ("mlp", IMAGES, {"hidden": (0,)}, "hidden sizes must be at least 1"),
        ("lstm", WINDOW, {"hidden": (100, 50)}, "hidden layers of one size"),
    ],
)
def test_what_cannot_be_built_is_told(
    name: str, shape: tuple[int, ...], settings: dict[str, object], told: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        build_model(name, shape, 10, seed=0, **settings)  # type: ignore[arg-type]
    assert told in str(caught.value)


@pytest.mark.parametrize("name", MODELS)
def test_arrays_are_those_of_the_state_also_after_the_model_has_changed(name: str) -> None:
    model = build(name)
    for _ in range(2):  # the second time from what the first one looked up
        state, arrays = model.state_dict(), model_arrays(model)
        assert list(arrays) == list(state)
        for key, tensor in state.items():
            np.testing.assert_array_equal(arrays[key], tensor.numpy())
        for parameter in model.parameters():  # as `to(device)` and flat models do
            parameter.data = parameter.data.clone() + 1


def test_a_record_loaded_again_after_training_gives_the_same_model() -> None:
    model = build("resnet")
    first, second = (
        ArrayRecord({k: Array(x) for k, x in model_arrays(build("resnet", seed)).items()})
        for seed in (1, 2)
    )
    for record in (first, first, second, first, model_record(build("resnet", 3)), second):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1.0)
        load_record(model, record)
        for name, values in model_arrays(model).items():
            assert values.tobytes() == record[name].numpy().tobytes()
