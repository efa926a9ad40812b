"""How two models' answers differ on labelled rows: accuracy, classes, agreement, calibration."""

from dataclasses import dataclass
from typing import Any, final

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
BINS = 15


@final
@dataclass(frozen=True)
class Answers:
    """What a model's logits say, beside the labels and the dense model's logits.

    Attributes as in `Explained`.
    """

    accuracy: float
    per_class_accuracy: list[float | None]
    gained: int
    lost: int
    agreement: float
    nll: float
    ece: float
    reliability: list[tuple[float, float, int]]


def compare(logits: Array, dense_logits: Array, labels: Array) -> Answers:
    """Measure a model's answers against labels and against the dense model's.

    Parameters
    ----------
    logits, dense_logits : ndarray
        Shape (rows, classes), floats.
    labels : ndarray
        Shape (rows,), classes.
    """
    answers, dense = logits.argmax(1), dense_logits.argmax(1)
    right, dense_right = answers == labels, dense == labels
    log_probabilities = log_softmax(logits)
    confidence = np.exp(log_probabilities.max(1))
    bins = reliability(confidence, right)
    return Answers(
        accuracy=float(right.mean()),
        per_class_accuracy=_by_class(right, labels, logits.shape[1]),
        gained=int((right & ~dense_right).sum()),
        lost=int((dense_right & ~right).sum()),
        agreement=float((answers == dense).mean()),
        nll=float(-np.take_along_axis(log_probabilities, labels[:, None], 1).mean()),
        ece=calibration_error(bins),
        reliability=bins,
    )


def log_softmax(logits: Array) -> Array:
    """Give the logarithms of the probabilities, float64, of the same shape."""
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))


def reliability(
    confidence: Array, right: Array, bins: int = BINS
) -> list[tuple[float, float, int]]:
    """Give mean confidence, accuracy and rows for each interval of confidence that has rows.

    Intervals are of equal width; the k-th holds confidences in (k ÷ bins, (k + 1) ÷ bins].

    Parameters
    ----------
    confidence : ndarray
        Shape (rows,), probability of the answer.
    right : ndarray of bool
        Shape (rows,), whether the answer is right.
    """
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    return [
        (float(confidence[there].mean()), float(right[there].mean()), int(there.sum()))
        for there in (place == index for index in range(bins))
        if there.any()
    ]


def calibration_error(bins: list[tuple[float, float, int]]) -> float:
    """Give the expected calibration error, 0 to 1 (Naeini et al., 2015; Guo et al., 2017).

    The mean over rows of |accuracy − confidence| of the interval that a row falls into.
    """
    rows = sum(count for _, _, count in bins)
    return sum(count * abs(share - confident) for confident, share, count in bins) / max(rows, 1)


def _by_class(right: Array, labels: Array, classes: int) -> list[float | None]:
    rows = np.bincount(labels, minlength=classes)
    hits = np.bincount(labels[right], minlength=classes)
    return [float(hit / count) if count else None for hit, count in zip(hits, rows, strict=True)]
