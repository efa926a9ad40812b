"""Pruned entries that are worth having back."""

from collections.abc import Mapping

import torch
from torch import Tensor


def with_regrown(
    scores: Mapping[str, Tensor],
    growth: Mapping[str, Tensor],
    mask: Mapping[str, Tensor],
    share: float,
) -> dict[str, Tensor]:
    """Put the pruned entries that would change most above all others.

    Whatever pattern ranks the result keeps those, and fewer of the lowest scores for it, so that
    the number of kept entries is the pattern's own (RigL, Evci et al., 2020; PruneFL, Jiang et
    al., 2022). Pruned entries that do not come back are put below all others.

    Parameters
    ----------
    scores : Mapping[str, Tensor]
        Importance, not below 0.
    growth : Mapping[str, Tensor]
        What clients who trained every entry made of each, the mean update.
    mask : Mapping[str, Tensor]
        bool, what is kept by now.
    share : float
        Regrown entries of an array, as a share of its kept ones, in [0, 1).

    Returns
    -------
    dict of str to Tensor
        Scores of the same names and shapes.
    """
    above = 1.0 + 2.0 * max((float(x.max()) for x in scores.values() if x.numel()), default=0.0)
    ranked = {}
    for name, x in scores.items():
        kept = mask[name].reshape(-1)
        flat = torch.where(kept, x.reshape(-1).double(), -1.0)
        change = torch.where(kept, 0, growth[name].reshape(-1).double().abs())
        count = min(round(share * int(kept.sum())), int((change > 0).sum()))
        flat[torch.sort(change, descending=True, stable=True).indices[:count]] = above
        ranked[name] = flat.reshape(x.shape)
    return ranked
