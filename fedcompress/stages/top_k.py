"""Top-k sparsification."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedcompress.checks import check_fraction
from fedcompress.stages.selection import Selection, count_of


@dataclass(frozen=True, repr=False)
class TopK(Selection):
    """Keep the largest-magnitude ``fraction`` of entries of each array. Biased.

    Aji & Heafield (2017), "Sparse communication for distributed gradient descent".

    Parameters
    ----------
    fraction : float
        Share of the entries to keep, in (0, 1]; at least one entry is kept.
    """

    name: ClassVar[str] = "top_k"

    fraction: float

    def __post_init__(self) -> None:
        check_fraction(self.name, "fraction", self.fraction)

    @property
    def unbiased(self) -> bool:
        """Only when nothing is dropped."""
        return self.fraction == 1

    def select(self, x: Tensor, rng: np.random.Generator) -> Tensor:
        """Choose the positions of the largest magnitudes."""
        del rng
        n = x.numel()
        k = count_of(self.fraction, n)
        if k == n:
            return torch.arange(n, device=x.device)
        magnitude = x.abs()
        if x.device.type == "cpu":
            # Measured faster than torch.topk on one thread, the more so the larger the array.
            chosen = np.argpartition(magnitude.numpy(), n - k)[n - k :]
            return torch.from_numpy(np.sort(chosen))
        return magnitude.topk(k, sorted=False).indices.sort().values
