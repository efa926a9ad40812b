"""Federated distillation: clients' predictions are averaged, and a model of the server follows."""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import ClassVar, final

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor, nn
from torch.nn import functional

from fedcompress.distill import check_settings, distil
from fedcompress.errors import ConfigError, NotFiniteError
from fedcompress.flower_adapter import tell_server_momentum
from fedcompress.protocol import record_to_tensors, tensors_to_record
from fedcompress.randomness import rng_for
from fedcompress.strategy_around import StrategyAround
from strategies.inside import check_inside, warn_of_privacy
from strategies.predictions import Scores, centred, check_scores, target_logits

logger = logging.getLogger(__name__)

ARRAY = "scores"
"""Name of the one array that is exchanged, shape (rows, classes)."""

ROUND_KEY = "predicted-round"
"""Setting of a message: the round of which its predictions are; 0 before there are any."""


@final
class Sharpened(StrategyAround):
    """Average what clients predict of proxy rows (FedMD; Li & Wang, 2019).

    What travels is one array of predictions in place of a model, whatever architectures the
    clients have: down the mean of the last round, up each client's own. A model of the server
    follows the mean after each round, for tests and for deployment. With ``sharpen < 1`` the mean
    of probabilities is followed with less entropy than it has (DS-FL; Itahara et al., 2021); both
    ends sharpen, so that what travels stays a mean.

    With `redraw` every round predicts other rows. A client then adds its predictions to what it
    was sent, so that their difference, which is what compression codes, is those predictions.

    It takes no more of the replies than the rule inside does, so compression stands outside:
    ``Compressed(Sharpened(FedAvg(), ...), uplink="quantize(8) | entropy()")``.

    Parameters
    ----------
    strategy : Strategy
        Any strategy of ``flwr.serverapp.strategy`` that combines arrays.
    model : nn.Module
        The server's, changed in place.
    inputs : callable
        Gives the proxy rows of a round, ``(round) -> Tensor`` of shape ``(rows, ...)``; the
        clients must predict the same.
    scores : {"logits", "probabilities"}
        What clients send.
    sharpen : float
        In (0, 1]; below 1 with probabilities only.
    redraw : bool
        Whether rounds differ in their rows.
    steps : int
        Adam steps in which the server's model follows, a round.
    temperature, batch_size, learning_rate, patience, holdout_fraction
        As for `fedcompress.distill.distil`.
    seed : int
        Keys all randomness, together with the round.
    device : str
        Where to compute.

    Raises
    ------
    ConfigError
        If compression stands inside, or a setting cannot work.

    Notes
    -----
    The metrics of a round gain ``follow-kl-before``, ``follow-kl-after``, ``follow-agreement`` and
    ``follow-entropy``, the mean entropy of what is followed, in nats.
    """

    takes_mean: ClassVar[bool] = True

    def __init__(
        self,
        strategy: Strategy,
        *,
        model: nn.Module,
        inputs: Callable[[int], Tensor],
        scores: Scores = "logits",
        sharpen: float = 1.0,
        redraw: bool = False,
        steps: int = 50,
        temperature: float = 1.0,
        batch_size: int = 128,
        learning_rate: float = 1e-3,
        patience: int = 50,
        holdout_fraction: float = 0.1,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        check_inside("Sharpened", strategy)
        warn_of_privacy("Sharpened", strategy)
        check_scores("Sharpened", scores, sharpen)
        self._following = {
            "steps": steps,
            "temperature": temperature,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "patience": patience,
            "holdout_fraction": holdout_fraction,
        }
        check_settings("Sharpened", **self._following)
        self.strategy = strategy
        self.model = model
        self.scores: Scores = scores
        self.sharpen = sharpen
        self.redraw = redraw
        self.seed = seed
        self.device = device
        self._inputs = inputs
        self._predicted_round = 0
        self._sent = torch.zeros(0)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Configure the round inside, and say of which round the predictions are."""
        self._sent = _scores_in(arrays)
        tell_server_momentum(self.strategy, arrays)
        config[ROUND_KEY] = self._predicted_round
        return self.strategy.configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Combine the predictions inside, and let the server's model follow them."""
        arrays, metrics = self.strategy.aggregate_train(server_round, replies)
        if arrays is None:
            return None, metrics
        mean = _scores_in(arrays)
        mean = mean - self._sent if self.redraw else mean
        mean = centred(mean) if self.scores == "logits" else mean
        self._predicted_round = server_round
        followed = self._follow(server_round, mean)
        record = MetricRecord() if metrics is None else metrics
        for name, value in followed.items():
            record[name] = value
        return tensors_to_record({ARRAY: mean}), record

    def summary(self) -> None:
        """Log the settings, and those of the strategy inside."""
        logger.info("\t├──> Sharpened settings:")
        logger.info("\t│\t├── scores: %s | sharpen: %s", self.scores, self.sharpen)
        logger.info("\t│\t└── steps: %d | redraw: %s", self._following["steps"], self.redraw)
        self.strategy.summary()

    def state_dict(self) -> dict[str, object]:
        """Give what a later run needs to go on from here."""
        values = self.model.state_dict().items()
        return {
            "predicted_round": self._predicted_round,
            "model": {name: x.detach().cpu().numpy().copy() for name, x in values},
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Take up what `state_dict` gave.

        Raises
        ------
        ConfigError
            If it is the state of something else.
        """
        number, arrays = state.get("predicted_round"), state.get("model")
        if not isinstance(number, int) or not isinstance(arrays, Mapping):
            raise ConfigError(
                f"Sharpened: the stored state holds {sorted(state)}, not a model and its round; "
                "resume with the settings that wrote it"
            )
        self._predicted_round = number
        self.model.load_state_dict({k: torch.from_numpy(np.array(x)) for k, x in arrays.items()})

    def _follow(self, server_round: int, mean: Tensor) -> dict[str, float]:
        target = target_logits(mean, self.scores, self.sharpen)
        shares = functional.log_softmax(target, dim=-1)
        entropy = float(-(shares.exp() * shares).sum(-1).mean())
        try:
            result = distil(
                self.model,
                self._inputs(server_round),
                target,
                rng=rng_for(self.seed, round=server_round, client="server", purpose="follow"),
                learn_statistics=True,
                device=self.device,
                **self._following,  # type: ignore[arg-type]
            )
        except NotFiniteError as fault:
            logger.warning("round %d: the server's model does not follow: %s", server_round, fault)
            return {"follow-entropy": entropy}
        return {
            "follow-kl-before": result.held_out_kl_before,
            "follow-kl-after": result.held_out_kl_after,
            "follow-agreement": result.agreement,
            "follow-entropy": entropy,
        }


def _scores_in(arrays: ArrayRecord) -> Tensor:
    if list(arrays) != [ARRAY]:
        raise ConfigError(
            f"Sharpened: exchanges one array {ARRAY!r}, got {', '.join(arrays) or 'none'}; start "
            f"from ArrayRecord of zeros of shape (rows, classes) under that name"
        )
    return record_to_tensors(arrays)[ARRAY].to(torch.float32)
