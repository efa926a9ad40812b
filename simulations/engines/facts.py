"""Facts that a worker must share with the driver: which data it has, for instance.

Workers of other machines load data of their own. Were they others, a run would go on and its
result mean nothing.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Mapping, Sequence

from flwr.app import UserConfig
from flwr.clientapp.typing import ClientAppCallable

from fedcompress.errors import ConfigError

Facts = Mapping[str, str]
"""What each thing is called, and a fingerprint of it."""

FactsOf = Callable[[UserConfig], Facts]
_ATTRIBUTE = "facts_of"


def offer_facts(app: ClientAppCallable, facts_of: FactsOf) -> None:
    """Tell engines how an app finds its facts, given the run configuration; it may raise."""
    setattr(app, _ATTRIBUTE, facts_of)


def pack_check(run_config: UserConfig, facts: Facts) -> bytes:
    """Write what a worker is to check."""
    return json.dumps([list(run_config), list(run_config.values()), dict(facts)]).encode()


def check_facts(app: ClientAppCallable, packed: bytes) -> str:
    """Check in a worker what `pack_check` wrote; say what is wrong, empty if nothing is.

    An app that offers no facts, or not all of those asked for, is believed.
    """
    names, values, expected = json.loads(packed)
    facts_of: FactsOf | None = getattr(app, _ATTRIBUTE, None)
    if facts_of is None:
        return ""
    try:
        found = facts_of(dict(zip(names, values, strict=True)))
    except Exception as error:  # noqa: BLE001 - an app may raise anything
        said = str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
        return f"{socket.gethostname()}: {said}"
    return "; ".join(_differences(expected, found))


def _differences(expected: Facts, found: Facts) -> Sequence[str]:
    host = socket.gethostname()
    return [
        f"{host}: {name}: the worker has {found[name]}, the driver {value}; every machine needs "
        "the same files and the same versions of the packages"
        for name, value in expected.items()
        if found.get(name, value) != value
    ]
