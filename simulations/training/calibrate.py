"""A short measurement, where no rule says which program trains a model faster."""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import deepcopy

import numpy as np
import torch
from torch import nn

from simulations.data import FederatedData
from simulations.training.choose import TrainingPath
from simulations.training.cohort import CohortMember, can_stack, train_cohort
from simulations.training.dense import dense_layers
from simulations.training.eager import train_eagerly
from simulations.training.options import TrainingOptions

CLIENTS = 8
BATCHES = 2
SECONDS = 0.1  # of each program, after a first run that loads what it needs
# Less of an advantage than this is within what a measurement so short may err.
WORTHWHILE = 1.1


def has_no_rule(
    path: TrainingPath, model: nn.Module, data: FederatedData, device: torch.device
) -> bool:
    """Say whether only a measurement can tell: models but dense ones, on a GPU that is here."""
    return (
        path == "auto"
        and device.type != "cpu"
        and not dense_layers(model)
        and can_stack(model, data, device)
        and (torch.cuda if device.type == "cuda" else torch.backends.mps).is_available()
    )


def faster_path(
    model: nn.Module, data: FederatedData, options: TrainingOptions, device: torch.device
) -> TrainingPath:
    """Train a copy of a model for some tenths of a second: one by one, and as a cohort."""
    model = deepcopy(model).to(device)
    count = min(len(data.train_y), BATCHES * options.batch_size)
    rows = np.arange(count)

    def alone() -> None:
        for client in range(CLIENTS):
            train_eagerly(model, data, rows, options, np.random.default_rng(client), device)

    def together() -> None:
        members = [CohortMember(rows, np.random.default_rng(i)) for i in range(CLIENTS)]
        train_cohort(model, data, members, options, device)

    return (
        "cohort" if _seconds(alone, device) > WORTHWHILE * _seconds(together, device) else "eager"
    )


def _seconds(train: Callable[[], None], device: torch.device) -> float:
    train()
    _wait_for(device)
    runs, began = 0, time.perf_counter()
    while not runs or time.perf_counter() - began < SECONDS:
        train()
        _wait_for(device)
        runs += 1
    return (time.perf_counter() - began) / runs


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
