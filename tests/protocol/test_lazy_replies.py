"""Replies that are decoded when they are asked for: the same models, one at a time."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sized

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg
from sliced import ROWS, Arrays, Sliced, arrays_of, initial, make_app, record_of, run

from fedcompress import Compressed
from simulations.engines import LocalGrid

CLIENTS = 6
UPLINKS = ["quantize(6)", "error_feedback(top_k(0.1) | sign())", "ef21(top_k(0.2))", "raw()", None]


class Adding(FedAvg):
    """Adds the clients' models up in order, and lets each go before it takes the next."""

    def __init__(self, one_at_a_time: bool) -> None:
        super().__init__(fraction_evaluate=0.0)
        self.one_at_a_time = one_at_a_time
        self.most_alive = 0
        self.models: list[Arrays] = []
        self.errors = 0

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord, MetricRecord]:
        assert isinstance(replies, Sized) != self.one_at_a_time
        alive: weakref.WeakSet[Message] = weakref.WeakSet()
        total: Arrays = {}
        for reply in replies:
            if reply.has_error():
                self.errors += 1
                continue
            alive.add(reply)
            self.most_alive = max(self.most_alive, len(alive))
            arrays = arrays_of(reply.content.array_records["arrays"])
            total = {name: total.get(name, 0) + x for name, x in arrays.items()}
            self.models.append(arrays)
            del reply, arrays
        return record_of({name: x / CLIENTS for name, x in total.items()}), MetricRecord()


@pytest.mark.parametrize("uplink", UPLINKS)
def test_decoded_one_by_one_the_models_are_the_same(uplink: str | None) -> None:
    lazy, eager = Adding(True), Adding(False)
    ends = [
        run(Compressed(inner, uplink=uplink), LocalGrid(make_app, CLIENTS), range(1, 5))
        for inner in (lazy, eager)
    ]
    assert ends[0] == ends[1]
    assert len(lazy.models) == len(eager.models) == 4 * CLIENTS
    for ours, theirs in zip(lazy.models, eager.models, strict=True):
        for name, x in ours.items():
            np.testing.assert_array_equal(x, theirs[name])


@pytest.mark.parametrize("uplink", ["quantize(6)", "error_feedback(top_k(0.1) | sign())"])
def test_at_most_one_decoded_model_is_alive(uplink: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither as a message nor as a decoded update, which is let go once its payload verified."""
    from fedcompress.incoming import Answer

    held: list[int] = []
    made: weakref.WeakSet[Answer] = weakref.WeakSet()
    original = Answer.dense

    def dense(answer: Answer):  # type: ignore[no-untyped-def]
        made.add(answer)
        held.append(sum(bool(one.parts) for one in made))
        return original(answer)

    monkeypatch.setattr(Answer, "dense", dense)
    lazy = Adding(True)
    run(Compressed(lazy, uplink=uplink), LocalGrid(make_app, CLIENTS), range(1, 4))
    assert lazy.most_alive == 1
    assert set(held) == {1}
    assert len(held) == 3 * CLIENTS
    eager = Adding(False)
    run(Compressed(eager, uplink=uplink), LocalGrid(make_app, CLIENTS), range(1, 4))
    assert eager.most_alive == CLIENTS


def test_what_does_not_verify_is_known_before_the_first_is_decoded() -> None:
    lazy = Adding(True)
    strategy = Compressed(lazy, uplink="quantize(6)")

    def damage(number: int, replies: list[Message]) -> list[Message]:
        payload = replies[2].content["arrays"]["payload-0"]  # type: ignore[index]
        payload.data = payload.data[:-1] + bytes([payload.data[-1] ^ 1])
        return replies

    run(strategy, LocalGrid(make_app, CLIENTS), [1], losing=damage)
    statuses = [client.status for client in strategy.last_round.clients]
    assert sorted(statuses) == ["ok"] * (CLIENTS - 1) + ["rejected"]
    assert len(lazy.models) == CLIENTS - 1


def test_slices_are_decoded_one_by_one_each_by_its_own_layout() -> None:
    def level_of(number: int, node_id: int) -> int:
        return (10, 20, ROWS)[(number + node_id) % 3]

    class Lazy(Sliced):
        one_at_a_time = True

    ends = [
        run(
            Compressed(kind(level_of), uplink="ef21(top_k(0.2))", downlink="quantize(6)"),
            LocalGrid(make_app, CLIENTS),
            range(1, 5),
            initial(),
        )
        for kind in (Sliced, Lazy)
    ]
    assert ends[0] == ends[1]
