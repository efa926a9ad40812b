"""Clients trained in one program: replies, states and failures are those of one-by-one calls."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable

from fedcompress import compress
from simulations.engines import LocalGrid
from simulations.engines.client_call import ClientCall, Setting, call_clients
from simulations.engines.cohort import (
    call_together,
    cohort_size,
    cohorts_of,
    offer_cohorts,
    one_of_a_cohort,
)
from simulations.engines.flower_internals import assume_server_identity

assume_server_identity(1)  # before the first message is built

RoundOf = Callable[..., list[Message]]


@dataclass
class Log:
    """What an app did, in order."""

    events: list[str] = field(default_factory=list)
    cohorts: list[list[int]] = field(default_factory=list)


def build_app(log: Log, *, cohorts: bool = True) -> ClientApp:
    """An app that doubles a model, with a mod that counts calls in the client's state."""

    def count(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        node = context.node_id
        log.events.append(f"before {node}")
        config = message.content.config_records["config"]
        if config.get("refuse") == node:
            raise PermissionError(f"node {node} takes no part")
        reply = call_next(message, context)
        log.events.append(f"after {node}")
        known = context.state.get("calls")
        calls = int(str(known["calls"])) if isinstance(known, MetricRecord) else 0
        context.state["calls"] = MetricRecord({"calls": calls + 1})
        return reply

    app = ClientApp(mods=[count])

    def doubled(message: Message, context: Context) -> Message:
        weight = message.content.array_records["arrays"]["weight"].numpy()
        arrays = ArrayRecord()
        arrays["weight"] = Array(weight * 2 + context.node_id)
        return Message(RecordDict({"arrays": arrays}), reply_to=message)

    def check(message: Message, context: Context) -> None:
        config = message.content.config_records["config"]
        if config.get("raise") == context.node_id:
            raise RuntimeError(f"client {context.node_id} has no data")

    @app.train()
    @one_of_a_cohort
    def train(message: Message, context: Context) -> Message:
        log.events.append(f"train {context.node_id}")
        check(message, context)
        return doubled(message, context)

    def train_many(messages: list[Message], contexts: list[Context]) -> list[Message]:
        log.events.append("train together")
        log.cohorts.append([context.node_id for context in contexts])
        for message, context in zip(messages, contexts, strict=True):
            check(message, context)
        return [doubled(m, c) for m, c in zip(messages, contexts, strict=True)]

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return Message(RecordDict({"metrics": MetricRecord({"n": 1})}), reply_to=message)

    if cohorts:
        offer_cohorts(app, train_many)
    return app


def outcome(
    app: ClientApp, messages: list[Message], path: str = "cohort"
) -> tuple[list[object], dict[int, bytes], LocalGrid]:
    grid = LocalGrid(lambda: app, 100, run_config={"training.path": path})
    replies = grid.send_and_receive(messages)
    told = [
        (r.metadata.src_node_id, r.content if r.has_content() else r.error.reason) for r in replies
    ]
    return told, grid.client_states(), grid


@pytest.mark.parametrize("told", [{}, {"raise": 3}, {"refuse": 4}, {"raise": 1, "refuse": 2}])
@pytest.mark.parametrize("clients", [1, 2, 5, 20])
def test_a_cohort_answers_as_its_clients_do_one_by_one(
    round_of: RoundOf, clients: int, told: dict[str, int]
) -> None:
    alone, together = Log(), Log()
    expected = outcome(build_app(alone, cohorts=False), round_of(clients=clients, **told))
    found = outcome(build_app(together), round_of(clients=clients, **told))
    assert found[:2] == expected[:2]
    assert not alone.cohorts
    assert bool(together.cohorts) == (clients > 2)


def test_only_one_client_runs_at_a_time_and_in_order(round_of: RoundOf) -> None:
    log = Log()
    before = threading.active_count()
    outcome(build_app(log), round_of(clients=4))
    assert log.events == [
        *("before 1", "before 2", "train together", "after 1", "after 2"),
        *("before 3", "before 4", "train together", "after 3", "after 4"),
    ]
    assert threading.active_count() == before


def test_a_client_at_fault_fails_alone_and_only_its_cohort_trains_one_by_one(
    round_of: RoundOf,
) -> None:
    log = Log()
    told, states, _ = outcome(build_app(log), round_of(clients=6, **{"raise": 2}))
    assert [isinstance(content, str) for _, content in told] == [False, True, *4 * [False]]
    assert told[1][1] == "RuntimeError: client 2 has no data"  # type: ignore[index]
    assert sorted(states) == [1, 3, 4, 5, 6]
    assert [event for event in log.events if event.startswith("train ")] == [
        *("train together", "train 1", "train 2", "train 3", "train together")
    ]


@pytest.mark.parametrize(("clients", "size"), [(1, 1), (3, 2), (10, 5), (16, 8), (64, 32)])
def test_cohorts_are_neighbours_of_a_round(round_of: RoundOf, clients: int, size: int) -> None:
    assert cohort_size(clients) == size
    log = Log()
    outcome(build_app(log), round_of(clients=clients))
    nodes = list(range(1, clients + 1))
    groups = [nodes[start : start + size] for start in range(0, clients, size)]
    assert log.cohorts == [group for group in groups if len(group) > 1]


def test_who_calls_does_not_change_the_cohorts(round_of: RoundOf) -> None:
    messages = round_of(clients=20)
    calls = [
        ClientCall(m.metadata, m.content, RecordDict(), position)
        for position, m in enumerate(messages)
    ]
    setting = Setting(1, 20, {"training.path": "cohort"}, num_messages=20)
    whole, parts = Log(), Log()
    expected = list(call_clients(build_app(whole), calls, setting))
    app = build_app(parts)
    late = list(call_clients(app, calls[8:], setting))
    found = list(call_clients(app, calls[:8], setting)) + late
    assert [r.reply.content for r in found] == [r.reply.content for r in expected]
    assert sorted(parts.cohorts) == sorted(whole.cohorts)


def test_evaluation_and_runs_without_cohorts_go_one_by_one(round_of: RoundOf) -> None:
    log = Log()
    told, _, _ = outcome(build_app(log), round_of(clients=6, kind="evaluate"))
    assert len(told) == 6
    outcome(build_app(log), round_of(clients=6), path="eager")
    assert not log.cohorts


def test_an_offer_is_found_through_a_wrapper() -> None:
    app = build_app(Log())
    assert cohorts_of(compress(compress(app))) is cohorts_of(app) is not None
    assert cohorts_of(ClientApp()) is None


def test_a_caller_that_stops_early_leaves_no_call_behind() -> None:
    before = threading.active_count()

    def many(messages: list[Message], contexts: list[Context]) -> list[Message]:
        return messages

    @one_of_a_cohort
    def train(message: Message, context: Context) -> Message:
        raise AssertionError

    calls = [lambda: train(object(), object()) for _ in range(3)]  # type: ignore[arg-type]
    results = call_together(calls, many)
    next(results)
    results.close()
    assert threading.active_count() == before


def test_the_seconds_of_a_cohort_are_shared(round_of: RoundOf) -> None:
    _, _, grid = outcome(build_app(Log()), round_of(clients=10))
    assert all(seconds > 0 for seconds in grid.compute_seconds.values())
    assert np.ptp(list(grid.compute_seconds.values())) < 1
