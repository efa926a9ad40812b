"""Proxy data: unlabelled inputs on which models are distilled, and where they come from."""

from abc import ABC, abstractmethod
from typing import ClassVar, final

import numpy as np
import torch
from torch import Tensor, nn

from fedcompress.distill import generated_inputs, matched_inputs, noise_inputs, predict_logits
from fedcompress.distill.synthetic import check_has_statistics
from fedcompress.errors import ConfigError


class ProxySource(ABC):
    """Where the proxy data of a round come from.

    Attributes
    ----------
    is_fixed : bool
        Whether every round has the same rows.
    """

    is_fixed: ClassVar[bool] = False

    @property
    @abstractmethod
    def kind(self) -> str:
        """Name of the source in records."""

    @property
    @abstractmethod
    def rows(self) -> int:
        """How many inputs a round has."""

    @abstractmethod
    def inputs(self, guide: nn.Module, rng: np.random.Generator) -> Tensor:
        """Give the inputs of a round, shape ``(rows, ...)``.

        Parameters
        ----------
        guide : nn.Module
            The global model that the round began with; left as it was, on the CPU.
        rng : numpy.random.Generator
            Draws whatever is drawn.
        """

    @abstractmethod
    def check(self, model: nn.Module, device: str) -> None:
        """Raise `ConfigError` where the model cannot be distilled on such inputs."""


@final
class GivenProxy(ProxySource):
    """Inputs that are there: held out, or of another data set.

    Parameters
    ----------
    inputs : Tensor
        Shape ``(rows, ...)``, as the model takes them; at least two rows.
    kind : str
        Name in records.
    """

    is_fixed: ClassVar[bool] = True

    def __init__(self, inputs: Tensor, kind: str = "given") -> None:
        self._inputs = inputs
        self._kind = kind

    @property
    def kind(self) -> str:
        """Name of the source in records."""
        return self._kind

    @property
    def rows(self) -> int:
        """How many inputs there are."""
        return len(self._inputs)

    def inputs(self, guide: nn.Module, rng: np.random.Generator) -> Tensor:
        """Give the inputs, the same for every round."""
        return self._inputs

    def check(self, model: nn.Module, device: str) -> None:
        """Raise `ConfigError` unless the model takes these inputs."""
        check_proxy(model, self._inputs, device)


@final
class NoiseProxy(ProxySource):
    """Noise: Gaussian for images, tokens drawn evenly; see `fedcompress.distill.noise_inputs`."""

    def __init__(self, rows: int, shape: tuple[int, ...], *, vocabulary: int | None = None) -> None:
        self._rows, self._shape, self._vocabulary = rows, shape, vocabulary

    @property
    def kind(self) -> str:
        """Name of the source in records."""
        return "noise"

    @property
    def rows(self) -> int:
        """How many inputs a round has."""
        return self._rows

    def inputs(self, guide: nn.Module, rng: np.random.Generator) -> Tensor:
        """Draw other noise for each round."""
        return noise_inputs(self._rows, self._shape, rng, vocabulary=self._vocabulary)

    def check(self, model: nn.Module, device: str) -> None:
        """Raise `ConfigError` unless the model takes inputs of this shape."""
        _check_shape(model, self._rows, self._shape, device, self._vocabulary)


@final
class StatisticsProxy(ProxySource):
    """Noise matched to the global model's statistics; see `fedcompress.distill.matched_inputs`."""

    def __init__(self, rows: int, shape: tuple[int, ...], *, steps: int = 100) -> None:
        self._rows, self._shape, self._steps = rows, shape, steps

    @property
    def kind(self) -> str:
        """Name of the source in records."""
        return "statistics"

    @property
    def rows(self) -> int:
        """How many inputs a round has."""
        return self._rows

    def inputs(self, guide: nn.Module, rng: np.random.Generator) -> Tensor:
        """Match noise to the statistics that the global model remembers."""
        return matched_inputs(guide, self._rows, self._shape, rng, steps=self._steps)

    def check(self, model: nn.Module, device: str) -> None:
        """Raise `ConfigError` unless the model remembers statistics and takes such inputs."""
        check_has_statistics(model)
        _check_shape(model, self._rows, self._shape, device)


@final
class GeneratedProxy(ProxySource):
    """A generator trained anew in each round; see `fedcompress.distill.generated_inputs`."""

    def __init__(
        self, rows: int, shape: tuple[int, ...], classes: int, *, steps: int = 200
    ) -> None:
        self._rows, self._shape, self._classes, self._steps = rows, shape, classes, steps

    @property
    def kind(self) -> str:
        """Name of the source in records."""
        return "generator"

    @property
    def rows(self) -> int:
        """How many inputs a round has."""
        return self._rows

    def inputs(self, guide: nn.Module, rng: np.random.Generator) -> Tensor:
        """Train a generator against the global model and draw from it."""
        return generated_inputs(
            guide, self._rows, self._shape, self._classes, rng, steps=self._steps
        )

    def check(self, model: nn.Module, device: str) -> None:
        """Raise `ConfigError` unless the model gives one row of logits for such an input."""
        _check_shape(model, self._rows, self._shape, device)


def check_proxy(model: nn.Module, proxy: Tensor, device: str) -> None:
    """Refuse proxy data that the model cannot take, by running it on two rows.

    Raises
    ------
    ConfigError
        Names what does not fit, and how to mend it.
    """
    if not isinstance(proxy, Tensor):
        raise ConfigError(
            f"Distilled: proxy must be a Tensor of unlabelled inputs, got {type(proxy).__name__}"
        )
    if proxy.ndim < 1 or len(proxy) < 2:
        raise ConfigError(
            f"Distilled: proxy needs at least 2 rows, got shape {tuple(proxy.shape)}; "
            "give more unlabelled inputs"
        )
    if proxy.is_floating_point() and not bool(torch.isfinite(proxy).all()):
        raise ConfigError("Distilled: proxy holds NaN or infinity; leave those rows out")
    _check_device(device)
    try:
        logits = predict_logits(model, proxy[:2], device=device)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise ConfigError(
            f"Distilled: proxy rows of shape {tuple(proxy.shape[1:])} and dtype {proxy.dtype} do "
            f"not fit the model ({error}); give inputs as the model takes them"
        ) from error
    if logits.ndim < 2 or len(logits) != 2:
        raise ConfigError(
            f"Distilled: the model gives shape {tuple(logits.shape)} for 2 proxy rows; "
            "it must give logits of shape (rows, ..., classes)"
        )


def _check_shape(
    model: nn.Module, rows: int, shape: tuple[int, ...], device: str, vocabulary: int | None = None
) -> None:
    # Two rows are tried, since drawing all may take long; none are drawn where there are fewer.
    dtype = torch.float32 if vocabulary is None else torch.int64
    check_proxy(model, torch.zeros(min(rows, 2), *shape, dtype=dtype), device)


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for CUDA
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"Distilled: device {device!r} cannot be used ({reason}); use 'cpu' or another"
        ) from error
