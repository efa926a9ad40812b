"""Probabilities folded to the side where they are rare, so that their masks cost less.

Both sides know the probabilities that were sent. Where one is above a half the client hands on
``1 − p``, and the server takes one minus the mean: masks then hold few ones wherever the network
has made up its mind, which is what an entropy coder lives on. It is linear, so means of folded
masks are folded means, and no more biased.
"""

from collections.abc import Mapping

import torch
from torch import Tensor


def fold(probabilities: Mapping[str, Tensor], sent: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give ``1 − p`` where what was sent is above a half; the same again undoes it.

    Parameters
    ----------
    probabilities : Mapping[str, Tensor]
        In [0, 1], or masks of 0 and 1, for which it is exact.
    sent : Mapping[str, Tensor]
        The probabilities that both sides know, of the same names and shapes.

    Returns
    -------
    dict of str to Tensor
        Of the same names, shapes and dtypes.
    """
    return {name: torch.where(sent[name] > 0.5, 1 - p, p) for name, p in probabilities.items()}


unfold = fold
"""Folding is its own inverse."""
