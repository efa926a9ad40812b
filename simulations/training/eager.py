"""Training of one client's model in eager PyTorch, without waste between the steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from simulations.data import FederatedData
from simulations.training.batches import batches
from simulations.training.flat import flat_parameters
from simulations.training.optimizer import Steps
from simulations.training.options import LocalResult, TrainingOptions

Array = np.ndarray[Any, np.dtype[Any]]
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def train_eagerly(
    model: nn.Module,
    data: FederatedData,
    rows: Array,
    options: TrainingOptions,
    rng: np.random.Generator,
    device: torch.device,
) -> LocalResult:
    """Train a model in place on some rows, at least one; see `train_locally`."""
    model.to(device).train()
    flats = flat_parameters(model)
    optimizers = [Steps(flat.values, flat.gradients, options) for flat in flats]
    # One sample has no statistics of a batch, so normalisation takes the running ones.
    norms = [module for module in model.modules() if isinstance(module, _BATCH_NORMS)]
    total = torch.zeros((), dtype=torch.float64, device=device)
    steps = 0
    for flat in flats:
        flat.take_gradients()
    try:
        for _ in range(options.local_epochs):
            order = rng.permutation(rows)
            for x, y in batches(data, order, options.batch_size, device):
                for flat in flats:
                    flat.gradients.zero_()
                if norms and len(y) == 1:
                    _set_training(norms, False)
                loss = F.cross_entropy(model(x), y)
                loss.backward()  # type: ignore[no-untyped-call]
                if norms and len(y) == 1:
                    _set_training(norms, True)
                for optimizer in optimizers:
                    optimizer.step()
                total.add_(loss.detach())
                steps += 1
    finally:
        for flat in flats:
            flat.release_gradients()
    return LocalResult(float(total) / steps, len(rows), steps)


def _set_training(norms: Sequence[nn.Module], mode: bool) -> None:
    for norm in norms:
        norm.train(mode)
