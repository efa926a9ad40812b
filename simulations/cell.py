"""The settings of a cell: one strategy trained with one seed, as nested sections or flat keys.

A cell travels as Flower's run configuration, which holds nothing but dotted keys and scalars:
the server's and the client's app know nothing else, so they run on every engine unchanged.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, final

from pydantic import AfterValidator, ValidationError, field_validator, model_validator

from fedcompress.errors import ConfigError
from simulations.model_settings import ModelSettings
from simulations.settings import (
    Count,
    CountOrNone,
    Fraction,
    NotEmpty,
    NotNegative,
    Positive,
    Scalar,
    Section,
    Seed,
    TextOrUnset,
    Widths,
    config_error,
    flatten,
    unflatten,
)
from simulations.strategy_settings import StrategySettings

if TYPE_CHECKING:
    from simulations.training import TrainingOptions


def _absolute(folder: str | None) -> str | None:
    return None if folder is None else str(Path(folder).expanduser().absolute())


@final
class DataSettings(Section):
    """Which data set; `data_dir` is made absolute, because workers have folders of their own."""

    name: NotEmpty = "digits"
    data_dir: Annotated[TextOrUnset, AfterValidator(_absolute)] = None


@final
class PartitionSettings(Section):
    """How the training data are divided among clients; 0 clients means all natural ones.

    `samples_per_client` is for clients that draw their rows, of which there may be any number.
    """

    kind: Literal["iid", "dirichlet", "shards", "natural", "drawn", "drawn_dirichlet"] = "dirichlet"
    clients: CountOrNone = 20
    alpha: Positive = 0.5
    shards_per_client: Count = 2
    min_samples: CountOrNone = 1
    samples_per_client: Count = 50

    @model_validator(mode="after")
    def _check_clients(self) -> Self:
        if self.clients == 0 and self.kind != "natural":
            raise ValueError('clients must be at least 1, got 0; only kind = "natural" takes all')
        return self


@final
class TrainingSettings(Section):
    """How a client trains; after each of the rounds `milestones` it learns `decay` as fast."""

    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    learning_rate: Positive = 0.05
    momentum: NotNegative = 0.0
    weight_decay: NotNegative = 0.0
    local_epochs: Count = 1
    batch_size: Count = 32
    proximal_mu: NotNegative = 0.0
    milestones: Widths = ()
    decay: Positive = 0.1
    path: Literal["auto", "eager", "compiled", "cohort"] = "auto"

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        try:
            self.options()
        except ConfigError as error:
            raise ValueError(f".{str(error).removeprefix('training: ')}") from error
        return self

    def options(self, server_round: int = 1, proximal_mu: float | None = None) -> "TrainingOptions":
        """Give how clients train in a round, with another `proximal_mu` if the server says so."""
        from simulations.training import TrainingOptions

        passed = sum(server_round > milestone for milestone in self.milestones)
        return TrainingOptions(
            optimizer=self.optimizer,
            learning_rate=self.learning_rate * self.decay**passed,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            local_epochs=self.local_epochs,
            batch_size=self.batch_size,
            proximal_mu=self.proximal_mu if proximal_mu is None else proximal_mu,
        )


@final
class FederationSettings(Section):
    """Who takes part, how long the server waits, and how often it tests the global model."""

    fraction: Fraction = 1.0
    evaluate_every: Count = 1
    timeout_seconds: Positive | None = None


@final
class ProxySettings(Section):
    """Unlabelled inputs to distil on.

    Held out, they are `samples` training rows that no client of any strategy trains on; with
    `data`, the first rows of that data set's training part. `kind` unset follows from `data`.
    """

    kind: Literal["held_out", "data", "noise", "statistics", "generator"] | None = None
    data: TextOrUnset = None
    samples: CountOrNone = 0
    augment: Literal["none", "shift", "mixup"] = "none"

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        if self.kind == "data" and self.data is None:
            raise ValueError('.data must name a data set with kind = "data", got none')
        if self.kind not in (None, "data") and self.data is not None:
            raise ValueError(
                f'.data is for kind = "data", got {self.data!r} with kind {self.kind!r}; leave one '
                "of them out"
            )
        return self

    @property
    def source(self) -> str:
        """Name where the inputs come from: `kind`, or what follows from `data`."""
        return self.kind or ("held_out" if self.data is None else "data")


@final
class Cell(Section):
    """One strategy trained with one seed."""

    seed: Seed = 0
    rounds: Count = 10
    device: str = "cpu"
    data: DataSettings = DataSettings()
    partition: PartitionSettings = PartitionSettings()
    model: ModelSettings = ModelSettings()
    training: TrainingSettings = TrainingSettings()
    federation: FederationSettings = FederationSettings()
    proxy: ProxySettings = ProxySettings()
    strategy: StrategySettings = StrategySettings()

    @field_validator("device")
    @classmethod
    def _check_device(cls, device: str) -> str:
        if re.fullmatch(r"cpu|mps|cuda(:\d+)?", device) is None:
            raise ValueError(f"must be cpu, cuda, cuda:N or mps, got {device!r}")
        return device

    @model_validator(mode="after")
    def _check_proxy(self) -> Self:
        if (self.strategy.distills or self.strategy.student is not None) and self.proxy.samples < 2:
            raise ValueError(
                f"proxy.samples must be at least 2 for strategy {self.label!r}, which distils, "
                f"got {self.proxy.samples}; set proxy.samples = 200, say"
            )
        return self

    @property
    def label(self) -> str:
        """Name of the strategy in tables and legends."""
        return self.strategy.name

    def to_run_config(self) -> dict[str, Scalar]:
        """Flatten to Flower's run configuration: dotted keys to scalars."""
        return flatten(self.model_dump())

    @classmethod
    def from_run_config(cls, run_config: Mapping[str, Scalar]) -> "Cell":
        """Read the cell back from a run configuration; an empty string means unset.

        Raises
        ------
        ConfigError
            If a key is unknown or a value cannot work.
        """
        return cls.checked(unflatten(run_config), "run configuration")

    @classmethod
    def checked(cls, values: Mapping[str, Any], source: str) -> "Cell":
        """Validate nested settings; a fault becomes one `ConfigError` line."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise config_error(source, error, cls) from error
