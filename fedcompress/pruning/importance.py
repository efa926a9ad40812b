"""How much each weight of a model matters: the scores that a pruning pattern ranks.

A server sees weights and the clients' mean update. The update stands for the gradient, which it
is but for a factor after one step and nearly so after few; its running mean and its running mean
of squares are the *state* that the scores are computed from.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fedcompress.errors import ConfigError

Importance = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], dict[str, Tensor]]
"""Weights and state to scores of the weights' names and shapes, none below 0."""

_UPDATE, _SQUARE = "update/", "square/"


def magnitude(weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Score weights by their size (Han et al., 2015); needs no state.

    Parameters
    ----------
    weights : Mapping[str, Tensor]
        Arrays of any shapes.
    state : Mapping[str, Tensor]
        Not looked at.

    Returns
    -------
    dict of str to Tensor
        Scores of the weights' names and shapes.
    """
    del state
    return {name: x.abs() for name, x in weights.items()}


def taylor(weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Score weights by how much the loss would change without them, to first order.

    ``|w · g|`` (Molchanov et al., 2017), the running mean of the clients' updates for ``g``.

    Parameters
    ----------
    weights : Mapping[str, Tensor]
        Arrays of any shapes.
    state : Mapping[str, Tensor]
        What `remember` gave.

    Returns
    -------
    dict of str to Tensor
        Scores of the weights' names and shapes; sizes of weights before there is a state.
    """
    return {
        name: x.abs() if (g := state.get(_UPDATE + name)) is None else (x * g).abs()
        for name, x in weights.items()
    }


def fisher(weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Score weights by how much the loss would change without them, to second order.

    ``w² · F`` (Theis et al., 2018), the running mean of the squares of the clients' mean updates
    for the diagonal ``F`` of the Fisher information.

    Parameters
    ----------
    weights : Mapping[str, Tensor]
        Arrays of any shapes.
    state : Mapping[str, Tensor]
        What `remember` gave.

    Returns
    -------
    dict of str to Tensor
        Scores of the weights' names and shapes; sizes of weights before there is a state.
    """
    return {
        name: x.abs() if (f := state.get(_SQUARE + name)) is None else x.square() * f
        for name, x in weights.items()
    }


IMPORTANCES: Mapping[str, Importance] = {
    "magnitude": magnitude,
    "taylor": taylor,
    "fisher": fisher,
}
"""The scores by the names that study files use."""


def remember(
    state: Mapping[str, Tensor], update: Mapping[str, Tensor], *, decay: float = 0.9
) -> dict[str, Tensor]:
    """Take a round's mean update into the state that `taylor` and `fisher` score by.

    Parameters
    ----------
    state : Mapping[str, Tensor]
        What this gave the round before; empty before the first.
    update : Mapping[str, Tensor]
        The clients' mean update, by name; integers are passed over.
    decay : float
        Weight of what is remembered, in [0, 1).

    Returns
    -------
    dict of str to Tensor
        The next state: for each array two of its shape, mean and mean of squares.

    Raises
    ------
    ConfigError
        If ``decay`` is out of range.
    """
    if not 0 <= decay < 1:
        raise ConfigError(f"remember: decay must be in [0, 1), got {decay!r}")
    after: dict[str, Tensor] = {}
    for name, x in update.items():
        if not x.is_floating_point():
            continue
        for prefix, now in ((_UPDATE, x), (_SQUARE, x.square())):
            before = state.get(prefix + name)
            # The first update begins the mean: a start at 0 would only scale all scores.
            after[prefix + name] = now.clone() if before is None else torch.lerp(now, before, decay)
    return after


def sensitivity(
    state: Mapping[str, Tensor], mask: Mapping[str, Tensor]
) -> dict[str, tuple[float, int]]:
    """Give how sensitive the loss is to an error in an entry of each array.

    Parameters
    ----------
    state : Mapping[str, Tensor]
        What `remember` gave.
    mask : Mapping[str, Tensor]
        bool, which entries of some arrays are kept; of the others all are.

    Returns
    -------
    dict of str to tuple of float and int
        Mean of the squared updates over the kept entries of each array, and how many these are.
    """
    found = {}
    for key, squares in state.items():
        if not key.startswith(_SQUARE):
            continue
        name = key.removeprefix(_SQUARE)
        kept = squares[mask[name]] if name in mask else squares.reshape(-1)
        mean = float(kept.double().mean()) if kept.numel() else 0.0
        found[name] = mean, kept.numel()
    return found
