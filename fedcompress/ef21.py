"""EF21: the other side's estimate of the update is moved towards it by a compressed step."""

from dataclasses import dataclass
from typing import ClassVar

from fedcompress.chain import as_compressor
from fedcompress.compressor import Compressor
from fedcompress.prediction import Predictive


@dataclass(frozen=True, repr=False)
class EF21(Predictive):
    """Send the compressed difference between the update and what was decoded last. Biased.

    Richtárik, Sokolov and Fatkhullin (2021), "EF21: A new, simpler, theoretically better, and
    practically faster error feedback": g ← g + C(x − g) on both sides, and g is the decoded
    update. With the same update each round, ‖g − x‖² shrinks by 1 − α in each, α being the
    contraction of C, such as the fraction of `top_k`. The server keeps one g for each client.

    Parameters
    ----------
    compressor : Compressor
        C, contractive: what sends the difference.
    """

    name: ClassVar[str] = "ef21"
    corrects: ClassVar[bool] = True
    factor: ClassVar[float] = 1.0
    rate: ClassVar[float] = 1.0

    compressor: Compressor

    def __post_init__(self) -> None:
        object.__setattr__(self, "compressor", as_compressor(self.compressor, self.name))
        self.check_inside()

    @property
    def unbiased(self) -> bool:
        """Not in a single round."""
        return False

    def __str__(self) -> str:
        return f"{self.name}({self.compressor})"

    def __repr__(self) -> str:
        return str(self)
