"""Every registered stage and coder keeps the laws of fedcompress.testing."""

import numpy as np
import pytest
import torch

from fedcompress import parse, rng_for
from fedcompress.chain import Chain, chain
from fedcompress.coder import Coder
from fedcompress.errors import NotFiniteError
from fedcompress.registry import coders, compressors, stages
from fedcompress.stage import Stage
from fedcompress.testing import check_compressor, sample_arrays

SETTINGS = {
    "cast": ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"],
    "codebook": [16, {"k": 5, "zero": "yes"}, 256],
    "dither": [0.4, 3],
    "eden": [1, {"bits": 2, "scale": "least_squares"}, 5],
    "global_top_k": [0.01, 1.0],
    "n_of_m": [{"n": 2, "m": 4}, {"n": 1, "m": 3}, {"n": 3, "m": 16}],
    "nf4": [{}, 7],
    "product_quantize": [{"k": 16, "dim": 4}, {"k": 300, "dim": 3}],
    "qsgd": [
        16,
        {"levels": 1, "norm": "max"},
        {"levels": 7, "bucket": 10},
        {"levels": 5, "bucket": 50, "norm": "max"},
    ],
    "quantize": [
        {"bits": 4},
        {"bits": 2},
        {"bits": 16},
        {"step": 0.4},
        {"step": 2.0, "rounding": "nearest"},
        {"bits": 3, "rounding": "nearest"},
    ],
    "random_k": [0.1, 0.9, {"fraction": 0.3, "rescale": "no"}, 1.0],
    "rdo": [
        0.4,
        {"step": 2, "states": 0},
        {"step": 0.05, "states": 4, "rank": 0, "transform": False},
    ],
    "sign": [{}, "none"],
    "ternary": [{}, 1.5],
    "threshold": [1e-3],
    "top_k": [0.01, 0.3, 1.0, {"fraction": 0.1, "block": 7}, {"fraction": 0.02, "block": 64}],
    "top_rows": [0.1, 1.0],
}
# Stages that take only some numbers keep the laws in their own tests.
ELSEWHERE = {"bernoulli_mask"}


def make(kind: type[Stage], settings: object) -> Stage:
    return kind(**settings) if isinstance(settings, dict) else kind(settings)


STAGES = [make(kind, s) for name, kind in stages().items() for s in SETTINGS.get(name, ())]


def test_every_registered_stage_is_in_the_battery() -> None:
    assert set(SETTINGS) | ELSEWHERE == set(stages())


@pytest.mark.parametrize("coder", [kind() for kind in coders().values()], ids=repr)
@pytest.mark.parametrize("stage", STAGES, ids=repr)
def test_stage_with_coder(stage: Stage, coder: Coder) -> None:
    if stage.gives == "symbols" and not coder.takes_symbols:
        pytest.skip(f"{coder} refuses symbols, see test_spec")
    if coder.name == "entropy":
        check_compressor(chain(stage, coder))
    else:  # the law of the mean does not depend on the coder
        compressor = chain(stage, coder)
        for _, update in sample_arrays():
            payload, _ = compressor.encode(update, {}, rng_for(1))
            entropy_payload, _ = chain(stage).encode(update, {}, rng_for(1))
            same = compressor.decode(payload, update)
            other = chain(stage).decode(entropy_payload, update)
            assert all(torch.equal(same[name], other[name]) for name in update)


@pytest.mark.parametrize("coder", [kind() for kind in coders().values()], ids=repr)
def test_coder_alone_is_exact(coder: Coder) -> None:
    compressor = chain(coder)
    check_compressor(compressor)
    for what, update in sample_arrays():
        payload, _ = compressor.encode(update, {}, rng_for(1))
        decoded = compressor.decode(payload, update)
        for name, x in update.items():
            assert torch.equal(x, decoded[name]), what


@pytest.mark.parametrize(
    "spec",
    [
        "top_k(0.05) | quantize(4) | entropy()",
        "top_k(0.05) | sign() | pack()",
        'top_k(0.05) | cast("float16") | lossless()',
        "random_k(0.2) | quantize(4) | entropy()",
        "threshold(0.001) | ternary() | entropy()",
        "threshold(0.001) | codebook(16) | entropy()",
        "threshold(0.001) | product_quantize(16, 4) | entropy()",
        "threshold(0.001) | nf4() | entropy()",
        "threshold(0.001) | qsgd(7, bucket=40) | entropy()",
        "threshold(0.001) | dither(1) | pack()",
        "error_feedback(top_k(0.01) | quantize(4) | entropy())",
        "error_feedback(sign() | entropy())",
        "error_feedback(global_top_k(0.05) | sign())",
        "error_feedback(top_rows(0.2) | quantize(4))",
        'n_of_m(2, 4) | cast("float16")',
        "dgc(0.02)",
        "dgc(0.1, momentum=0.0, warmup_rounds=0, clip=1.5, values=quantize(4) | pack())",
        'route({"*bias": raw(), "steps": lossless()}, default=quantize(4))',
        'route({"w*": error_feedback(top_k(0.1))}, default=sign() | pack())',
        'error_feedback(route({"*bias": raw()}, default=top_k(0.1) | sign()))',
        'error_feedback(eden(1, scale="least_squares") | pack())',
        "random_k(0.5) | eden(1) | pack()",
        "error_feedback(power_sgd(2))",
        "error_feedback(top_k(0.1) | sign(), decay=0.9, clip=2.0)",
        "ef21(top_k(0.1) | quantize(4))",
        "ef21(sign())",
        "delta(raw())",
        "delta(quantize(8))",
        'delta(quantize(4, rounding="nearest"), factor=0.8, rate=0.25)',
        "delta(random_k(0.5))",
        "delta(random_k(0.5), factor=1, rate=0.5)",
        "momentum(sign())",
        "momentum(ef21(top_k(0.05)), beta=0.5)",
        "momentum(error_feedback(top_k(0.05)))",
        "error_feedback(delta(top_k(0.2), factor=0.5))",
        'route({"*bias": ef21(sign()), "size<50": raw()}, default=delta(quantize(4)))',
    ],
)
def test_compositions(spec: str) -> None:
    check_compressor(spec)


def test_every_registered_wrapper_is_covered() -> None:
    assert {"delta", "ef21", "error_feedback", "momentum", "route"} <= set(compressors())


@pytest.mark.parametrize("stage", STAGES, ids=repr)
def test_lossy_stage_refuses_what_is_not_finite(stage: Stage) -> None:
    update = {"x": torch.tensor([1.0, float("nan")])}
    with pytest.raises(NotFiniteError, match="'x'"):
        chain(stage).encode(update, {}, rng_for(0))


@pytest.mark.parametrize("stage", STAGES, ids=repr)
def test_chain_of_one_equals_the_stage_by_hand(stage: Stage) -> None:
    x = torch.from_numpy(rng_for(5).standard_normal((13, 7)).astype(np.float32))
    compressor = Chain((stage,), parse("entropy()").coder)  # type: ignore[attr-defined]
    payload, _ = compressor.encode({"x": x}, {}, rng_for(1, purpose="p"))
    by_hand, side = stage.encode(x, rng_for(1, purpose="p"))
    from fedcompress.streams import Layout

    expected = stage.decode(by_hand, side, Layout.of(x))
    assert torch.equal(compressor.decode(payload, {"x": x})["x"], expected)


def test_numpy_and_torch_give_the_same_bytes() -> None:
    x = rng_for(2).standard_normal((20, 30)).astype(np.float32)
    compressor = parse("top_k(0.1) | quantize(4) | entropy()")
    assert (
        compressor.encode({"x": x}, {}, rng_for(1))[0]
        == compressor.encode({"x": torch.from_numpy(x)}, {}, rng_for(1))[0]
        == compressor.encode({"x": np.ascontiguousarray(x[::-1])[::-1]}, {}, rng_for(1))[0]
    )
