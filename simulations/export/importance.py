"""How much each weight matters: by its size, by the loss's slope, or by its curvature."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedcompress.checks import near
from fedcompress.errors import ConfigError

Scores = dict[str, Tensor]
_ROWS = 256  # inputs that gradients are taken on


def weight_scores(model: nn.Module, kind: str, inputs: Tensor) -> Scores:
    """Score every parameter's entries; larger matters more.

    Parameters
    ----------
    model : nn.Module
        Left as it is.
    kind : {"magnitude", "taylor", "fisher"}
        ``w²``; ``(w · g)²`` with the gradient g of the cross-entropy towards the model's own
        answers (Molchanov et al., 2019); ``w² · E[g²]``, by the diagonal of the empirical Fisher
        information (Theis et al., 2018).
    inputs : Tensor
        Unlabelled inputs, shape (rows, ...); the first 256 are used where gradients are needed.

    Returns
    -------
    dict of str to Tensor
        Names of parameters to scores of their shapes.

    Raises
    ------
    ConfigError
        If there is no such kind.
    """
    check_importance(kind)
    slopes = _KINDS[kind](model, inputs[:_ROWS])
    return {
        name: p.detach().square() * slopes.get(name, torch.ones(()))
        for name, p in model.named_parameters()
    }


def _none(model: nn.Module, inputs: Tensor) -> Mapping[str, Tensor]:
    del model, inputs
    return {}


def _squared_mean(model: nn.Module, inputs: Tensor) -> Mapping[str, Tensor]:
    return {name: g.square() for name, g in _gradients(model, inputs).items()}


def _mean_square(model: nn.Module, inputs: Tensor) -> Mapping[str, Tensor]:
    total: dict[str, Tensor] = {}
    for row in torch.split(inputs, 1):
        for name, gradient in _gradients(model, row).items():
            total[name] = total.get(name, 0) + gradient.square() / len(inputs)
    return total


def _gradients(model: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    parameters = dict(model.named_parameters())
    logits = model(inputs)
    loss = F.cross_entropy(logits, logits.detach().argmax(-1))
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    found: list[Tensor | None] = list(gradients)
    return {
        name: gradient
        for name, gradient in zip(parameters, found, strict=True)
        if gradient is not None
    }


_KINDS: Mapping[str, Callable[[nn.Module, Tensor], Mapping[str, Tensor]]] = {
    "magnitude": _none,
    "taylor": _squared_mean,
    "fisher": _mean_square,
}


def check_importance(kind: str) -> None:
    """Raise `ConfigError` for what is no kind of importance."""
    if kind not in _KINDS:
        raise ConfigError(
            f"export: importance must be {', '.join(_KINDS)}; {near(kind, [*_KINDS])}"
        )
