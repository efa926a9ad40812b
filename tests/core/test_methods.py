"""What each stage promises: its error, its bits, its state."""

import math

import numpy as np
import pytest
import torch

from fedcompress import parse, rng_for
from fedcompress.errors import LayoutError
from fedcompress.stages.selection import count_of


def normal(n: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(rng_for(seed, purpose="x").standard_normal(n).astype(np.float32))


def nmse(x: torch.Tensor, y: torch.Tensor) -> float:
    return float((x - y).double().square().sum() / x.double().square().sum())


def send(spec: str, x: torch.Tensor) -> tuple[bytes, torch.Tensor]:
    compressor = parse(spec)
    payload, _ = compressor.encode({"x": x}, compressor.init({"x": x}), rng_for(1))
    return payload, compressor.decode(payload, {"x": x})["x"]


def entropy_bits(values: np.ndarray) -> float:
    counts = np.unique(values, return_counts=True)[1] / values.size
    return float(-(counts * np.log2(counts)).sum())


@pytest.mark.parametrize("fraction", [0.001, 0.01, 0.5, 1.0])
def test_top_k_keeps_exactly_the_largest(fraction: float) -> None:
    x = normal(5000)
    _, y = send(f"top_k({fraction}) | raw()", x)
    k = count_of(fraction, 5000)
    assert int((y != 0).sum()) == k
    assert torch.equal(y[y != 0], x[y != 0])
    assert float(x[y != 0].abs().min()) >= float(x.abs().sort(descending=True).values[k - 1])


def test_random_k_draws_each_entry_equally_often() -> None:
    x = torch.ones(50)
    counts = torch.zeros(50)
    compressor = parse('random_k(0.2, rescale="no") | raw()')
    for i in range(3000):
        counts += compressor.encode_and_decode({"x": x}, {}, rng_for(i))[2]["x"]
    assert float((counts - 600).abs().max()) < 6 * math.sqrt(3000 * 0.2 * 0.8)


def test_random_k_sends_no_positions() -> None:
    x = normal(10_000)
    compressor = parse("random_k(0.1) | raw()")
    payload, _ = compressor.encode({"x": x}, {}, rng_for(1))
    assert compressor.breakdown(payload, {"x": x})["seed"] == 8
    assert len(payload) == 16 + 1 + 8 + 2 + 4000


@pytest.mark.parametrize("step", [0.1, 0.4, 2.0])
def test_quantize_error_is_within_its_step(step: float) -> None:
    x = normal(20_000) * 1e-3
    width = step * float(x.double().std(correction=0))
    _, nearest = send(f'quantize(step={step}, rounding="nearest")', x)
    _, stochastic = send(f"quantize(step={step})", x)
    assert float((x - nearest).abs().max()) <= width / 2 * (1 + 1e-5)
    assert float((x - stochastic).abs().max()) <= width * (1 + 1e-5)
    if step <= 0.4:  # the classical law of fine uniform quantization
        assert nmse(x, nearest) == pytest.approx(step**2 / 12, rel=0.05)
        assert nmse(x, stochastic) == pytest.approx(step**2 / 6, rel=0.05)


def test_quantize_never_clips() -> None:
    x = torch.cat([normal(100_000), torch.tensor([140.0 * 3])])
    _, y = send('quantize(step=0.2, rounding="nearest")', x)
    assert abs(float(y[-1]) - 420.0) <= 0.2 * float(x.std())


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 16])
def test_quantize_by_bits_uses_that_many_levels(bits: int) -> None:
    x = normal(60_000)
    _, y = send(f"quantize({bits})", x)
    assert len(torch.unique(y)) <= 2**bits - 1
    assert float((x - y).abs().max()) <= float(x.abs().max()) / (2 ** (bits - 1) - 1) * (1 + 1e-5)


def test_ternary_scale_is_the_mean_of_the_kept_entries() -> None:
    x = normal(10_000)
    _, y = send("ternary()", x)
    kept = y != 0
    assert float(y.abs().max()) == pytest.approx(float(x[kept].abs().mean()), rel=1e-5)
    assert torch.equal(torch.sign(y[kept]), torch.sign(x[kept]))


def test_sign_behind_top_k_is_sparse_ternary_compression() -> None:
    x = normal(10_000)
    payload, y = send("top_k(0.01) | sign()", x)
    kept = y != 0
    assert int(kept.sum()) == 100
    assert len(torch.unique(y)) == 3
    assert float(y.abs().max()) == pytest.approx(float(x[kept].abs().mean()), rel=1e-5)
    bound_bits = 10_000 * entropy_bits(np.arange(10_000) < 100) + 100
    assert len(payload) * 8 < 1.02 * bound_bits + 8 * 40


@pytest.mark.parametrize(("dtype", "bits"), [("float16", 11), ("bfloat16", 8)])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e9])
def test_cast_keeps_its_significant_bits_at_any_scale(dtype: str, bits: int, size: float) -> None:
    x = normal(1000) * size
    x = x[x.abs() > x.abs().max() * 1e-3]
    _, y = send(f'cast("{dtype}") | raw()', x)
    assert float(((x - y) / x).abs().max()) <= 2.0**-bits


@pytest.mark.parametrize("step", [0.1, 0.4, 1.0, 3.0])
def test_symbols_cost_their_entropy(step: float) -> None:
    x = normal(300_000) ** 3
    compressor = parse(f'quantize(step={step}, rounding="nearest") | entropy()')
    payload, _ = compressor.encode({"x": x}, {}, rng_for(1))
    width = step * float(x.double().std(correction=0))
    bound_bits = entropy_bits((x / width).round().numpy())
    assert len(payload) * 8 / 300_000 <= 1.01 * bound_bits + 0.003


def test_rows_and_columns_of_different_scale_cost_less_than_their_joint_entropy() -> None:
    """A layer with idle inputs and rows of different scales, as training leaves them."""
    draw = rng_for(8)
    rows = np.exp(draw.standard_normal((200, 1)))
    columns = np.exp(draw.standard_normal((1, 784))) * (draw.random((1, 784)) < 0.8)
    x = torch.from_numpy((draw.standard_normal((200, 784)) * rows * columns).astype(np.float32))
    compressor = parse('quantize(step=1.0, rounding="nearest") | entropy()')
    payload, _ = compressor.encode({"x": x}, {}, rng_for(1))
    decoded = compressor.decode(payload, {"x": x})["x"]
    width = float(x.double().std(correction=0))
    assert float((decoded - x).abs().max()) <= width / 2 * (1 + 1e-5)
    order_zero_bits = x.numel() * entropy_bits((x / width).round().numpy())
    assert len(payload) * 8 < 0.8 * order_zero_bits


@pytest.mark.parametrize("fraction", [0.001, 0.01, 0.1, 0.5, 0.9])
def test_positions_cost_their_entropy(fraction: float) -> None:
    n = 200_000
    compressor = parse(f'random_k({fraction}, rescale="no") | raw()')
    drawn = compressor.encode_and_decode({"x": torch.ones(n)}, {}, rng_for(4))[2]["x"]
    topk = parse(f"top_k({fraction}) | sign() | entropy()")
    payload, _ = topk.encode({"x": drawn}, {}, rng_for(1))
    bound_bits = n * entropy_bits(drawn.numpy())
    assert topk.breakdown(payload, {"x": drawn})["index"] * 8 <= 1.01 * bound_bits + 8 * 12


def test_small_payloads_have_small_overhead() -> None:
    x = {f"layer{i}": normal(100, i).reshape(10, 10) for i in range(4)}
    compressor = parse("quantize(4) | entropy()")
    payload, _ = compressor.encode(x, {}, rng_for(1))
    assert compressor.breakdown(payload, x)["overhead"] <= 24 + 4 * 8


@pytest.mark.parametrize("inner", ["top_k(0.05) | quantize(4)", "sign()", "threshold(0.5)"])
def test_error_feedback_conserves_the_update(inner: str) -> None:
    """Check sent + residual == update + old residual, over rounds."""
    compressor = parse(f"error_feedback({inner})")
    like = {"w": normal(400).reshape(20, 20), "b": normal(5), "n": torch.tensor(3)}
    state = compressor.init(like)
    sent_sum = torch.zeros(20, 20)
    update_sum = torch.zeros(20, 20)
    for i in range(8):
        update = {"w": normal(400, i).reshape(20, 20), "b": normal(5, i), "n": torch.tensor(i)}
        old = state
        payload, state = compressor.encode(update, old, rng_for(0, round=i))
        sent = compressor.decode(payload, like)
        for name in ("w", "b"):
            left = sent[name] + state[f"residual/{name}"]
            right = update[name] + old[f"residual/{name}"]
            assert torch.allclose(left, right, atol=1e-5)
        assert torch.equal(sent["n"], update["n"])
        sent_sum += sent["w"]
        update_sum += update["w"]
    assert torch.allclose(sent_sum + state["residual/w"], update_sum, atol=1e-4)


def test_equal_magnitudes_fall_to_the_first() -> None:
    x = torch.tensor([0.0, 2.0, -1.0, 1.0, 1.0, 0.0, -1.0, 0.0])
    _, y = send("top_k(0.375) | raw()", x)
    assert y.tolist() == [0.0, 2.0, -1.0, 1.0, 0.0, 0.0, 0.0, 0.0]


def test_a_residual_that_float16_cannot_hold_is_sent_over_rounds() -> None:
    compressor = parse("error_feedback(top_k(0.02))")
    update = {"x": torch.full((100,), 40000.0, dtype=torch.float16)}
    state = compressor.init(update)
    for i in range(4):
        payload, state = compressor.encode(update, state, rng_for(0, round=i))
        assert bool(compressor.decode(payload, update)["x"].isfinite().all())


def test_complex_arrays_are_refused() -> None:
    for x in (torch.zeros(3, dtype=torch.complex64), np.zeros(3, np.complex128)):
        with pytest.raises(LayoutError, match="is complex"):
            parse("raw()").encode({"x": x}, {}, rng_for(0))


def test_error_feedback_refuses_a_state_of_other_arrays() -> None:
    compressor = parse("error_feedback(sign())")
    with pytest.raises(LayoutError, match="make the state with init"):
        compressor.encode({"w": normal(5)}, {}, rng_for(0))


def test_route_sends_each_array_by_its_own() -> None:
    compressor = parse('route({"*bias": raw(), "bn*": lossless()}, default=top_k(0.1) | sign())')
    x = {"bn.mean": normal(8), "a.weight": normal(100), "a.bias": normal(10)}
    payload, _ = compressor.encode(x, compressor.init(x), rng_for(0))
    y = compressor.decode(payload, x)
    assert list(y) == list(x)
    assert torch.equal(y["a.bias"], x["a.bias"])
    assert torch.equal(y["bn.mean"], x["bn.mean"])
    assert int((y["a.weight"] != 0).sum()) == 10


def test_keys_give_independent_reproducible_streams() -> None:
    keys = [(s, r, c, p) for s in (0, 1) for r in (0, 1) for c in (0, 1, "server") for p in "ab"]
    draws = {
        k: rng_for(k[0], round=k[1], client=k[2], purpose=k[3]).integers(1 << 60) for k in keys
    }
    assert len(set(draws.values())) == len(keys)
    assert rng_for(7, round=1, client=2, purpose="x").integers(1 << 60) == 61218891530749764
