"""Which program trains a model: a function of the model, the data and the device alone.

Every worker, and the driver, must choose alike, since the programs round differently.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from simulations.data import FederatedData
from simulations.training.compiled import can_compile

TrainingPath = Literal["auto", "eager", "compiled", "cohort"]


def choose_path(
    path: TrainingPath, model: nn.Module, data: FederatedData, device: torch.device
) -> TrainingPath:
    """Give the program that trains: what was asked for where it can be, else the fastest.

    Stacks of dense layers on a CPU are compiled: 3 times eager training of 784-128-10, 6 times
    of smaller ones. Everything else on a CPU is eager: vectorised over clients it takes as long or
    longer, whatever the model (0.6 to 1.1 times measured).
    """
    if path in ("auto", "compiled") and can_compile(model, data, device):
        return "compiled"
    return "eager"
