"""Training of one client's model in eager PyTorch, without waste between the steps."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedcompress.errors import LayoutError
from simulations.data import FederatedData
from simulations.training.batches import batches
from simulations.training.flat import FlatParameters, flat_parameters
from simulations.training.optimizer import Steps
from simulations.training.options import LocalResult, TrainingOptions

Array = np.ndarray[Any, np.dtype[Any]]
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@final
@dataclass(frozen=True)
class _Plan:
    """What of a model is looked up once."""

    flats: list[FlatParameters]
    parameters: list[Tensor]
    gradient_views: list[Tensor]
    batch_norms: list[nn.Module]


# Neither a new layer of a model nor one that is frozen is noticed after its first training.
_PLANS: weakref.WeakKeyDictionary[nn.Module, _Plan] = weakref.WeakKeyDictionary()


def train_eagerly(
    model: nn.Module,
    data: FederatedData,
    rows: Array,
    options: TrainingOptions,
    rng: np.random.Generator,
    device: torch.device,
    mask: Mapping[str, Tensor] | None = None,
) -> LocalResult:
    """Train a model in place on some rows, at least one; see `train_locally`."""
    plan = _plan_of(model, device)
    model.train()
    kept = [] if mask is None else _masks(plan.flats, mask)
    absent = absent_classes(data, rows, device) if options.mask_loss else None
    # Plain descent needs no gradients side by side, which would be one more copy of them.
    is_plain = options.optimizer == "sgd" and not (
        options.momentum or options.weight_decay or options.proximal_mu or kept
    )
    optimizers = (
        [] if is_plain else [Steps(flat.values, flat.gradients, options) for flat in plan.flats]
    )
    on_cpu = device.type == "cpu"
    total = 0.0
    total_there = torch.zeros((), device=device)  # to read a loss is to wait for the device
    steps = 0
    for _ in range(options.local_epochs):
        order = rng.permutation(rows)
        for x, y in batches(data, order, options.batch_size, device):
            logits = _logits(model, x, plan.batch_norms)
            if absent is not None:
                logits = logits.masked_fill(absent, 0.0)
            loss = F.cross_entropy(logits, y)
            gradients = torch.autograd.grad(loss, plan.parameters)
            with torch.no_grad():
                if is_plain:
                    torch._foreach_add_(plan.parameters, gradients, alpha=-options.learning_rate)
                else:
                    torch._foreach_copy_(plan.gradient_views, gradients)
                for flat, there in zip(plan.flats, kept, strict=False):
                    # A gradient of exactly 0 stays one in every optimiser's momenta, and decay
                    # leaves an entry of 0 what it is.
                    flat.gradients.mul_(there)
                for optimizer in optimizers:
                    optimizer.step()
            if on_cpu:
                total += loss.item()
            else:
                total_there += loss.detach()
            steps += 1
    return LocalResult((total if on_cpu else float(total_there)) / steps, len(rows), steps)


def _masks(flats: Sequence[FlatParameters], mask: Mapping[str, Tensor]) -> list[Tensor]:
    """Give the mask as vectors of 0 and 1, and make the entries that are not there 0."""
    shapes = {name: p.shape for flat in flats for name, p in flat.by_name().items()}
    for name, there in mask.items():
        if name not in shapes or there.shape != shapes[name]:
            wanted = tuple(shapes[name]) if name in shapes else "no such parameter"
            raise LayoutError(
                f"training: the mask has {name} of shape {tuple(there.shape)}, the model "
                f"{wanted}; give the mask of this model"
            )
    vectors = [flat.flatten(mask, fill=1.0) for flat in flats]
    for flat, there in zip(flats, vectors, strict=True):
        flat.values.masked_fill_(there == 0, 0.0)
    return vectors


def absent_classes(data: FederatedData, rows: Array, device: torch.device) -> Tensor:
    """Say of which classes these rows have no sample: bool, shape (classes,)."""
    absent = torch.ones(data.num_classes, dtype=torch.bool)
    absent[torch.from_numpy(np.unique(data.train_y[rows]))] = False
    return absent.to(device)


def _plan_of(model: nn.Module, device: torch.device) -> _Plan:
    known = _PLANS.get(model)
    if known is not None and all(f.values.device == device and f.holds() for f in known.flats):
        return known
    model.to(device)
    flats = flat_parameters(model)
    plan = _Plan(
        flats,
        [p for flat in flats for p in flat.trained],
        [view for flat in flats for view in flat.unstack(flat.gradients).values()],
        [module for module in model.modules() if isinstance(module, _BATCH_NORMS)],
    )
    _PLANS[model] = plan
    return plan


def _logits(model: nn.Module, x: Tensor, batch_norms: Sequence[nn.Module]) -> Tensor:
    if len(x) > 1 or not batch_norms:
        logits: Tensor = model(x)
        return logits
    if any(getattr(norm, "running_mean", None) is None for norm in batch_norms):
        # Twice the same sample has its statistics, which PyTorch refuses to take of one number.
        twice: Tensor = model(torch.cat([x, x]))
        return twice[:1]
    # One sample has no statistics of a batch, so normalisation takes the running ones.
    for norm in batch_norms:
        norm.eval()
    logits = model(x)
    for norm in batch_norms:
        norm.train()
    return logits
