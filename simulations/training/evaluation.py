"""Accuracy and loss of a model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from simulations.data import FederatedData

Array = np.ndarray[Any, np.dtype[Any]]


@final
@dataclass(frozen=True)
class Evaluation:
    """Share of right answers in [0, 1], mean cross-entropy in nats, samples seen.

    ``parts`` holds the accuracies of what is tested beside the model: of its slices, say, or of
    the models that it is an ensemble of.
    """

    accuracy: float
    loss: float
    num_examples: int
    parts: Mapping[str, float] = field(default_factory=dict)


def evaluate(
    model: nn.Module,
    data_x: Array,
    data_y: Array,
    data: FederatedData,
    batch_size: int = 128,
    device: str | torch.device = "cpu",
) -> Evaluation:
    """Measure accuracy and loss of a model, leaving its state and mode as they were.

    Parameters
    ----------
    model : torch.nn.Module
        The model; moved to ``device``.
    data_x, data_y : numpy.ndarray
        Samples as in ``data.test_x`` and their classes, int64.
    data : FederatedData
        Data set that the samples belong to.
    batch_size : int
        Samples per forward pass; more than some hundred images leave a CPU's cache.
    device : str or torch.device
        Where to evaluate.

    Returns
    -------
    Evaluation
        NaN accuracy and loss when there are no samples.
    """
    n = len(data_y)
    if n == 0:
        return Evaluation(float("nan"), float("nan"), 0)
    was_training = model.training
    model.to(device).eval()
    right, loss = 0, 0.0
    with torch.inference_mode():
        for start in range(0, n, batch_size):
            part = slice(start, start + batch_size)
            y = torch.from_numpy(np.array(data_y[part])).to(device)
            logits = model(data.inputs(torch.from_numpy(np.array(data_x[part])).to(device)))
            right += int((logits.argmax(1) == y).sum())
            loss += float(F.cross_entropy(logits, y, reduction="sum"))
    model.train(was_training)
    return Evaluation(right / n, loss / n, n)
