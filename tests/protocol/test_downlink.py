"""A compressed downlink: everyone trains from the same reference, whoever missed what."""

import random

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAdam, FedAvg

from fedcompress import Compressed, compression_mod, downlink, parse, protocol, rng_for
from fedcompress.block import Block
from fedcompress.downlink import Broadcast
from fedcompress.errors import NotFiniteError
from fedcompress.references import known_reference
from simulations.engines import LocalGrid

CLIENTS = 6
SEEN: dict[tuple[int, int], np.ndarray] = {}


def make_app() -> ClientApp:
    app = ClientApp(mods=[compression_mod])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        server_round = int(message.content["config"]["server-round"])  # type: ignore[call-overload,index]
        arrays = message.content["arrays"]
        before = {k: a.numpy() for k, a in arrays.items()}  # type: ignore[union-attr]
        SEEN[server_round, client] = before["w"].copy()
        draw = rng_for(5, round=server_round, client=client)
        after = {
            "w": before["w"] + draw.standard_normal(before["w"].shape).astype(np.float32),
            "steps": np.asarray(before["steps"] + client),
        }
        record = ArrayRecord({k: Array(v) for k, v in after.items()})
        metrics = MetricRecord({"num-examples": 1})
        return Message(RecordDict({"arrays": record, "metrics": metrics}), reply_to=message)

    return app


def initial() -> ArrayRecord:
    w = rng_for(1).standard_normal((40, 25)).astype(np.float32)
    return ArrayRecord({"w": Array(w), "steps": Array(np.array(7))})


class Recorder(Compressed):
    """Keeps what every round's traffic was."""

    def __init__(self, *args, **kwargs) -> None:  # type: ignore[no-untyped-def]
        super().__init__(*args, **kwargs)
        self.rounds = []

    def aggregate_train(self, server_round, replies):  # type: ignore[no-untyped-def]
        result = super().aggregate_train(server_round, replies)
        self.rounds.append(self.last_round)
        return result


def run(strategy, rounds: int, grid: LocalGrid | None = None, start: int = 1, arrays=None):  # type: ignore[no-untyped-def]
    grid = grid or LocalGrid(make_app, CLIENTS)
    arrays = arrays or initial()
    for server_round in range(start, start + rounds):
        random.seed(server_round)
        from flwr.app import ConfigRecord

        messages = strategy.configure_train(server_round, arrays, ConfigRecord(), grid)
        replies = grid.send_and_receive(messages)
        new, _ = strategy.aggregate_train(server_round, replies)
        arrays = new or arrays
    return arrays, grid


@pytest.mark.parametrize("downlink", ["error_feedback(top_k(0.1) | sign())", "quantize(4)"])
@pytest.mark.parametrize("inner", [FedAvg, FedAdam])
def test_all_clients_of_a_round_train_from_the_same_model(inner, downlink: str) -> None:  # type: ignore[no-untyped-def]
    SEEN.clear()
    strategy = Recorder(
        inner(fraction_train=0.5, fraction_evaluate=0.0), uplink="raw()", downlink=downlink
    )
    run(strategy, 12)
    by_round: dict[int, list[np.ndarray]] = {}
    for (server_round, _), w in SEEN.items():
        by_round.setdefault(server_round, []).append(w)
    assert len(by_round) == 12
    for models in by_round.values():
        assert len(models) == 3
        assert all(np.array_equal(models[0], w) for w in models)
    assert all(c.status == "ok" for traffic in strategy.rounds for c in traffic.clients)


def test_what_missed_rounds_cost_is_counted() -> None:
    strategy = Recorder(
        FedAvg(fraction_train=0.5, fraction_evaluate=0.0),
        uplink="raw()",
        downlink="error_feedback(top_k(0.05) | sign())",
    )
    run(strategy, 10)
    last: dict[int, int] = {}
    dense_bytes = sum(len(array.data) for array in initial().values())
    update_bytes: dict[int, int] = {}
    for traffic in strategy.rounds:
        for d in traffic.downlink:
            if d.node_id not in last:
                assert d.payload_bytes == dense_bytes
                assert d.catchup_bytes >= dense_bytes - 400
            elif last[d.node_id] == traffic.server_round - 1:
                assert d.catchup_bytes == 0
                update_bytes[traffic.server_round] = d.payload_bytes
            else:
                assert d.payload_bytes > d.catchup_bytes > 0
            last[d.node_id] = traffic.server_round
    assert update_bytes
    assert max(update_bytes.values()) < dense_bytes / 20


def test_a_lossless_downlink_changes_nothing() -> None:
    plain, _ = run(Compressed(FedAvg(fraction_evaluate=0.0), uplink="raw()"), 4)
    sent, _ = run(Compressed(FedAvg(fraction_evaluate=0.0), uplink="raw()", downlink="raw()"), 4)
    np.testing.assert_allclose(sent["w"].numpy(), plain["w"].numpy(), atol=1e-5)
    np.testing.assert_array_equal(sent["steps"].numpy(), plain["steps"].numpy())


def test_the_server_carries_its_own_residual() -> None:
    """Sum of what was broadcast + residual = sum of what the rounds changed."""
    strategy = Compressed(
        FedAvg(fraction_evaluate=0.0),
        uplink="raw()",
        downlink="error_feedback(top_k(0.05) | sign())",
    )
    run(strategy, 9)
    state = strategy.state_dict()
    reference, residual = state["reference"]["w"], state["state"]["residual/w"]  # type: ignore[index]
    start = initial()["w"].numpy()
    updates = [
        np.mean(
            [rng_for(5, round=r, client=c).standard_normal((40, 25)) for c in range(CLIENTS)], 0
        )
        for r in range(1, 9)  # the ninth round's mean has not been broadcast yet
    ]
    np.testing.assert_allclose(reference + residual, start + sum(updates), atol=1e-4)


def test_a_client_that_lost_its_state_is_sent_the_whole_model() -> None:
    strategy = Recorder(
        FedAvg(fraction_evaluate=0.0), uplink="raw()", downlink="error_feedback(sign())"
    )
    arrays, grid = run(strategy, 3)
    grid.load_client_states({2: b""})
    arrays, _ = run(strategy, 1, grid, 4, arrays)
    (lost,) = [c for c in strategy.last_round.clients if c.status != "ok"]
    assert lost.node_id == 2
    assert "the whole model is needed" in (lost.reason or "")
    run(strategy, 1, grid, 5, arrays)
    assert all(c.status == "ok" for c in strategy.last_round.clients)
    sizes = {d.node_id: d.payload_bytes for d in strategy.last_round.downlink}
    assert sizes[2] > 10 * sizes[1]


def test_a_reply_that_got_lost_does_not_break_the_chain() -> None:
    """The server then counts on an older version than the client holds."""
    strategy = Recorder(
        FedAvg(fraction_evaluate=0.0), uplink="raw()", downlink="error_feedback(sign())"
    )
    grid = LocalGrid(make_app, CLIENTS)
    original = grid.send_and_receive
    arrays, _ = run(strategy, 2, grid)
    grid.send_and_receive = lambda m, timeout=None: original(m)[1:]  # type: ignore[method-assign,assignment]
    arrays, _ = run(strategy, 2, grid, 3, arrays)
    grid.send_and_receive = original  # type: ignore[method-assign]
    run(strategy, 1, grid, 5, arrays)
    assert [c.status for c in strategy.last_round.clients] == ["ok"] * CLIENTS
    assert any(d.catchup_bytes for d in strategy.last_round.downlink)


def test_resumed_from_its_state_it_goes_on_the_same() -> None:
    def make() -> Compressed:
        return Compressed(
            FedAvg(fraction_train=0.5, fraction_evaluate=0.0),
            uplink="error_feedback(sign())",
            downlink="error_feedback(top_k(0.1) | sign())",
        )

    whole, _ = run(make(), 8)
    first = make()
    arrays, grid = run(first, 5)
    second = make()
    second.load_state_dict(first.state_dict())
    resumed, _ = run(second, 3, grid, 6, arrays)
    for name, array in whole.items():
        np.testing.assert_array_equal(resumed[name].numpy(), array.numpy())


@pytest.mark.parametrize(
    "spec",
    ["error_feedback(top_k(0.05) | quantize(4))", "top_k(0.1)", "quantize(4)", "sign() | pack()"],
)
@pytest.mark.parametrize("remembers", [True, False])
def test_references_in_blocks_are_those_of_arrays(
    monkeypatch: pytest.MonkeyPatch, spec: str, remembers: bool
) -> None:
    """To the bit on both ends, whichever of them hold their models in blocks."""
    blocks, arrays = (Broadcast(parse(spec), 1, remembers=remembers) for _ in range(2))
    draw = rng_for(3)
    target = {
        name: torch.from_numpy(draw.standard_normal(shape).astype(np.float32))
        for name, shape in {"w": (40, 25), "b": (25,)}.items()
    }
    held = None
    for server_round in range(1, 6):
        blocks.advance_to(target, server_round)
        with monkeypatch.context() as patched:
            patched.setattr(downlink, "as_block", lambda _: None)
            arrays.advance_to(target, server_round)
        assert isinstance(blocks.reference, Block)
        assert not isinstance(arrays.reference, Block)
        assert blocks.checksum == arrays.checksum == protocol.checksum(arrays.reference)
        shipments = [each.ship_to(1) for each in (blocks, arrays)]
        assert shipments[0].payload_bytes == shipments[1].payload_bytes
        if held is None:
            held = known_reference(blocks.version, shipments[0].record)
        else:
            payloads = [protocol.record_to_payloads(each.record) for each in shipments]
            assert payloads[0] == payloads[1]
            held = held.after(parse(spec), payloads[0][-1])
        assert held.checksum == blocks.checksum
        for name, x in arrays.reference.items():
            assert blocks.reference[name].numpy().tobytes() == x.numpy().tobytes()
        for each in (blocks, arrays):
            each.confirm(1)
        target = {
            name: x + 0.1 * torch.from_numpy(draw.standard_normal(x.shape).astype(np.float32))
            for name, x in target.items()
        }
    resumed = Broadcast(parse(spec), 1, remembers=remembers)
    resumed.load_state_dict(arrays.state_dict())
    for each in (resumed, blocks):
        each.advance_to(target, 6)
    assert resumed.checksum == blocks.checksum


def test_a_model_that_is_not_finite_is_named_before_it_is_sent() -> None:
    broadcast = Broadcast(parse("quantize(4)"), 1)
    large = {"a": torch.full((3,), 3e38), "b": torch.full((2,), 3e38)}
    broadcast.advance_to(large, 1)
    large["b"][1] = torch.inf
    with pytest.raises(NotFiniteError, match=r"global model 'b'.*round 2"):
        broadcast.advance_to(large, 2)
