"""What stands inside a strategy that wraps others: found and checked."""

import logging

from flwr.serverapp.strategy import FedXgbBagging, FedXgbCyclic, Strategy

from fedcompress.errors import ConfigError
from fedcompress.flower_adapter import strategies_inside
from fedcompress.server import Compressed

logger = logging.getLogger(__name__)


def check_inside(owner: str, strategy: Strategy) -> None:
    """Refuse what a strategy that works on the clients' arrays cannot stand around.

    Parameters
    ----------
    owner : str
        The strategy that wraps, as it is called.
    strategy : Strategy
        What it is to wrap.

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
                f"{owner}: {name} stands inside, but {owner} needs the decoded arrays; "
                f"write Compressed({owner}(strategy, ...), ...)"
            )
        if isinstance(inner, FedXgbBagging | FedXgbCyclic):
            raise ConfigError(
                f"{owner}: {name} combines trees, not a network's arrays; use FedAvg or another"
            )
        if getattr(inner, "sends_own_arrays", False):
            raise ConfigError(
                f"{owner}: {name} inside sends clients other arrays than the global model; leave "
                "one of them out (GroupsDistilled stands around Groups, Pruned around Distilled)"
            )


def warn_of_privacy(owner: str, strategy: Strategy) -> None:
    """Warn where differential privacy inside does not cover what is made of the replies."""
    for inner in strategies_inside(strategy):
        name = type(inner).__name__
        if name.startswith("DifferentialPrivacy"):
            logger.warning(
                "%s around %s: the teachers carry no noise, so the privacy guarantee "
                "does not cover the distilled model",
                *(owner, name),
            )
