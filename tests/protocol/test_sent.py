"""What is sent to a node is what its update is taken against, whatever the others were sent."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp.strategy import FedAvg
from sliced import ROWS, Arrays, Sliced, arrays_of, initial, make_app, record_of, run

from fedcompress import Compressed, ConfigError, parse
from fedcompress.errors import PayloadError
from fedcompress.protocol import GROUP_KEY, data_bytes
from fedcompress.sent import Sent, SentRound
from simulations.engines import LocalGrid

CLIENTS = 4
LEVELS = (10, 20, ROWS)
UPLINKS = ["raw()", None, "quantize(8) | entropy()", "error_feedback(top_k(0.3) | quantize(6))"]


def level_of(server_round: int, node_id: int) -> int:
    return LEVELS[(server_round + node_id) % len(LEVELS)]


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("uplink", UPLINKS)
def test_a_client_gets_and_returns_its_slice_alone(uplink: str | None, named: bool) -> None:
    seen: dict[tuple[int, int], Arrays] = {}
    inner = Sliced(level_of, named)
    strategy = Compressed(inner, uplink=uplink)
    grid = LocalGrid(lambda: make_app(seen), CLIENTS)
    arrays = initial()
    for number in range(1, 6):
        before = arrays_of(arrays)["w"]
        arrays = run(strategy, grid, [number], arrays)
        assert {c.status for c in strategy.last_round.clients} == {"ok"}
        sizes = {d.node_id: d.payload_bytes for d in strategy.last_round.downlink}
        for client in strategy.last_round.clients:
            node_id, level = client.node_id, level_of(number, client.node_id)
            np.testing.assert_array_equal(seen[number, node_id]["w"], before[:level])
            assert inner.replies[node_id]["w"].shape == (level, 25)
            dense = 128 + 100 * level + 128 + 8
            assert sizes[node_id] == dense
            if uplink == "raw()":
                assert dense - 256 < client.uplink_payload_bytes < dense
            elif uplink is not None:
                assert client.uplink_payload_bytes < dense / 2


def test_with_raw_payloads_the_model_is_that_of_dense_arrays() -> None:
    ends = [
        run(Compressed(Sliced(level_of), uplink=uplink), LocalGrid(make_app, CLIENTS), range(1, 5))
        for uplink in ("raw()", None)
    ]
    for name, x in arrays_of(ends[0]).items():
        np.testing.assert_allclose(x, arrays_of(ends[1])[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("uplink", UPLINKS)
def test_equal_arrays_in_another_record_are_the_model(uplink: str | None) -> None:
    """A strategy may copy what it is given; its clients are still of one layout, and summed."""

    class Copied(FedAvg):
        def configure_train(self, server_round, arrays, config, grid):  # type: ignore[no-untyped-def]
            copied = record_of(arrays_of(arrays))
            return super().configure_train(server_round, copied, config, grid)

    for downlink in (None, "error_feedback(top_k(0.2) | sign())") if uplink else (None,):
        ends = [
            run(
                Compressed(kind(fraction_evaluate=0.0), uplink=uplink, downlink=downlink),
                LocalGrid(make_app, CLIENTS),
                range(1, 5),
            )
            for kind in (FedAvg, Copied)
        ]
        assert ends[0] == ends[1]


def test_residuals_are_kept_for_each_group() -> None:
    """What a client left unsent of one slice waits until it is sent that slice again."""
    grid = LocalGrid(make_app, CLIENTS)
    strategy = Compressed(Sliced(level_of), uplink="error_feedback(top_k(0.1))")
    run(strategy, grid, range(1, 4))
    for node_id in range(1, CLIENTS + 1):
        state = grid._states[node_id]
        for level in LEVELS:
            (residual,) = state.array_records[f"fedcompress.state.level {level}"].values()
            assert residual.shape == (level, 25)
        assert "fedcompress.state" not in state


def test_a_client_keeps_states_of_few_groups() -> None:
    grid = LocalGrid(make_app, 2)
    uplink = "error_feedback(top_k(0.1))"
    run(Compressed(Sliced(lambda number, _: number), uplink=uplink), grid, range(1, 10))
    kept = [key for key in grid._states[1] if key.startswith("fedcompress.state")]
    assert kept == [f"fedcompress.state.level {level}" for level in (6, 7, 8, 9)]
    assert len(grid._states[1]) == 8


@pytest.mark.parametrize("uplink", ["ef21(top_k(0.2))", "delta(quantize(6), factor=0.9)"])
def test_memories_start_anew_with_another_group(uplink: str) -> None:
    inner = Sliced(lambda number, node: LEVELS[(number // 2 + node) % 3])
    strategy = Compressed(inner, uplink=uplink)
    grid = LocalGrid(make_app, CLIENTS)
    arrays = initial()
    for number in range(1, 10):
        arrays = run(strategy, grid, [number], arrays)
        assert {c.reason or c.status for c in strategy.last_round.clients} == {"ok"}
        again = Compressed(inner, uplink=uplink)
        again.load_state_dict(strategy.state_dict())
        for node_id in range(1, CLIENTS + 1):
            (held,) = (
                array.numpy()
                for key, array in grid._states[node_id]
                .array_records[f"fedcompress.state.level {inner.level_of(number, node_id)}"]
                .items()
                if key == "memory/w"
            )
            for server in (strategy, again):
                memory = server._memories.of(node_id, f"level {inner.level_of(number, node_id)}")
                np.testing.assert_array_equal(memory["w"].numpy(), held)


def test_the_app_is_told_its_group_and_nothing_of_the_protocol() -> None:
    told: list[dict[str, object]] = []
    run(Compressed(Sliced(lambda *_: 10)), LocalGrid(lambda: make_app(told=told), 2), [1])
    assert all(config == {"server-round": 1, GROUP_KEY: "level 10"} for config in told)
    assert len(told) == 2


def test_a_reply_of_another_layout_is_left_out() -> None:
    """A client that answers with the whole model where it was sent a slice is refused."""

    def meddle(number: int, replies: list[Message]) -> list[Message]:
        replies[0].content["arrays"] = initial()
        return replies

    strategy = Compressed(Sliced(lambda *_: 10), uplink=None)
    run(strategy, LocalGrid(make_app, CLIENTS), [1], losing=meddle)
    statuses = [client.status for client in strategy.last_round.clients]
    assert sorted(statuses) == ["ok", "ok", "ok", "rejected"]


def test_bytes_are_those_that_lie_in_the_messages() -> None:
    for downlink in (None, "quantize(8)"):
        inner = Sliced(level_of)
        strategy = Compressed(inner, uplink="quantize(4)", downlink=downlink)
        grid = LocalGrid(make_app, CLIENTS)
        for number in range(1, 6):
            messages = list(strategy.configure_train(number, initial(), ConfigRecord(), grid))
            noted = {d.node_id: d.payload_bytes for d in strategy.last_round.downlink}
            sent = {m.metadata.dst_node_id: data_bytes(m.content) for m in messages}
            assert noted == sent
            replies = list(grid.send_and_receive(messages))
            strategy.aggregate_train(number, replies)
            given = {c.node_id: c.uplink_payload_bytes for c in strategy.last_round.clients}
            assert given == {r.metadata.src_node_id: data_bytes(r.content) for r in replies}


def test_one_group_of_two_contents_under_a_compressed_downlink_is_refused() -> None:
    class Confused(Sliced):
        def configure_train(self, server_round, arrays, config, grid):  # type: ignore[no-untyped-def]
            messages = super().configure_train(server_round, arrays, config, grid)
            other: ArrayRecord = record_of({"w": np.ones((10, 25), "f4"), "steps": np.array(7)})
            told = messages[0].content["config"]
            messages[0].content = RecordDict({"arrays": other, "config": told})
            return messages

    strategy = Compressed(Confused(lambda *_: 10), downlink="quantize(8)")
    with pytest.raises(ConfigError, match="group 'level 10' are sent different arrays"):
        run(strategy, LocalGrid(make_app, CLIENTS), [1])


def test_what_was_sent_is_found_by_node() -> None:
    model, other = {"w": torch.zeros(3)}, {"w": torch.zeros(2)}
    sent = SentRound()
    assert sent.common is None
    sent.note(4, Sent(parse("raw()"), model))
    sent.note(2, Sent(None, model, "half"))
    assert (list(sent), sent.common) == ([4, 2], model)
    assert sent.of(2).group == "half"
    sent.note(3, Sent(None, other))
    assert sent.common is None
    with pytest.raises(PayloadError, match="node 9: it was not asked"):
        sent.of(9)
