"""The steps of an optimiser on flat parameters: of one model, or of many models stacked."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor

from simulations.training.options import TrainingOptions

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


@final
class Steps:
    """Change parameters by their gradients, step after step.

    By hand, since torch.optim costs a small model a fifth of each step. The first axis may be
    cut at each step, to the clients that still train.

    Parameters
    ----------
    values, gradients : torch.Tensor
        Of equal shape; `step` reads gradients and may write to them.
    options : TrainingOptions
        Which optimiser.
    """

    def __init__(self, values: Tensor, gradients: Tensor, options: TrainingOptions) -> None:
        self._values, self._gradients, self._options = values, gradients, options
        self._anchor = values.clone() if options.proximal_mu else None
        self._pull = torch.empty_like(values) if options.proximal_mu else None
        is_adam = options.optimizer != "sgd"
        self._first = torch.zeros_like(values) if is_adam or options.momentum else None
        self._second = torch.zeros_like(values) if is_adam else None
        self._taken = 0

    def step(self, count: int | None = None) -> None:
        """Take one step, of the first `count` rows if given."""
        o = self._options
        values, gradients = self._values[:count], self._gradients[:count]
        self._taken += 1
        if self._anchor is not None and self._pull is not None:
            # The difference first: it is exactly 0 where a parameter has not moved.
            pull = torch.sub(values, self._anchor[:count], out=self._pull[:count])
            gradients.add_(pull, alpha=o.proximal_mu)
        if o.weight_decay and o.optimizer != "adamw":
            gradients.add_(values, alpha=o.weight_decay)
        if self._first is None:
            values.sub_(gradients, alpha=o.learning_rate)
            return
        first = self._first[:count]
        if self._second is None:
            first.mul_(o.momentum).add_(gradients)
            values.sub_(first, alpha=o.learning_rate)
            return
        second = self._second[:count]
        if o.optimizer == "adamw":
            values.mul_(1 - o.learning_rate * o.weight_decay)
        first.lerp_(gradients, 1 - BETA1)
        second.mul_(BETA2).addcmul_(gradients, gradients, value=1 - BETA2)
        torch.sqrt(second, out=gradients)
        gradients.div_(math.sqrt(1 - BETA2**self._taken)).add_(EPSILON)
        values.addcdiv_(first, gradients, value=-o.learning_rate / (1 - BETA1**self._taken))
