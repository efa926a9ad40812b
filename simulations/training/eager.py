"""Training of one client's model in eager PyTorch, without waste between the steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from simulations.data import FederatedData
from simulations.training.batches import batches
from simulations.training.flat import FlatParameters, flat_parameters
from simulations.training.options import LocalResult, TrainingOptions

Array = np.ndarray[Any, np.dtype[Any]]
_Step = Callable[[], None]
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
    steps_of = [_OPTIMIZERS[options.optimizer](flat, options) for flat in flats]
    anchors = [flat.values.clone() for flat in flats] if options.proximal_mu else []
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
                for flat, anchor in zip(flats, anchors, strict=False):
                    flat.gradients.add_(flat.values - anchor, alpha=options.proximal_mu)
                for step in steps_of:
                    step()
                total.add_(loss.detach())
                steps += 1
    finally:
        for flat in flats:
            flat.release_gradients()
    return LocalResult(float(total) / steps, len(rows), steps)


def _set_training(norms: Sequence[nn.Module], mode: bool) -> None:
    for norm in norms:
        norm.train(mode)


def _sgd(flat: FlatParameters, options: TrainingOptions) -> _Step:
    # By hand: torch.optim costs a small model a fifth of each step.
    values, gradients = flat.values, flat.gradients
    velocity: Tensor | None = torch.zeros_like(values) if options.momentum else None

    def step() -> None:
        if options.weight_decay:
            gradients.add_(values, alpha=options.weight_decay)
        if velocity is None:
            values.sub_(gradients, alpha=options.learning_rate)
        else:
            velocity.mul_(options.momentum).add_(gradients)
            values.sub_(velocity, alpha=options.learning_rate)

    return step


def _adam(flat: FlatParameters, options: TrainingOptions) -> _Step:
    make = torch.optim.AdamW if options.optimizer == "adamw" else torch.optim.Adam
    flat.values.grad = flat.gradients
    optimizer = make(
        [flat.values], lr=options.learning_rate, weight_decay=options.weight_decay, fused=True
    )

    def step() -> None:
        optimizer.step()

    return step


_OPTIMIZERS: dict[str, Callable[[FlatParameters, TrainingOptions], _Step]] = {
    "sgd": _sgd,
    "adam": _adam,
    "adamw": _adam,
}
