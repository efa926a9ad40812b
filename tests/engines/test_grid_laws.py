"""What holds for every engine of ours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from flwr.serverapp.strategy import FedAvg

from fedcompress.errors import ConfigError
from simulations.engines import LocalGrid, RayGrid, SimulatedGrid

pytestmark = pytest.mark.ray

CLIENT_APP = "engine_client:app"
RUN_CONFIG: dict[str, bool | float | int | str] = {"rate": 7}


@pytest.fixture(scope="module", params=["local", "forked", "ray"])
def grid(request: pytest.FixtureRequest) -> Iterator[SimulatedGrid]:
    if request.param == "local":
        yield LocalGrid(CLIENT_APP, 10, run_config=RUN_CONFIG)
        return
    uses_ray = request.param == "ray"
    if uses_ray:
        request.getfixturevalue("ray_session")
    with RayGrid(CLIENT_APP, 10, run_config=RUN_CONFIG, workers=2, use_ray=uses_ray) as built:
        yield built


@pytest.fixture(autouse=True)
def _as_new(grid: SimulatedGrid) -> None:
    grid.reset(num_clients=10, run_config=RUN_CONFIG)


def test_replies_stand_in_the_order_of_the_messages(grid: SimulatedGrid, round_of: Any) -> None:
    messages = round_of()[::-1]
    replies = grid.send_and_receive(messages)
    assert [reply.metadata.src_node_id for reply in replies] == list(range(10, 0, -1))
    for message, reply in zip(messages, replies, strict=True):
        assert reply.metadata.reply_to_message_id == message.metadata.message_id
        assert len(message.metadata.message_id) == 64


def test_push_and_pull(grid: SimulatedGrid, round_of: Any) -> None:
    ids = list(grid.push_messages(round_of()))
    assert len(set(ids)) == 10
    assert [r.metadata.src_node_id for r in grid.pull_messages(ids[5:])] == [6, 7, 8, 9, 10]
    assert len(grid.pull_messages(ids)) == 5
    assert grid.pull_messages(ids) == []


def test_a_client_that_raises_becomes_an_error_and_keeps_its_state(
    grid: SimulatedGrid, round_of: Any, caplog: pytest.LogCaptureFixture
) -> None:
    grid.send_and_receive(round_of())
    before = grid.client_states()
    replies = grid.send_and_receive(round_of(round_number=2, **{"raise": 4}))
    errors = [reply for reply in replies if reply.has_error()]
    assert [reply.metadata.src_node_id for reply in errors] == [4]
    assert errors[0].error.code == 2
    assert errors[0].error.reason == "RuntimeError: client 4 has no data"
    assert "engine_client.py" in caplog.text
    after = grid.client_states()
    assert sorted(after) == [1, 2, 3, 5, 6, 7, 8, 9, 10]
    grid.load_client_states(before)
    again = grid.send_and_receive(round_of(round_number=2))
    assert not any(reply.has_error() for reply in again)
    repeated = grid.client_states()
    del repeated[4]
    assert repeated == after


def test_a_client_that_changes_its_message_reaches_no_other(
    grid: SimulatedGrid, round_of: Any
) -> None:
    messages = round_of(kind="query")
    weight = messages[0].content["arrays"]["weight"]
    for _ in range(2):
        for reply in grid.send_and_receive(messages):
            assert (reply.content["arrays"]["weight"].numpy() == weight.numpy()).all()
            assert reply.content["config"] == {"round": 1, "list": [1, 2, 3]}
    assert messages[0].content["config"] == {"round": 1, "list": [1, 2, 3]}
    assert grid.client_states() == {}


def test_saved_states_go_on_as_if_never_stopped(grid: SimulatedGrid, round_of: Any) -> None:
    grid.send_and_receive(round_of())
    saved = grid.client_states()
    assert grid.client_states() == {}
    expected = [r.content for r in grid.send_and_receive(round_of(round_number=2))]
    grid.reset()
    fresh = [r.content for r in grid.send_and_receive(round_of(round_number=2))]
    assert fresh != expected
    grid.reset()
    grid.load_client_states(saved)
    assert [r.content for r in grid.send_and_receive(round_of(round_number=2))] == expected


def test_reset_changes_clients_and_configuration(grid: SimulatedGrid, round_of: Any) -> None:
    grid.reset(num_clients=3, run_config={"rate": 8})
    assert list(grid.get_node_ids()) == [1, 2, 3]
    replies = grid.send_and_receive(round_of(clients=3, kind="evaluate"))
    assert [dict(r.content["metrics"]) for r in replies] == [{"rate": 8, "clients": 3}] * 3
    assert grid.compute_seconds.keys() == {1, 2, 3}


def test_unknown_nodes_are_refused(grid: SimulatedGrid, round_of: Any) -> None:
    with pytest.raises(ConfigError, match="no client has node id 11; ids run from 1 to 10"):
        grid.send_and_receive(round_of(clients=11))


def test_flower_strategies_run_unmodified(grid: SimulatedGrid, round_of: Any) -> None:
    grid.reset(num_clients=4, run_config={})
    strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_available_nodes=4)
    content = round_of()[0].content
    config = content["config"]
    result = strategy.start(
        grid, content["arrays"], num_rounds=2, train_config=config, evaluate_config=config
    )
    assert sorted(result.train_metrics_clientapp) == [1, 2]
