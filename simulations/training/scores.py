"""Training of which weights of a random network to keep (FedPM's local training)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from simulations.data import FederatedData
from simulations.training.batches import batches
from simulations.training.flat import FlatParameters, flat_parameters
from simulations.training.optimizer import Steps
from simulations.training.options import LocalResult, TrainingOptions

Array = np.ndarray[Any, np.dtype[Any]]
_SUREST = 1e-3  # a probability nearer to 0 or 1 would hardly move any more


def train_probabilities(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    fixed: Mapping[str, Tensor],
    probabilities: Mapping[str, Tensor],
    data: FederatedData,
    rows: Array,
    options: TrainingOptions,
    rng: np.random.Generator,
    *,
    learning_rate: float,
    device: str | torch.device = "cpu",
) -> tuple[dict[str, Tensor], LocalResult]:
    """Train the probabilities with which weights are kept, the weights as they are.

    Each step draws a mask from the sigmoid of the scores. The gradient of the loss by a weight,
    times that weight, is taken for the gradient by its probability (straight through the draw;
    Bengio et al., 2013), and Adam steps on the scores (Isik et al., 2023).

    Parameters
    ----------
    model : torch.nn.Module
        The architecture; its parameters are overwritten.
    weights : mapping of str to torch.Tensor
        Of the random network, by the names of parameters.
    fixed : mapping of str to torch.Tensor
        The other parameters, which no mask is for.
    probabilities : mapping of str to torch.Tensor
        To begin with, of the names and shapes of ``weights``.
    data : FederatedData
        Data set that the rows belong to.
    rows : numpy.ndarray
        Rows of ``data.train_x`` that the client owns, shape (n,).
    options : TrainingOptions
        Epochs and batch size; nothing else of it is used.
    rng : numpy.random.Generator
        Draws the order of the samples and the masks.
    learning_rate : float
        Of Adam, on the scores.
    device : str or torch.device
        Where to train.

    Returns
    -------
    probabilities : dict of str to torch.Tensor
        On the CPU, in [0, 1].
    result : LocalResult
        What training did; with no rows nothing, and the probabilities are those given.
    """
    if len(rows) == 0:
        return dict(probabilities), LocalResult(0.0, 0, 0)
    where = torch.device(device)
    model.to(where).train()
    draw = torch.Generator(where).manual_seed(int(rng.integers(1 << 63)))
    adam = TrainingOptions(optimizer="adam", learning_rate=learning_rate)
    kept = {n: torch.logit(p.clamp(_SUREST, 1 - _SUREST)) for n, p in probabilities.items()}
    parts = [_Scores(flat, weights, fixed, kept, adam) for flat in flat_parameters(model)]
    parameters = [p for part in parts for p in part.flat.trained]
    views = [view for part in parts for view in part.gradient_views]
    total, steps = 0.0, 0
    for _ in range(options.local_epochs):
        for x, y in batches(data, rng.permutation(rows), options.batch_size, where):
            for part in parts:
                part.draw_mask(draw)
            loss = F.cross_entropy(model(x), y)
            gradients = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                torch._foreach_copy_(views, gradients)
            for part in parts:
                part.step()
            total += loss.item()
            steps += 1
    trained = {name: p for part in parts for name, p in part.probabilities().items()}
    result = LocalResult(total / steps, len(rows), steps)
    return {name: trained[name] for name in probabilities}, result


class _Scores:
    """The scores of a model's weights as one vector, beside the vector of its parameters."""

    def __init__(
        self,
        flat: FlatParameters,
        weights: Mapping[str, Tensor],
        fixed: Mapping[str, Tensor],
        scores: Mapping[str, Tensor],
        options: TrainingOptions,
    ) -> None:
        self.flat = flat
        self.gradient_views = list(flat.unstack(flat.gradients).values())
        self._weights = flat.flatten(weights, fill=0.0)
        self._fixed = flat.flatten(fixed, fill=0.0)
        self._scores = flat.flatten(scores, fill=0.0)
        self._names = [name for name in flat.places if name in scores]
        self._probabilities = torch.sigmoid(self._scores)
        self._noise = torch.empty_like(self._scores)
        self._optimizer = Steps(self._scores, flat.gradients, options)

    @torch.no_grad()
    def draw_mask(self, draw: torch.Generator) -> None:
        """Give the model the weights that a mask drawn from the scores keeps."""
        torch.sigmoid(self._scores, out=self._probabilities)
        self._noise.uniform_(generator=draw)
        torch.mul(self._weights, self._noise < self._probabilities, out=self.flat.values)
        self.flat.values.add_(self._fixed)

    @torch.no_grad()
    def step(self) -> None:
        """Step on the scores, by the gradients of the weights that are in the model's vector."""
        p = self._probabilities
        self.flat.gradients.mul_(self._weights).mul_(p).mul_(1 - p)
        self._optimizer.step()

    def probabilities(self) -> dict[str, Tensor]:
        """Give the probabilities by parameter."""
        views = self.flat.unstack(torch.sigmoid(self._scores))
        return {name: views[name].contiguous().cpu().clone() for name in self._names}
