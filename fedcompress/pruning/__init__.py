"""Pruning: what a weight is worth, which are kept and when, and how masks and models travel.

Pure functions on named tensors; nothing here knows of Flower.
"""

from fedcompress.pruning.folding import fold, unfold
from fedcompress.pruning.importance import (
    IMPORTANCES,
    Importance,
    fisher,
    magnitude,
    remember,
    sensitivity,
    taylor,
)
from fedcompress.pruning.mask_code import decode_mask, encode_mask
from fedcompress.pruning.packed import masked, pack, unpack
from fedcompress.pruning.patterns import Pattern, across_layers, by_layer, n_of_m, rows
from fedcompress.pruning.regrowth import with_regrown
from fedcompress.pruning.schedule import Schedule
from fedcompress.pruning.units import UnitGroup, units

__all__ = [
    "IMPORTANCES",
    "Importance",
    "Pattern",
    "Schedule",
    "UnitGroup",
    "across_layers",
    "by_layer",
    "decode_mask",
    "encode_mask",
    "fisher",
    "fold",
    "magnitude",
    "masked",
    "n_of_m",
    "pack",
    "remember",
    "rows",
    "sensitivity",
    "taylor",
    "unfold",
    "units",
    "unpack",
    "with_regrown",
]
