"""Groups of architectures that learn from each other: every group's model follows all clients."""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import ClassVar, Literal, final, get_args

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from torch import Tensor, nn

from fedcompress.distill import (
    Combine,
    DistilResult,
    Ensemble,
    aligned_logits,
    check_choice,
    check_settings,
    distil,
    predict_logits,
)
from fedcompress.errors import ConfigError, NotFiniteError
from fedcompress.flower_adapter import tell_server_momentum, weight_key
from fedcompress.randomness import rng_for
from fedcompress.strategy_around import StrategyAround
from strategies.groups import Groups
from strategies.lesson import Lesson
from strategies.proxy import GivenProxy
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
class GroupsDistilled(StrategyAround):
    """Distil the clients of all groups into each group's model (FedDF; Lin et al., 2020).

    Every rule in `Groups` combines the clients of its own architecture; each result is then
    trained to say, on unlabelled proxy data, what the clients of *all* groups say together, those
    of groups that were not asked in this round too. So a group gains from data that none of its
    clients has. Normalisation statistics and integer buffers stay those of the group's average.

    A reply that is not finite, or of another layout than its group's, is logged and kept from the
    teachers and from the rule. It needs the decoded models, so compression stands outside:
    ``Compressed(GroupsDistilled(Groups(...), ...), uplink="...")``.

    Parameters
    ----------
    strategy : Groups
        The groups and their rules.
    models : mapping of str to callable
        By group: makes the architecture of its model, ``() -> nn.Module``; all with the same
        classes.
    proxy : Tensor
        Unlabelled inputs, shape ``(rows, ...)``, as all models take them, at least two rows.
    temperature, steps, batch_size, learning_rate, patience, holdout_fraction
        As for `Distilled`, for each group.
    weighting, combine, hard_label_weight
        As for `Distilled`.
    anchor : float
        Share of the groups' own averages in the ensemble, in [0, 1).
    align : float
        As for `Distilled`.
    first : int
        First round that is distilled; those before only average.
    seed : int
        Keys all randomness, together with round and group.
    device : str
        Where to compute.

    Attributes
    ----------
    last_results : dict of str to DistilResult
        What the distillation of the last round did, by group; empty where there was none.

    Raises
    ------
    ConfigError
        If a group has no model, models differ in their classes, or a setting or the proxy data
        cannot work.

    Notes
    -----
    The metrics of a round gain ``distill-teachers``, and ``<group>/distill-steps``,
    ``<group>/distill-kl-before``, ``<group>/distill-kl-after`` and ``<group>/distill-agreement``.
    """

    sends_own_arrays: ClassVar[bool] = True
    strategy: Groups

    def __init__(
        self,
        strategy: Groups,
        *,
        models: Mapping[str, Callable[[], nn.Module]],
        proxy: Tensor,
        temperature: float = 1.0,
        steps: int = 200,
        batch_size: int = 128,
        learning_rate: float = 1e-3,
        patience: int = 50,
        holdout_fraction: float = 0.1,
        weighting: Weighting = "uniform",
        combine: Combine = "logits",
        anchor: float = 0.0,
        align: float = 0.0,
        first: int = 1,
        hard_label_weight: float = 0.0,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        self._settings = {
            "temperature": temperature,
            "steps": steps,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "patience": patience,
            "holdout_fraction": holdout_fraction,
            "hard_label_weight": hard_label_weight,
        }
        check_settings("GroupsDistilled", **self._settings, anchor=anchor, align=align, first=first)
        check_choice("GroupsDistilled", "weighting", weighting, get_args(Weighting))
        check_choice("GroupsDistilled", "combine", combine, get_args(Combine))
        if models.keys() != strategy.rules.keys():
            raise ConfigError(
                f"GroupsDistilled: models are of {', '.join(models) or 'no group'}; wrap a "
                "Groups(...), and give a model for each of its groups"
            )
        self.strategy = strategy
        self.weighting: Weighting = weighting
        self.combine: Combine = combine
        self.anchor = anchor
        self.align = align
        self.first = first
        self.seed = seed
        self.device = device
        self.last_results: dict[str, DistilResult] = {}
        self._proxy = GivenProxy(proxy)
        self._inputs = proxy
        self._models = {group: make() for group, make in models.items()}
        self._sent: dict[str, ArrayRecord] = {}
        for model in self._models.values():
            self._proxy.check(model, device)
        _check_classes(self._models, proxy)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Configure the next round of training, as the rules inside do."""
        self._sent = self.strategy.split(arrays)
        for group, own in self._sent.items():
            check_layout(own, shapes_of(self._models[group]))
            tell_server_momentum(self.strategy.rules[group], own)
        return self.strategy.configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Combine the replies by group, and distil all clients into each result."""
        self.last_results = {}
        ensemble = Ensemble(
            combine=self.combine,
            row_weighting="uniform" if self.weighting == "examples" else self.weighting,
        )
        lessons = {
            group: Lesson(model, self._inputs, ensemble, self.device)
            for group, model in self._models.items()
        }
        # Teachers are taken first: some strategies empty the records they are given.
        usable = self._let_teach(replies, lessons if server_round >= self.first else {})
        arrays, metrics = self.strategy.aggregate_train(server_round, usable)
        teachers = sum(lesson.teachers for lesson in lessons.values())
        if arrays is None or teachers == 0:
            return arrays, metrics
        averages = {g: tensors_of(own) for g, own in self.strategy.split(arrays).items()}
        self._add_averages(averages, ensemble)
        target = aligned_logits(ensemble.logits(), self.align)
        record = MetricRecord() if metrics is None else metrics
        record["distill-teachers"] = teachers
        for group, average in averages.items():
            averages[group] = self._follow(server_round, group, average, target)
            for name, value in _facts(self.last_results.get(group)).items():
                record[f"{group}/{name}"] = value
        models = {g: arrays_like(x, self._sent[g]) for g, x in averages.items()}
        return self.strategy.join(models), record

    def summary(self) -> None:
        """Log the settings, and those of the rules inside."""
        logger.info("\t├──> GroupsDistilled settings:")
        logger.info("\t│\t├── proxy rows: %d", len(self._inputs))
        logger.info("\t│\t├── weighting: %s of %s", self.weighting, self.combine)
        logger.info("\t│\t└── anchor: %s | steps: %s", self.anchor, self._settings["steps"])
        self.strategy.summary()

    def state_dict(self) -> dict[str, object]:
        """Give what a later run needs to go on from here: nothing but what stands inside."""
        return {}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Take up what `state_dict` gave."""

    def _let_teach(
        self, replies: Iterable[Message], lessons: Mapping[str, Lesson]
    ) -> list[Message]:
        """Let each reply teach, and give those for the rules."""
        usable: list[Message] = []
        for reply in replies:
            if reply.has_error():
                usable.append(reply)  # the rule inside logs it and counts it
                continue
            group = self.strategy.group(reply.metadata.src_node_id)
            key = weight_key(self.strategy.rules[group])
            try:
                teacher = read_teacher(
                    reply,
                    shapes_of(self._models[group]),
                    key,
                    weighted=self.weighting == "examples",
                )
            except UnusableReplyError as fault:
                logger.warning("node %d is left out: %s", reply.metadata.src_node_id, fault)
                continue
            if group in lessons:
                lessons[group].take(teacher)
            usable.append(reply)
        return usable

    def _add_averages(
        self, averages: Mapping[str, Mapping[str, Tensor]], ensemble: Ensemble
    ) -> None:
        """Let the groups' averages together make up their share of the ensemble."""
        if self.anchor == 0:
            return
        own = Ensemble(combine=self.combine)
        for group, average in averages.items():
            lesson = Lesson(self._models[group], self._inputs, own, self.device)
            lesson.add_model(average)
        if own.weight > 0:
            ensemble.add_share(own.logits(), self.anchor)

    def _follow(
        self, server_round: int, group: str, average: dict[str, Tensor], target: Tensor
    ) -> dict[str, Tensor]:
        if not all(bool(torch.isfinite(value).all()) for value in average.values()):
            logger.warning("round %d: the average of %s is not finite", server_round, group)
            return average
        model = self._models[group]
        model.load_state_dict(average)
        rng = rng_for(self.seed, round=server_round, client="server", purpose=f"distil {group}")
        settings = self._settings
        try:
            self.last_results[group] = distil(
                model,
                self._inputs,
                target,
                rng=rng,
                device=self.device,
                **settings,  # type: ignore[arg-type]
            )
        except NotFiniteError as fault:
            logger.warning("round %d: %s is not distilled: %s", server_round, group, fault)
            return average
        buffers = {name for name, _ in model.named_buffers()}
        distilled = model.state_dict()
        return {
            name: average[name] if name in buffers else distilled[name].clone() for name in average
        }


def _check_classes(models: Mapping[str, nn.Module], proxy: Tensor) -> None:
    """Refuse models that name different classes, by running each on two rows."""
    sizes = {group: predict_logits(x, proxy[:2]).shape[-1] for group, x in models.items()}
    if len(set(sizes.values())) > 1:
        said = ", ".join(f"{group} {size}" for group, size in sizes.items())
        raise ConfigError(
            f"GroupsDistilled: the groups' models must have the same classes to learn from each "
            f"other, got {said}"
        )


def _facts(result: DistilResult | None) -> dict[str, float]:
    if result is None:
        return {}
    return {
        "distill-steps": result.steps,
        "distill-kl-before": result.held_out_kl_before,
        "distill-kl-after": result.held_out_kl_after,
        "distill-agreement": result.agreement,
    }
