"""Uplinks that predict: client and server remember the same, whatever reply got lost."""

import random
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, FedMedian, Strategy

from fedcompress import Compressed, ConfigError, compression_mod, parse, rng_for
from simulations.checkpoint import Checkpoint, load_strategy_state, strategy_state
from simulations.engines import LocalGrid

CLIENTS = 5
SHAPE = (40, 25)
UPLINKS = [
    "ef21(top_k(0.05))",
    "delta(quantize(4), factor=0.9, rate=0.5)",
    'route({"bias": ef21(sign())}, default=delta(quantize(5)))',
    "momentum(ef21(top_k(0.1)))",
    "error_feedback(delta(top_k(0.2), factor=0.5))",
]
Losing = Callable[[int, list[Message]], Iterable[Message]]


def make_app() -> ClientApp:
    app = ClientApp(mods=[compression_mod])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        before = {k: a.numpy() for k, a in message.content["arrays"].items()}  # type: ignore[union-attr]
        after = {k: before[k] + x for k, x in trained(client).items()}
        record = ArrayRecord({k: Array(x) for k, x in after.items()})
        metrics = MetricRecord({"num-examples": 1})
        return Message(RecordDict({"arrays": record, "metrics": metrics}), reply_to=message)

    return app


def trained(client: int) -> dict[str, np.ndarray]:
    """Give the update of a client, the same in each round."""
    draw = rng_for(5, client=client)
    return {
        "w": draw.standard_normal(SHAPE).astype(np.float32),
        "bias": draw.standard_normal(9).astype(np.float32),
    }


def initial() -> ArrayRecord:
    return ArrayRecord({"w": Array(np.zeros(SHAPE, np.float32)), "bias": Array(np.zeros(9, "f4"))})


class Decoding(FedAvg):
    """FedAvg's choice of clients; keeps every decoded update, and the model as it was."""

    def __init__(self, fraction_train: float = 1.0) -> None:
        super().__init__(fraction_train=fraction_train, fraction_evaluate=0.0)
        self.decoded: list[dict[int, np.ndarray]] = []

    def aggregate_train(  # type: ignore[no-untyped-def]
        self, server_round: int, replies: Iterable[Message]
    ):
        replies = list(replies)
        self.decoded.append(
            {
                r.metadata.src_node_id: next(iter(r.content.array_records.values()))["w"].numpy()
                for r in replies
                if r.has_content()
            }
        )
        return None, None


def run(
    strategy: Compressed,
    rounds: int,
    grid: LocalGrid | None = None,
    start: int = 1,
    losing: Losing = lambda _, replies: replies,
) -> LocalGrid:
    grid = grid or LocalGrid(make_app, CLIENTS)
    for server_round in range(start, start + rounds):
        random.seed(server_round)
        messages = strategy.configure_train(server_round, initial(), ConfigRecord(), grid)
        replies = list(grid.send_and_receive(messages))
        strategy.aggregate_train(server_round, losing(server_round, replies))
    return grid


def wrapped(inner: Strategy, uplink: str, **settings: int) -> Compressed:
    return Compressed(inner, uplink=uplink, **settings)


def outcomes(strategy: Compressed) -> set[str]:
    return {str(c.reason or c.status) for c in strategy.last_round.clients}


def held_by_clients(grid: LocalGrid, name: str = "w") -> dict[int, np.ndarray]:
    """Give what each client remembers, from its Context."""
    return {
        node: next(
            array.numpy()
            for key, array in state.array_records["fedcompress.state"].items()
            if key.endswith(f"memory/{name}")
        )
        for node, state in grid._states.items()
    }


def held_by_server(strategy: Compressed, name: str = "w") -> dict[int, np.ndarray]:
    memories = strategy.state_dict()["memories"]
    return {int(node): kept["arrays"][name] for node, kept in memories.items()}  # type: ignore[attr-defined]


@pytest.mark.parametrize("uplink", UPLINKS)
def test_both_sides_remember_the_same_with_clients_that_come_and_go(uplink: str) -> None:
    inner = Decoding(fraction_train=0.6)
    strategy = wrapped(inner, uplink)
    grid = LocalGrid(make_app, CLIENTS)
    for server_round in range(1, 11):
        run(strategy, 1, grid, server_round)
        assert outcomes(strategy) == {"ok"}
        clients, server = held_by_clients(grid), held_by_server(strategy)
        assert clients.keys() == server.keys()
        assert all(np.array_equal(clients[node], server[node]) for node in clients)


def test_estimates_of_ef21_converge_through_the_protocol() -> None:
    inner = Decoding(fraction_train=0.6)
    run(wrapped(inner, "ef21(top_k(0.2))"), 30)
    heard: dict[int, float] = {}
    for decoded in inner.decoded:
        for node, estimate in decoded.items():
            x = trained(node - 1)["w"]
            error = float(np.square(estimate - x).sum() / np.square(x).sum())
            assert error <= 0.8 * heard.get(node, 1.0) * (1 + 1e-5) + 1e-12
            heard[node] = error
    assert len(heard) == CLIENTS
    assert max(heard.values()) < 0.02


@pytest.mark.parametrize("uplink", UPLINKS)
@pytest.mark.parametrize("lost", [[2], [3, 4], [2, 4, 6]])
def test_a_lost_reply_is_as_if_its_client_had_not_been_asked(uplink: str, lost: list[int]) -> None:
    """The client goes back to what the server remembers, and loses no round for it."""

    def losing(server_round: int, replies: list[Message]) -> list[Message]:
        return [
            r for r in replies if server_round not in lost or r.metadata.src_node_id not in (1, 3)
        ]

    inner = Decoding()
    strategy = wrapped(inner, uplink)
    grid = LocalGrid(make_app, CLIENTS)
    for server_round in range(1, 9):
        run(strategy, 1, grid, server_round, losing)
        assert outcomes(strategy) == {"ok"}
    assert [len(decoded) for decoded in inner.decoded] == [
        CLIENTS - 2 * (r in lost) for r in range(1, 9)
    ]
    # Compared to clients that encode by hand in the rounds of which the reply arrived.
    for node in range(1, CLIENTS + 1):
        like, compressor = trained(node - 1), parse(uplink)
        state = compressor.init(like)
        for server_round in range(1, 9):
            if node in (1, 3) and server_round in lost:
                continue
            rng = rng_for(0, round=server_round, client=node - 1, purpose="uplink")
            _, state, decoded = compressor.encode_and_decode(like, state, rng)
            got = inner.decoded[server_round - 1][node]
            np.testing.assert_array_equal(got, decoded["w"].numpy())


def test_a_reply_that_was_refused_is_gone_back_on_too() -> None:
    """A client whose metrics are not those of the others, once."""
    strategy = wrapped(Decoding(), "ef21(top_k(0.1))")

    def losing(server_round: int, replies: list[Message]) -> list[Message]:
        if server_round == 3:
            replies[1].content["metrics"]["odd"] = 1.0  # type: ignore[index,call-overload]
        return replies

    grid = run(strategy, 3, losing=losing)
    assert [c.status for c in strategy.last_round.clients].count("rejected") == 1
    run(strategy, 1, grid, 4)
    assert outcomes(strategy) == {"ok"}
    clients, server = held_by_clients(grid), held_by_server(strategy)
    assert all(np.array_equal(clients[node], server[node]) for node in clients)


def test_a_client_that_lost_its_state_starts_anew() -> None:
    strategy = wrapped(Decoding(), "ef21(top_k(0.1))")
    grid = run(strategy, 3)
    grid.load_client_states({2: b""})
    run(strategy, 1, grid, 4)
    assert outcomes(strategy) == {"ok"}
    server = held_by_server(strategy)
    assert np.count_nonzero(server[2]) == 100
    assert np.count_nonzero(server[1]) > 300
    assert np.array_equal(server[2], held_by_clients(grid)[2])


def test_a_server_that_lost_its_memory_is_told_everything_anew() -> None:
    first = wrapped(Decoding(), "ef21(top_k(0.1))")
    grid = run(first, 3)
    second = wrapped(Decoding(), "ef21(top_k(0.1))")
    run(second, 1, grid, 4)
    assert outcomes(second) == {"ok"}
    assert all(np.count_nonzero(x) == 100 for x in held_by_server(second).values())


def test_memories_that_differ_cost_the_client_one_round() -> None:
    strategy = wrapped(Decoding(), "ef21(top_k(0.1))")
    grid = run(strategy, 3)
    state = strategy.state_dict()
    state["memories"]["2"]["arrays"]["w"][0, 0] += 1  # type: ignore[index]
    strategy.load_state_dict(state)
    run(strategy, 1, grid, 4)
    (refused,) = [c for c in strategy.last_round.clients if c.status != "ok"]
    assert refused.node_id == 2
    assert "starts anew" in (refused.reason or "")
    run(strategy, 1, grid, 5)
    assert outcomes(strategy) == {"ok"}
    assert np.count_nonzero(held_by_server(strategy)[2]) == 100


def test_room_for_fewer_clients_makes_the_others_start_anew(
    caplog: pytest.LogCaptureFixture,
) -> None:
    room = 2 * 4 * (SHAPE[0] * SHAPE[1] + 9)
    inner = Decoding()
    strategy = wrapped(inner, "ef21(top_k(0.1))", memory_bytes=room)
    grid = run(strategy, 2)
    remembered = held_by_server(strategy)
    assert list(remembered) == [d.node_id for d in strategy.last_round.downlink][-2:]
    run(strategy, 1, grid, 3)
    assert outcomes(strategy) == {"ok"}
    for node, estimate in inner.decoded[-1].items():
        kept = np.count_nonzero(remembered[node]) if node in remembered else 0
        assert np.count_nonzero(estimate) == kept + 100
    assert "Raise memory_bytes" in caplog.text


def test_a_weighted_mean_is_that_of_the_decoded_updates() -> None:
    """The running sum of Compressed, against the mean of what each client's codec decodes."""
    strategy = wrapped(FedAvg(fraction_evaluate=0.0), "ef21(top_k(0.1))")
    each = Decoding()
    other = wrapped(each, "ef21(top_k(0.1))")
    grid, other_grid = LocalGrid(make_app, CLIENTS), LocalGrid(make_app, CLIENTS)
    for server_round in range(1, 5):
        messages = strategy.configure_train(server_round, initial(), ConfigRecord(), grid)
        model, _ = strategy.aggregate_train(server_round, grid.send_and_receive(messages))
        run(other, 1, other_grid, server_round)
        expected = np.mean(list(each.decoded[-1].values()), axis=0)
        assert model is not None
        np.testing.assert_allclose(model["w"].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("inner", [FedAvg, FedMedian])
def test_resumed_from_a_checkpoint_it_goes_on_the_same(inner: type[FedAvg], tmp_path: Path) -> None:
    def make() -> Compressed:
        return Compressed(
            inner(fraction_train=0.6, fraction_evaluate=0.0),
            uplink="ef21(top_k(0.1))",
            downlink="error_feedback(top_k(0.1) | sign())",
        )

    whole = make()
    run(whole, 8)
    first = make()
    grid = run(first, 5)
    second = make()
    with Checkpoint(tmp_path / "checkpoint.sqlite") as checkpoint:
        checkpoint.save(5, strategy_state(first), {})
        saved = checkpoint.load()
    assert saved is not None
    load_strategy_state(second, saved[1])
    run(second, 3, grid, 6)
    resumed, expected = held_by_server(second), held_by_server(whole)
    assert resumed.keys() == expected.keys()
    assert all(np.array_equal(resumed[node], expected[node]) for node in expected)


def test_residuals_decay_over_the_rounds_that_a_client_missed() -> None:
    spec = "error_feedback(top_k(0.05), decay=0.5)"
    inner = Decoding(fraction_train=0.4)
    strategy = wrapped(inner, spec)
    grid = LocalGrid(make_app, CLIENTS)
    compressor, states, last = parse(spec), {}, {}  # type: ignore[var-annotated]
    gaps = set()
    for server_round in range(1, 13):
        run(strategy, 1, grid, server_round)
        for node, decoded in inner.decoded[-1].items():
            like = trained(node - 1)
            state = states.get(node, compressor.init(like))
            if node in last:
                gap = server_round - last[node]
                gaps.add(gap)
                state = {k: x * 0.5 ** (gap - 1) for k, x in state.items()}
            rng = rng_for(0, round=server_round, client=node - 1, purpose="uplink")
            _, states[node], expected = compressor.encode_and_decode(like, state, rng)
            last[node] = server_round
            np.testing.assert_array_equal(decoded, expected["w"].numpy())
    assert max(gaps) > 2


def test_a_spec_that_comes_and_goes_starts_anew_where_it_must() -> None:
    def uplink(_: int, server_round: int) -> str:
        return "error_feedback(sign())" if server_round == 3 else "ef21(top_k(0.1))"

    strategy = Compressed(Decoding(), uplink=uplink)
    grid = LocalGrid(make_app, CLIENTS)
    for server_round in range(1, 7):
        run(strategy, 1, grid, server_round)
        assert outcomes(strategy) == {"ok"}
    assert all(np.count_nonzero(x) == 300 for x in held_by_server(strategy).values())


def test_other_uplinks_leave_no_memory_and_no_word_of_it() -> None:
    strategy = wrapped(Decoding(), "error_feedback(sign())")
    grid = LocalGrid(make_app, CLIENTS)
    messages = list(strategy.configure_train(1, initial(), ConfigRecord(), grid))
    assert "fedcompress.held" not in messages[0].content["config"]
    strategy.aggregate_train(1, grid.send_and_receive(messages))
    assert strategy.state_dict() == {}
    assert all("fedcompress.before" not in state for state in grid._states.values())


def test_a_downlink_cannot_predict() -> None:
    with pytest.raises(ConfigError, match=r"downlink ef21.* needs a memory"):
        Compressed(FedAvg(), downlink="ef21(sign())")
