"""Ensemble distillation of the clients' models into the global model (FedDF)."""

import logging
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Literal, final

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor, nn

from fedcompress.distill import (
    DistilResult,
    average_logits,
    check_settings,
    distil,
    predict_logits,
)
from fedcompress.errors import ConfigError, NotFiniteError
from fedcompress.flower_adapter import tell_server_momentum, weight_key
from fedcompress.randomness import rng_for
from strategies.inside import check_inside
from strategies.proxy import check_proxy
from strategies.teachers import (
    Teacher,
    UnusableReplyError,
    check_layout,
    read_teacher,
    shapes_of,
    tensors_of,
)

logger = logging.getLogger(__name__)


@final
class Distilled(Strategy):
    """Distil the clients' models into the strategy's average (FedDF; Lin et al., 2020).

    The strategy inside combines the replies as always; its result is the start. The clients'
    models are the teachers: their logits on unlabelled proxy data are averaged, and the start
    is trained to give them. Normalisation statistics and integer buffers stay those of the
    average. Every finite client model of the right layout is a teacher, also one that a robust
    strategy inside (Krum, say) would not choose.

    A reply that is not finite or of another layout is logged and kept from both the teachers
    and the strategy inside. A round in which nothing usable came back keeps the model.
    It needs the decoded models of the clients, so compression stands outside:
    ``Compressed(Distilled(FedAvg(), ...), uplink="...")``.

    Parameters
    ----------
    strategy : Strategy
        Any strategy of ``flwr.serverapp.strategy`` that takes a network's arrays.
    model : callable
        Makes the global model's architecture, ``() -> nn.Module``; weights do not matter.
    proxy : Tensor
        Unlabelled inputs, shape ``(rows, ...)``, as the model takes them; at least two rows.
    temperature : float
        Softens teachers and student alike; above 0.
    steps : int
        Adam steps a round, at most.
    batch_size : int
        Rows a step.
    learning_rate : float
        Of Adam, at the start of its cosine schedule.
    patience : int
        Steps without a lower divergence on held-out rows after which a round stops.
    holdout_fraction : float
        Part of the proxy data held out to judge by, in [0, 1).
    weighting : {"uniform", "examples"}
        Whether teachers count equally or by their number of examples.
    seed : int
        Keys all randomness, together with the round.
    device : str
        Where to compute.

    Raises
    ------
    ConfigError
        If compression stands inside, or a setting, the model or the proxy data cannot work.

    Notes
    -----
    The metrics of a round gain ``distill-teachers``, ``distill-steps``, ``distill-kl-before``,
    ``distill-kl-after``, ``distill-agreement`` and ``distill-stopped-early``.
    """

    def __init__(
        self,
        strategy: Strategy,
        *,
        model: Callable[[], nn.Module],
        proxy: Tensor,
        temperature: float = 1.0,
        steps: int = 200,
        batch_size: int = 128,
        learning_rate: float = 1e-3,
        patience: int = 50,
        holdout_fraction: float = 0.1,
        weighting: Literal["uniform", "examples"] = "uniform",
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        check_inside(strategy)
        check_settings(
            "Distilled",
            temperature=temperature,
            steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            patience=patience,
            holdout_fraction=holdout_fraction,
        )
        if weighting not in ("uniform", "examples"):
            raise ConfigError(
                f"Distilled: weighting must be 'uniform' or 'examples', got {weighting!r}"
            )
        self.strategy = strategy
        self.temperature = temperature
        self.steps = steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.patience = patience
        self.holdout_fraction = holdout_fraction
        self.weighting = weighting
        self.seed = seed
        self.device = device
        self.last_result: DistilResult | None = None
        self._model = model()
        self._proxy = proxy
        self._shapes = shapes_of(self._model)
        self._dtypes: dict[str, str] = {}
        check_proxy(self._model, proxy, device)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Configure the next round of training, as the strategy inside does."""
        check_layout(arrays, self._shapes)
        self._dtypes = {name: array.dtype for name, array in arrays.items()}
        tell_server_momentum(self.strategy, arrays)
        return self.strategy.configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Combine the replies by the strategy inside and distil the clients into the result."""
        self.last_result = None
        # Teachers are taken first: some strategies empty the records they are given.
        usable, teachers = self._take_teachers(replies)
        start, metrics = self.strategy.aggregate_train(server_round, usable)
        if start is None:
            if not teachers:
                logger.warning("round %d: no usable reply; the model is kept", server_round)
            return None, metrics
        check_layout(start, self._shapes)
        average = tensors_of(start)
        target, taught = self._ensemble_logits(server_round, average, teachers)
        if target is None:
            return self._as_sent(average), metrics
        self._model.load_state_dict(average)
        try:
            self.last_result = self._follow(server_round, target)
        except NotFiniteError as fault:
            logger.warning("round %d: not distilled: %s", server_round, fault)
            return self._as_sent(average), metrics
        buffers = {name for name, _ in self._model.named_buffers()}
        distilled = self._model.state_dict()
        arrays = {name: average[name] if name in buffers else distilled[name] for name in average}
        return self._as_sent(arrays), _with_result(metrics, self.last_result, taught)

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

    def summary(self) -> None:
        """Log the settings, and those of the strategy inside."""
        logger.info("\t├──> Distilled settings:")
        logger.info("\t│\t├── proxy rows: %d | weighting: %s", len(self._proxy), self.weighting)
        logger.info("\t│\t├── temperature: %s | steps: %d", self.temperature, self.steps)
        logger.info("\t│\t└── learning rate: %s", self.learning_rate)
        self.strategy.summary()

    def _take_teachers(self, replies: Iterable[Message]) -> tuple[list[Message], list[Teacher]]:
        key, weighted = weight_key(self.strategy), self.weighting == "examples"
        usable: list[Message] = []
        teachers: list[Teacher] = []
        for reply in replies:
            if reply.has_error():
                usable.append(reply)  # the strategy inside logs it and counts it
                continue
            try:
                teachers.append(read_teacher(reply, self._shapes, key, weighted=weighted))
            except UnusableReplyError as fault:
                logger.warning("node %d is left out: %s", reply.metadata.src_node_id, fault)
            else:
                usable.append(reply)
        return usable, teachers

    def _ensemble_logits(
        self, server_round: int, average: dict[str, Tensor], teachers: list[Teacher]
    ) -> tuple[Tensor | None, int]:
        if not all(bool(torch.isfinite(value).all()) for value in average.values()):
            logger.warning("round %d: the average is not finite; not distilled", server_round)
            return None, 0
        taught: list[int] = []

        def finite_logits() -> Iterator[tuple[Tensor, float]]:
            for teacher in teachers:
                self._model.load_state_dict(teacher.tensors())
                logits = predict_logits(self._model, self._proxy, device=self.device)
                if bool(torch.isfinite(logits).all()):
                    taught.append(teacher.node_id)
                    yield logits, teacher.weight
                else:
                    logger.warning("node %d teaches nothing: infinite logits", teacher.node_id)

        ensemble = finite_logits()
        first = next(ensemble, None)
        if first is None:
            logger.warning("round %d: no teacher; not distilled", server_round)
            return None, 0
        return average_logits(chain([first], ensemble)), len(taught)

    def _follow(self, server_round: int, target: Tensor) -> DistilResult:
        return distil(
            self._model,
            self._proxy,
            target,
            rng=rng_for(self.seed, round=server_round, client="server", purpose="distil"),
            temperature=self.temperature,
            steps=self.steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            patience=self.patience,
            holdout_fraction=self.holdout_fraction,
            device=self.device,
        )

    def _as_sent(self, tensors: dict[str, Tensor]) -> ArrayRecord:
        """Give arrays the dtypes of the global model, which averaging may have widened."""
        arrays = {}
        for name, tensor in tensors.items():
            values = tensor.detach().cpu().numpy()
            dtype = np.dtype(self._dtypes.get(name, values.dtype))
            if dtype.kind in "iub" and values.dtype.kind == "f":
                values = np.rint(values)
            arrays[name] = Array(np.asarray(values.astype(dtype)))
        return ArrayRecord(arrays)


def _with_result(metrics: MetricRecord | None, result: DistilResult, teachers: int) -> MetricRecord:
    record = MetricRecord() if metrics is None else metrics
    record["distill-teachers"] = teachers
    record["distill-steps"] = result.steps
    record["distill-kl-before"] = result.held_out_kl_before
    record["distill-kl-after"] = result.held_out_kl_after
    record["distill-agreement"] = result.agreement
    record["distill-stopped-early"] = int(result.stopped_early)
    return record
