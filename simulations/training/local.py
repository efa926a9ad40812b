"""Local training of one client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from simulations.data import FederatedData
from simulations.training.choose import TrainingPath, choose_path
from simulations.training.compiled import train_compiled
from simulations.training.compiled_conv import train_compiled_conv
from simulations.training.dense import dense_layers
from simulations.training.options import LocalResult, TrainingOptions

Array = np.ndarray[Any, np.dtype[Any]]


def train_locally(
    model: nn.Module,
    data: FederatedData,
    rows: Array,
    options: TrainingOptions,
    rng: np.random.Generator,
    device: str | torch.device = "cpu",
    path: TrainingPath = "auto",
    *,
    mask: Mapping[str, Tensor] | None = None,
) -> LocalResult:
    """Train a model in place on one client's samples, minimising cross-entropy.

    On one thread the result is bit for bit a function of the model, the rows, ``rng`` and
    ``path``; the paths differ by rounding.

    Parameters
    ----------
    model : torch.nn.Module
        The global model; moved to ``device`` and changed in place. Its parameters become views
        of one vector.
    data : FederatedData
        Data set that the rows belong to.
    rows : numpy.ndarray
        Rows of ``data.train_x`` that the client owns, any integer dtype, shape (n,).
    options : TrainingOptions
        How to train.
    rng : numpy.random.Generator
        Draws the order of the samples in each epoch.
    device : str or torch.device
        Where to train.
    path : {"auto", "eager", "compiled", "cohort"}
        Which program trains, where the model has several; one client is no cohort and takes
        the best of the others. With a mask or a masked loss it is eager PyTorch.
    mask : mapping of str to torch.Tensor, optional
        Which entries of parameters there are, bool, by the parameter's name and of its shape; all
        of those not named. Entries that are not there are exactly 0, before and after.

    Returns
    -------
    LocalResult
        With no rows: loss 0, no examples, no steps, and the model as it was.
    """
    if len(rows) == 0:
        return LocalResult(0.0, 0, 0)
    where = torch.device(device)
    is_masked = mask is not None or options.mask_loss
    if (
        not is_masked
        and choose_path("auto" if path == "cohort" else path, model, data, where) == "compiled"
    ):
        if dense_layers(model):
            return train_compiled(model, data, rows, options, rng)
        return train_compiled_conv(model, data, rows, options, rng)
    from simulations.training.eager import train_eagerly

    return train_eagerly(model, data, rows, options, rng, where, mask)
