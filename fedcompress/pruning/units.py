"""Structured pruning: entries that stand or fall together, a filter and all that reads it."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedcompress.pruning.patterns import Pattern, check_keep, highest, share_of

UnitGroup = Mapping[tuple[str, int], Tensor]
"""Units of one layer: for an array and one of its axes, the positions of each unit along it.

int64 of shape (units, positions). What makes a unit (rows, biases) and what reads it (columns of
other layers) are parts alike: without any of them the others do nothing.
"""


def units(groups: Sequence[UnitGroup]) -> Pattern:
    """Make the pattern that keeps whole units: filters, hidden units, recurrent units, heads.

    A unit's score is the mean over all entries that stand or fall with it. What to keep is a share
    of each layer's units, at least one of them; of entries about its square is left, where both
    inputs and outputs of a layer are pruned. Arrays without units are kept.

    Parameters
    ----------
    groups : sequence of UnitGroup
        One for each layer whose units may go.

    Returns
    -------
    Pattern
    """

    def pattern(scores: Mapping[str, Tensor], keep: float) -> dict[str, Tensor]:
        check_keep(keep)
        masks = {name: torch.ones(x.shape, dtype=torch.bool) for name, x in scores.items()}
        for group in groups:
            parts = {place: at for place, at in group.items() if place[0] in scores}
            if not parts:
                continue
            worth = _worth(scores, parts)
            gone = ~highest(worth, share_of(len(worth), keep))
            for (name, axis), positions in parts.items():
                masks[name].index_fill_(axis, positions[gone].reshape(-1), value=False)
        return masks

    return pattern


def _worth(scores: Mapping[str, Tensor], parts: UnitGroup) -> Tensor:
    total, entries = torch.zeros(0, dtype=torch.float64), 0
    for (name, axis), positions in parts.items():
        along = scores[name].double().movedim(axis, 0)
        others = along.numel() // max(1, len(along))
        sums = along.reshape(len(along), -1).sum(1)[positions].sum(1)
        total = sums if not entries else total + sums
        entries += positions.shape[1] * others
    return total / max(1, entries)
