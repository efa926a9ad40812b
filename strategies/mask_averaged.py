"""Averaging masks of a random network in place of weights (FedPM)."""

import logging
import math
from collections.abc import Iterable, Mapping
from typing import ClassVar, final

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Strategy
from torch import Tensor

from fedcompress import protocol
from fedcompress.checks import check_integer
from fedcompress.errors import ConfigError
from fedcompress.flower_adapter import tell_server_momentum
from fedcompress.pruning import unfold
from fedcompress.strategy_around import StrategyAround
from strategies.inside import check_inside

logger = logging.getLogger(__name__)


@final
class MaskAveraged(StrategyAround):
    """Average masks, drawn by clients, into the probabilities of keeping weights (FedPM).

    Nobody trains weights: all sides hold one random network. The global arrays are, for each
    weight, the probability with which it is kept. Clients train probabilities of their own and
    send a mask drawn from them (Isik et al., 2023). Since a codec is given the difference of what
    a client returns to what it was sent, the client returns *what it was sent plus* its
    probabilities, folded (`fedcompress.pruning.fold`) so that ones are rare; the codec is
    ``bernoulli_mask() | entropy()``. Here what was sent is taken off and the mean unfolded.

    The server keeps counts of ones and zeros for each weight, a Beta distribution that begins
    uniform; the new probability is its mode, which is the mean of all masks counted.

    Compression stands outside:
    ``Compressed(MaskAveraged(FedAvg()), uplink="bernoulli_mask() | entropy()")``.

    Parameters
    ----------
    strategy : Strategy
        FedAvg, or one that differs in whom it asks only.
    reset_every : int
        Rounds after which counting begins anew; 1 takes the mean of each round by itself, 0
        never forgets.

    Raises
    ------
    ConfigError
        If the strategy inside takes no mean, a setting is out of range, or arrays cannot be
        probabilities.

    Notes
    -----
    The metrics of a round gain ``mask-kept``, the mean probability, and ``mask-entropy``, the
    mean entropy of a weight's mask in bits: what a mask drawn from the global probabilities
    would cost.
    """

    takes_mean: ClassVar[bool] = True

    def __init__(self, strategy: Strategy, *, reset_every: int = 1) -> None:
        check_inside("MaskAveraged", strategy)
        if type(strategy).aggregate_train is not FedAvg.aggregate_train:
            raise ConfigError(
                f"MaskAveraged: {type(strategy).__name__} makes something else of masks than their "
                "mean; use FedAvg"
            )
        check_integer("MaskAveraged", "reset_every", reset_every, 0, 1 << 40)
        self.strategy = strategy
        self.reset_every = reset_every
        self._sent: dict[str, Tensor] = {}
        self._asked = 0
        self._ones: dict[str, Tensor] = {}  # masks that kept each weight, since the last reset
        self._count = 0  # of masks

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Configure the round inside, which sends the probabilities."""
        self._sent = protocol.record_to_tensors(arrays)
        _check_probabilities(self._sent)
        tell_server_momentum(self.strategy, arrays)
        messages = list(self.strategy.configure_train(server_round, arrays, config, grid))
        self._asked = len(messages)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the masks inside, and count them."""
        replies = list(replies)
        answered = max(1, self._asked - sum(reply.has_error() for reply in replies))
        arrays, metrics = self.strategy.aggregate_train(server_round, replies)
        if arrays is None:
            return None, metrics
        after = protocol.record_to_tensors(arrays)
        folded = {name: (after[name] - x).clamp(0, 1) for name, x in self._sent.items()}
        mean = unfold(folded, self._sent)
        if self.reset_every and (server_round - 1) % self.reset_every == 0:
            self._ones, self._count = {}, 0
        self._ones = {
            name: answered * x.double() + self._ones.get(name, 0) for name, x in mean.items()
        }
        self._count += answered
        kept = {
            name: (self._ones[name] / self._count).clamp(0, 1).to(x.dtype)
            for name, x in self._sent.items()
        }
        record = MetricRecord() if metrics is None else metrics
        flat = torch.cat([x.reshape(-1).double() for x in kept.values()])
        record["mask-kept"] = float(flat.mean())
        record["mask-entropy"] = float(_entropy_bits(flat).mean())
        return protocol.tensors_to_record(kept), record

    def summary(self) -> None:
        """Log the settings, then those of the strategy inside."""
        logger.info("\t├──> Masks of a random network:")
        logger.info("\t│\t└── rounds counted together: %s", self.reset_every or "all")
        self.strategy.summary()

    def state_dict(self) -> dict[str, object]:
        """Give what a later run needs to go on from here (not of the inside)."""
        ones = {name: x.numpy() for name, x in self._ones.items()}
        return {"ones": ones, "count": self._count}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Take up what `state_dict` gave."""
        ones = state["ones"]
        if not isinstance(ones, Mapping):
            raise TypeError(f"state: ones is a {type(ones).__name__}, expected a mapping")
        self._ones = {str(name): torch.from_numpy(np.array(x)) for name, x in ones.items()}
        self._count = int(str(state["count"]))


def _check_probabilities(arrays: Mapping[str, Tensor]) -> None:
    for name, x in arrays.items():
        if not x.is_floating_point():
            raise ConfigError(
                f"MaskAveraged: {name!r} holds {x.dtype}; start from probabilities, and leave out "
                "what has none"
            )


def _entropy_bits(p: Tensor) -> Tensor:
    nats: Tensor = torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)
    return nats / -math.log(2)
