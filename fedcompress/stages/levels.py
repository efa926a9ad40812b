"""Entries as the numbers of their nearest levels: what table quantizers share."""

import numpy as np
import torch
from torch import Tensor

from fedcompress.errors import PayloadError


def nearest(x: Tensor, levels: Tensor, zero: int) -> Tensor:
    """Give the number of the level nearest to each entry, counted from level ``zero``.

    Parameters
    ----------
    x : Tensor
        float32, any shape.
    levels : Tensor
        float32, ascending, 1 to 256 of them.
    zero : int
        Position of the level that gets the number 0. The one nearest to zero should have it,
        since coders expect small numbers to be frequent.

    Returns
    -------
    Tensor
        int16, the shape of ``x``; halfway between two levels it is the lower one.
    """
    thresholds = (levels[1:].double() + levels[:-1].double()).mul_(0.5).to(levels.dtype)
    if x.device.type != "cpu":
        return torch.bucketize(x, thresholds, out_int32=True).sub_(zero).to(torch.int16)
    from fedcompress.kernels.levels import count_below

    flat = x.reshape(-1).contiguous()
    out = np.empty(flat.numel(), np.int16)
    count_below(flat.numpy(), thresholds.numpy(), np.int32(-zero), out)
    return torch.from_numpy(out).reshape(x.shape)


def look_up(symbols: Tensor, levels: Tensor, zero: int) -> Tensor:
    """Give the levels that `nearest` numbered; raise `PayloadError` for a number beyond them."""
    if symbols.numel() == 0:
        return torch.zeros(symbols.shape, dtype=levels.dtype, device=symbols.device)
    low, high = torch.aminmax(symbols)
    if int(low) < -zero or int(high) >= levels.numel() - zero:
        raise PayloadError(
            f"payload: levels {int(low)} to {int(high)}, beyond {-zero} to "
            f"{levels.numel() - zero - 1}; the bytes are damaged"
        )
    places = (symbols.to(torch.int32) + zero).reshape(-1)
    return torch.index_select(levels, 0, places).reshape(symbols.shape)
