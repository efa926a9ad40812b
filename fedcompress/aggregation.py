"""The weighted mean of the clients' models, as one running sum."""

from collections.abc import Mapping

import torch
from torch import Tensor

from fedcompress.compressor import Part


class WeightedSum:
    """Adds updates by weight in O(entries sent) each, in memory of one model.

    Parameters
    ----------
    reference : Mapping[str, Tensor]
        The model that the updates were taken against.
    largest : float
        The largest weight that will come, above 0; weights are taken relative to it, so that no
        sum overflows where the mean does not.
    """

    def __init__(self, reference: Mapping[str, Tensor], largest: float) -> None:
        self._reference = reference
        self._largest = largest
        self._share = 0.0
        self._total = {
            name: torch.zeros(x.shape, dtype=_sum_dtype(x.dtype), device=x.device)
            for name, x in reference.items()
        }

    def add(self, parts: Mapping[str, Part], weight: float) -> None:
        """Add one client's update."""
        share = weight / self._largest
        for name, total in self._total.items():
            parts[name].add_to(total, share)
        self._share += share

    def mean(self) -> dict[str, Tensor]:
        """Give the mean model: reference + mean update; of integers, the mean as float64."""
        mean: dict[str, Tensor] = {}
        for name, x in self._reference.items():
            average = self._total[name] / self._share
            mean[name] = x + average.to(x.dtype) if x.is_floating_point() else average
        return mean


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype.is_floating_point and dtype.itemsize <= 4 else torch.float64
