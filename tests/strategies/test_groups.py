"""Groups of architectures: each averages its own, and learns from the clients of all."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import cast

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAdam, FedAvg, FedMedian, Strategy
from torch import Tensor, nn

from fedcompress import Compressed, ConfigError
from fedcompress.distill import Ensemble, predict_logits
from fedcompress.protocol import GROUP_KEY
from simulations.checkpoint import load_strategy_state, strategy_state
from strategies import Distilled, Groups, GroupsDistilled, Slices
from strategies.groups import join_groups


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))


def large() -> nn.Module:
    return nn.Sequential(
        nn.Linear(64, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 24), nn.Linear(24, 10)
    )


MAKE: dict[str, Callable[[], nn.Module]] = {"small": small, "large": large}


def group_of(node_id: int) -> str:
    return "small" if node_id % 2 else "large"


def groups(rule: Callable[..., Strategy] = FedAvg, **more: float) -> Groups:
    return Groups({n: rule(fraction_evaluate=0.0, **more) for n in MAKE}, group_of=group_of)


def start(toys) -> ArrayRecord:
    return join_groups({n: toys.arrays_of(toys.seeded(make, 1)) for n, make in MAKE.items()})


def play(
    strategy: Strategy,
    arrays: ArrayRecord,
    nodes: object,
    models: Callable[[Message], ArrayRecord | None],
    server_round: int = 1,
) -> tuple[ArrayRecord | None, MetricRecord | None, list[Message]]:
    """Play a round: every client answers with a model, or with an error where there is none."""
    random.seed(server_round)
    messages = list(
        strategy.configure_train(server_round, arrays, ConfigRecord(), cast(Grid, nodes))
    )
    replies = []
    for message in messages:
        model = models(message)
        if model is None:
            replies.append(Message(Error(code=0, reason="it fell over"), reply_to=message))
            continue
        metrics = MetricRecord({"num-examples": message.metadata.dst_node_id, "train_loss": 1.0})
        content = RecordDict({"arrays": model, "metrics": metrics})
        replies.append(Message(content, reply_to=message))
    return *strategy.aggregate_train(server_round, replies), messages


def trained(toys, message: Message) -> ArrayRecord:
    node_id = message.metadata.dst_node_id
    return toys.arrays_of(toys.seeded(MAKE[group_of(node_id)], 10 + node_id))


def parts(arrays: ArrayRecord, group: str) -> dict[str, Tensor]:
    return {
        n.partition("/")[2]: torch.from_numpy(x.numpy().copy())
        for n, x in arrays.items()
        if n.startswith(f"{group}/")
    }


@pytest.mark.parametrize("rule", [FedAvg, FedAdam, FedMedian])
def test_a_group_is_what_its_rule_makes_of_its_own_clients(toys, nodes, rule) -> None:
    arrays, metrics, messages = play(
        groups(rule), start(toys), nodes(7), lambda m: trained(toys, m)
    )
    assert arrays is not None
    assert metrics is not None
    assert {m.metadata.dst_node_id for m in messages} == set(range(1, 8))
    for name, make in MAKE.items():
        alone = rule(fraction_evaluate=0.0)
        own = [n for n in range(1, 8) if group_of(n) == name]

        class Own:
            def get_node_ids(self, own: list[int] = own) -> Iterable[int]:
                return own

        before = toys.arrays_of(toys.seeded(make, 1))
        bare, said, _ = play(alone, before, Own(), lambda m: trained(toys, m))
        assert bare is not None
        assert said is not None
        for key, x in parts(arrays, name).items():
            # Clients are drawn in another order, in which Flower adds them up.
            np.testing.assert_allclose(x.numpy(), bare[key].numpy(), rtol=1e-4, atol=1e-6)
        assert metrics[f"{name}/train_loss"] == pytest.approx(said["train_loss"])


def test_a_client_is_sent_its_groups_arrays_and_name_alone(toys, nodes) -> None:
    _, _, messages = play(groups(), start(toys), nodes(6), lambda m: trained(toys, m))
    for message in messages:
        group = group_of(message.metadata.dst_node_id)
        sent = message.content.array_records["arrays"]
        assert message.content.config_records["config"][GROUP_KEY] == group
        assert list(sent) == list(MAKE[group]().state_dict())


def test_a_rule_chooses_among_its_own_clients(toys, nodes) -> None:
    strategy = groups(fraction_train=0.5, min_train_nodes=1)
    for number in range(1, 5):
        _, _, messages = play(
            strategy, start(toys), nodes(8), lambda m: trained(toys, m), server_round=number
        )
        asked = [group_of(m.metadata.dst_node_id) for m in messages]
        assert (asked.count("small"), asked.count("large")) == (2, 2)


def test_a_group_without_an_answer_keeps_its_model(toys, nodes) -> None:
    def models(message: Message) -> ArrayRecord | None:
        is_small = group_of(message.metadata.dst_node_id) == "small"
        return trained(toys, message) if is_small else None

    arrays, _, _ = play(groups(), start(toys), nodes(6), models)
    assert arrays is not None
    for name, same in (("small", False), ("large", True)):
        before, after = parts(start(toys), name), parts(arrays, name)
        assert all(torch.equal(before[key], after[key]) for key in before) == same
    nothing, metrics, _ = play(groups(), start(toys), nodes(6), lambda _: None)
    assert (nothing, metrics) == (None, None)


def test_the_state_of_every_rule_is_kept(toys, nodes) -> None:
    first = groups(FedAdam)
    arrays, _, _ = play(first, start(toys), nodes(6), lambda m: trained(toys, m))
    again = groups(FedAdam)
    load_strategy_state(again, strategy_state(first))
    assert arrays is not None
    ends = [
        play(each, arrays, nodes(6), lambda m: trained(toys, m), server_round=2)[0]
        for each in (first, again)
    ]
    assert ends[0] == ends[1]
    with pytest.raises(ConfigError, match="has the groups"):
        load_strategy_state(
            FedAdam(), strategy_state(first)["rules"]["small"] | {"rules": {"a": {}}}
        )


def distilled(digits, **more: object) -> GroupsDistilled:
    settings = {"steps": 60, "learning_rate": 1e-2, "patience": 60, **more}
    return GroupsDistilled(groups(), models=MAKE, proxy=digits["proxy"], **settings)


def taught(toys, digits, message: Message) -> ArrayRecord:
    """Train on half of the classes: those of the group."""
    node_id = message.metadata.dst_node_id
    name = group_of(node_id)
    model = toys.seeded(MAKE[name], node_id)
    y = digits["train_y"]
    own = y < 5 if name == "small" else y >= 5
    toys.train(model, digits["train_x"][own], y[own], steps=60, rate=0.3)
    return toys.arrays_of(model)


@pytest.mark.parametrize("combine", ["logits", "probabilities"])
def test_every_group_learns_what_only_the_others_have_seen(toys, digits, nodes, combine) -> None:
    x, y = digits["test_x"], digits["test_y"]

    def accuracies(strategy: Strategy) -> dict[str, dict[bool, float]]:
        arrays, _, _ = play(strategy, start(toys), nodes(6), lambda m: taught(toys, digits, m))
        assert arrays is not None
        found: dict[str, dict[bool, float]] = {}
        for name, make in MAKE.items():
            model = make()
            model.load_state_dict(parts(arrays, name))
            own = y < 5 if name == "small" else y >= 5
            found[name] = {
                seen: toys.accuracy(model, x[own == seen], y[own == seen]) for seen in (True, False)
            }
        return found

    alone, mutual = accuracies(groups()), accuracies(distilled(digits, combine=combine, steps=200))
    for name in MAKE:
        assert alone[name][False] == 0.0  # nothing of the classes that its clients lack
        assert mutual[name][False] > 0.2


def test_both_follow_the_ensemble_of_all_clients(toys, digits, nodes) -> None:
    strategy = distilled(digits)
    _, metrics, _ = play(strategy, start(toys), nodes(6), lambda m: taught(toys, digits, m))
    assert metrics is not None
    assert metrics["distill-teachers"] == 6
    for name in MAKE:
        result = strategy.last_results[name]
        assert result.held_out_kl_after < result.held_out_kl_before
        assert metrics[f"{name}/distill-kl-after"] == result.held_out_kl_after


def test_a_group_that_was_not_asked_follows_too(toys, digits, nodes) -> None:
    def models(message: Message) -> ArrayRecord | None:
        is_small = group_of(message.metadata.dst_node_id) == "small"
        return taught(toys, digits, message) if is_small else None

    strategy = distilled(digits)
    arrays, _, _ = play(strategy, start(toys), nodes(6), models)
    assert arrays is not None
    before, after = parts(start(toys), "large"), parts(arrays, "large")
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert "0.weight" in changed
    assert not any("running" in key or "num_batches" in key for key in changed)


def test_nothing_is_distilled_before_its_round_or_without_a_teacher(toys, digits, nodes) -> None:
    strategy = distilled(digits, first=2)
    arrays, _, _ = play(strategy, start(toys), nodes(6), lambda m: trained(toys, m))
    bare, _, _ = play(groups(), start(toys), nodes(6), lambda m: trained(toys, m))
    assert strategy.last_results == {}
    assert arrays == bare
    assert play(strategy, start(toys), nodes(6), lambda _: None, server_round=2)[0] is None


def test_an_anchor_is_the_averages_share_of_the_ensemble(toys, digits, nodes) -> None:
    strategy = distilled(digits, anchor=0.999999, steps=1, learning_rate=1e-30)
    arrays, _, _ = play(strategy, start(toys), nodes(6), lambda m: trained(toys, m))
    assert arrays is not None
    ensemble = Ensemble()
    for name, make in MAKE.items():
        model = make()
        model.load_state_dict(parts(arrays, name))
        ensemble.add(predict_logits(model, digits["proxy"]))
    small_model = small()
    small_model.load_state_dict(parts(arrays, "small"))
    wanted = ensemble.logits().argmax(-1)
    agreement = (predict_logits(small_model, digits["proxy"]).argmax(-1) == wanted).double().mean()
    held_out = strategy.last_results["small"].agreement
    assert abs(held_out - float(agreement)) < 0.25


@pytest.mark.parametrize("fault", ["nan", "shape"])
def test_a_bad_reply_is_kept_from_teachers_and_rule(toys, digits, nodes, fault: str) -> None:
    def models(message: Message) -> ArrayRecord:
        arrays = trained(toys, message)
        if message.metadata.dst_node_id == 1:
            other = large() if fault == "shape" else small()
            if fault == "nan":
                other[0].weight.data[0] = float("nan")
            return toys.arrays_of(other)
        return arrays

    strategy = distilled(digits, steps=5)
    arrays, metrics, _ = play(strategy, start(toys), nodes(6), models)
    assert arrays is not None
    assert metrics is not None
    assert metrics["distill-teachers"] == 5
    assert all(np.isfinite(x.numpy()).all() for x in arrays.values())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda _: Groups({}, group_of=group_of), "there is no group"),
        (lambda _: Groups({"a/b": FedAvg()}, group_of=group_of), "no '/', got 'a/b'"),
        (lambda _: Groups({"a": Compressed(FedAvg())}, group_of=group_of), "compression stands"),
        (lambda _: Groups(dict.fromkeys("ab", FedAvg()), group_of=group_of), "same rule"),
        (
            lambda proxy: GroupsDistilled(groups(), models={"small": small}, proxy=proxy),
            "give a model for each of its groups",
        ),
        (
            lambda proxy: GroupsDistilled(
                groups(), models={**MAKE, "large": lambda: nn.Linear(64, 7)}, proxy=proxy
            ),
            "must have the same classes",
        ),
        (
            lambda proxy: GroupsDistilled(groups(), models=MAKE, proxy=proxy[:, :9]),
            "do not fit the model",
        ),
        (
            lambda proxy: Distilled(groups(), model=small, proxy=proxy),
            "GroupsDistilled stands around Groups",
        ),
        (
            lambda proxy: Distilled(
                Slices(FedAvg(), layouts={"1": {}}, level_of=lambda *_: "1"),
                model=small,
                proxy=proxy,
            ),
            "Slices inside sends clients other arrays",
        ),
    ],
)
def test_what_cannot_work_is_refused(digits, make: Callable[[Tensor], object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make(digits["proxy"])


def test_arrays_or_nodes_of_no_group_are_refused(toys, nodes) -> None:
    with pytest.raises(ConfigError, match=r"'0\.weight' is of no group"):
        play(groups(), toys.arrays_of(small()), nodes(2), lambda m: trained(toys, m))
    only = join_groups({"small": toys.arrays_of(small())})
    with pytest.raises(ConfigError, match="no global arrays of large"):
        play(groups(), only, nodes(2), lambda m: trained(toys, m))
    lost = Groups({"small": FedAvg(), "large": FedAvg()}, group_of=lambda _: "medium")
    with pytest.raises(ConfigError, match="is of group 'medium'"):
        play(lost, start(toys), nodes(2), lambda m: trained(toys, m))
