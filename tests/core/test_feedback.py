"""What error feedback keeps of what it did not send: all of it, or what decay and clip leave."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedcompress import SpecError, parse, rng_for


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(rng_for(seed, purpose="x").standard_normal(shape).astype(np.float32))


settings = st.tuples(
    st.sampled_from(["top_k(0.1)", "sign()", "quantize(2)", "threshold(0.7)"]),
    st.floats(0.05, 1.0),
    st.none() | st.floats(0.05, 3.0),
)


@given(settings, st.integers(0, 100))
def test_what_was_sent_and_what_is_left_account_for_everything(
    given: tuple[str, float, float | None], seed: int
) -> None:
    """Check sent + residual / c == update + decay · old residual, c what clipping multiplied by."""
    inner, decay, clip = given
    compressor = parse(f"error_feedback({inner}, decay={decay}, clip={clip})")
    like = {"w": torch.zeros(20, 10), "b": torch.zeros(7)}
    state = compressor.init(like)
    for i in range(4):
        update = {
            "w": normal(20, 10, seed=seed + i) * 3.0**-i,
            "b": normal(7, seed=seed + 50 + i),
        }
        old = state
        payload, state = compressor.encode(update, old, rng_for(seed, round=i))
        sent = compressor.decode(payload, like)
        for name, x in update.items():
            left = (x + decay * old[f"residual/{name}"] - sent[name]).double()
            limit = float("inf") if clip is None else clip * float(x.double().norm())
            c = min(1.0, limit / float(left.norm())) if bool(left.any()) else 1.0
            torch.testing.assert_close(
                state[f"residual/{name}"].double(), c * left, rtol=1e-5, atol=1e-6
            )
            assert float(state[f"residual/{name}"].double().norm()) <= limit * (1 + 1e-6)


def test_without_settings_nothing_is_lost_and_the_spec_is_that_of_before() -> None:
    plain = parse("error_feedback(top_k(0.1) | entropy())")
    assert str(plain) == "error_feedback(top_k(0.1) | entropy())"
    assert parse("error_feedback(top_k(0.1), decay=1, clip=None)") == plain
    settings = parse("error_feedback(top_k(0.1), 0.5, 2)")
    assert str(settings) == "error_feedback(top_k(0.1) | entropy(), decay=0.5, clip=2.0)"


@pytest.mark.parametrize(
    ("spec", "key"),
    [
        ("error_feedback(top_k(0.1), decay=0.5)", "residual/w"),
        ('route({"w": error_feedback(top_k(0.1), decay=0.5)}, default=raw())', "0/residual/w"),
        ("momentum(error_feedback(top_k(0.1), decay=0.5))", "inner/residual/w"),
    ],
)
def test_residuals_decay_in_every_round_that_was_missed(spec: str, key: str) -> None:
    compressor = parse(spec)
    update = {"w": normal(100)}
    _, state = compressor.encode(update, compressor.init(update), rng_for(0))
    away = compressor.after_absence(state, 3)
    assert away.keys() == state.keys()
    for name, x in state.items():
        expected = x / 8 if name == key else x
        assert torch.equal(away[name], expected), name
    assert bool(state[key].any())


def test_without_decay_absence_changes_nothing() -> None:
    compressor = parse("error_feedback(sign())")
    _, state = compressor.encode({"w": normal(9)}, compressor.init({"w": normal(9)}), rng_for(0))
    assert all(torch.equal(compressor.after_absence(state, 9)[k], x) for k, x in state.items())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("error_feedback(sign(), decay=0)", r"error_feedback: decay must be in \(0, 1\], got 0"),
        ("error_feedback(sign(), decay=90)", "did you mean 0.9"),
        ("error_feedback(sign(), clip=0)", "clip must be a finite number above 0"),
        ("error_feedback(sign(), fade=1)", "it takes: compressor, decay, clip"),
        ("error_feedback(ef21(sign()))", "cannot stand around ef21, since both correct"),
        ("error_feedback(momentum(sign()))", "cannot stand around momentum"),
    ],
)
def test_settings_that_cannot_work_are_refused(text: str, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        parse(text)
