"""When a model is pruned, and how far."""

import math
from dataclasses import dataclass
from typing import final

from fedcompress.checks import check_integer
from fedcompress.errors import ConfigError

MOST_SPARSE = 0.999
"""A mask is read against the entries that it keeps, so that there have to be some."""


@final
@dataclass(frozen=True)
class Schedule:
    """Gradual pruning (Zhu & Gupta, 2017): fast at first, when much can go, slower at the end.

    The model is pruned after rounds ``first``, ``first + every`` and so on up to ``last``, and
    after ``last`` itself. Behind the k-th of n such rounds its sparsity is
    ``sparsity · (1 − (1 − k / n)³)``.

    Attributes
    ----------
    sparsity : float
        Share of zeros at the end, in [0, 0.999].
    first, last : int
        Rounds, from 1; equal ones prune once.
    every : int
        Rounds from one pruning to the next.
    regrow : float
        Share of the kept entries that is given, at each pruning, to those pruned before whose
        update is largest; in [0, 1).

    Raises
    ------
    ConfigError
        If a value is out of range.
    """

    sparsity: float
    first: int = 1
    last: int = 1
    every: int = 1
    regrow: float = 0.0

    def __post_init__(self) -> None:
        _check_share("sparsity", self.sparsity, MOST_SPARSE)
        _check_share("regrow", self.regrow, 0.999)
        check_integer("prune", "first", self.first, 1, 1 << 40)
        check_integer("prune", "every", self.every, 1, 1 << 40)
        check_integer("prune", "last", self.last, 1, 1 << 40)
        if self.last < self.first:
            raise ConfigError(
                f"prune: last is {self.last}, before first = {self.first}; "
                f"set last = {self.first} to prune once"
            )

    def sparsity_at(self, round: int) -> float:
        """Give the share of zeros after a round; it never falls."""
        if round >= self.last:
            return self.sparsity
        done = 0 if round < self.first else (round - self.first) // self.every + 1
        times = -(-(self.last - self.first) // self.every) + 1
        return self.sparsity * (1 - (1 - done / times) ** 3)

    def changes_at(self, round: int) -> bool:
        """Whether the model is pruned after a round."""
        within = self.first <= round <= self.last
        return within and (round == self.last or (round - self.first) % self.every == 0)


def _check_share(setting: str, value: object, most: float) -> None:
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not 0 <= number <= most:
        mend = f"; did you mean {number / 100:g}?" if 1 < number < 100 else ""
        raise ConfigError(f"prune: {setting} must be in [0, {most}], got {value!r}{mend}")
