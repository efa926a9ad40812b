"""A compressed downlink of several layouts: clients change between them, and replies get lost."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message
from flwr.serverapp.strategy import FedAvg
from hypothesis import given, settings
from hypothesis import strategies as st
from sliced import ROWS, Arrays, Sliced, arrays_of, initial, make_app, run

from fedcompress import Compressed, rng_for
from fedcompress.broadcasts import _MOST_GROUPS, Broadcasts
from fedcompress.protocol import GROUP_KEY
from fedcompress.spec import parse
from simulations.engines import LocalGrid

CLIENTS = 3
LEVELS = (10, 20, ROWS)
DOWNLINKS = ["quantize(4)", "error_feedback(top_k(0.1) | sign())", "raw()"]
ROUNDS = st.lists(
    st.tuples(
        st.lists(st.sampled_from(LEVELS), min_size=CLIENTS, max_size=CLIENTS),
        st.lists(st.sampled_from(["", "reply lost", "state lost"]), min_size=3, max_size=3),
    ),
    min_size=2,
    max_size=7,
)


def whole_bytes(level: int) -> int:
    return 128 + 100 * level + 128 + 8


@given(ROUNDS, st.sampled_from(DOWNLINKS[:2]))
@settings(max_examples=25)
def test_a_client_never_decodes_other_numbers_than_the_servers(
    rounds: list[tuple[list[int], list[str]]], downlink: str
) -> None:
    """Whatever group a client was in before, and whatever of it the server came to know."""
    seen: dict[tuple[int, int], Arrays] = {}

    def level_of(number: int, node_id: int) -> int:
        return rounds[number - 1][0][node_id - 1]

    strategy = Compressed(Sliced(level_of), uplink="raw()", downlink=downlink)
    grid = LocalGrid(lambda: make_app(seen), CLIENTS)
    arrays = initial()
    known: dict[int, int] = {}  # the level that the server knows a client to hold some version of
    lost: set[int] = set()  # clients that have lost their state since they were sent all of it
    for number, (levels, faults) in enumerate(rounds, 1):

        def losing(_: int, replies: list[Message], faults: list[str] = faults) -> list[Message]:
            return [r for r in replies if faults[r.metadata.src_node_id - 1] != "reply lost"]

        arrays = run(strategy, grid, [number], arrays, losing)
        heard = {client.node_id: client for client in strategy.last_round.clients}
        for traffic in strategy.last_round.downlink:
            node_id, level = traffic.node_id, levels[traffic.node_id - 1]
            if known.get(node_id) != level:
                assert traffic.payload_bytes == whole_bytes(level)
                known.pop(node_id, None)
            if traffic.payload_bytes == whole_bytes(level):
                lost.discard(node_id)
            if node_id in lost:
                assert (number, node_id) not in seen
            else:
                reference = strategy._broadcasts._groups[f"level {level}"].reference  # type: ignore[union-attr]
                np.testing.assert_array_equal(seen[number, node_id]["w"], reference["w"].numpy())
            if node_id in heard and heard[node_id].status == "ok":
                known[node_id] = level
            elif node_id in heard:
                assert "the whole model is needed" in str(heard[node_id].reason)
                known.pop(node_id, None)
        for node_id in range(1, CLIENTS + 1):
            if faults[node_id - 1] == "state lost":
                grid.load_client_states({node_id: b""})
                lost.add(node_id)


@pytest.mark.parametrize("downlink", DOWNLINKS[:2])
def test_a_client_that_stays_in_its_group_is_sent_payloads(downlink: str) -> None:
    """And one that changes the whole slice, once."""

    def level_of(number: int, node_id: int) -> int:
        return LEVELS[1] if node_id == 1 and number in (4, 5) else LEVELS[node_id - 1]

    strategy = Compressed(Sliced(level_of), uplink="raw()", downlink=downlink)
    grid = LocalGrid(make_app, CLIENTS)
    arrays = initial()
    for number in range(1, 9):
        arrays = run(strategy, grid, [number], arrays)
        for traffic in strategy.last_round.downlink:
            whole = whole_bytes(level_of(number, traffic.node_id))
            if number == 1 or (traffic.node_id == 1 and number in (4, 6)):
                assert traffic.payload_bytes == whole
            else:
                assert traffic.payload_bytes < whole / 3
                assert traffic.catchup_bytes == 0


@pytest.mark.parametrize("downlink", DOWNLINKS)
def test_what_a_broadcast_leaves_out_comes_with_the_next_ones(downlink: str) -> None:
    """Slices overlap, and what one group left out must not be sent twice by another."""
    seen: dict[tuple[int, int], Arrays] = {}
    far = initial()
    near = initial()
    near["w"] = type(near["w"])(near["w"].numpy() / 100)
    strategy = Compressed(
        Sliced(lambda _, node: LEVELS[node - 1]), uplink="raw()", downlink=downlink
    )
    grid = LocalGrid(lambda: make_app(seen, change=0), CLIENTS)
    run(strategy, grid, [1], near)
    arrays = far
    for number in range(2, 60):
        arrays = run(strategy, grid, [number], arrays)
    target = far["w"].numpy()
    for node_id, level in enumerate(LEVELS, 1):
        w = seen[59, node_id]["w"]
        assert np.linalg.norm(w - target[:level]) < 0.01 * np.linalg.norm(target[:level])
    np.testing.assert_allclose(arrays["w"].numpy(), target, atol=1e-6)


def test_updates_are_added_to_what_the_strategy_sent() -> None:
    """What the broadcast left out is not lost from the strategy's model."""
    inner = Sliced(lambda *_: 20)
    strategy = Compressed(inner, uplink="raw()", downlink="error_feedback(top_k(0.01) | sign())")
    grid = LocalGrid(make_app, CLIENTS)
    arrays = run(strategy, grid, [1])
    sent = arrays["w"].numpy()[:20]
    run(strategy, grid, [2], arrays)
    for node_id, reply in inner.replies.items():
        draw = rng_for(5, round=2, client=node_id).standard_normal((20, 25))
        np.testing.assert_allclose(reply["w"] - sent, draw, atol=1e-5)


@pytest.mark.parametrize("downlink", DOWNLINKS[:2])
@pytest.mark.parametrize("uplink", ["error_feedback(sign())", "ef21(top_k(0.2))"])
def test_resumed_from_its_state_it_goes_on_the_same(uplink: str, downlink: str) -> None:
    def level_of(number: int, node_id: int) -> int:
        return LEVELS[(number // 3 + node_id) % 3]

    def make() -> Compressed:
        return Compressed(Sliced(level_of, fraction=0.7), uplink=uplink, downlink=downlink)

    whole = run(make(), LocalGrid(make_app, CLIENTS), range(1, 10))
    first, second = make(), make()
    grid = LocalGrid(make_app, CLIENTS)
    arrays = run(first, grid, range(1, 6))
    second.load_state_dict(first.state_dict())
    assert run(second, grid, range(6, 10), arrays) == whole


def test_the_state_of_one_layout_is_as_it_was_before_there_were_groups() -> None:
    strategy = Compressed(FedAvg(fraction_evaluate=0.0), uplink="raw()", downlink="quantize(4)")
    run(strategy, LocalGrid(make_app, CLIENTS), range(1, 4))
    state = strategy.state_dict()
    assert set(state) == {
        *("version", "checksum", "stays", "reference", "state", "payloads", "held"),
    }


def test_a_strategy_that_does_not_say_that_it_slices_works_too() -> None:
    """Its slices are then of what the clients would have of the whole model."""

    class Quiet(Sliced):
        sends_own_arrays = False

    seen: dict[tuple[int, int], Arrays] = {}
    strategy = Compressed(
        Quiet(lambda _, node: LEVELS[node - 1]), uplink="raw()", downlink="quantize(6)"
    )
    grid = LocalGrid(lambda: make_app(seen), CLIENTS)
    arrays = run(strategy, grid, range(1, 5))
    assert {c.status for c in strategy.last_round.clients} == {"ok"}
    strategy.configure_train(5, arrays, ConfigRecord(), grid)
    for level in LEVELS[:2]:  # the largest slice is the model itself
        reference = strategy._broadcasts._groups[f"level {level}"].reference["w"].numpy()  # type: ignore[union-attr]
        assert reference.shape == (level, 25)
        assert np.abs(reference - arrays_of(arrays)["w"][:level]).max() < 0.5


def test_groups_that_come_and_go_are_forgotten() -> None:
    import torch

    broadcasts = Broadcasts(parse("quantize(4)"), seed=0)
    for number in range(3 * _MOST_GROUPS):
        broadcast = broadcasts.advance(f"mask {number}", {"w": torch.zeros(4)}, number)
        broadcasts.ask(1, broadcast)
        broadcasts.confirm(1)
    groups = broadcasts.state_dict()["groups"]
    assert len(groups) == _MOST_GROUPS  # type: ignore[arg-type]
    assert [bool(kept["held"]) for kept in groups.values()].count(True) == 1  # type: ignore[attr-defined]


def test_a_group_may_change_its_layout() -> None:
    """As a model does that is packed to fewer entries: whole arrays once, and new residuals."""

    class Shrinking(Sliced):
        def configure_train(self, server_round, arrays, config, grid):  # type: ignore[no-untyped-def]
            messages = super().configure_train(server_round, arrays, config, grid)
            for message in messages:
                message.content["config"][GROUP_KEY] = "packed"  # type: ignore[index,call-overload]
            return messages

    def level_of(number: int, _: int) -> int:
        return ROWS if number < 4 else 20

    strategy = Compressed(
        Shrinking(level_of), uplink="error_feedback(sign())", downlink="quantize(4)"
    )
    grid = LocalGrid(make_app, CLIENTS)
    arrays = initial()
    for number in range(1, 7):
        arrays = run(strategy, grid, [number], arrays)
        assert {client.status for client in strategy.last_round.clients} == {"ok"}
        for traffic in strategy.last_round.downlink:
            is_whole = traffic.payload_bytes == whole_bytes(level_of(number, 0))
            assert is_whole == (number in (1, 4))
    state = grid._states[1].array_records["fedcompress.state.packed"]
    assert {array.shape for array in state.values()} == {(20, 25)}
