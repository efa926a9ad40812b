"""Gradients of stacked dense models, by hand: batched products and no graph."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from simulations.training.cohort import GradientProgram
from simulations.training.dense import DenseLayer


def dense_program(
    layers: tuple[DenseLayer, ...], places: Mapping[str, int], values: Tensor, gradients: Tensor
) -> GradientProgram:
    """Build the gradient program of a stack of dense layers; see `GradientProgram`.

    Parameters
    ----------
    layers : tuple of DenseLayer
        The model.
    places : mapping
        Where each parameter begins in a row.
    values, gradients : torch.Tensor
        Shape (clients, parameters).
    """
    weights = [_part(values, places[layer.weight], layer.units, layer.features) for layer in layers]
    into = [_part(gradients, places[layer.weight], layer.units, layer.features) for layer in layers]
    biases = [_bias(values, places, layer) for layer in layers]
    bias_into = [_bias(gradients, places, layer) for layer in layers]

    def program(x: Tensor, y: Tensor, row_weights: Tensor) -> Tensor:
        count = len(x)
        inputs = [x.flatten(2)]
        for layer, weight, bias in zip(layers, weights, biases, strict=True):
            turned = weight[:count].transpose(1, 2)
            if bias is None:
                z = torch.bmm(inputs[-1], turned)
            else:
                z = torch.baddbmm(bias[:count].unsqueeze(1), inputs[-1], turned)
            inputs.append(_activate(z, layer.activation))
        log_shares = F.log_softmax(inputs[-1], 2)
        target = y.unsqueeze(2)
        losses = -(log_shares.gather(2, target).squeeze(2) * row_weights).sum(1)
        delta = log_shares.exp_()
        delta.scatter_add_(2, target, torch.full_like(target, -1, dtype=delta.dtype))
        delta.mul_(row_weights.unsqueeze(2))
        for i in range(len(layers) - 1, -1, -1):
            into[i][:count].baddbmm_(delta.transpose(1, 2), inputs[i], beta=0)
            bias = bias_into[i]
            if bias is not None:
                torch.sum(delta, 1, out=bias[:count])
            if i:
                delta = torch.bmm(delta, weights[i][:count])
                _through_activation(delta, inputs[i], layers[i - 1].activation)
        return losses

    return program


def _part(stacked: Tensor, place: int, units: int, features: int) -> Tensor:
    return stacked[:, place : place + units * features].view(-1, units, features)


def _bias(stacked: Tensor, places: Mapping[str, int], layer: DenseLayer) -> Tensor | None:
    if layer.bias is None:
        return None
    place = places[layer.bias]
    return stacked[:, place : place + layer.units]


def _activate(z: Tensor, kind: str | None) -> Tensor:
    if kind == "relu":
        return z.relu_()
    if kind == "tanh":
        return z.tanh_()
    return z.sigmoid_() if kind == "sigmoid" else z


def _through_activation(delta: Tensor, a: Tensor, kind: str | None) -> None:
    """Multiply by the derivative of an activation whose values are a."""
    if kind == "relu":
        delta.mul_(a > 0)
    elif kind == "tanh":
        delta.mul_(1 - a * a)
    elif kind == "sigmoid":
        delta.mul_(a * (1 - a))
