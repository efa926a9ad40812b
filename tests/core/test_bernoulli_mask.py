"""Masks are drawn with their probabilities, and cost their entropy."""

import math

import pytest
import torch

from fedcompress import OutOfRangeError, PayloadError, SpecError, bernoulli_mask, parse, rng_for
from fedcompress.streams import Layout
from fedcompress.testing import check_compressor


@pytest.mark.parametrize("coder", ["pack", "entropy", "lossless"])
def test_laws(coder: str) -> None:
    check_compressor(f"bernoulli_mask() | {coder}()", prepare=torch.sigmoid)


def test_unbiased_over_ten_thousand_draws() -> None:
    probabilities = torch.tensor([0.0, 1e-3, 0.1, 0.5, 0.9, 1 - 1e-3, 1.0])
    stage, like = bernoulli_mask(), Layout.of(probabilities)
    draws = torch.stack(
        [
            stage.decode(*stage.encode(probabilities, rng_for(0, round=i)), like)
            for i in range(10_000)
        ]
    )
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    standard_error = (probabilities * (1 - probabilities)).sqrt() / 100
    assert bool(((draws.mean(0) - probabilities).abs() <= 4 * standard_error).all())


@pytest.mark.parametrize("share", [0.02, 0.2, 0.5])
def test_bits_are_those_of_the_entropy(share: float) -> None:
    update = {"scores": torch.full((200, 1000), share)}
    entropy_bits = -share * math.log2(share) - (1 - share) * math.log2(1 - share)
    for coder, most in (("pack", 1.001), ("entropy", min(1.1 * entropy_bits, 1.0) + 0.004)):
        payload, _ = parse(f"bernoulli_mask() | {coder}()").encode(update, {}, rng_for(1))
        assert len(payload) * 8 / 200_000 <= most


def test_the_mean_of_many_clients_masks_is_the_mean_of_their_probabilities() -> None:
    compressor = parse("bernoulli_mask() | pack()")
    total, expected = torch.zeros(4000), torch.zeros(4000)
    for client in range(100):
        theta = {"theta": torch.rand(4000, generator=torch.Generator().manual_seed(client))}
        payload, _ = compressor.encode(theta, {}, rng_for(0, client=client))
        compressor.read(payload, theta)[0]["theta"].add_to(total, 0.01)
        expected += theta["theta"] * 0.01
    # The variance of a draw is at most a quarter.
    assert float((total - expected).square().mean()) < 0.25 / 100


@pytest.mark.parametrize("wrong", [-0.1, 1.5])
def test_other_numbers_than_probabilities_are_refused(wrong: float) -> None:
    compressor = parse("bernoulli_mask() | pack()")
    update = {"x": torch.tensor([0.5, wrong])}
    with pytest.raises(OutOfRangeError, match=r"takes probabilities in \[0, 1\], got entries from"):
        compressor.encode(update, {}, rng_for(1))
    rounded = {"x": torch.tensor([-1e-8, 1.0000001])}  # as sums leave them
    payload, _ = compressor.encode(rounded, {}, rng_for(1))
    assert compressor.decode(payload, rounded)["x"].tolist() == [0.0, 1.0]


def test_refusals() -> None:
    with pytest.raises(SpecError, match="send masks without a residual"):
        parse("error_feedback(bernoulli_mask() | pack())")
    with pytest.raises(PayloadError, match="other symbols than 0 and 1"):
        bernoulli_mask().decode(torch.tensor([0, 2]), (), Layout.of(torch.zeros(2)))
