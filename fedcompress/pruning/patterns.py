"""Which entries are kept: patterns that turn scores into masks.

Of equal scores the first entries are kept, so that every machine gives the same masks.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fedcompress.checks import check_integer
from fedcompress.errors import ConfigError

Pattern = Callable[[Mapping[str, Tensor], float], dict[str, Tensor]]
"""Scores, and the share of entries to keep, to bool masks of the scores' names and shapes."""

MOST_IN_GROUP = 64
"""Entries of a group of `n_of_m`, at most."""

LEAST_OF_LAYER = 0.02
"""Share of an array that `across_layers` leaves it: a layer without weights cuts the network."""


def by_layer(scores: Mapping[str, Tensor], keep: float) -> dict[str, Tensor]:
    """Keep the same share of every array, its highest scores.

    Parameters
    ----------
    scores : Mapping[str, Tensor]
        Arrays of any shapes.
    keep : float
        Share to keep, in (0, 1]; of every array at least one entry.

    Returns
    -------
    dict of str to Tensor
        bool, of the scores' names and shapes.

    Raises
    ------
    ConfigError
        If ``keep`` is out of range.
    """
    check_keep(keep)
    return {name: highest(x, share_of(x.numel(), keep)) for name, x in scores.items()}


def across_layers(scores: Mapping[str, Tensor], keep: float) -> dict[str, Tensor]:
    """Keep the highest scores of all arrays together, so that each array's sparsity follows them.

    Every array keeps at least `LEAST_OF_LAYER` of its entries.

    Parameters
    ----------
    scores : Mapping[str, Tensor]
        Arrays of any shapes.
    keep : float
        Share of all entries to keep, in (0, 1].

    Returns
    -------
    dict of str to Tensor
        bool, of the scores' names and shapes.

    Raises
    ------
    ConfigError
        If ``keep`` is out of range.
    """
    check_keep(keep)
    if not scores:
        return {}
    least = {
        name: highest(x, share_of(x.numel(), min(keep, LEAST_OF_LAYER)))
        for name, x in scores.items()
    }
    sizes = [x.numel() for x in scores.values()]
    flat = torch.cat([x.reshape(-1).double() for x in scores.values()])
    always = torch.cat([mask.reshape(-1) for mask in least.values()])
    flat[always] = math.inf
    chosen = highest(flat, max(share_of(flat.numel(), keep), int(always.sum())))
    parts = torch.split(chosen, sizes)
    return {
        name: part.reshape(x.shape) for (name, x), part in zip(scores.items(), parts, strict=True)
    }


def rows(scores: Mapping[str, Tensor], keep: float) -> dict[str, Tensor]:
    """Keep whole rows, the highest by their mean score: filters, or the units of a dense layer.

    A row is all entries of one place of the first axis. An array of less than two axes is kept.

    Parameters
    ----------
    scores : Mapping[str, Tensor]
        Arrays of any shapes.
    keep : float
        Share of each array's rows to keep, in (0, 1]; at least one.

    Returns
    -------
    dict of str to Tensor
        bool, of the scores' names and shapes.

    Raises
    ------
    ConfigError
        If ``keep`` is out of range.
    """
    check_keep(keep)
    masks = {}
    for name, x in scores.items():
        if x.dim() < 2 or x.numel() == 0:
            masks[name] = torch.ones(x.shape, dtype=torch.bool)
            continue
        kept = highest(x.reshape(len(x), -1).double().mean(1), share_of(len(x), keep))
        masks[name] = kept.reshape(-1, *[1] * (x.dim() - 1)).expand(x.shape).clone()
    return masks


def n_of_m(n: int, m: int) -> Pattern:
    """Make the pattern that keeps the highest ``n`` of every ``m`` (Mishra et al., 2021).

    Groups follow the input axis, which is the second: along that the sparse units of hardware
    multiply. A group at its end may be shorter. While more than ``n / m`` is to be kept, more of
    each group is; fewer than ``n`` never are. An array of less than two axes is kept.

    Parameters
    ----------
    n : int
        Entries to keep of each group, 1 to m − 1.
    m : int
        Entries of a group, 2 to 64.

    Returns
    -------
    Pattern

    Raises
    ------
    ConfigError
        If ``n`` or ``m`` is out of range.
    """
    check_integer("n_of_m", "m", m, 2, MOST_IN_GROUP)
    check_integer("n_of_m", "n", n, 1, m - 1)

    def pattern(scores: Mapping[str, Tensor], keep: float) -> dict[str, Tensor]:
        check_keep(keep)
        # Rounded before it is rounded up: 4 × 0.75 may be a hair more than 3.
        of_group = max(n, math.ceil(round(m * keep, 9)))
        return {name: _of_groups(x, of_group, m) for name, x in scores.items()}

    return pattern


def _of_groups(x: Tensor, n: int, m: int) -> Tensor:
    if x.dim() < 2 or x.numel() == 0 or n >= m:
        return torch.ones(x.shape, dtype=torch.bool)
    inputs_last = x.movedim(1, -1)
    length = inputs_last.shape[-1]
    groups = -(-length // m)
    padded = torch.full((*inputs_last.shape[:-1], groups * m), -math.inf, dtype=torch.float64)
    padded[..., :length] = inputs_last
    by_group = padded.reshape(-1, m)
    order = torch.sort(by_group, dim=1, descending=True, stable=True).indices[:, :n]
    mask = torch.zeros(by_group.shape, dtype=torch.bool).scatter_(1, order, value=True)
    return mask.reshape(padded.shape)[..., :length].movedim(-1, 1).contiguous()


def highest(scores: Tensor, count: int) -> Tensor:
    """Give the mask of so many of the highest scores."""
    flat = scores.reshape(-1)
    order = torch.sort(flat, descending=True, stable=True).indices[:count]
    mask = torch.zeros(flat.shape, dtype=torch.bool)
    mask[order] = True
    return mask.reshape(scores.shape)


def share_of(size: int, keep: float) -> int:
    """Give how many of so many are kept, at least one."""
    return max(1, round(size * keep)) if size else 0


def check_keep(keep: float) -> None:
    """Raise `ConfigError` unless a share to keep is in (0, 1]."""
    if not 0 < keep <= 1:
        raise ConfigError(f"pattern: keep must be in (0, 1], got {keep!r}")
