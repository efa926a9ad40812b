"""Training in which every batch sees the first units of each layer only, as many as are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from fedcompress.slices import SliceMap, take
from simulations.data import FederatedData
from simulations.training.batches import batches
from simulations.training.eager import absent_classes
from simulations.training.flat import flat_parameters
from simulations.training.optimizer import Steps
from simulations.training.options import LocalResult, TrainingOptions

Array = np.ndarray[Any, np.dtype[Any]]


def train_with_ordered_dropout(
    model: nn.Module,
    narrower: Sequence[tuple[nn.Module, SliceMap]],
    data: FederatedData,
    rows: Array,
    options: TrainingOptions,
    rng: np.random.Generator,
    *,
    self_distil: bool = False,
    device: str | torch.device = "cpu",
) -> LocalResult:
    """Train a model in place so that its slices are models too (FjORD; Horvath et al., 2021).

    For each batch one width is drawn evenly, among those of the slices and the model's own, and
    the step is that of the slice alone. The first units are in every width, so they learn most.

    Parameters
    ----------
    model : torch.nn.Module
        Moved to ``device`` and changed in place; its parameters become views of one vector.
    narrower : sequence of (torch.nn.Module, map)
        Narrower models of the same layers, whose own weights do not matter, and where in the model
        each lies, from `fedcompress.slices.slice_map`.
    data : FederatedData
        Data set that the rows belong to.
    rows : numpy.ndarray
        Rows of ``data.train_x`` that the client owns, shape (n,).
    options : TrainingOptions
        How to train.
    rng : numpy.random.Generator
        Draws the order of the samples and the widths.
    self_distil : bool
        Whether the model itself learns from every batch, and the slice that is drawn follows what
        it says, at twice the cost.
    device : str or torch.device
        Where to train.

    Returns
    -------
    LocalResult
        With no rows: loss 0, no examples, no steps, and the model as it was.
    """
    if len(rows) == 0:
        return LocalResult(0.0, 0, 0)
    where_to = torch.device(device)
    model.to(where_to).train()
    for narrow, _ in narrower:
        narrow.to(where_to).train()
    flats = flat_parameters(model)
    trained = [p for flat in flats for p in flat.trained]
    views = [view for flat in flats for view in flat.unstack(flat.gradients).values()]
    optimizers = [Steps(flat.values, flat.gradients, options) for flat in flats]
    absent = absent_classes(data, rows, where_to) if options.mask_loss else None
    total, steps = 0.0, 0
    for _ in range(options.local_epochs):
        order = rng.permutation(rows)
        for x, y in batches(data, order, options.batch_size, where_to):
            drawn = int(rng.integers(len(narrower) + 1))
            loss = _loss(model, narrower[drawn : drawn + 1], x, y, absent, self_distil)
            gradients = torch.autograd.grad(loss, trained)
            with torch.no_grad():
                torch._foreach_copy_(views, gradients)
                for optimizer in optimizers:
                    optimizer.step()
            total += float(loss.detach())
            steps += 1
    return LocalResult(total / steps, len(rows), steps)


def _loss(
    model: nn.Module,
    drawn: Sequence[tuple[nn.Module, SliceMap]],
    x: Tensor,
    y: Tensor,
    absent: Tensor | None,
    self_distil: bool,
) -> Tensor:
    """Give the loss of the slice that was drawn, or of the model itself where none was."""
    if not drawn:
        return F.cross_entropy(_masked(model(x), absent), y)
    ((narrow, where),) = drawn
    arrays = {**dict(model.named_buffers()), **dict(model.named_parameters())}
    said: Tensor = _masked(functional_call(narrow, take(arrays, where), (x,)), absent)
    if not self_distil:
        return F.cross_entropy(said, y)
    whole = _masked(model(x), absent)
    followed = F.kl_div(
        F.log_softmax(said, -1),
        F.log_softmax(whole.detach(), -1),
        reduction="batchmean",
        log_target=True,
    )
    return F.cross_entropy(whole, y) + followed


def _masked(logits: Tensor, absent: Tensor | None) -> Tensor:
    return logits if absent is None else logits.masked_fill(absent, 0.0)
