"""Arrays without the entries that a mask leaves out."""

from collections.abc import Mapping

import torch
from torch import Tensor

from fedcompress.errors import LayoutError


def pack(arrays: Mapping[str, Tensor], mask: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out what a mask prunes.

    Parameters
    ----------
    arrays : Mapping[str, Tensor]
        A model's arrays.
    mask : Mapping[str, Tensor]
        bool, true where an entry is kept, of the names and shapes of some of the arrays.

    Returns
    -------
    dict of str to Tensor
        In the arrays' order; one with a mask as the vector of its kept entries, shape (kept,),
        the others as they are.

    Raises
    ------
    LayoutError
        If the mask names an array that is not there, or one of another shape.
    """
    _check_names(arrays, mask)
    packed = {}
    for name, x in arrays.items():
        kept = mask.get(name)
        if kept is not None and kept.shape != x.shape:
            raise LayoutError(
                f"mask: {name!r} has shape {tuple(kept.shape)}, the array {tuple(x.shape)}; "
                "make the mask for this model"
            )
        packed[name] = x if kept is None else x[kept]
    return packed


def unpack(packed: Mapping[str, Tensor], mask: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo `pack`; entries that were left out are 0.

    Parameters
    ----------
    packed : Mapping[str, Tensor]
        What `pack` gave.
    mask : Mapping[str, Tensor]
        The mask that it was given.

    Returns
    -------
    dict of str to Tensor
        Arrays of the mask's shapes, the others as they are.

    Raises
    ------
    LayoutError
        If the mask names an array that is not there, or keeps other than as many entries.
    """
    _check_names(packed, mask)
    arrays = {}
    for name, x in packed.items():
        kept = mask.get(name)
        if kept is None:
            arrays[name] = x
            continue
        count = int(kept.sum())
        if x.shape != (count,):
            raise LayoutError(
                f"mask: keeps {count} entries of {name!r}, got {tuple(x.shape)}; "
                "unpack by the mask that packed"
            )
        arrays[name] = torch.zeros(kept.shape, dtype=x.dtype, device=x.device)
        arrays[name][kept] = x
    return arrays


def masked(arrays: Mapping[str, Tensor], mask: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Set what a mask prunes to 0, without a sign; the others are the given arrays.

    Raises
    ------
    LayoutError
        As `pack`.
    """
    return unpack(pack(arrays, mask), mask)


def _check_names(arrays: Mapping[str, Tensor], mask: Mapping[str, Tensor]) -> None:
    if unknown := sorted(mask.keys() - arrays.keys()):
        raise LayoutError(
            f"mask: names {', '.join(map(repr, unknown))}, which the model has not; "
            "make the mask for this model"
        )
