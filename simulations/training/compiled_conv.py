"""Training of convolutions and dense layers by a compiled loop, one client at a time, on a CPU."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import nn

from simulations.data import FederatedData
from simulations.training.compiled import finished, optimizer_numbers, ordered, stored_arrays
from simulations.training.conv import conv_stack
from simulations.training.conv_memory import ConvMemory, image_sizes, lay_out
from simulations.training.flat import FlatParameters, flat_parameters
from simulations.training.options import LocalResult, TrainingOptions

Array = np.ndarray[Any, np.dtype[Any]]


@final
@dataclass(frozen=True)
class _Plan:
    """A model as the compiled loop takes it."""

    flat: FlatParameters
    values: Array
    image: tuple[int, ...]
    room: ConvMemory


# Neither a change of a model's layers nor a hook is noticed after its first training.
_PLANS: weakref.WeakKeyDictionary[nn.Module, _Plan] = weakref.WeakKeyDictionary()


def can_compile_conv(model: nn.Module, data: FederatedData, device: torch.device) -> bool:
    """Say whether there is a compiled loop for convolutions on these data."""
    stack = conv_stack(model) if device.type == "cpu" and data.task == "image" else None
    return (
        stack is not None
        and data.train_x.dtype == np.uint8
        and image_sizes(stack, data.sample_shape) is not None
    )


def train_compiled_conv(
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
    from simulations.training.conv_kernel import train_conv

    plan = _plan_of(model, data, min(options.batch_size, len(rows)))
    pixels, targets, scale, shift = stored_arrays(data)
    room = plan.room
    loss = train_conv(
        room.memory,
        plan.values,
        room.source,
        pixels,
        targets,
        ordered(rows, options, rng),
        options.local_epochs,
        options.batch_size,
        scale,
        shift,
        room.convolutions,
        room.dense,
        room.change,
        room.scratch,
        room.below,
        *optimizer_numbers(options),
    )
    return finished(model, loss, len(rows), room.dense[-1, 0], options)


def _plan_of(model: nn.Module, data: FederatedData, samples: int) -> _Plan:
    from simulations.training.kernel_parts import ACTIVATIONS

    known = _PLANS.get(model)
    if (
        known is not None
        and known.flat.holds()
        and known.image == data.sample_shape
        and known.room.batch_size >= samples
    ):
        return known
    stack = conv_stack(model)
    assert stack is not None
    model.to("cpu")
    (flat,) = flat_parameters(model)
    places = flat.unstack(torch.arange(len(flat.values)))
    room = lay_out(
        stack,
        data.sample_shape,
        {name: place.numpy() for name, place in places.items()},
        ACTIVATIONS,
        samples,
    )
    _PLANS[model] = plan = _Plan(flat, flat.values.numpy(), data.sample_shape, room)
    return plan
