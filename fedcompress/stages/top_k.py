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
        fraction = check_fraction(self.name, "fraction", self.fraction)
        object.__setattr__(self, "fraction", fraction)  # 1 and 1.0 are one spec

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
            least = float(np.partition(magnitude.numpy(), n - k)[n - k])
        else:
            least = float(magnitude.topk(k, sorted=False).values.min())
        # Which of several equal entries a library picks hangs on the processor; we take the first.
        above = torch.nonzero(magnitude > least).reshape(-1)
        equal = torch.nonzero(magnitude == least).reshape(-1)[: k - above.numel()]
        return torch.cat([above, equal]).sort().values
