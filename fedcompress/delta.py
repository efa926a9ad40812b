"""Delta coding: the difference to a prediction from earlier rounds is sent."""

from dataclasses import dataclass
from typing import ClassVar

from fedcompress.chain import as_compressor
from fedcompress.checks import check_fraction
from fedcompress.compressor import Compressor
from fedcompress.prediction import Predictive


@dataclass(frozen=True, repr=False)
class Delta(Predictive):
    """Predict each update from those decoded before, and send the difference to it.

    Differential coding (Cutler, 1952), for updates as in Mishchenko, Gorbunov, Takáč and
    Richtárik (2019), "Distributed learning with compressed gradient differences" (DIANA), whose
    α is `rate`, and in Adikari and Draper (2021). With h the memory, zero at first, both sides
    form x̂ = factor · h + C(x − factor · h) and h ← (1 − rate) · h + rate · x̂. It pays where
    successive updates of a client are alike. Biased if C is.

    Parameters
    ----------
    compressor : Compressor
        C: what sends the difference.
    factor : float, optional
        What the memory is multiplied by to predict the update, in (0, 1]. Default: for each
        array what predicts it best (least squares), sent along in a byte.
    rate : float
        How much of the memory each update replaces, in (0, 1]: 1 remembers the last update
        only, less averages over about 1 / rate of them. Where a factor is given, an unbiased C
        whose squared error is ω times its input's, such as ``random_k(1 / (1 + ω))``, needs less
        than 2 / (1 + ω).
    """

    name: ClassVar[str] = "delta"

    compressor: Compressor
    factor: float | None = None
    rate: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "compressor", as_compressor(self.compressor, self.name))
        if self.factor is not None:
            object.__setattr__(self, "factor", check_fraction(self.name, "factor", self.factor))
        object.__setattr__(self, "rate", check_fraction(self.name, "rate", self.rate))
        self.check_inside(may_expand=self.factor is None or self.rate < 1)

    @property
    def unbiased(self) -> bool:
        """Whether the compressor inside is: the prediction is known to both sides."""
        return self.compressor.unbiased

    def __str__(self) -> str:
        factor = "" if self.factor is None else f", factor={self.factor}"
        rate = "" if self.rate == 0.5 else f", rate={self.rate}"
        return f"{self.name}({self.compressor}{factor}{rate})"

    def __repr__(self) -> str:
        return str(self)
