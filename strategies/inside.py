"""What stands inside a strategy that wraps others: found and checked."""

import logging

from flwr.serverapp.strategy import FedXgbBagging, FedXgbCyclic, Strategy

from fedcompress.errors import ConfigError
from fedcompress.flower_adapter import strategies_inside
from fedcompress.server import Compressed

logger = logging.getLogger(__name__)


def check_inside(strategy: Strategy) -> None:
    """Refuse what `Distilled` cannot stand around.

    Raises
    ------
    ConfigError
        If it is no Strategy, or compression, tree boosting or one that sends other arrays than
        the global model is somewhere inside.
    """
    if not isinstance(strategy, Strategy):
        raise ConfigError(
            f"Distilled: strategy must be a flwr.serverapp.strategy.Strategy, got "
            f"{type(strategy).__name__}; build one, such as FedAvg()"
        )
    for inner in strategies_inside(strategy):
        name = type(inner).__name__
        if isinstance(inner, Compressed):
            raise ConfigError(
                f"Distilled: {name} stands inside, but distillation needs the decoded models; "
                "write Compressed(Distilled(strategy, ...), ...)"
            )
        if getattr(inner, "sends_own_arrays", False):
            raise ConfigError(
                f"Distilled: clients of {name} have models of several sizes, of which none can "
                "teach the others here; use GroupsDistilled around Groups, or leave Distilled out"
            )
        if isinstance(inner, FedXgbBagging | FedXgbCyclic):
            raise ConfigError(
                f"Distilled: {name} combines trees, not a network's arrays; use FedAvg or another"
            )
        if getattr(inner, "sends_own_arrays", False):
            raise ConfigError(
                f"Distilled: {name} inside sends clients other arrays than the global model, so "
                f"theirs cannot teach it; write {name}(Distilled(strategy, ...), ...), or leave "
                "distillation out"
            )
        if name.startswith("DifferentialPrivacy"):
            logger.warning(
                "Distilled around %s: the teachers carry no noise, so the privacy guarantee "
                "does not cover the distilled model",
                name,
            )


def check_packed_inside(owner: str, strategy: Strategy) -> None:
    """Refuse what a strategy that changes messages and replies cannot stand around.

    Raises
    ------
    ConfigError
        If it is no Strategy, or compression, tree boosting or one that sends other arrays than
        the global model is somewhere inside.
    """
    if not isinstance(strategy, Strategy):
        raise ConfigError(
            f"{owner}: strategy must be a flwr.serverapp.strategy.Strategy, got "
            f"{type(strategy).__name__}; build one, such as FedAvg()"
        )
    for inner in strategies_inside(strategy):
        name = type(inner).__name__
        if isinstance(inner, Compressed):
            raise ConfigError(
                f"{owner}: {name} stands inside, but codes the arrays that are sent; "
                f"write Compressed({owner}(strategy, ...), ...)"
            )
        if isinstance(inner, FedXgbBagging | FedXgbCyclic):
            raise ConfigError(
                f"{owner}: {name} combines trees, not a network's arrays; use FedAvg or another"
            )
        if getattr(inner, "sends_own_arrays", False):
            raise ConfigError(
                f"{owner}: {name} inside sends other arrays than the global model; leave one of "
                "them out"
            )
