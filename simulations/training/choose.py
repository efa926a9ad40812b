"""Which program trains a model: a function of the model, the data and the device alone.

Every worker, and the driver, must choose alike, since the programs round differently.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from simulations.data import FederatedData
from simulations.training.cohort import can_stack
from simulations.training.compiled import can_compile
from simulations.training.compiled_conv import can_compile_conv
from simulations.training.dense import dense_layers

TrainingPath = Literal["auto", "eager", "compiled", "cohort"]


def choose_path(
    path: TrainingPath, model: nn.Module, data: FederatedData, device: torch.device
) -> TrainingPath:
    """Give the program that trains: what is asked for where the model can be, else the best.

    Stacks of dense layers are compiled on a CPU: 3 times as fast as eager training of 784-128-10,
    30 times of the smallest. So are convolutions before them: 2 to 3 times as fast with up to 64
    channels, 1.3 times with 256. On a GPU, where starting an operation takes longer than the
    operation, they are trained as cohorts. Everything else is eager: vectorised over clients it
    takes a CPU as long or longer, whatever the model (0.6 to 1.1 times measured). On a GPU no rule
    holds: a study measures (`faster_path`) and then asks for what it found.

    Parameters
    ----------
    path : {"auto", "eager", "compiled", "cohort"}
        What is asked for.
    model : torch.nn.Module
        What is trained.
    data : FederatedData
        On what.
    device : torch.device
        Where.

    Returns
    -------
    str
        "eager", "compiled" or "cohort".
    """
    if path in ("auto", "compiled") and (
        can_compile(model, data, device) or can_compile_conv(model, data, device)
    ):
        return "compiled"
    on_accelerator = path == "auto" and device.type != "cpu" and bool(dense_layers(model))
    if (on_accelerator or path == "cohort") and can_stack(model, data, device):
        return "cohort"
    return "eager"
