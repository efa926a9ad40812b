"""What engines sum themselves is what the server sums of their replies, to the last bit."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAdam, FedAvg, FedMedian

from fedcompress import Compressed, ConfigError, compression_mod, rng_for
from fedcompress.partial import PartialSum, SumPlan, is_hollow
from fedcompress.traffic import ClientTraffic
from simulations.engines import LocalGrid
from simulations.engines.summing import RangeSums, RoundSums, from_buffers, to_buffers
from simulations.traffic import MeasuredGrid, MessageTraffic

Meddle = Callable[[int, int, RecordDict], None]
Outcome = tuple[dict[str, bytes], list[ClientTraffic], list[MessageTraffic], dict[str, object]]

UPLINKS = [
    "raw()",
    "quantize(4) | entropy()",
    "error_feedback(top_k(0.05) | sign())",
    "power_sgd(2)",
]


def make_app(meddle: Meddle | None = None) -> ClientApp:
    """An app of unequal weights, whose replies `meddle` may spoil."""

    def spoil(message: Message, context: Context, call_next: Callable[..., Message]) -> Message:
        reply = compression_mod(message, context, call_next)
        if meddle is not None and reply.has_content():
            number = int(message.content["config"]["server-round"])  # type: ignore[call-overload,index]
            meddle(number, context.node_id, reply.content)
        return reply

    app = ClientApp(mods=[spoil])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        number = int(message.content["config"]["server-round"])  # type: ignore[call-overload,index]
        rng = rng_for(3, round=number, client=context.node_id)
        if context.node_id % 11 == 0:
            raise RuntimeError("no data")
        arrays = {name: a.numpy() for name, a in message.content["arrays"].items()}  # type: ignore[union-attr]
        trained = ArrayRecord(
            {
                name: Array(
                    (x + rng.standard_normal(x.shape)).astype(x.dtype)
                    if x.dtype.kind == "f"
                    else np.asarray(x + context.node_id)
                )
                for name, x in arrays.items()
            }
        )
        metrics = MetricRecord({"num-examples": context.node_id**2, "loss": float(rng.random())})
        return Message(RecordDict({"arrays": trained, "metrics": metrics}), reply_to=message)

    return app


def initial() -> ArrayRecord:
    rng = rng_for(1)
    return ArrayRecord(
        {
            "w": Array(rng.standard_normal((40, 25)).astype(np.float32)),
            "double": Array(rng.standard_normal(9)),
            "steps": Array(np.array(7)),
        }
    )


class Workers(LocalGrid):
    """Ranges of blocks go to so many imaginary workers; replies come back without arrays."""

    def __init__(self, app: Callable[[], ClientApp], clients: int, workers: int) -> None:
        super().__init__(app, clients)
        self._workers = workers
        self._ready: list[PartialSum] = []
        self.shipped: list[int] = []
        self.hollow = 0

    def send_and_receive(self, messages, *, timeout=None):  # type: ignore[no-untyped-def]
        messages, plan = list(messages), self._plan
        self._plan = None
        replies = super().send_and_receive(messages, timeout=timeout)
        if plan is None or not plan.covers(messages):
            return replies
        return self._sum(plan, replies)

    def take_sums(self) -> list[PartialSum]:
        taken, self._ready = self._ready, []
        return taken

    def _sum(self, plan: SumPlan, replies: Sequence[Message]) -> list[Message]:
        draw = random.Random(plan.server_round)
        blocks = [
            list(range(first, min(first + plan.block_size, len(replies))))
            for first in range(0, len(replies), plan.block_size)
        ]
        cuts = sorted(draw.randint(0, len(blocks)) for _ in range(self._workers - 1))
        whole = RoundSums(plan)
        sent: dict[int, Message] = {}
        ranges = list(zip([0, *cuts], [*cuts, len(blocks)], strict=True))
        draw.shuffle(ranges)
        for first, last in ranges:
            sums = RangeSums(plan)
            for block in blocks[first:last]:
                for position in draw.sample(block, len(block)):
                    sent[position] = sums.add(position, replies[position])
            buffers = [bytes(buffer) for buffer in to_buffers(sums.take())]
            self.shipped.append(len(buffers) - 1)
            whole.take(from_buffers(buffers))
        self._ready = whole.finish()
        self.hollow += sum(r.has_content() and is_hollow(r) for r in sent.values())
        return [sent[position] for position in sorted(sent)]


class Plain(LocalGrid):
    """An engine that does not sum, as Flower's own."""

    def sum_updates(self, plan: SumPlan | None) -> bool:
        return False


def run(grid: Grid, uplink: str, clients: int, rounds: int = 3, **settings: object) -> Outcome:
    """Train, and give all that the rounds left: model, clients, bytes, metrics."""
    server = settings.pop("server", FedAvg)
    strategy = Compressed(server(fraction_evaluate=0.0), uplink=uplink, **settings)  # type: ignore[arg-type,operator]
    measured = MeasuredGrid(grid)
    arrays, seen, traffic, told = initial(), [], [], {}
    for number in range(1, rounds + 1):
        random.seed(number)
        messages = strategy.configure_train(number, arrays, ConfigRecord(), measured)
        replies = measured.send_and_receive(messages)
        traffic += measured.take()
        new, metrics = strategy.aggregate_train(number, replies)
        arrays = new or arrays
        seen += strategy.last_round.clients
        told[str(number)] = dict(metrics or {})
    without_times = [ClientTraffic(**{**vars(client), "encode_seconds": None}) for client in seen]
    return {k: a.data for k, a in arrays.items()}, without_times, traffic, told


@pytest.mark.parametrize("server", [FedAvg, FedAdam])
@pytest.mark.parametrize("clients", [10, 50])
@pytest.mark.parametrize("uplink", UPLINKS)
def test_sums_of_workers_give_the_bits_of_the_server(
    uplink: str, clients: int, server: type[FedAvg]
) -> None:
    expected = run(Plain(make_app, clients), uplink, clients, server=server)
    assert run(LocalGrid(make_app, clients), uplink, clients, server=server) == expected
    for workers in (1, 2, 4):
        grid = Workers(make_app, clients, workers)
        assert run(grid, uplink, clients, server=server) == expected
        assert grid.hollow == 3 * (clients - clients // 11)
        if workers == 1:
            assert set(grid.shipped) == {2}  # one branch; one array of floats, one of doubles


@pytest.mark.parametrize("workers", [1, 3])
def test_a_compressed_downlink_agrees_too(workers: int) -> None:
    def strategy_run(grid: Grid) -> Outcome:
        return run(
            grid, UPLINKS[2], 40, rounds=5, downlink="error_feedback(top_k(0.2) | sign())", seed=7
        )

    assert strategy_run(Workers(make_app, 40, workers)) == strategy_run(Plain(make_app, 40))


def spoil(number: int, node_id: int, content: RecordDict) -> None:
    """Some clients of odd metrics, weights and payloads; in round 2 most metrics are others."""
    metrics = content["metrics"]
    if node_id in (1, 17, 34) or (number == 2 and node_id % 3):
        metrics["odd"] = 1.0  # type: ignore[index,call-overload]
    if node_id == 20:
        metrics["num-examples"] = -1  # type: ignore[index,call-overload]
    if node_id == 21:
        metrics["num-examples"] = 0  # type: ignore[index,call-overload]
    if node_id == 23:
        payload = content["arrays"]["payload-0"].data  # type: ignore[index,call-overload]
        content["arrays"]["payload-0"] = Array(  # type: ignore[index,call-overload]
            "uint8", (len(payload),), "fedcompress.v1", payload[:-1] + b"\x00"
        )


@pytest.mark.parametrize("workers", [1, 2, 4, 9])
def test_odd_clients_are_left_out_as_the_server_would(workers: int) -> None:
    def app() -> ClientApp:
        return make_app(spoil)

    expected = run(Plain(app, 40), UPLINKS[1], 40)
    assert {c.status for c in expected[1]} == {"ok", "rejected", "error"}
    assert run(LocalGrid(app, 40), UPLINKS[1], 40) == expected
    assert run(Workers(app, 40, workers), UPLINKS[1], 40) == expected


def one_round(strategy: Compressed, grid: Grid, number: int, through=list) -> object:  # type: ignore[no-untyped-def]
    random.seed(number)  # by which Flower draws clients, and so their order
    messages = strategy.configure_train(number, initial(), ConfigRecord(), grid)
    arrays, _ = strategy.aggregate_train(number, through(grid.send_and_receive(messages)))
    return None if arrays is None else {name: a.data for name, a in arrays.items()}


@pytest.mark.parametrize(
    "through",
    [lambda r: r[1:], lambda r: r[::-1], lambda r: [r[3], *r], lambda r: r[:-5]],
    ids=["first lost", "other order", "doubled", "last lost"],
)
def test_replies_that_get_lost_on_the_way_are_not_in_the_mean(
    through: Callable[[list[Message]], list[Message]],
) -> None:
    def mean(grid: Grid) -> object:
        return one_round(Compressed(FedAvg(fraction_evaluate=0.0)), grid, 1, through)

    assert mean(LocalGrid(make_app, 40)) == mean(Plain(make_app, 40))


def test_a_sum_that_holds_a_lost_reply_is_never_used() -> None:
    strategy = Compressed(FedAvg(fraction_evaluate=0.0))
    with pytest.raises(ConfigError, match="lost or changed on their way"):
        one_round(strategy, Workers(make_app, 40, 2), 1, lambda replies: replies[1:])


@pytest.mark.parametrize(
    ("server", "uplink"), [(FedMedian, "raw()"), (FedAvg, None), (FedAvg, "ef21(top_k(0.1))")]
)
def test_strategies_that_need_single_replies_get_them(server: type[FedAvg], uplink: str) -> None:
    grid = Workers(make_app, 5, 2)
    one_round(Compressed(FedAvg(fraction_evaluate=0.0)), grid, 1)
    assert grid.hollow == 5
    one_round(Compressed(server(fraction_evaluate=0.0), uplink=uplink), grid, 1)
    assert grid.hollow == 5


def test_a_plan_is_for_its_round_alone() -> None:
    """A round that was configured and never sent leaves nothing behind."""
    grid = Workers(make_app, 5, 1)
    armed = Compressed(FedAvg(fraction_evaluate=0.0))
    armed.configure_train(1, initial(), ConfigRecord(), grid)
    expected = one_round(Compressed(FedMedian(fraction_evaluate=0.0)), Plain(make_app, 5), 1)
    median = Compressed(FedMedian(fraction_evaluate=0.0))
    assert one_round(median, grid, 1) == expected
    assert one_round(armed, grid, 2) == one_round(
        Compressed(FedAvg(fraction_evaluate=0.0)), Plain(make_app, 5), 2
    )
