"""The settings of a cell: one strategy trained with one seed, as nested sections or flat keys.

A cell travels as Flower's run configuration, which holds nothing but dotted keys and scalars:
the server's and the client's app know nothing else, so they run on every engine unchanged.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, final

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from fedcompress.checks import near
from fedcompress.errors import ConfigError
from simulations.settings import (
    Fraction,
    Scalar,
    Section,
    Seed,
    TextOrUnset,
    Widths,
    config_error,
    flatten,
    unflatten,
)

if TYPE_CHECKING:
    from strategies import Method

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
CountOrNone = Annotated[int, Field(ge=0)]


def canonical_spec(spec: str) -> str:
    """Write a compressor spec in the one form that legends and records use.

    Raises
    ------
    SpecError
        If it cannot be parsed.
    """
    from fedcompress import parse

    return str(parse(spec))


Spec = Annotated[str, AfterValidator(canonical_spec)]
NotEmpty = Annotated[str, Field(min_length=1)]


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


def _check_model(name: str) -> str:
    from simulations.models import MODELS

    if name not in MODELS:
        raise ValueError(
            f"must be one of {', '.join(MODELS)}, got {name!r}; {near(name, list(MODELS))}"
        )
    return name


ModelName = Annotated[str, AfterValidator(_check_model)]


@final
class ModelSettings(Section):
    """Which model; `hidden` is for the MLP and the LSTM, `width` scales any."""

    name: ModelName = "mlp"
    hidden: Widths = (200, 200)
    width: Positive = 1.0


@final
class TrainingSettings(Section):
    """How a client trains."""

    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    learning_rate: Positive = 0.05
    momentum: NotNegative = 0.0
    weight_decay: NotNegative = 0.0
    local_epochs: Count = 1
    batch_size: Count = 32
    proximal_mu: NotNegative = 0.0
    path: Literal["auto", "eager", "compiled", "cohort"] = "auto"

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        from simulations.training import TrainingOptions

        try:
            TrainingOptions(**self.model_dump(exclude={"path"}))
        except ConfigError as error:
            raise ValueError(f".{str(error).removeprefix('training: ')}") from error
        return self


@final
class FederationSettings(Section):
    """Who takes part, how long the server waits, and how often it tests the global model."""

    fraction: Fraction = 1.0
    evaluate_every: Count = 1
    timeout_seconds: Positive | None = None


@final
class ProxySettings(Section):
    """Unlabelled inputs to distil on.

    Without `data` they are `samples` training rows that no client of any strategy trains on;
    with `data`, the first rows of that data set's training part.
    """

    data: TextOrUnset = None
    samples: CountOrNone = 0


def _as_table(value: object) -> object:
    return {"enabled": value} if isinstance(value, bool) else value


@final
class DistillSettings(Section):
    """Ensemble distillation in each round; `enabled` unset leaves it to the method."""

    enabled: bool | None = None
    temperature: Positive = 1.0
    steps: Count = 200
    batch_size: Count = 128
    learning_rate: Positive = 1e-3
    patience: Count = 50
    holdout_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    weighting: Literal["uniform", "examples"] = "uniform"


@final
class StudentSettings(Section):
    """A smaller model distilled from the global model when training is over."""

    name: ModelName = "mlp"
    hidden: Widths = (32,)
    width: Positive = 1.0
    temperature: Positive = 2.0
    steps: Count = 1000
    batch_size: Count = 128
    learning_rate: Positive = 3e-3
    patience: Count = 200
    holdout_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1


def _check_rule(name: str | None) -> str | None:
    from strategies.methods import check_server

    try:
        return None if name is None else check_server(name)
    except ConfigError as error:
        said = str(error).removeprefix("server: ")
        raise ValueError(f"must be a server rule: {said}") from error


def _check_not_empty(options: dict[str, Scalar]) -> dict[str, Scalar]:
    for name, value in options.items():
        if value == "":
            raise ValueError(f".{name} must not be empty; leave it out")
    return options


def _check_own(options: dict[str, Scalar]) -> dict[str, Scalar]:
    from strategies.methods import is_of_federation

    for name in options:
        if is_of_federation(name):
            raise ValueError(f".{name} is set by the study; who takes part is federation.fraction")
    return options


Options = Annotated[dict[str, Scalar], AfterValidator(_check_not_empty)]


@final
class StrategySettings(Section):
    """What is compared: a published method, and what replaces parts of it.

    `server`, `uplink`, `downlink` and `distill` take the place of what the method says.
    """

    label: str = ""
    method: str = "fedavg"
    method_options: Options = Field(default_factory=dict)
    server: Annotated[TextOrUnset, AfterValidator(_check_rule)] = None
    server_options: Annotated[Options, AfterValidator(_check_own)] = Field(default_factory=dict)
    uplink: Spec | None = None
    downlink: Spec | None = None
    distill: Annotated[DistillSettings, BeforeValidator(_as_table)] = DistillSettings()
    student: StudentSettings | None = None

    @model_validator(mode="after")
    def _check_method(self) -> Self:
        self.check_server()
        return self

    def check_server(self) -> None:
        """Refuse a method, a server rule or an option that cannot work; raise `ConfigError`."""
        from strategies.methods import build_server

        build_server(self.server or self.published_method(), self.server_options)

    def published_method(self) -> "Method":
        """Look the method up, with its options."""
        from strategies.methods import method

        return method(self.method, **self.method_options)

    @property
    def name(self) -> str:
        """Label in tables and legends."""
        return self.label or self.method

    @property
    def uplink_spec(self) -> str | None:
        """Spec of what clients send; None for dense arrays."""
        spec = self.uplink or self.published_method().uplink
        return None if spec is None else canonical_spec(spec)

    @property
    def downlink_spec(self) -> str | None:
        """Spec of what the server sends; None for the dense model."""
        spec = self.downlink or self.published_method().downlink
        return None if spec is None else canonical_spec(spec)

    @property
    def distills(self) -> bool:
        """Whether the clients' models are distilled into the global one."""
        enabled = self.distill.enabled
        return self.published_method().distill if enabled is None else enabled


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
