"""Hard-threshold sparsification."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from fedcompress.checks import check_positive
from fedcompress.stages.selection import Selection, at_least


@dataclass(frozen=True, repr=False)
class Threshold(Selection):
    """Keep the entries whose magnitude is at least ``magnitude``. Biased.

    Strom (2015), "Scalable distributed DNN training using commodity GPU cloud computing";
    Sahu et al. (2021) on why an absolute threshold goes well with error feedback.

    Parameters
    ----------
    magnitude : float
        Smallest magnitude that is kept, in units of the update, above 0.
    """

    name: ClassVar[str] = "threshold"

    magnitude: float

    def __post_init__(self) -> None:
        magnitude = check_positive(self.name, "magnitude", self.magnitude)
        object.__setattr__(self, "magnitude", magnitude)  # 1 and 1.0 are one spec

    @property
    def unbiased(self) -> bool:
        """Never: what is small is dropped."""
        return False

    def select(self, x: Tensor, rng: np.random.Generator) -> Tensor:
        """Choose the positions at or above the threshold."""
        del rng
        return at_least(x, self.magnitude)
