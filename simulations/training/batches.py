"""The batches of a client, gathered and made float in buffers that stay."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from simulations.data import FederatedData

Array = np.ndarray[Any, np.dtype[Any]]
# Rows made float at a time: enough for the conversion to cost nothing, few enough for the cache.
ROWS_AT_ONCE = 512
# A data set up to this size lies on the device, so that a batch is gathered there.
RESIDENT_BYTES = 4_000_000_000


@final
class _Buffers:
    """What a thread keeps between clients for one data set."""

    def __init__(self, data: FederatedData, rows: int) -> None:
        self.data = data
        shape = (rows, *data.sample_shape)
        self.stored = np.empty(shape, data.train_x.dtype)
        self.inputs = torch.empty(shape) if data.task == "image" else None
        scale, shift = pixel_scale(data.pixel_mean, data.pixel_std)
        self.scale = torch.from_numpy(scale)[:, None, None]
        self.shift = torch.from_numpy(shift)[:, None, None]


@final
class _Resident:
    """A data set that lies on a device."""

    def __init__(self, data: FederatedData, device: torch.device) -> None:
        self.data, self.device = data, device
        self.x = torch.tensor(data.train_x, device=device)
        self.y = torch.tensor(data.train_y, device=device)


_LOCAL = threading.local()


def pixel_scale(mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[Array, Array]:
    """Give what a pixel is multiplied by and what is then added, float32 (channels,) each."""
    scale = [1 / (255 * s) for s in std]
    shift = [-m / s for m, s in zip(mean, std, strict=True)]
    return np.array(scale, np.float32), np.array(shift, np.float32)


def batches(
    data: FederatedData, order: Array, batch_size: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield inputs and targets of the training rows in this order, the last batch perhaps small.

    A batch is valid until the next one but some is asked for: its memory is used again.
    """
    at_once = max(1, ROWS_AT_ONCE // batch_size) * batch_size
    resident = resident_data(data, device)
    if resident is not None:
        places = torch.from_numpy(order.astype(np.int64)).to(device)
        for start in range(0, len(order), at_once):
            there = places[start : start + at_once]
            inputs = data.inputs(resident.x.index_select(0, there))
            targets = resident.y.index_select(0, there)
            yield from zip(
                torch.split(inputs, batch_size), torch.split(targets, batch_size), strict=True
            )
        return
    targets = torch.from_numpy(data.train_y[order]).to(device)
    buffers = _buffers(data, at_once)
    for start in range(0, len(order), at_once):
        part = order[start : start + at_once]
        stored = buffers.stored[: len(part)]
        np.take(data.train_x, part, axis=0, out=stored, mode="clip")
        if buffers.inputs is None or device.type != "cpu":
            inputs = data.inputs(torch.from_numpy(stored).to(device, copy=True))
        else:
            inputs = buffers.inputs[: len(part)]
            inputs.copy_(torch.from_numpy(stored)).mul_(buffers.scale).add_(buffers.shift)
        here = targets[start : start + at_once]
        yield from zip(torch.split(inputs, batch_size), torch.split(here, batch_size), strict=True)


def resident_data(data: FederatedData, device: torch.device) -> _Resident | None:
    """Give the data set as it lies on a device; None on a CPU, or where it is too large."""
    if device.type == "cpu" or data.train_x.nbytes > RESIDENT_BYTES:
        return None
    known: _Resident | None = getattr(_LOCAL, "resident", None)
    if known is None or known.data is not data or known.device != device:
        _LOCAL.resident = known = _Resident(data, device)
    return known


def _buffers(data: FederatedData, rows: int) -> _Buffers:
    known: _Buffers | None = getattr(_LOCAL, "buffers", None)
    if known is None or known.data is not data or len(known.stored) < rows:
        _LOCAL.buffers = known = _Buffers(data, rows)
    return known
