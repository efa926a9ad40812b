"""Build Flower's server rules by name, with every option checked."""

import inspect
import math
from collections.abc import Mapping
from typing import Any

from flwr.serverapp.strategy import (
    Bulyan,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    MultiKrum,
    QFedAvg,
)

from fedcompress.checks import near
from fedcompress.errors import ConfigError
from strategies.methods.method import Method
from strategies.methods.registry import method, methods

SERVERS: Mapping[str, type[FedAvg]] = {
    "bulyan": Bulyan,
    "fedadagrad": FedAdagrad,
    "fedadam": FedAdam,
    "fedavg": FedAvg,
    "fedavgm": FedAvgM,
    "fedmedian": FedMedian,
    "fedprox": FedProx,
    "fedtrimmedavg": FedTrimmedAvg,
    "fedyogi": FedYogi,
    "krum": Krum,
    "multikrum": MultiKrum,
    "qfedavg": QFedAvg,
}


# What a Flower strategy is told of the federation and of the apps, rather than of its rule.
_OF_FEDERATION = frozenset(
    {
        "fraction_train",
        "fraction_evaluate",
        "min_train_nodes",
        "min_evaluate_nodes",
        "min_available_nodes",
        "arrayrecord_key",
        "configrecord_key",
        "train_metrics_aggr_fn",
        "evaluate_metrics_aggr_fn",
    }
)


def is_of_federation(setting: str) -> bool:
    """Whether a setting of a Flower strategy concerns who takes part and how its apps speak."""
    return setting in _OF_FEDERATION


def check_server(name: str) -> str:
    """Give the name of a server rule; raise `ConfigError` if there is no such rule.

    A method that is more than a server rule is none: its compressors would be lost.
    """
    if name not in SERVERS:
        mend = near(name, list(SERVERS))
        if name in methods():
            mend = f'{name} is a method: write method = "{name}"'
        raise ConfigError(f"server: there is no rule {name!r}; {mend}")
    return name


def build_server(
    method_or_name: Method | str,
    options: Mapping[str, object] | None = None,
    **flower_kwargs: object,
) -> FedAvg:
    """Construct the Flower strategy of a method.

    Parameters
    ----------
    method_or_name : Method or str
        A method, or the name of one; every server rule's name is also a method's.
    options : mapping of str to object, optional
        Settings of the server rule that replace the method's own, such as ``{"eta": 0.1}``.
    **flower_kwargs : object
        Other arguments of the Flower class, such as ``fraction_train=0.1``.

    Returns
    -------
    FedAvg
        The Flower strategy; all of Flower's server rules for arrays derive from it.

    Raises
    ------
    ConfigError
        If there is no such rule or setting, or a value has the wrong type or range.

    Examples
    --------
    >>> strategy = build_server("fedadam", {"eta": 0.1}, fraction_train=0.5, min_train_nodes=1)
    >>> type(strategy).__name__, strategy.eta, strategy.fraction_train
    ('FedAdam', 0.1, 0.5)
    """
    chosen = method(method_or_name) if isinstance(method_or_name, str) else method_or_name
    rule = SERVERS[check_server(chosen.server)]
    settings: dict[str, Any] = {**chosen.server_options, **(options or {}), **flower_kwargs}
    known = inspect.signature(rule).parameters
    for name, value in settings.items():
        if name not in known:
            # Arguments of the class may be any of its own; options are those of the rule.
            of_rule = [key for key in known if name in flower_kwargs or not is_of_federation(key)]
            raise ConfigError(
                f"{chosen.server}: there is no setting {name!r}; {near(name, of_rule)}"
            )
        _check_type(chosen.server, name, value, known[name].annotation)
        if name.startswith("fraction_") and not 0 <= value <= 1:
            mend = f"; did you mean {value / 100:g}?" if 1 < value <= 100 else ""
            raise ConfigError(f"{chosen.server}: {name} must be in [0, 1], got {value!r}{mend}")
    _check_required(chosen.server, settings, known)
    try:
        return rule(**settings)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{chosen.server}: {error} Got {settings}.") from error


def _check_type(owner: str, name: str, value: object, annotation: object) -> None:
    kind = getattr(annotation, "__name__", str(annotation))
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "float" and not (number and math.isfinite(value)):  # type: ignore[arg-type]
        raise ConfigError(f"{owner}: {name} must be a finite number, got {value!r}")
    if kind == "int" and not (number and isinstance(value, int) and value >= 0):
        raise ConfigError(f"{owner}: {name} must be a whole number >= 0, got {value!r}")
    if kind == "str" and not isinstance(value, str):
        raise ConfigError(f"{owner}: {name} must be a string, got {value!r}")


def _check_required(
    owner: str, settings: Mapping[str, object], known: Mapping[str, inspect.Parameter]
) -> None:
    for name, parameter in known.items():
        if parameter.default is inspect.Parameter.empty and name not in settings:
            raise ConfigError(f"{owner}: the setting {name!r} is missing; give it a value")
