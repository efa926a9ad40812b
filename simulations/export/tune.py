"""Tune a pruned or rounded model to answer as the model that it was made from."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from fedcompress.distill import kl_divergence, predict_logits
from fedcompress.errors import ConfigError
from simulations.export.levels import is_weight

Masks = Mapping[str, Tensor]
Rounding = Callable[[str, Tensor], Tensor]
_BATCH = 64
_TEMPERATURE = 2.0
_LEARNING_RATE = 1e-3


def steps_of(rows: int, epochs: int) -> int:
    """Count the optimiser's steps of so many epochs."""
    return max(1, rows // min(_BATCH, rows)) * epochs


def tune(
    model: nn.Module,
    inputs: Tensor,
    teacher: nn.Module,
    *,
    epochs: int,
    rng: np.random.Generator,
    masks_at: Callable[[int], Masks] | None = None,
    rounding: Rounding | None = None,
    ranges: bool = False,
) -> None:
    """Train a model to give its teacher's logits on unlabelled inputs, in place.

    Adam with a cosine schedule on the KL divergence at temperature 2 (Hinton et al., 2015). With
    `rounding` the forward pass sees rounded weights and the gradient goes to the exact ones
    (straight-through estimator: Bengio et al., 2013; Jacob et al., 2018, quantization-aware
    training).

    Parameters
    ----------
    model : nn.Module
        Changed in place; its mode is as before on return.
    inputs : Tensor
        Unlabelled inputs, shape (rows, ...), at least two.
    teacher : nn.Module
        The model to follow; left as it is.
    epochs : int
        Passes over the inputs, at least 1.
    rng : numpy.random.Generator
        Draws the batches.
    masks_at : callable, optional
        Gives the masks at a step, counted from 0, by names of parameters: pruned entries stay
        exactly zero.
    rounding : callable, optional
        Rounds a weight, given its name and what it is.
    ranges : bool
        Round also the inputs of dense and convolutional layers, to 256 levels between the least
        and the largest that each had at the start.

    Raises
    ------
    ConfigError
        If there are fewer than two rows or no epoch.
    """
    if len(inputs) < 2 or epochs < 1:
        raise ConfigError(
            f"tune: needs at least 2 rows and 1 epoch, got {len(inputs)} and {epochs}; "
            "set proxy.samples in the study, or leave --tune out"
        )
    target = predict_logits(teacher, inputs)
    steps = steps_of(len(inputs), epochs)
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.Adam(parameters.values(), lr=_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    modes = [(module, module.training) for module in model.modules()]
    batches = _batches(len(inputs), rng)
    with _rounded_inputs(model, inputs) if ranges else nullcontext():
        model.train()
        for step in range(steps):
            masks = {} if masks_at is None else masks_at(step)
            _apply(parameters, masks)
            rows = next(batches)
            optimizer.zero_grad(set_to_none=True)
            with _rounded_weights(parameters, rounding):
                loss = kl_divergence(model(inputs[rows]), target[rows], _TEMPERATURE)
                loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            _apply(parameters, masks)
    for module, training in modes:
        module.training = training


def _apply(parameters: Mapping[str, Tensor], masks: Masks) -> None:
    with torch.no_grad():
        for name, mask in masks.items():
            parameters[name].mul_(mask)


@contextmanager
def _rounded_weights(
    parameters: Mapping[str, nn.Parameter], rounding: Rounding | None
) -> Iterator[None]:
    if rounding is None:
        yield
        return
    exact = {name: p.detach().clone() for name, p in parameters.items() if is_weight(p)}
    with torch.no_grad():
        for name, value in exact.items():
            parameters[name].copy_(rounding(name, value))
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in exact.items():
                parameters[name].copy_(value)


@contextmanager
def _rounded_inputs(model: nn.Module, inputs: Tensor) -> Iterator[None]:
    """Round what layers are given as a uint8 kernel would, gradients passing straight through."""
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    seen: dict[nn.Module, tuple[float, float]] = {}

    def measure(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        low, high = seen.get(layer, (0.0, 0.0))
        seen[layer] = min(low, float(given[0].min())), max(high, float(given[0].max()))

    def round_(layer: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        low, high = seen[layer]
        step = (high - low) / 255 or 1.0
        x = given[0]
        levels = (x.detach().clamp(low, high) / step).round() * step
        return (x + (levels - x).detach(), *given[1:])

    hooks = [layer.register_forward_pre_hook(measure) for layer in layers]
    predict_logits(model, inputs)
    for hook in hooks:
        hook.remove()
    hooks = [layer.register_forward_pre_hook(round_) for layer in layers if layer in seen]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _batches(rows: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    size = min(_BATCH, rows)
    while True:
        order = rng.permutation(rows)
        # Only full batches: one row has no statistics for a normalisation layer.
        for start in range(0, rows - size + 1, size):
            yield order[start : start + size]
