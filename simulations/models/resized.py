"""A model as large as the arrays that it is given."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from fedcompress.resize import fit_to
from simulations.models.arrays import load_arrays

Array = np.ndarray[Any, np.dtype[Any]]


def with_arrays(model: nn.Module, arrays: Mapping[str, Array | Tensor]) -> nn.Module:
    """Copy a model with these arrays in it, its layers as large as they are.

    Raises
    ------
    LayoutError
        If they are not the arrays of such a model, of whatever width.
    """
    resized = fit_to(model, {name: tuple(array.shape) for name, array in arrays.items()})
    load_arrays(resized, arrays)
    return resized
