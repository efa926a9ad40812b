"""Models that are nothing but a stack of dense layers, told from their traced forward pass."""

from __future__ import annotations

import itertools
import weakref
from dataclasses import dataclass
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
_MODULE_HOOKS = (
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
    if any(getattr(m, hooks) for m in model.modules() for hooks in _MODULE_HOOKS):
        return ()
    try:
        layers = _follow(fx.symbolic_trace(model), trained)
    except Exception:  # noqa: BLE001 - a forward pass that cannot be traced may raise anything
        return ()
    names = [name for layer in layers for name in (layer.weight, layer.bias) if name]
    used_once = len(names) == len(set(names)) and set(names) == trained
    chained = all(a.units == b.features for a, b in itertools.pairwise(layers))
    return layers if used_once and chained and layers and not layers[-1].activation else ()


def _follow(traced: fx.GraphModule, trained: set[str]) -> tuple[DenseLayer, ...]:
    layers: list[DenseLayer] = []
    before: fx.Node | None = None
    flattened = False
    for node in traced.graph.nodes:
        if node.op == "output":
            return tuple(layers) if node.args == (before,) else ()
        if node.op == "placeholder":
            if before is not None:
                return ()
            before = node
            continue
        if node.all_input_nodes != [before]:
            return ()
        module = traced.get_submodule(str(node.target)) if node.op == "call_module" else None
        kind: object = node.target if module is None else type(module)
        if kind is nn.Linear and flattened:
            linear = cast("nn.Linear", module)
            has_bias = f"{node.target}.bias" in trained
            bias = f"{node.target}.bias" if has_bias else None
            layers.append(
                DenseLayer(
                    f"{node.target}.weight", bias, linear.in_features, linear.out_features, None
                )
            )
        elif _is_flatten(node, module):
            flattened = True
        elif kind in ACTIVATIONS and layers and not layers[-1].activation and not node.kwargs:
            last = layers.pop()
            layers.append(
                DenseLayer(last.weight, last.bias, last.features, last.units, ACTIVATIONS[kind])
            )
        elif kind is not nn.Identity:
            return ()
        before = node
    return ()


def _is_flatten(node: fx.Node, module: nn.Module | None) -> bool:
    if module is not None:
        return isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1)
    settings = (*node.args[1:], *node.kwargs.values())
    return node.target in ("flatten", torch.flatten) and settings in ((1,), (1, -1))
