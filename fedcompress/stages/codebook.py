"""Scalar quantization to a codebook made for the array."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedcompress.checks import check_choice, check_integer
from fedcompress.errors import PayloadError
from fedcompress.stage import Numbers, Stage
from fedcompress.stages.blocks import largest
from fedcompress.stages.levels import look_up, nearest
from fedcompress.streams import Forms, Layout, Scale, ScaleForm, Streams


@dataclass(frozen=True, repr=False)
class Codebook(Stage):
    """Round to the nearest of ``k`` centroids, which k-means finds for each array. Biased.

    Lloyd (1957, 1982) and Max (1960), least squares quantization; Han, Mao & Dally (2016),
    "Deep compression" (a codebook for each layer). The least mean squared error that ``k``
    values can have; a uniform step behind an entropy coder has less at equal bytes.

    Parameters
    ----------
    k : int
        Centroids, 2 to 256; an array of fewer entries has as many as it has entries.
    zero : {"no", "yes"}
        Whether one centroid is zero, so that entries that did not move stay where they are.
    """

    name: ClassVar[str] = "codebook"
    gives: ClassVar[Numbers] = "symbols"

    k: int
    zero: str = "no"

    def __post_init__(self) -> None:
        check_integer(self.name, "k", self.k, 2, 256)
        check_choice(self.name, "zero", self.zero, ("no", "yes"))

    @property
    def unbiased(self) -> bool:
        """Rounding to nearest is not."""
        return False

    def encode(self, x: Tensor, rng: np.random.Generator) -> tuple[Tensor, Streams]:
        """Give the centroid of each entry, counted from the one nearest to zero."""
        del rng
        narrow = _narrow(x.dtype)
        count = min(self.k, x.numel())
        if count == 0:
            return x.to(torch.int16), (Scale(x.new_zeros(0, dtype=narrow)),)
        octave = _octave(x)
        scaled = (x if octave == 1 else x / octave).to(torch.float32)
        centroids = _centroids(scaled, count, self.zero == "yes")
        symbols = nearest(scaled, torch.from_numpy(centroids).to(x.device, torch.float32), 0)
        centroids = _means(scaled, symbols, centroids)
        limit = torch.finfo(narrow).max
        sent = torch.from_numpy(centroids * octave).clamp_(-limit, limit).to(x.device, narrow)
        return symbols.sub_(_zero_of(sent)), (Scale(sent),)

    def decode(self, x: Tensor, side: Streams, like: Layout) -> Tensor:
        """Look the centroids up."""
        (stream,) = side
        if not isinstance(stream, Scale):
            raise PayloadError(f"expected centroids, got a stream of {stream.kind}")
        centroids = stream.values.to(like.dtype)
        if centroids.numel() == 0:
            return torch.zeros(like.shape, dtype=like.dtype, device=like.device)
        return look_up(x, centroids, _zero_of(centroids)).reshape(like.shape)

    def side_forms(self, like: Layout) -> Forms:
        """Expect the centroids."""
        return (ScaleForm(min(self.k, like.size), _narrow(like.dtype)),)


def _narrow(dtype: torch.dtype) -> torch.dtype:
    """Give the dtype in which centroids are sent: its rounding is far below that of the entries."""
    return torch.bfloat16 if dtype == torch.float32 else dtype


def _octave(x: Tensor) -> float:
    """Give the power of two that brings float64 into the range of float32."""
    if x.dtype == torch.float32:
        return 1.0
    return math.ldexp(1.0, max(math.frexp(float(largest(x.reshape(1, -1))))[1], -1022))


def _centroids(x: Tensor, count: int, pinned: bool) -> np.ndarray:
    """Give ``count`` ascending centroids (float64) of float32 entries, one of them 0 if pinned."""
    from fedcompress.kernels.codebook import (
        BINS,
        SHIFT,
        SIDE,
        base_of,
        bin_values,
        histogram,
        lloyd,
    )

    base = base_of(float(largest(x.reshape(1, -1))))
    if x.device.type == "cpu":
        counts = histogram(x.reshape(-1).contiguous().numpy().view(np.uint32), base)
    else:
        steps = ((x.reshape(-1).abs().view(torch.int32) >> SHIFT) - base).clamp_(min=0)
        signed = torch.where(x.reshape(-1) < 0, SIDE - steps, SIDE + steps)
        counts = torch.bincount(signed, minlength=BINS).cpu().numpy()
    used = counts > 0
    used[SIDE] |= pinned
    places = np.flatnonzero(used)
    values = bin_values(places, base)
    if places.size > count:
        return np.asarray(lloyd(values, counts[places], count, pinned))
    return np.concatenate([values, np.full(count - places.size, values[-1])])


def _means(x: Tensor, symbols: Tensor, centroids: np.ndarray) -> np.ndarray:
    """Give the mean entry of each symbol; a centroid of no entries, and 0, stay as they are."""
    if x.device.type == "cpu":
        from fedcompress.kernels.codebook import cell_means

        means = centroids.copy()
        cell_means(x.reshape(-1).contiguous().numpy(), symbols.reshape(-1).numpy(), means)
    else:
        places = symbols.reshape(-1).long()
        counts = torch.bincount(places, minlength=centroids.size)
        totals = torch.bincount(places, weights=x.reshape(-1).double(), minlength=centroids.size)
        means = np.where(counts.cpu() > 0, (totals / counts.clamp(min=1)).cpu(), centroids)
    return np.where(centroids == 0, 0.0, means)


def _zero_of(centroids: Tensor) -> int:
    """Give the position of the centroid nearest to zero, the first of equal ones."""
    magnitude = centroids.abs()
    return int(torch.nonzero(magnitude == magnitude.min())[0])
