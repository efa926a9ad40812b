"""What arrived against what was sent."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from benchmarks.updates import Update

Decoded = Mapping[str, NDArray[np.float32]]


def nmse(update: Update, decoded: Decoded) -> float:
    """Give ‖x − x̂‖² / ‖x‖² over the whole update; 0 where it is all zero and arrives so."""
    lost = energy = 0.0
    for name, x in update.items():
        difference = np.asarray(x - decoded[name], np.float64).ravel()
        lost += float(difference @ difference)
        energy += float(np.vdot(x.astype(np.float64), x.astype(np.float64)))
    return lost / energy if energy else 0.0


def order0_bits(decoded: Decoded) -> float | None:
    """Give the order-0 empirical entropy of the decoded values of each array, in bits for all.

    Where values come from a grid they name its symbols one to one, whoever made them. None
    where they are no grid: more than one value in four is the only one of its kind.
    """
    bits, distinct = 0.0, 0
    for x in decoded.values():
        counts = np.unique(x, return_counts=True)[1]
        bits += float(counts @ np.log2(x.size / counts))
        distinct += len(counts)
    return bits if 4 * distinct <= sum(x.size for x in decoded.values()) else None
