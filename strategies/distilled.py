"""Ensemble distillation of the clients' models into the global model (FedDF)."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal, final, get_args

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor, nn

from fedcompress.distill import (
    Combine,
    DistilResult,
    Ensemble,
    aligned_logits,
    check_choice,
    check_settings,
    distil,
)
from fedcompress.errors import ConfigError, NotFiniteError
from fedcompress.flower_adapter import tell_server_momentum, uses_weighted_mean, weight_key
from fedcompress.randomness import rng_for
from fedcompress.strategy_around import StrategyAround
from strategies.inside import check_inside, warn_of_privacy
from strategies.lesson import Lesson
from strategies.proxy import GivenProxy, ProxySource
from strategies.streamed import aggregate_streamed
from strategies.teachers import (
    UnusableReplyError,
    arrays_like,
    check_layout,
    read_teacher,
    shapes_of,
    tensors_of,
)

logger = logging.getLogger(__name__)

Weighting = Literal["uniform", "examples", "confidence", "variance"]


@final
class Distilled(StrategyAround):
    """Distil the clients' models into the strategy's average (FedDF; Lin et al., 2020).

    The strategy inside combines the replies as always; its result is the start. The clients'
    models are the teachers: what they say of unlabelled proxy data is averaged, and the start
    is trained to say it. Normalisation statistics and integer buffers stay those of the
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
    proxy : Tensor or ProxySource
        Unlabelled inputs, shape ``(rows, ...)``, as the model takes them, at least two rows; or
        a source that makes them in each round from the model that the round began with.
    temperature : float
        Softens teachers and student alike; above 0.
    steps : int
        Adam steps a round, at most.
    batch_size : int
        Rows a step.
    learning_rate : float
        Of Adam, at the start of its cosine schedule.
    patience : int
        Steps without a lower loss on held-out rows after which a round stops.
    holdout_fraction : float
        Part of the proxy data held out to judge by, in [0, 1).
    weighting : {"uniform", "examples", "confidence", "variance"}
        Whether teachers count equally, by their number of examples, or on each row by how sure
        they are: by the inverse perplexity of their prediction, or by the variance of their
        logits (Cho et al., 2022).
    combine : {"logits", "probabilities"}
        What of the teachers is averaged.
    anchor : float
        Share of the average itself in the ensemble, in [0, 1). Where clients have seen a few
        classes each, their average often knows more than each of them.
    memory : float
        Share of the ensembles of earlier rounds in this round's, in [0, 1): 0.5 halves what a
        round counts with each round that follows. Clients that were not asked in this round
        are heard by it. Needs proxy data that stay the same.
    align : float
        How far, from 0 to 1, the ensemble is kept from naming some classes more often than others
        on the proxy data (see `fedcompress.distill.aligned_logits`). For proxy data of which all
        classes are alike frequent: clients of a few classes each name these too often.
    first : int
        First round that is distilled; those before only average.
    hard_label_weight : float
        Share of the loss, in [0, 1], that is the cross-entropy to the class that the ensemble
        names.
    one_at_a_time : bool
        Ask each reply, add it to the mean and forget it before the next is decoded, so that
        memory is that of a few models whatever their number. The strategy inside must need the
        weighted mean alone; the result is the same but for the rounding of that mean.
    remember_from : int, optional
        First round from which the teachers are asked even where nothing is distilled, and
        `last_ensemble` is part of the state that a resumed run goes on with. By default neither.
    seed : int
        Keys all randomness, together with the round.
    device : str
        Where to compute.

    Attributes
    ----------
    last_result : DistilResult or None
        What the distillation of the last round did; None where there was none.
    last_ensemble : Tensor or None
        What a model was last to follow, or would have been, shape ``(rows, ..., classes)``.

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
        proxy: Tensor | ProxySource,
        temperature: float = 1.0,
        steps: int = 200,
        batch_size: int = 128,
        learning_rate: float = 1e-3,
        patience: int = 50,
        holdout_fraction: float = 0.1,
        weighting: Weighting = "uniform",
        combine: Combine = "logits",
        anchor: float = 0.0,
        memory: float = 0.0,
        align: float = 0.0,
        first: int = 1,
        hard_label_weight: float = 0.0,
        one_at_a_time: bool = False,
        remember_from: int | None = None,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        check_inside("Distilled", strategy)
        warn_of_privacy("Distilled", strategy)
        check_settings(
            "Distilled",
            temperature=temperature,
            steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            patience=patience,
            holdout_fraction=holdout_fraction,
            anchor=anchor,
            memory=memory,
            align=align,
            first=first,
            hard_label_weight=hard_label_weight,
        )
        check_choice("Distilled", "weighting", weighting, get_args(Weighting))
        check_choice("Distilled", "combine", combine, get_args(Combine))
        if one_at_a_time and not uses_weighted_mean(strategy):
            raise ConfigError(
                f"Distilled: one_at_a_time needs a strategy that takes the clients' weighted mean, "
                f"got {type(strategy).__name__}, which needs all models at once; use FedAvg, or "
                "leave one_at_a_time out"
            )
        self.strategy = strategy
        self.temperature = temperature
        self.steps = steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.patience = patience
        self.holdout_fraction = holdout_fraction
        self.weighting: Weighting = weighting
        self.combine: Combine = combine
        self.anchor = anchor
        self.memory = memory
        self.align = align
        self.first = first
        self.hard_label_weight = hard_label_weight
        self.one_at_a_time = one_at_a_time
        self.remember_from = remember_from
        self.seed = seed
        self.device = device
        self.proxy = proxy if isinstance(proxy, ProxySource) else GivenProxy(proxy)
        self.last_result: DistilResult | None = None
        self.last_ensemble: Tensor | None = None
        self._said: Tensor | None = None
        self._model = model()
        self._shapes = shapes_of(self._model)
        self._sent = ArrayRecord()
        self._messages = 0
        self.proxy.check(self._model, device)
        if memory > 0 and not self.proxy.is_fixed:
            raise ConfigError(
                f"Distilled: memory = {memory} adds what was said of the same rows, but proxy data "
                f"of kind {self.proxy.kind!r} are others in each round; use memory = 0"
            )

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Configure the next round of training, as the strategy inside does."""
        check_layout(arrays, self._shapes)
        self._sent = arrays
        tell_server_momentum(self.strategy, arrays)
        messages = list(self.strategy.configure_train(server_round, arrays, config, grid))
        self._messages = len(messages)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Combine the replies by the strategy inside and distil the clients into the result."""
        self.last_result = None
        distils = server_round >= self.first
        is_asked = self.remember_from is not None and server_round >= self.remember_from
        lesson = self._prepare(server_round) if distils or is_asked else None
        usable = self._usable(replies, lesson)
        if self.one_at_a_time:
            like = tensors_of(self._sent)
            start, metrics = aggregate_streamed(
                self.strategy, server_round, usable, like=like, messages=self._messages
            )
        else:
            # Listed first: some strategies empty the records they are given.
            start, metrics = self.strategy.aggregate_train(server_round, [r for r, _ in usable])
        if start is None:
            logger.warning("round %d: there is no result; the model is kept", server_round)
            return None, metrics
        check_layout(start, self._shapes)
        average = tensors_of(start)
        target = None if lesson is None else self._target(server_round, lesson, average)
        if lesson is None or target is None or not distils:
            return arrays_like(average, self._sent), metrics
        self._model.load_state_dict(average)
        try:
            self.last_result = self._follow(server_round, lesson.inputs, target)
        except NotFiniteError as fault:
            logger.warning("round %d: not distilled: %s", server_round, fault)
            return arrays_like(average, self._sent), metrics
        buffers = {name for name, _ in self._model.named_buffers()}
        distilled = self._model.state_dict()
        arrays = {name: average[name] if name in buffers else distilled[name] for name in average}
        metrics = _with_result(metrics, self.last_result, lesson.teachers)
        return arrays_like(arrays, self._sent), metrics

    def summary(self) -> None:
        """Log the settings, and those of the strategy inside."""
        logger.info("\t├──> Distilled settings:")
        logger.info("\t│\t├── proxy: %d rows, %s", self.proxy.rows, self.proxy.kind)
        logger.info("\t│\t├── weighting: %s of %s", self.weighting, self.combine)
        logger.info(
            "\t│\t├── anchor: %s | memory: %s | align: %s", self.anchor, self.memory, self.align
        )
        logger.info("\t│\t├── temperature: %s | steps: %d", self.temperature, self.steps)
        logger.info("\t│\t└── learning rate: %s", self.learning_rate)
        self.strategy.summary()

    def state_dict(self) -> dict[str, object]:
        """Give what a later run needs to go on from here (not of the inside)."""
        ensemble = None if self.remember_from is None else self.last_ensemble
        kept = {"said": self._said, "ensemble": ensemble}
        return {name: logits.numpy() for name, logits in kept.items() if logits is not None}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Take up what `state_dict` gave."""
        # Older states hold settings alone, and no arrays.
        said, last = (state.get(name) for name in ("said", "ensemble"))
        self._said = torch.from_numpy(said) if isinstance(said, np.ndarray) else None
        self.last_ensemble = torch.from_numpy(last) if isinstance(last, np.ndarray) else None

    def _prepare(self, server_round: int) -> Lesson:
        if not self.proxy.is_fixed:
            self._model.load_state_dict(tensors_of(self._sent))
        rng = rng_for(self.seed, round=server_round, client="server", purpose="synthetic")
        inputs = self.proxy.inputs(self._model, rng)
        by_row = "uniform" if self.weighting == "examples" else self.weighting
        ensemble = Ensemble(combine=self.combine, row_weighting=by_row)
        return Lesson(self._model, inputs, ensemble, self.device)

    def _usable(
        self, replies: Iterable[Message], lesson: Lesson | None
    ) -> Iterator[tuple[Message, float | None]]:
        """Let each reply teach, and give those for the strategy inside, with their weight."""
        key, weighted = weight_key(self.strategy), self.weighting == "examples"
        for reply in replies:
            if reply.has_error():
                yield reply, None  # the strategy inside logs it and counts it
                continue
            try:
                teacher = read_teacher(reply, self._shapes, key, weighted=weighted)
            except UnusableReplyError as fault:
                logger.warning("node %d is left out: %s", reply.metadata.src_node_id, fault)
                continue
            if lesson is not None:
                lesson.take(teacher)
            examples = teacher.examples
            del teacher  # before the next is decoded
            yield reply, examples
            del reply

    def _target(
        self, server_round: int, lesson: Lesson, average: dict[str, Tensor]
    ) -> Tensor | None:
        """Give what the start is to say, or None where there is nothing to be learnt."""
        if not all(bool(torch.isfinite(value).all()) for value in average.values()):
            logger.warning("round %d: the average is not finite; not distilled", server_round)
            return None
        if lesson.teachers == 0:
            logger.warning("round %d: no teacher; not distilled", server_round)
            return None
        if self._said is not None:
            lesson.ensemble.add_share(self._said, self.memory)
        if self.memory > 0:
            self._said = lesson.ensemble.logits()
        lesson.add_anchor(average, self.anchor)
        self.last_ensemble = aligned_logits(lesson.ensemble.logits(), self.align)
        return self.last_ensemble

    def _follow(self, server_round: int, inputs: Tensor, target: Tensor) -> DistilResult:
        return distil(
            self._model,
            inputs,
            target,
            rng=rng_for(self.seed, round=server_round, client="server", purpose="distil"),
            temperature=self.temperature,
            steps=self.steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            patience=self.patience,
            holdout_fraction=self.holdout_fraction,
            hard_label_weight=self.hard_label_weight,
            device=self.device,
        )


def _with_result(metrics: MetricRecord | None, result: DistilResult, teachers: int) -> MetricRecord:
    record = MetricRecord() if metrics is None else metrics
    record["distill-teachers"] = teachers
    record["distill-steps"] = result.steps
    record["distill-kl-before"] = result.held_out_kl_before
    record["distill-kl-after"] = result.held_out_kl_after
    record["distill-agreement"] = result.agreement
    record["distill-stopped-early"] = int(result.stopped_early)
    return record
