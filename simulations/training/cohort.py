"""Training of many clients in one batched program.

The parameters of all clients lie in one tensor (clients, parameters), a step takes one batch of
each, and every operation is batched over clients. Clients stand in the order of their number of
steps, so that those which still train are always the first ones, and no step is taken for a client
that is done. Batches that are not full have rows of weight 0.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from simulations.data import FederatedData
from simulations.training.batches import resident_data
from simulations.training.dense import dense_layers
from simulations.training.flat import FlatParameters, flat_parameters
from simulations.training.optimizer import Steps
from simulations.training.options import LocalResult, TrainingOptions

Array = np.ndarray[Any, np.dtype[Any]]
# Set the gradients of the first clients for their inputs, targets and rows' weights, and give
# the sum of each client's weighted losses: (clients, rows, ...), (clients, rows) -> (clients,).
GradientProgram = Callable[[Tensor, Tensor, Tensor], Tensor]


@final
@dataclass(frozen=True)
class CohortMember:
    """One client of a cohort: its rows of the training data and the generator of their order."""

    rows: Array
    rng: np.random.Generator


@final
@dataclass(frozen=True)
class TrainedCohort:
    """What came of a cohort.

    Attributes
    ----------
    results : list of LocalResult
        In the order of the members.
    values : torch.Tensor
        Trained parameters, a row for each member, as `FlatParameters` has them.
    flat : FlatParameters
        Of the model; `load` makes it one member's.
    """

    results: list[LocalResult]
    values: Tensor
    flat: FlatParameters

    def load(self, member: int) -> None:
        """Put a member's trained parameters into the model."""
        self.flat.values.copy_(self.values[member])


def train_cohort(
    model: nn.Module,
    data: FederatedData,
    members: Sequence[CohortMember],
    options: TrainingOptions,
    device: str | torch.device = "cpu",
) -> TrainedCohort:
    """Train clients that start from the same model, each as `train_locally` trains it.

    Orders of samples and steps are those of `train_locally`, sums are rounded otherwise.

    Parameters
    ----------
    model : torch.nn.Module
        The global model; moved to ``device``, its parameters keep their values.
    data : FederatedData
        Data set that the rows belong to.
    members : sequence of CohortMember
        The clients, with any number of rows each.
    options : TrainingOptions
        How to train.
    device : str or torch.device
        Where to train.

    Raises
    ------
    ValueError
        If the model cannot be trained so: see `can_stack`.
    """
    where = torch.device(device)
    model.to(where).train()
    if not can_stack(model, data, where):
        raise ValueError(f"{type(model).__name__} cannot be trained as a cohort")
    (flat,) = flat_parameters(model)
    orders = [_order(member, options) for member in members]
    steps = [len(order) for order in orders]
    places = np.argsort(-np.array(steps), kind="stable")
    table = np.full((len(members), max(steps, default=0), options.batch_size), -1, np.int64)
    for place, member in enumerate(places):
        table[place, : steps[member]] = orders[member]
    values = flat.values.repeat(len(members), 1)
    gradients = torch.zeros_like(values)
    losses = torch.zeros(len(members), dtype=torch.float64, device=where)
    program = gradient_program(model, flat, values, gradients)
    optimizer = Steps(values, gradients, options)
    batches = _Batches(data, table, where)
    taken = np.array(steps)[places]
    for step in range(table.shape[1]):
        count = int(np.searchsorted(-taken, -step, side="left"))
        x, y, weights = batches.take(step, count)
        losses[:count] += program(x, y, weights)
        optimizer.step(count)
    back = np.argsort(places, kind="stable")
    means = (losses.cpu().numpy() / np.maximum(taken, 1))[back]
    results = [
        LocalResult(float(loss), len(member.rows), taken_steps)
        for loss, member, taken_steps in zip(means, members, steps, strict=True)
    ]
    return TrainedCohort(results, values[torch.from_numpy(back).to(where)], flat)


def can_stack(model: nn.Module, data: FederatedData, device: torch.device) -> bool:
    """Say whether a cohort of a model can be trained: stateless, of float32, nothing random.

    Every operation of it must have a batched form, which is tried out once on one sample.
    """
    if dense_layers(model):
        return True
    parameters = list(model.parameters())
    if (
        not parameters
        or not all(p.requires_grad and p.dtype == torch.float32 for p in parameters)
        or any(True for _ in model.buffers())
        or any(isinstance(m, _NOT_STACKED) for m in model.modules())
    ):
        return False
    # Which operations there are does not depend on having the device: tensors without memory do.
    kind = "cpu" if device.type == "cpu" else "meta"
    tried = _TRIED.setdefault(model, {})
    if kind not in tried:
        tried[kind] = _works_stacked(copy.deepcopy(model).to(kind), data)
    return tried[kind]


# Dropout draws other numbers when stacked; recurrent layers are taken apart, client by client;
# rows that fill up a batch would count in its statistics, if it is normalised by them.
_NOT_STACKED = (
    nn.modules.dropout._DropoutNd,
    nn.RNNBase,
    nn.modules.batchnorm._BatchNorm,
)
_TRIED: weakref.WeakKeyDictionary[nn.Module, dict[str, bool]] = weakref.WeakKeyDictionary()


def _works_stacked(model: nn.Module, data: FederatedData) -> bool:
    (flat,) = flat_parameters(model)
    values = flat.values.repeat(2, 1)
    program = gradient_program(model, flat, values, torch.zeros_like(values))
    x = data.inputs(np.array(data.train_x[:1])).to(values.device)
    y = torch.zeros((2, 1), dtype=torch.int64, device=values.device)
    try:
        program(torch.stack([x, x]), y, torch.ones((2, 1), device=values.device))
    except (RuntimeError, NotImplementedError):  # what torch.func raises for what it cannot do
        return False
    return True


def gradient_program(
    model: nn.Module, flat: FlatParameters, values: Tensor, gradients: Tensor
) -> GradientProgram:
    """Build what computes the gradients of stacked parameters: by hand, or by torch.func."""
    if dense_layers(model):
        from simulations.training.cohort_dense import dense_program

        return dense_program(dense_layers(model), flat.places, values, gradients)
    from simulations.training.cohort_vmap import vmap_program

    return vmap_program(model, flat, values, gradients)


def _order(member: CohortMember, options: TrainingOptions) -> Array:
    """Give the rows of each step, int64 (steps, batch), with -1 where a batch is not full."""
    batch = options.batch_size
    per_epoch = -(-len(member.rows) // batch)
    order = np.full((options.local_epochs, per_epoch * batch), -1, np.int64)
    for epoch in range(options.local_epochs if per_epoch else 0):
        order[epoch, : len(member.rows)] = member.rng.permutation(member.rows)
    return order.reshape(-1, batch)


@final
class _Batches:
    """Inputs, targets and weights of the steps of a cohort."""

    def __init__(self, data: FederatedData, table: Array, device: torch.device) -> None:
        self._data, self._device = data, device
        self._resident = resident_data(data, device)
        self._rows = table.clip(min=0)
        is_real = torch.from_numpy(table >= 0)
        counts = is_real.sum(2, keepdim=True).clamp_(min=1)
        self._weights = (is_real / counts).to(device)
        if self._resident is not None:
            self._places = torch.from_numpy(self._rows).to(device)

    def take(self, step: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Give the batches of the first `count` clients."""
        weights = self._weights[:count, step]
        shape = weights.shape
        if self._resident is not None:
            places = self._places[:count, step].reshape(-1)
            x, y = self._resident.x[places], self._resident.y[places]
        else:
            rows = self._rows[:count, step].reshape(-1)
            x = torch.from_numpy(np.take(self._data.train_x, rows, axis=0)).to(self._device)
            y = torch.from_numpy(np.take(self._data.train_y, rows)).to(self._device)
        x = self._data.inputs(x)
        return x.view(*shape, *x.shape[1:]), y.view(shape), weights
