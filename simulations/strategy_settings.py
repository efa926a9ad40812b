"""The settings of a strategy: what of a study is compared."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, final

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from fedcompress.array_rules import canonical
from fedcompress.checks import near
from fedcompress.errors import ConfigError
from fedcompress.pruning.patterns import MOST_IN_GROUP
from simulations.exchanges.registry import EXCHANGES
from simulations.model_settings import ModelName, read_models
from simulations.settings import (
    Count,
    CountOrNone,
    Fraction,
    Fractions,
    NotEmpty,
    Positive,
    Scalar,
    Section,
    Share,
    TextOrUnset,
    Widths,
    unflatten,
)

if TYPE_CHECKING:
    from strategies import Method


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


def _as_table(value: object) -> object:
    return {"enabled": value} if isinstance(value, bool) else value


@final
class DistillSettings(Section):
    """Ensemble distillation in each round; `enabled` unset leaves it to the method.

    `anchor` is the share of the average among its teachers, `memory` that of the ensembles of
    earlier rounds; rounds before `first` are not distilled.
    """

    enabled: bool | None = None
    temperature: Positive = 1.0
    steps: Count = 200
    batch_size: Count = 128
    learning_rate: Positive = 1e-3
    patience: Count = 50
    holdout_fraction: Share = 0.1
    weighting: Literal["uniform", "examples", "confidence", "variance"] = "uniform"
    combine: Literal["logits", "probabilities"] = "logits"
    anchor: Share = 0.0
    memory: Share = 0.0
    align: Annotated[float, Field(ge=0, le=1)] = 0.0
    first: Count = 1
    hard_label_weight: Annotated[float, Field(ge=0, le=1)] = 0.0
    one_at_a_time: bool = False


@final
class StudentSettings(Section):
    """A smaller model, distilled when training is over: from the global one, or the last teachers.

    `teacher` says whose logits it follows.
    """

    name: ModelName = "mlp"
    hidden: Widths = (32,)
    width: Positive = 1.0
    teacher: Literal["global", "ensemble"] = "global"
    temperature: Positive = 2.0
    steps: Count = 1000
    batch_size: Count = 128
    learning_rate: Positive = 3e-3
    patience: Count = 200
    holdout_fraction: Share = 0.1


@final
class WidthsSettings(Section):
    """Clients that hold the first units of each layer: HeteroFL, and FjORD's ordered dropout.

    A client's level is one of `levels`, fixed, or `drawn` anew in each round.
    """

    levels: Fractions = (1.0, 0.5, 0.25)
    drawn: bool = False
    ordered_dropout: bool = False
    self_distil: bool = False
    scale: bool = True
    mask_loss: bool = True


def _check_array_rule(rule: str) -> str:
    return canonical("only", rule)


@final
class PruneSettings(Section):
    """Weights pruned during training, by a schedule of rounds.

    `adaptive_step` quantizes the uplink by steps that follow each array's importance, around this
    one; it takes the place of `uplink`.
    """

    sparsity: Share = 0.9
    importance: Literal["magnitude", "taylor", "fisher"] = "magnitude"
    pattern: Literal["layer", "across", "rows", "units", "n_of_m"] = "layer"
    n: Count = 2
    m: Count = 4
    first: Count = 5
    last: Count = 20
    every: Count = 5
    regrow: Share = 0.0
    only: Annotated[NotEmpty, AfterValidator(_check_array_rule)] = "ndim>=2"
    adaptive_step: Positive | None = None

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.last < self.first:
            raise ValueError(f".last must be at least first, {self.first}, got {self.last}")
        if self.pattern == "n_of_m" and not self.n < self.m <= MOST_IN_GROUP:
            raise ValueError(
                f".n must be below m, and m at most {MOST_IN_GROUP}, got n = {self.n} and m = "
                f"{self.m}"
            )
        return self


@final
class MasksSettings(Section):
    """Masks of a random network that is never trained itself (FedPM; Isik et al., 2023)."""

    init: Literal["signed_constant"] = "signed_constant"
    learning_rate: Positive = 0.1
    reset_every: CountOrNone = 1


@final
class LogitsSettings(Section):
    """Predictions on proxy rows in place of models (FedMD; Li & Wang, 2019, and DS-FL).

    `sharpen` below 1 lowers the entropy of the mean prediction (DS-FL; Itahara et al., 2021), for
    which clients send probabilities; `redraw` takes other proxy rows in each round.
    """

    rows: Annotated[int, Field(ge=2)] = 1000
    scores: Literal["logits", "probabilities"] = "logits"
    sharpen: Fraction = 1.0
    digest_steps: Count = 50
    redraw: bool = False
    weighting: Literal["uniform", "examples"] = "uniform"

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.scores == "logits" and self.sharpen != 1.0:
            raise ValueError(
                f".sharpen must be 1.0 where logits are sent, which each round would sharpen again,"
                f' got {self.sharpen:g}; set scores = "probabilities"'
            )
        return self


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


def _check_exchange(name: str | None) -> str | None:
    if name is not None and name not in EXCHANGES:
        raise ValueError(
            f"must be one of {', '.join(EXCHANGES)}, got {name!r}; {near(name, list(EXCHANGES))}"
        )
    return name


def _check_groups(text: str | None) -> str | None:
    if text is not None:
        read_models(text)
    return text


Options = Annotated[dict[str, Scalar], AfterValidator(_check_not_empty)]


@final
class StrategySettings(Section):
    """What is compared: a published method, and what replaces parts of it.

    `server`, `uplink`, `downlink`, `distill` and `exchange` take the place of what the method says.
    """

    label: str = ""
    method: str = "fedavg"
    method_options: Options = Field(default_factory=dict)
    server: Annotated[TextOrUnset, AfterValidator(_check_rule)] = None
    server_options: Annotated[Options, AfterValidator(_check_own)] = Field(default_factory=dict)
    uplink: Spec | None = None
    downlink: Spec | None = None
    exchange: Annotated[TextOrUnset, AfterValidator(_check_exchange)] = None
    distill: Annotated[DistillSettings, BeforeValidator(_as_table)] = DistillSettings()
    widths: WidthsSettings | None = None
    groups: Annotated[TextOrUnset, AfterValidator(_check_groups)] = None
    group_shares: Fractions = ()
    prune: PruneSettings | None = None
    masks: MasksSettings | None = None
    logits: LogitsSettings | None = None
    student: StudentSettings | None = None

    @model_validator(mode="before")
    @classmethod
    def _with_the_methods_settings(cls, values: object) -> object:
        """Put in what the method sets of this table's keys, beneath what stands there already."""
        if not isinstance(values, Mapping):
            return values
        from strategies.methods import method

        name, given = values.get("method", "fedavg"), values.get("method_options") or {}
        try:
            chosen = method(name, **given)
        except (ConfigError, TypeError):
            return values  # told below, where the method is looked up
        if not chosen.options or values.get("exchange") not in (None, "", chosen.exchange):
            return values
        return _beneath(unflatten(dict(chosen.options)), values)

    @model_validator(mode="after")
    def _check_method(self) -> Self:
        self.check_server()
        return self

    @model_validator(mode="after")
    def _check_sections(self) -> Self:
        """Refuse a section that nothing would read."""
        chosen = self.exchange_name
        if chosen not in EXCHANGES:
            raise ValueError(
                f".method {self.method!r} exchanges {chosen!r}, which there is not here; "
                f"known: {', '.join(EXCHANGES)}"
            )
        for name in ("widths", "groups", "group_shares", "prune", "masks", "logits"):
            if getattr(self, name) in (None, ()) or name in EXCHANGES[chosen].reads:
                continue
            readers = [other for other, entry in EXCHANGES.items() if name in entry.reads]
            mend = " or ".join(f'set exchange = "{other}"' for other in readers)
            raise ValueError(
                f".{name} is not read by the exchange {chosen!r}; "
                + (mend or "no exchange here reads it, leave it out")
            )
        adaptive = self.prune is not None and self.prune.adaptive_step is not None
        if adaptive and self.uplink is not None:
            raise ValueError(
                f".uplink: prune.adaptive_step takes its place, got {self.uplink!r}; leave out one"
            )
        teaches = self.student is not None and self.student.teacher == "ensemble"
        unsaid = self.distill.enabled is None and not self.distills and not teaches
        if unsaid and self.distill != DistillSettings():
            raise ValueError(
                f".distill: method {self.method!r} distils nothing, so these settings would do "
                "nothing; add enabled = true, or false to keep them for later"
            )
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
    def exchange_name(self) -> str:
        """What server and clients exchange, a key of `EXCHANGES`."""
        return self.exchange or self.published_method().exchange

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


def _beneath(defaults: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two nested tables, of which the second wins."""
    merged = {**defaults, **{k: v for k, v in values.items() if v is not None or k not in defaults}}
    for name, default in defaults.items():
        own = _as_table(values.get(name))
        if isinstance(default, Mapping) and isinstance(own, Mapping):
            merged[name] = _beneath(default, own)
    return merged
