"""Gradients of any stacked models by torch.func."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from simulations.training.cohort import GradientProgram
from simulations.training.flat import FlatParameters


def vmap_program(
    model: nn.Module, flat: FlatParameters, values: Tensor, gradients: Tensor
) -> GradientProgram:
    """Build the gradient program of a model without buffers; see `GradientProgram`.

    Parameters
    ----------
    model : torch.nn.Module
        The model.
    flat : FlatParameters
        Its parameters.
    values, gradients : torch.Tensor
        Shape (clients, parameters).
    """
    stacked, into = flat.unstack(values), flat.unstack(gradients)

    def weighted_loss(
        parameters: dict[str, Tensor], x: Tensor, y: Tensor, weights: Tensor
    ) -> Tensor:
        logits = torch.func.functional_call(model, parameters, (x,))
        return (F.cross_entropy(logits, y, reduction="none") * weights).sum()

    both = torch.func.vmap(torch.func.grad_and_value(weighted_loss))

    def program(x: Tensor, y: Tensor, row_weights: Tensor) -> Tensor:
        count = len(x)
        found, losses = both({k: v[:count] for k, v in stacked.items()}, x, y, row_weights)
        for name, gradient in found.items():
            into[name][:count].copy_(gradient)
        per_client: Tensor = losses
        return per_client

    return program
