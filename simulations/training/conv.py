"""Models of convolutions and dense layers in a row, told from their traced forward pass."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast, final

import torch
from torch import fx, nn
from torch.nn import functional as F

from simulations.models.channels_last import channels_last_on_cpu
from simulations.training.dense import (
    MODULE_HOOKS,
    DenseLayer,
    activation_of,
    follow_dense,
    is_flatten,
    kind_of,
)
from simulations.training.winograd import TAPS

# What a pooling takes beside its input, in this order, and what it has to be.
_POOLING = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
_POOLED = (("kernel_size", (2,)), ("stride", (2, None)), ("padding", (0,)), ("dilation", (1,)))


@final
@dataclass(frozen=True)
class ConvLayer:
    """One convolution of taps × taps, after which the largest of 2 × 2 goes through ReLU."""

    weight: str
    bias: str
    channels_in: int
    channels_out: int
    taps: int
    padding: int


@final
@dataclass(frozen=True)
class ConvStack:
    """The layers of a model: convolutions, and dense layers on their flattened outputs."""

    convolutions: tuple[ConvLayer, ...]
    dense: tuple[DenseLayer, ...]


_KNOWN: weakref.WeakKeyDictionary[nn.Module, ConvStack | None] = weakref.WeakKeyDictionary()


def conv_stack(model: nn.Module) -> ConvStack | None:
    """Give the layers of a model that is convolutions, then dense layers, and nothing else.

    Each convolution has square filters of 3 or 5 taps, stride 1, a bias, and zeros around the
    image; pooling of 2 × 2 and ReLU follow it in either order. None for any other model: one with
    a branch, a layer used twice, parameters that are frozen or no float32, a buffer, or a hook.
    """
    if model not in _KNOWN:
        _KNOWN[model] = _find_layers(model)
    return _KNOWN[model]


def _find_layers(model: nn.Module) -> ConvStack | None:
    trained = {
        name
        for name, p in model.named_parameters(remove_duplicate=False)
        if p.requires_grad and p.dtype == torch.float32
    }
    if len(trained) != len(list(model.parameters())) or any(True for _ in model.buffers()):
        return None
    if any(getattr(m, hooks) for m in model.modules() for hooks in MODULE_HOOKS):
        return None
    try:
        stack = _follow(fx.symbolic_trace(model), trained)
    except Exception:  # noqa: BLE001 - a forward pass that cannot be traced may raise anything
        return None
    if stack is None or not stack.dense or stack.dense[-1].activation:
        return None
    layers: list[ConvLayer | DenseLayer] = [*stack.convolutions, *stack.dense]
    names = [name for layer in layers for name in (layer.weight, layer.bias) if name]
    used_once = len(names) == len(set(names)) and set(names) == trained
    chained = all(
        a.channels_out == b.channels_in for a, b in itertools.pairwise(stack.convolutions)
    )
    chained &= all(a.units == b.features for a, b in itertools.pairwise(stack.dense))
    return stack if used_once and chained else None


def _follow(traced: fx.GraphModule, trained: set[str]) -> ConvStack | None:
    before, *nodes = traced.graph.nodes
    layers: list[ConvLayer] = []
    missing: set[str] = set()  # of what has to follow the last convolution
    for place, node in enumerate(nodes):
        if node.op in ("output", "placeholder") or node.all_input_nodes != [before]:
            return None
        kind, module = kind_of(traced, node)
        if is_flatten(node, module):
            if not layers or missing:
                return None
            return ConvStack(tuple(layers), follow_dense(traced, before, nodes[place:], trained))
        if kind is nn.Conv2d and not missing:
            layer = _convolution(str(node.target), cast("nn.Conv2d", module), trained)
            if layer is None:
                return None
            layers.append(layer)
            missing = {"pool", "relu"}
        elif "pool" in missing and _is_pooling(node, kind, module):
            missing.remove("pool")
        elif "relu" in missing and activation_of(node, kind) == "relu":
            missing.remove("relu")
        elif kind not in (nn.Identity, channels_last_on_cpu):
            return None
        before = node
    return None


def _convolution(name: str, module: nn.Conv2d, trained: set[str]) -> ConvLayer | None:
    taps, padding = module.kernel_size[0], module.padding
    if padding == "same":
        padding = (taps // 2, taps // 2)
    elif isinstance(padding, str):
        padding = (0, 0)
    if (
        module.kernel_size not in {(size, size) for size in TAPS}
        or padding not in {(size, size) for size in range(taps)}
        or module.stride != (1, 1)
        or module.dilation != (1, 1)
        or module.groups != 1
        or module.padding_mode != "zeros"
        or f"{name}.bias" not in trained
    ):
        return None
    return ConvLayer(
        f"{name}.weight",
        f"{name}.bias",
        module.in_channels,
        module.out_channels,
        taps,
        int(padding[0]),
    )


def _is_pooling(node: fx.Node, kind: object, module: nn.Module | None) -> bool:
    if kind is nn.MaxPool2d:
        found = {name: getattr(module, name) for name in _POOLING}
    elif kind in (F.max_pool2d, torch.max_pool2d):
        found = {**dict(zip(_POOLING, node.args[1:], strict=False)), **node.kwargs}
    else:
        return False
    if found.get("ceil_mode") or found.get("return_indices"):
        return False
    return all(_is_one_of(found.get(name, allowed[-1]), allowed) for name, allowed in _POOLED)


def _is_one_of(setting: object, allowed: Sequence[int | None]) -> bool:
    """Say whether a setting is allowed, of both axes alike; an empty stride is none."""
    if isinstance(setting, list | tuple):
        return all(one in allowed for one in setting) if setting else None in allowed
    return setting in allowed
