"""The traced bound against sources whose bound is known."""

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.rate_distortion import rate_distortion


def normal(size: int, sigma: float, seed: int = 0) -> NDArray[np.float32]:
    return (sigma * np.random.default_rng(seed).standard_normal(size)).astype(np.float32)


def water_filled_bits(variances: list[float], nmse: float) -> float:
    """Bits per entry of equally many entries of each variance (Cover & Thomas, ch. 10.3.3)."""
    spread = np.array(variances)
    low, high = 0.0, float(spread.max())
    for _ in range(100):
        level = (low + high) / 2
        low, high = (
            (low, level) if np.minimum(level, spread).sum() > nmse * spread.sum() else (level, high)
        )
    return float(np.maximum(0, np.log2(spread / level) / 2).mean())


def test_a_normal_source_takes_half_log_variance_over_error() -> None:
    bound = rate_distortion([normal(400_000, 0.01)])
    shown = bound.nmse < 0.7
    assert shown.sum() >= 10
    expected = np.log2(1 / bound.nmse[shown]) / 2
    assert bound.bits_per_parameter[shown] == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("nmse", [0.001, 0.02, 0.1, 0.3])
def test_normal_sources_share_the_error_by_reverse_water_filling(nmse: float) -> None:
    arrays = [normal(200_000, sigma, seed) for seed, sigma in enumerate((1.0, 0.3, 0.05))]
    bits = rate_distortion([arrays[0].reshape(400, 500), *arrays[1:]]).bits_at(nmse)
    assert bits == pytest.approx(water_filled_bits([1.0, 0.09, 0.0025], nmse), abs=0.02)


def test_a_fair_coin_under_squared_error() -> None:
    # A reproduction y = E[x | code] leaves the error 1 - y² and the entropy h((1 + y) / 2), which
    # is concave in y²: one |y| for all codes is best, and R(D) = 1 - h((1 + √(1 - D)) / 2).
    coin = np.repeat([-1, 1], 500).astype(np.float32)
    bound = rate_distortion([coin], smallest=0.08, largest=0.8, points=8, bins=40)
    assert bound.nmse[0] < 0.01
    assert bound.nmse[-1] > 0.4
    p = (1 + np.sqrt(1 - bound.nmse)) / 2
    entropy = -p * np.log2(p) - (1 - p) * np.log2(1 - p)
    assert bound.bits_per_parameter == pytest.approx(1 - entropy, abs=0.008)


def test_the_bound_falls_and_is_not_told_outside_of_its_points() -> None:
    heavy = np.random.default_rng(1).standard_t(2.2, 50_000).astype(np.float32)
    bound = rate_distortion([heavy, normal(10, 3.0), np.zeros(7, np.float32)])
    assert (np.diff(bound.nmse) > 0).all()
    assert (np.diff(bound.bits_per_parameter) <= 0).all()
    assert bound.nmse[-1] < 1
    assert bound.bits_at(bound.nmse[0] / 2) is None
