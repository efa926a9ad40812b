"""Agreement, changes and calibration against answers that are known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulations.explain.predictions import calibration_error, compare, log_softmax, reliability


def logits_of(probabilities: list[list[float]]) -> np.ndarray:
    return np.log(np.array(probabilities, dtype=np.float32))


def test_a_model_agrees_with_itself() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(100, 5)), rng.integers(0, 5, 100)
    told = compare(logits, logits, labels)
    assert (told.agreement, told.gained, told.lost) == (1.0, 0, 0)
    assert told.accuracy == pytest.approx(float((logits.argmax(1) == labels).mean()))


def test_rows_won_and_lost_make_up_the_change() -> None:
    rng = np.random.default_rng(1)
    dense, model = rng.normal(size=(2, 200, 4))
    labels = rng.integers(0, 4, 200)
    told = compare(model, dense, labels)
    change = told.accuracy - compare(dense, dense, labels).accuracy
    assert (told.gained - told.lost) / 200 == pytest.approx(change)


def test_perfect_calibration_has_no_error() -> None:
    """Of four rows with confidence 3/4 three are right, of two with 1/2 one."""
    sure, torn = [0.75, 0.25], [0.5001, 0.4999]
    logits = logits_of([sure, sure, sure, sure, torn, torn])
    told = compare(logits, logits, np.array([0, 0, 0, 1, 0, 1]))
    assert told.ece == pytest.approx(0, abs=1e-3)


def test_too_much_confidence_is_the_error() -> None:
    logits = logits_of([[0.9, 0.1]] * 10)
    told = compare(logits, logits, np.array([0] * 6 + [1] * 4))
    assert told.ece == pytest.approx(0.3, abs=1e-6)
    assert told.reliability == [(pytest.approx(0.9), pytest.approx(0.6), 10)]


def test_a_class_without_rows_has_no_accuracy() -> None:
    told = compare(np.eye(3)[[0, 0]], np.eye(3)[[0, 1]], np.array([0, 1]))
    assert told.per_class_accuracy == [1.0, 0.0, None]


def test_cross_entropy_is_that_of_the_labels() -> None:
    logits = logits_of([[0.8, 0.2], [0.3, 0.7]])
    told = compare(logits, logits, np.array([0, 0]))
    assert told.nll == pytest.approx(-(np.log(0.8) + np.log(0.3)) / 2, rel=1e-6)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60))
def test_every_row_is_in_one_interval(rows: list[tuple[float, bool]]) -> None:
    confidence, right = (np.array(each) for each in zip(*rows, strict=True))
    bins = reliability(confidence, right.astype(bool))
    assert sum(count for _, _, count in bins) == len(rows)
    assert 0 <= calibration_error(bins) <= 1


def test_logits_of_any_size_are_finite() -> None:
    assert np.isfinite(log_softmax(np.array([[1e4, -1e4], [0, 0]]))).all()
