"""Proxy data enlarged by what keeps their classes: shifted images, mixed rows."""

from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fedcompress.distill.settings import check_choice
from fedcompress.errors import ConfigError

Augmentation = Literal["none", "shift", "mixup"]

_MOST_PIXELS = 2
_MIXUP_ALPHA = 0.4


def augmented(inputs: Tensor, kind: Augmentation, rng: np.random.Generator) -> Tensor:
    """Give proxy data with a changed copy of each row behind them.

    Teachers are asked about the copies as about any row, so labels are not needed and a copy
    that a teacher sees otherwise does no harm.

    Parameters
    ----------
    inputs : Tensor
        Shape ``(rows, ...)``.
    kind : {"none", "shift", "mixup"}
        Nothing; images (rows, channels, height, width) moved by up to 2 pixels each way, every
        row by its own draw, the border repeated; or every row mixed with another, the share
        drawn from Beta(0.4, 0.4) (Zhang et al., 2018).
    rng : numpy.random.Generator
        Draws the changes.

    Returns
    -------
    Tensor
        Shape ``(rows, ...)`` for "none", else ``(2 rows, ...)``; the given rows come first.

    Raises
    ------
    ConfigError
        If the inputs are not of the kind that can be changed so.
    """
    check_choice("proxy", "augment", kind, get_args(Augmentation))
    if kind == "none":
        return inputs
    changed = _shifted(inputs, rng) if kind == "shift" else _mixed(inputs, rng)
    return torch.cat([inputs, changed])


def _shifted(inputs: Tensor, rng: np.random.Generator) -> Tensor:
    if inputs.ndim != 4 or not inputs.is_floating_point():
        raise ConfigError(
            f"proxy: augment = 'shift' moves images (rows, channels, height, width), got shape "
            f"{tuple(inputs.shape)} of {inputs.dtype}; use 'none'"
        )
    rows, _, height, width = inputs.shape
    padded = functional.pad(inputs, (_MOST_PIXELS,) * 4, mode="replicate")
    tops, lefts = rng.integers(0, 2 * _MOST_PIXELS + 1, size=(2, rows))
    ys = torch.from_numpy(tops)[:, None] + torch.arange(height)
    xs = torch.from_numpy(lefts)[:, None] + torch.arange(width)
    row = torch.arange(rows)[:, None, None]
    # Advanced indices around a slice put the slice last.
    return padded[row, :, ys[:, :, None], xs[:, None, :]].permute(0, 3, 1, 2).contiguous()


def _mixed(inputs: Tensor, rng: np.random.Generator) -> Tensor:
    if not inputs.is_floating_point():
        raise ConfigError(
            f"proxy: augment = 'mixup' needs numbers that can be averaged, got {inputs.dtype}; "
            "use 'none'"
        )
    rows = len(inputs)
    shares = torch.from_numpy(rng.beta(_MIXUP_ALPHA, _MIXUP_ALPHA, size=rows)).to(inputs.dtype)
    shares = shares.reshape(rows, *[1] * (inputs.ndim - 1))
    return shares * inputs + (1 - shares) * inputs[torch.from_numpy(rng.permutation(rows))]
