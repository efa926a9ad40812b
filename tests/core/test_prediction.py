"""EF21 and delta coding: both sides remember the same, and what is alike costs little."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedcompress import PayloadError, SpecError, StaleMemoryError, parse, rng_for
from fedcompress.wire import Section, write_payload


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(rng_for(seed, purpose="x").standard_normal(shape).astype(np.float32))


@given(st.sampled_from([0.05, 0.2, 0.5]), st.integers(0, 1000))
def test_the_estimate_of_ef21_contracts_towards_an_update_that_stays(
    fraction: float, seed: int
) -> None:
    """‖g − x‖² shrinks by 1 − k/n or more in each round (Richtárik et al., 2021)."""
    compressor = parse(f"ef21(top_k({fraction}))")
    update = {"w": normal(200, seed=seed) ** 3}
    state, memory, before = compressor.init(update), {}, float(update["w"].square().sum())
    for i in range(5):
        payload, state = compressor.encode(update, state, rng_for(seed, round=i))
        decoded, memory = compressor.decode_and_remember(payload, update, memory)
        error = float((decoded["w"] - update["w"]).square().sum())
        assert error <= (1 - fraction) * before * (1 + 1e-5) + 1e-9
        before = error


@pytest.mark.parametrize("spec", ["ef21(top_k(0.1))", "delta(quantize(4), factor=0.9, rate=0.3)"])
def test_both_sides_remember_the_same_bits(spec: str) -> None:
    compressor = parse(spec)
    like = {"w": torch.zeros(30, 20), "h": torch.zeros(9).half(), "n": torch.tensor(1)}
    state, memory = compressor.init(like), {}
    for i in range(6):
        update = {"w": normal(30, 20, seed=i), "h": normal(9, seed=i).half(), "n": torch.tensor(i)}
        payload, state, expected = compressor.encode_and_decode(update, state, rng_for(0, round=i))
        decoded, memory = compressor.decode_and_remember(payload, like, memory)
        assert all(torch.equal(decoded[name], expected[name]) for name in like)
        assert memory.keys() == {"w", "h"}
        assert all(torch.equal(memory[name], state[f"memory/{name}"]) for name in memory)


def test_memory_and_decoded_update_follow_their_equations() -> None:
    compressor = parse("delta(raw(), factor=0.5, rate=0.25)")
    update = {"w": normal(50)}
    state, h = compressor.init(update), torch.zeros(50)
    for i in range(5):
        update = {"w": normal(50, seed=i)}
        _, state, decoded = compressor.encode_and_decode(update, state, rng_for(0))
        torch.testing.assert_close(decoded["w"], update["w"])  # raw() sends all of the difference
        h = 0.75 * h + 0.25 * decoded["w"]
        torch.testing.assert_close(state["memory/w"], h)


@pytest.mark.parametrize("spec", ["delta(entropy())", "delta(lossless())", "ef21(entropy())"])
def test_an_update_that_stays_costs_next_to_nothing(spec: str) -> None:
    compressor = parse(spec)
    update = {"w": normal(100, 100)}
    first, state = compressor.encode(update, compressor.init(update), rng_for(0))
    second, _ = compressor.encode(update, state, rng_for(1))
    assert len(first) > 25_000
    assert len(second) < 100


@given(st.floats(-3, 3), st.integers(0, 100))
def test_a_fitted_factor_predicts_no_worse_than_zero_and_almost_best(a: float, seed: int) -> None:
    compressor = parse("delta(lossless(), rate=1)")
    first, noise = normal(300, seed=seed), normal(300, seed=seed + 1)
    _, state = compressor.encode({"w": first}, compressor.init({"w": first}), rng_for(0))
    x = a * first + 0.3 * noise
    payload, _ = compressor.encode({"w": x}, state, rng_for(0))
    factor = payload[17 + 4] / 64  # behind the header, a length and the checksum
    best = float(x.double() @ first.double() / (first.double() @ first.double()))
    assert factor == pytest.approx(min(max(best, 0), 255 / 64), abs=0.5 / 64 + 1e-9)


@pytest.mark.parametrize("damage", [b"", b"\0" * 9])
def test_factors_of_another_number_are_refused(damage: bytes) -> None:
    compressor = parse("delta(raw())")
    update = {"w": normal(4), "b": normal(2)}
    encoded = compressor.encode_sections(update, compressor.init(update), rng_for(0), False)
    first, *others = encoded.sections
    sections = [Section("memory", first.data[:4] + damage), *others]
    with pytest.raises(PayloadError, match="bytes of factors for 2 arrays"):
        compressor.decode(write_payload(sections, str(compressor), update), update)


@given(st.integers(0, 20))
def test_a_fitted_factor_keeps_an_expanding_stage_stable(seed: int) -> None:
    compressor = parse("delta(random_k(0.1))")
    state = compressor.init({"w": torch.zeros(200)})
    for i in range(40):
        update = {"w": normal(200, seed=seed + i)}
        _, state, decoded = compressor.encode_and_decode(update, state, rng_for(seed, round=i))
        assert float(decoded["w"].norm() / update["w"].norm()) < 12


def test_alike_updates_are_cheaper_by_their_differences() -> None:
    """At the same error, correlation ρ saves ½ log2(1 / (1 − ρ²)) bits for each parameter."""
    steady, n = normal(40_000), 40_000
    compressor = parse('delta(quantize(step=0.4, rounding="nearest"), factor=1, rate=1)')
    update = {"w": steady}
    state = compressor.init(update)
    _, state = compressor.encode(update, state, rng_for(0))
    update = {"w": 0.995 * steady + (1 - 0.995**2) ** 0.5 * normal(n, seed=1)}
    payload, _, decoded = compressor.encode_and_decode(update, state, rng_for(1))
    error = float((decoded["w"] - update["w"]).square().mean())
    step = (12 * error) ** 0.5
    plain, _ = parse(f'quantize(step={step}, rounding="nearest")').encode(update, {}, rng_for(1))
    saved_bits = (len(plain) - len(payload)) * 8 / n
    # The first round's own error of step²/12 is part of the difference that the second sends.
    correlated = 2 - 2 * 0.995 + 0.4**2 / 12
    assert saved_bits == pytest.approx(0.5 * np.log2(1 / correlated), abs=0.15)


def test_the_memory_of_an_unbiased_expanding_stage_settles() -> None:
    """DIANA: with rate ≤ 1 / (1 + ω) the memory approaches an update that stays."""
    compressor = parse("delta(random_k(0.25), factor=1, rate=0.25)")
    update = {"w": normal(400)}
    state = compressor.init(update)
    for i in range(60):
        _, state = compressor.encode(update, state, rng_for(0, round=i))
    error = (state["memory/w"] - update["w"]).norm() / update["w"].norm()
    assert float(error) < 0.02


@pytest.mark.parametrize(
    "spec", ["ef21(sign())", 'route({"w": delta(quantize(4))}, default=raw())']
)
def test_a_decoder_that_missed_a_payload_refuses_the_next(spec: str) -> None:
    compressor = parse(spec)
    like = {"w": normal(40)}
    state, memory = compressor.init(like), {}
    payload, state = compressor.encode(like, state, rng_for(0))
    _, memory = compressor.decode_and_remember(payload, like, memory)
    _, state = compressor.encode({"w": normal(40, seed=1)}, state, rng_for(1))
    payload, _ = compressor.encode({"w": normal(40, seed=2)}, state, rng_for(2))
    for other in (memory, {}, {"w": torch.zeros(3)}, {"w": torch.full((40,), torch.nan)}):
        with pytest.raises(StaleMemoryError, match="builds on other numbers"):
            compressor.decode(payload, like, other)


def test_a_sender_may_start_anew_whatever_the_decoder_remembers() -> None:
    compressor = parse("ef21(quantize(4))")
    like = {"w": normal(40)}
    payload, _ = compressor.encode(like, compressor.init(like), rng_for(0))
    decoded, memory = compressor.decode_and_remember(payload, like, {})
    payload, _, expected = compressor.encode_and_decode(like, compressor.init(like), rng_for(1))
    assert torch.equal(compressor.decode(payload, like, memory)["w"], expected["w"])
    assert not torch.equal(decoded["w"], expected["w"])


def test_swings_beyond_the_largest_float_stay_finite() -> None:
    compressor = parse("delta(raw())")
    update = {"w": torch.tensor([3e38, -3e38, 1.0])}
    state, memory = compressor.init(update), {}
    for sign in (1, -1, 1):
        payload, state = compressor.encode({"w": sign * update["w"]}, state, rng_for(0))
        decoded, memory = compressor.decode_and_remember(payload, update, memory)
        assert bool(decoded["w"].isfinite().all())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ef21(random_k(0.1))", "write random_k"),
        ("delta(random_k(0.1), factor=1, rate=1)", "write random_k"),
        ("ef21(error_feedback(sign()))", "ef21: cannot stand around error_feedback"),
        ("delta(error_feedback(sign()))", "delta: cannot stand around error_feedback"),
        ("ef21(delta(sign()))", "predicts already"),
        ("delta(ef21(sign()))", "cannot stand around ef21"),
        ("delta(delta(sign()))", "stands twice"),
        ("delta(sign(), factor=0)", r"factor must be in \(0, 1\]"),
        ("delta(sign(), rate=2)", "did you mean 0.02"),
        ("ef21(3)", "takes a chain or compressor"),
        ("ef21(sign(), 2)", "it takes: compressor"),
    ],
)
def test_settings_that_cannot_work_are_refused(text: str, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        parse(text)


def test_specs_are_written_one_way() -> None:
    assert str(parse("delta(sign(), None, .5)")) == "delta(sign() | entropy())"
    assert str(parse("delta(sign(), 1, 1)")) == "delta(sign() | entropy(), factor=1.0, rate=1.0)"
    assert str(parse("ef21(top_k(1))")) == "ef21(top_k(1.0) | entropy())"


def test_whoever_changes_what_was_decoded_changes_no_memory() -> None:
    compressor = parse("ef21(quantize(4))")
    like = {"w": normal(40)}
    payload, state, sent = compressor.encode_and_decode(like, compressor.init(like), rng_for(0))
    decoded, memory = compressor.decode_and_remember(payload, like, {})
    sent["w"].zero_()
    decoded["w"].zero_()
    payload, _ = compressor.encode(like, state, rng_for(1))
    assert bool(compressor.decode(payload, like, memory)["w"].any())
