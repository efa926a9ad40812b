"""Training of a stack of dense layers by a compiled loop, one client at a time, on a CPU."""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import nn

from simulations.data import FederatedData
from simulations.training.batches import pixel_scale
from simulations.training.dense import DenseLayer, dense_layers
from simulations.training.flat import FlatParameters, flat_parameters
from simulations.training.options import LocalResult, TrainingOptions

Array = np.ndarray[Any, np.dtype[Any]]


@final
@dataclass(frozen=True)
class _Plan:
    """A dense model as the compiled loop takes it."""

    flat: FlatParameters
    values: Array
    layout: tuple[Array, Array, Array, Array]


# Neither a change of a model's layers nor a hook is noticed after its first training.
_PLANS: weakref.WeakKeyDictionary[nn.Module, _Plan] = weakref.WeakKeyDictionary()


def can_compile(model: nn.Module, data: FederatedData, device: torch.device) -> bool:
    """Say whether there is a compiled loop for a model on these data."""
    layers = dense_layers(model)
    return (
        bool(layers)
        and device.type == "cpu"
        and data.task == "image"
        and data.train_x.dtype == np.uint8
        and layers[0].features == math.prod(data.train_x.shape[1:])
    )


def train_compiled(
    model: nn.Module,
    data: FederatedData,
    rows: Array,
    options: TrainingOptions,
    rng: np.random.Generator,
) -> LocalResult:
    """Train a model in place on some rows, at least one; see `train_locally`.

    The order of the samples and every step are those of `train_eagerly`; sums are rounded
    otherwise. The result does not depend on what else is trained.
    """
    from simulations.training.dense_kernel import train_dense

    plan = _plan_of(model)
    pixels, targets, scale, shift = stored_arrays(data)
    weights_at, biases_at, sizes, activations = plan.layout
    loss = train_dense(
        plan.values,
        pixels,
        targets,
        ordered(rows, options, rng),
        options.local_epochs,
        options.batch_size,
        scale,
        shift,
        weights_at,
        biases_at,
        sizes,
        activations,
        *optimizer_numbers(options),
    )
    return finished(model, loss, len(rows), sizes[-1], options)


def ordered(rows: Array, options: TrainingOptions, rng: np.random.Generator) -> Array:
    """Give the rows of all epochs, int64 (epochs * rows,), in the order of training."""
    rows = np.asarray(rows)
    orders = [rng.permutation(rows) for _ in range(options.local_epochs)]
    order = orders[0] if len(orders) == 1 else np.concatenate(orders)
    return order.astype(np.int64, copy=False)


def optimizer_numbers(
    options: TrainingOptions,
) -> tuple[int, np.float32, np.float32, np.float32, np.float32]:
    """Give what compiled loops take last: the optimiser and its settings."""
    from simulations.training.kernel_parts import OPTIMIZERS

    return (
        OPTIMIZERS[options.optimizer],
        np.float32(options.learning_rate),
        np.float32(options.momentum),
        np.float32(options.weight_decay),
        np.float32(options.proximal_mu),
    )


def finished(
    model: nn.Module, loss: float, samples: int, classes: int, options: TrainingOptions
) -> LocalResult:
    """Leave a model as training does, and give the result of a loop that gave this loss.

    Raises
    ------
    IndexError
        If the loss is negative: a target was no class of the model.
    """
    if loss < 0:
        raise IndexError(f"a target is no class of the model, which has {classes}")
    if not model.training:
        model.train()
    steps = options.local_epochs * -(-samples // options.batch_size)
    return LocalResult(float(loss), samples, steps)


def _plan_of(model: nn.Module) -> _Plan:
    known = _PLANS.get(model)
    if known is not None and known.flat.holds():
        return known
    model.to("cpu")
    (flat,) = flat_parameters(model)
    plan = _Plan(flat, flat.values.numpy(), _layout(dense_layers(model), flat.places))
    _PLANS[model] = plan
    return plan


def _layout(
    layers: tuple[DenseLayer, ...], places: Mapping[str, int]
) -> tuple[Array, Array, Array, Array]:
    from simulations.training.kernel_parts import ACTIVATIONS

    return (
        np.array([places[layer.weight] for layer in layers]),
        np.array([places[layer.bias] if layer.bias else -1 for layer in layers]),
        np.array([layers[0].features, *(layer.units for layer in layers)]),
        np.array([ACTIVATIONS[layer.activation] for layer in layers]),
    )


_DATA: dict[str, tuple[FederatedData, tuple[Array, Array, Array, Array]]] = {}


def stored_arrays(data: FederatedData) -> tuple[Array, Array, Array, Array]:
    """Give pixels (n, features), targets, and what makes a pixel the input, by feature."""
    known = _DATA.get("last")
    if known is None or known[0] is not data:
        scale, shift = pixel_scale(data.pixel_mean, data.pixel_std)
        pixels = math.prod(data.train_x.shape[2:])
        # Plain arrays: those of a memory map cost some microseconds more at every use.
        arrays = (
            _read_only(np.asarray(data.train_x).reshape(len(data.train_x), -1)),
            _read_only(np.asarray(data.train_y)),
            np.repeat(scale, pixels),
            np.repeat(shift, pixels),
        )
        _DATA["last"] = known = data, arrays
    return known[1]


def _read_only(array: Array) -> Array:
    """Give a contiguous array that cannot be written: the one kind there is compiled code for."""
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view
