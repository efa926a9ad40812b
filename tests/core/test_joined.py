"""Short vectors coded as one: the same error for fewer bytes, each back in its place and dtype."""

import numpy as np
import pytest
import torch

from fedcompress import parse, rng_for
from fedcompress.joined import joined_names
from fedcompress.streams import Layout

DTYPES = {
    "conv.weight": torch.float32,
    "conv.bias": torch.float32,
    "half.bias": torch.float16,
    "count": torch.int64,
    "fc.bias": torch.float32,
    "wide.bias": torch.float64,
    "last.bias": torch.float16,
    "long": torch.float32,
    "nothing": torch.float32,
    "scalar": torch.float32,
}
SHAPES = {"conv.weight": (8, 40), "long": (5000,), "nothing": (0,), "scalar": ()}


def an_update() -> dict[str, torch.Tensor]:
    rng = rng_for(0, purpose="joined")
    shapes = {name: SHAPES.get(name, (10 + i,)) for i, name in enumerate(DTYPES)}
    return {
        name: torch.from_numpy(np.asarray(10 * rng.standard_normal(shapes[name]))).to(dtype)
        for name, dtype in DTYPES.items()
    }


def test_short_vectors_of_one_dtype_stand_together() -> None:
    layouts = {name: Layout.of(x) for name, x in an_update().items()}
    assert joined_names(layouts) == [
        ("conv.weight",),
        ("conv.bias", "fc.bias"),
        ("half.bias", "last.bias"),
        ("count",),
        ("wide.bias",),
        ("long",),
        ("nothing",),
        ("scalar",),
    ]


@pytest.mark.parametrize("spec", ["rdo(0.1) | entropy()", "budget(bytes=4000)"])
def test_every_array_comes_back_in_its_place(spec: str) -> None:
    update, compressor = an_update(), parse(spec)
    payload, _, decoded = compressor.encode_and_decode(update, {}, rng_for(1))
    again = compressor.decode(payload, update)
    assert list(again) == list(update)
    for name, x in update.items():
        assert torch.equal(again[name], decoded[name])
        assert (again[name].shape, again[name].dtype) == (x.shape, x.dtype)
        if x.is_floating_point() and x.numel():
            error = float((again[name].double() - x.double()).norm() / x.double().norm())
            assert error < 0.5, name
    parts, _ = compressor.read(payload, update)
    for name, part in parts.items():
        total = torch.ones(update[name].shape, dtype=torch.float64)
        part.add_to(total, 0.5)
        assert torch.allclose(total, 1 + 0.5 * again[name].double())
        assert part.is_finite()


def test_joining_saves_bytes() -> None:
    rng = rng_for(2, purpose="joined")
    vectors = {f"bias{i}": rng.standard_normal(20).astype(np.float32) for i in range(30)}
    matrices = {name: x.reshape(1, 20) for name, x in vectors.items()}
    compressor = parse("rdo(0.5) | entropy()")
    joined, _ = compressor.encode(vectors, {}, rng_for(1))
    alone, _ = compressor.encode(matrices, {}, rng_for(1))
    assert len(joined) < 0.9 * len(alone)
