"""A strategy around another, which leaves evaluation to it."""

from abc import ABC
from collections.abc import Iterable

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy


class StrategyAround(Strategy, ABC):
    """Any strategy around another that changes what is trained and not what is evaluated.

    Attributes
    ----------
    strategy : Strategy
        The one inside.
    """

    strategy: Strategy

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Configure the next round of evaluation, as the strategy inside does."""
        return self.strategy.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Combine evaluation metrics, as the strategy inside does."""
        return self.strategy.aggregate_evaluate(server_round, replies)
