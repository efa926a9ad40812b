"""The dtypes of a model, given back to what a strategy made of it."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor


def restore_dtypes(
    arrays: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype]
) -> dict[str, Tensor]:
    """Give an aggregate the dtypes of the model; Flower's rules make floats of counters.

    Parameters
    ----------
    arrays : mapping of str to Tensor
        What a strategy returned.
    dtypes : mapping of str to torch.dtype
        The model's own; an array that has none here stays as it is.

    Returns
    -------
    dict of str to Tensor
        Floats become integers by rounding, booleans by majority.
    """
    return {name: _restored(x, dtypes.get(name, x.dtype)) for name, x in arrays.items()}


def _restored(x: Tensor, dtype: torch.dtype) -> Tensor:
    if x.dtype == dtype:
        return x
    if dtype.is_floating_point:
        return x.to(dtype)
    if dtype == torch.bool:
        return x >= 0.5
    # The largest float64 below a 64-bit limit; beyond it the cast would wrap around.
    limits = torch.iinfo(dtype)
    top = math.nextafter(float(limits.max) + 1, 0) if limits.bits == 64 else limits.max
    return x.round().clamp(limits.min, top).to(dtype)
