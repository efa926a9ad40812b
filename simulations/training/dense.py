"""Models that are nothing but a stack of dense layers, told from their traced forward pass."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast, final

import torch
from torch import fx, nn
from torch.nn import functional as F

ACTIVATIONS: dict[object, str] = {
    nn.ReLU: "relu",
    F.relu: "relu",
    torch.relu: "relu",
    "relu": "relu",
    nn.Tanh: "tanh",
    F.tanh: "tanh",
    torch.tanh: "tanh",
    "tanh": "tanh",
    nn.Sigmoid: "sigmoid",
    F.sigmoid: "sigmoid",
    torch.sigmoid: "sigmoid",
    "sigmoid": "sigmoid",
}
MODULE_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)


@final
@dataclass(frozen=True)
class DenseLayer:
    """One dense layer: its parameters' names, its sizes, and the activation that follows it."""

    weight: str
    bias: str | None
    features: int
    units: int
    activation: str | None


_KNOWN: weakref.WeakKeyDictionary[nn.Module, tuple[DenseLayer, ...]] = weakref.WeakKeyDictionary()


def dense_layers(model: nn.Module) -> tuple[DenseLayer, ...]:
    """Give the layers of a stack: the input flattened, then dense layers and activations.

    Empty for any other model: one with a branch, a layer used twice, parameters that are frozen,
    no contiguous float32 or of no dense layer, a buffer, a hook, or an activation behind
    the last layer.
    """
    if model not in _KNOWN:
        _KNOWN[model] = _find_layers(model)
    return _KNOWN[model]


def _find_layers(model: nn.Module) -> tuple[DenseLayer, ...]:
    trained = {
        name
        for name, p in model.named_parameters(remove_duplicate=False)
        if p.requires_grad and p.dtype == torch.float32 and p.is_contiguous()
    }
    if len(trained) != len(list(model.parameters())) or any(True for _ in model.buffers()):
        return ()
    if any(getattr(m, hooks) for m in model.modules() for hooks in MODULE_HOOKS):
        return ()
    try:
        traced = fx.symbolic_trace(model)
        first, *others = traced.graph.nodes
        layers = follow_dense(traced, first, others, trained)
    except Exception:  # noqa: BLE001 - a forward pass that cannot be traced may raise anything
        return ()
    names = [name for layer in layers for name in (layer.weight, layer.bias) if name]
    used_once = len(names) == len(set(names)) and set(names) == trained
    chained = all(a.units == b.features for a, b in itertools.pairwise(layers))
    return layers if used_once and chained and layers and not layers[-1].activation else ()


def follow_dense(
    traced: fx.GraphModule, before: fx.Node, nodes: Sequence[fx.Node], trained: set[str]
) -> tuple[DenseLayer, ...]:
    """Read a stack of dense layers behind a node, to the end of the graph; () for all else."""
    layers: list[DenseLayer] = []
    flattened = False
    for node in nodes:
        if node.op == "output":
            return tuple(layers) if node.args == (before,) else ()
        if node.op == "placeholder" or node.all_input_nodes != [before]:
            return ()
        kind, module = kind_of(traced, node)
        if kind is nn.Linear and flattened:
            linear = cast("nn.Linear", module)
            has_bias = f"{node.target}.bias" in trained
            bias = f"{node.target}.bias" if has_bias else None
            layers.append(
                DenseLayer(
                    f"{node.target}.weight", bias, linear.in_features, linear.out_features, None
                )
            )
        elif is_flatten(node, module):
            flattened = True
        elif activation_of(node, kind) and layers and not layers[-1].activation:
            layers[-1] = replace(layers[-1], activation=activation_of(node, kind))
        elif kind is not nn.Identity:
            return ()
        before = node
    return ()


def kind_of(traced: fx.GraphModule, node: fx.Node) -> tuple[object, nn.Module | None]:
    """Give what a node calls: a module's type with the module, or a function or a method's name."""
    if node.op != "call_module":
        return node.target, None
    module = traced.get_submodule(str(node.target))
    return type(module), module


def activation_of(node: fx.Node, kind: object) -> str | None:
    """Name the activation that a node is."""
    # To work in place changes nothing but memory.
    return (
        ACTIVATIONS.get(kind) if len(node.args) == 1 and node.kwargs.keys() <= {"inplace"} else None
    )


def is_flatten(node: fx.Node, module: nn.Module | None) -> bool:
    """Say whether a node makes every sample a vector."""
    if module is not None:
        return isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1)
    settings = (*node.args[1:], *node.kwargs.values())
    return node.target in ("flatten", torch.flatten) and settings in ((1,), (1, -1))
