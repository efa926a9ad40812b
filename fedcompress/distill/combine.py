"""What an ensemble of teachers says: their logits or probabilities, averaged row by row."""

from collections.abc import Iterable
from typing import Literal, final, get_args

import torch
from torch import Tensor

from fedcompress.distill.settings import check_choice
from fedcompress.errors import ConfigError, LayoutError

Combine = Literal["logits", "probabilities"]
RowWeighting = Literal["uniform", "confidence", "variance"]

_LEAST_PROBABILITY = 1e-30  # so that what all teachers rule out has a finite logit
_LEAST_SHARE = 1e-6  # of a class that no teacher knows: it is not made up from nothing
_LEAST_ROW_WEIGHT = 1e-30  # so that a row of which no teacher knows anything is a plain mean


@final
class Ensemble:
    """Teachers added one at a time; memory of two tables of logits, whatever their number.

    Parameters
    ----------
    combine : {"logits", "probabilities"}
        What is averaged. The mean of logits (AVGLOGITS; Lin et al., 2020) lets a teacher that is
        very sure outvote many; the mean of probabilities bounds what each can say.
    row_weighting : {"uniform", "confidence", "variance"}
        What a teacher's word on one row counts, beside its own weight: always the same; the
        inverse of the perplexity of its prediction; or the variance of its logits over the
        classes (Cho et al., 2022).
    """

    def __init__(
        self, *, combine: Combine = "logits", row_weighting: RowWeighting = "uniform"
    ) -> None:
        check_choice("ensemble", "combine", combine, get_args(Combine))
        check_choice("ensemble", "row_weighting", row_weighting, get_args(RowWeighting))
        self._combine = combine
        self._row_weighting = row_weighting
        self._total: Tensor | None = None
        self._row_weights: Tensor | None = None
        self._weight = 0.0
        self._teachers = 0

    @property
    def weight(self) -> float:
        """Sum of the teachers' own weights."""
        return self._weight

    def add(self, logits: Tensor, weight: float = 1.0) -> None:
        """Add one teacher.

        Parameters
        ----------
        logits : Tensor
            Shape ``(rows, ..., classes)``, the same for all teachers.
        weight : float
            Not negative. Only the ratios of the weights count.

        Raises
        ------
        LayoutError
            If the logits have another shape than the first teacher's.
        ConfigError
            If the weight is negative or not finite.
        """
        if not 0 <= weight < float("inf"):
            raise ConfigError(
                f"teacher {self._teachers}: weight must be finite and not negative, got {weight!r}"
            )
        if self._total is not None and logits.shape != self._total.shape:
            raise LayoutError(
                f"teacher {self._teachers}: logits have shape {tuple(logits.shape)}, those of "
                f"teacher 0 {tuple(self._total.shape)}; average only teachers with the same rows "
                "and classes"
            )
        # float64, so that the order of the teachers does not show in the float32 result
        said = logits.to(torch.float64)
        weights = weight * self._weights_of_rows(said)
        if self._combine == "probabilities":
            said = said.softmax(-1)
        if self._total is None or self._row_weights is None:
            self._total, self._row_weights = said * weights, weights
        else:
            self._total.add_(said * weights)
            self._row_weights = self._row_weights + weights
        self._weight += weight
        self._teachers += 1

    def add_share(self, logits: Tensor, share: float) -> None:
        """Add a teacher that makes up a share, in [0, 1), of the weight of all so far and itself.

        Raises
        ------
        LayoutError
            As for `add`.
        ConfigError
            If the share is out of range.
        """
        if not 0 <= share < 1:
            raise ConfigError(f"ensemble: a share must be in [0, 1), got {share!r}")
        if share > 0:
            self.add(logits, self._weight * share / (1 - share))

    def logits(self) -> Tensor:
        """Give what the ensemble says, float32, the shape of one teacher's logits.

        Of probabilities their logarithm, which are logits of the same distribution.

        Raises
        ------
        ConfigError
            If there is no teacher, or the weights of all are 0.
        """
        if self._total is None or self._row_weights is None:
            raise ConfigError("teachers: there are none to average, got 0; give at least 1")
        if self._weight == 0:
            raise ConfigError("teachers: the weights sum to 0; give one teacher a positive weight")
        mean = self._total / self._row_weights
        if self._combine == "probabilities":
            mean = mean.clamp_min(_LEAST_PROBABILITY).log()
        return mean.to(torch.float32)

    def _weights_of_rows(self, logits: Tensor) -> Tensor:
        if self._row_weighting == "uniform":
            return torch.ones((), dtype=torch.float64)
        if self._row_weighting == "variance":
            return logits.var(-1, keepdim=True, correction=0) + _LEAST_ROW_WEIGHT
        log_p = logits.log_softmax(-1)
        return torch.exp((log_p.exp() * log_p).sum(-1, keepdim=True))


def average_logits(
    teachers: Iterable[tuple[Tensor, float]],
    *,
    combine: Combine = "logits",
    row_weighting: RowWeighting = "uniform",
) -> Tensor:
    """Average an ensemble of teachers (AVGLOGITS; Lin et al., 2020).

    Teachers are taken one at a time, so a generator keeps a single one in memory.

    Parameters
    ----------
    teachers : iterable of (Tensor, float)
        Logits, all of one shape ``(rows, ..., classes)``, and the teacher's weight, not
        negative. Only the ratios of the weights count.
    combine, row_weighting
        As for `Ensemble`.

    Returns
    -------
    Tensor
        float32, the shape of one teacher's logits.

    Raises
    ------
    LayoutError
        If a teacher's logits have another shape than the first teacher's.
    ConfigError
        If there is no teacher, or a weight is negative or not finite, or all are 0.
    """
    ensemble = Ensemble(combine=combine, row_weighting=row_weighting)
    for logits, weight in teachers:
        ensemble.add(logits, weight)
    return ensemble.logits()


def aligned_logits(logits: Tensor, strength: float = 1.0) -> Tensor:
    """Take back what an ensemble says of each class too often (Berthelot et al., 2020).

    Clients of a few classes each name these too often, and so does their ensemble. Where the
    rows are known to be of all classes alike, the mean probability that a class is given shows by
    how much; it is divided out. Where they are not, this does harm.

    Parameters
    ----------
    logits : Tensor
        Shape ``(rows, ..., classes)``.
    strength : float
        From 0, which changes nothing, to 1.

    Returns
    -------
    Tensor
        float32, the same shape.
    """
    if strength == 0:
        return logits
    share = logits.to(torch.float64).softmax(-1).flatten(0, -2).mean(0)
    adjusted = logits - strength * share.clamp_min(_LEAST_SHARE).log()
    return adjusted.to(torch.float32)
