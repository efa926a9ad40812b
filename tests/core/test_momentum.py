"""Momentum on the client: a running mean of its updates."""

import numpy as np
import pytest
import torch

from fedcompress import SpecError, parse, rng_for


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(rng_for(seed, purpose="x").standard_normal(shape).astype(np.float32))


def test_what_is_sent_is_the_running_mean() -> None:
    compressor = parse("momentum(raw(), beta=0.7)")
    like = {"w": torch.zeros(30), "h": torch.zeros(5).half(), "n": torch.tensor(0)}
    state, velocity = compressor.init(like), None
    for i in range(6):
        update = {"w": normal(30, seed=i), "h": normal(5, seed=i).half(), "n": torch.tensor(i)}
        _, state, sent = compressor.encode_and_decode(update, state, rng_for(0))
        x = update["w"]
        velocity = x if velocity is None else 0.7 * velocity + 0.3 * x
        torch.testing.assert_close(sent["w"], velocity)
        assert torch.equal(sent["n"], update["n"])


def test_with_ef21_the_estimate_follows_the_mean_of_noisy_updates() -> None:
    """EF21 alone sends noise; with momentum the estimate comes nearer to what the noise hides."""
    steady = normal(2000)

    def error_of(spec: str) -> float:
        compressor = parse(spec)
        state = compressor.init({"w": steady})
        errors = []
        for i in range(80):
            update = {"w": steady + 2 * normal(2000, seed=100 + i)}
            _, state, sent = compressor.encode_and_decode(update, state, rng_for(0, round=i))
            errors.append(float((sent["w"] - steady).norm() / steady.norm()))
        return float(np.mean(errors[40:]))

    assert error_of("momentum(ef21(top_k(0.1)), beta=0.95)") < 0.6 * error_of("ef21(top_k(0.1))")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("momentum(sign(), beta=1)", "beta must be below 1"),
        ("momentum(sign(), beta=0)", r"beta must be in \(0, 1\]"),
        ("momentum(3)", "takes a chain or compressor"),
        ("ef21(momentum(sign()))", "cannot stand around momentum"),
    ],
)
def test_settings_that_cannot_work_are_refused(text: str, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        parse(text)


def test_the_spec_names_beta_where_it_is_not_the_usual() -> None:
    assert str(parse("momentum(sign(), 0.9)")) == "momentum(sign() | entropy())"
    assert str(parse("momentum(sign(), 0.5)")) == "momentum(sign() | entropy(), beta=0.5)"
