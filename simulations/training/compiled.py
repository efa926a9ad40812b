"""Training of a stack of dense layers by a compiled loop, one client at a time, on a CPU."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import nn

from simulations.data import FederatedData
from simulations.training.batches import pixel_scale
from simulations.training.dense import DenseLayer, dense_layers
from simulations.training.flat import flat_parameters
from simulations.training.options import LocalResult, TrainingOptions

Array = np.ndarray[Any, np.dtype[Any]]


def can_compile(model: nn.Module, data: FederatedData, device: torch.device) -> bool:
    """Say whether there is a compiled loop for a model on these data."""
    layers = dense_layers(model)
    return (
        device.type == "cpu"
        and bool(layers)
        and data.task == "image"
        and data.train_x.dtype == np.uint8
        and layers[0].features == int(np.prod(data.sample_shape))
        and all(p.is_contiguous() and p.device.type == "cpu" for p in model.parameters())
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
    from simulations.training import dense_kernel as kernel

    (flat,) = flat_parameters(model)
    layers = dense_layers(model)
    if int(data.train_y[rows].max()) >= layers[-1].units or int(data.train_y[rows].min()) < 0:
        raise IndexError(f"a target is no class of the model, which has {layers[-1].units}")
    order = np.concatenate([rng.permutation(rows) for _ in range(options.local_epochs)])
    scale, shift = _per_feature(data.pixel_mean, data.pixel_std, data.sample_shape)
    loss = kernel.train_dense(
        flat.values.numpy(),
        data.train_x.reshape(len(data.train_x), -1),
        data.train_y,
        order.astype(np.int64, copy=False),
        options.local_epochs,
        options.batch_size,
        scale,
        shift,
        *_plan(layers, tuple(flat.places.items())),
        {"sgd": kernel.SGD, "adam": kernel.ADAM, "adamw": kernel.ADAMW}[options.optimizer],
        np.float32(options.learning_rate),
        np.float32(options.momentum),
        np.float32(options.weight_decay),
        np.float32(options.proximal_mu),
    )
    model.train()
    steps = options.local_epochs * -(-len(rows) // options.batch_size)
    return LocalResult(float(loss), len(rows), steps)


@lru_cache(maxsize=8)
def _plan(
    layers: tuple[DenseLayer, ...], places: tuple[tuple[str, int], ...]
) -> tuple[Array, Array, Array, Array]:
    from simulations.training import dense_kernel as kernel

    kinds = {
        None: kernel.LINEAR,
        "relu": kernel.RELU,
        "tanh": kernel.TANH,
        "sigmoid": kernel.SIGMOID,
    }
    where = dict(places)
    return (
        np.array([where[layer.weight] for layer in layers]),
        np.array([where[layer.bias] if layer.bias else -1 for layer in layers]),
        np.array([layers[0].features, *(layer.units for layer in layers)]),
        np.array([kinds[layer.activation] for layer in layers]),
    )


@lru_cache(maxsize=8)
def _per_feature(
    mean: tuple[float, ...], std: tuple[float, ...], shape: tuple[int, ...]
) -> tuple[Array, Array]:
    scale, shift = pixel_scale(mean, std)
    pixels = int(np.prod(shape[1:]))
    return np.repeat(scale, pixels), np.repeat(shift, pixels)
