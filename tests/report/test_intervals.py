"""The interval over seeds is Student's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulations.report.intervals import half_width, mean_and_interval

# Two-sided 95 % quantiles as printed in every table of Student's t, by number of seeds.
PRINTED_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 10: 2.262, 31: 2.042}


@pytest.mark.parametrize(("seeds", "quantile"), PRINTED_T.items())
def test_half_width_is_t_times_standard_error(seeds: int, quantile: float) -> None:
    values = [0.5 + 0.01 * (seed % 3) for seed in range(seeds)]
    mean = sum(values) / seeds
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (seeds - 1))
    found_mean, found = mean_and_interval(values)
    assert found_mean == pytest.approx(mean)
    assert found == pytest.approx(quantile * deviation / math.sqrt(seeds), rel=3e-4)


def test_one_seed_has_no_interval() -> None:
    mean, interval = mean_and_interval([0.7])
    assert mean == 0.7
    assert math.isnan(interval)


def test_no_seed_has_no_mean() -> None:
    assert all(math.isnan(value) for value in mean_and_interval([]))


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6), st.floats(0.1, 10))
def test_scales_with_the_values_and_works_by_column(values: list[float], factor: float) -> None:
    column = np.asarray(values)
    both = half_width(np.stack([column, factor * column], axis=1))
    assert both.shape == (2,)
    assert both[1] == pytest.approx(factor * both[0], abs=1e-9)
