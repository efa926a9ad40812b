"""What engines sum themselves is what the server sums of their replies, to the last bit."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAdam, FedAvg, FedMedian

from fedcompress import Compressed, ConfigError, rng_for
from fedcompress.dense import dense_record
from fedcompress.flower_adapter import is_weighted_mean
from fedcompress.partial import PartialSum, SumPlan, is_hollow
from fedcompress.traffic import ClientTraffic
from simulations.engines import LocalGrid, RayGrid
from simulations.engines.summing import RangeSums, RoundSums, from_buffers, to_buffers
from simulations.traffic import MeasuredGrid, MessageTraffic

Outcome = tuple[dict[str, bytes], list[ClientTraffic], list[MessageTraffic], dict[str, object]]

CLIENT_APP = "summing_client:app"
SPOILT_APP = "summing_client:spoilt_app"
UPLINKS = [
    "raw()",
    "quantize(4) | entropy()",
    "error_feedback(top_k(0.05) | sign())",
    "power_sgd(2)",
    None,
]


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

    def __init__(self, app: str, clients: int, workers: int) -> None:
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


def run(
    grid: Grid,
    uplink: str | None,
    rounds: int = 3,
    told: dict[str, object] | None = None,
    **settings: object,
) -> Outcome:
    """Train, and give all that the rounds left: model, clients, bytes, metrics."""
    server = settings.pop("server", FedAvg)
    strategy = Compressed(server(fraction_evaluate=0.0), uplink=uplink, **settings)  # type: ignore[arg-type,operator]
    measured = MeasuredGrid(grid)
    arrays, seen, traffic, means = initial(), [], [], {}
    for number in range(1, rounds + 1):
        random.seed(number)
        config = ConfigRecord(dict(told or {}))  # type: ignore[arg-type]
        messages = strategy.configure_train(number, arrays, config, measured)
        replies = measured.send_and_receive(messages)
        traffic += measured.take()
        new, metrics = strategy.aggregate_train(number, replies)
        arrays = new or arrays
        seen += strategy.last_round.clients
        means[str(number)] = dict(metrics or {})
    without_times = [ClientTraffic(**{**vars(client), "encode_seconds": None}) for client in seen]
    return {k: a.data for k, a in arrays.items()}, without_times, traffic, means


@pytest.mark.parametrize("server", [FedAvg, FedAdam])
@pytest.mark.parametrize("clients", [10, 50])
@pytest.mark.parametrize("uplink", UPLINKS)
def test_sums_of_workers_give_the_bits_of_the_server(
    uplink: str | None, clients: int, server: type[FedAvg]
) -> None:
    expected = run(Plain(CLIENT_APP, clients), uplink, server=server)
    assert run(LocalGrid(CLIENT_APP, clients), uplink, server=server) == expected
    for workers in (1, 2, 4):
        grid = Workers(CLIENT_APP, clients, workers)
        assert run(grid, uplink, server=server) == expected
        assert grid.hollow == 3 * (clients - clients // 11)
        if workers == 1:
            assert set(grid.shipped) == {2}  # one branch; one array of floats, one of doubles


class OwnMean(FedAvg):
    """FedAvg to the bit, which may do anything for all that is known of it."""


@pytest.mark.parametrize("uplink", UPLINKS)
def test_the_mean_is_what_flower_makes_of_it(uplink: str | None) -> None:
    assert is_weighted_mean(FedAvg())
    assert not is_weighted_mean(OwnMean())
    found = run(Plain(CLIENT_APP, 20), uplink, server=FedAvg)
    assert run(Plain(CLIENT_APP, 20), uplink, server=OwnMean) == found


@pytest.mark.parametrize("workers", [1, 3])
def test_a_compressed_downlink_agrees_too(workers: int) -> None:
    def strategy_run(grid: Grid) -> Outcome:
        return run(
            grid, UPLINKS[2], rounds=5, downlink="error_feedback(top_k(0.2) | sign())", seed=7
        )

    assert strategy_run(Workers(CLIENT_APP, 40, workers)) == strategy_run(Plain(CLIENT_APP, 40))


@pytest.mark.parametrize("workers", [1, 2, 4, 9])
@pytest.mark.parametrize("uplink", [UPLINKS[1], None])
def test_odd_clients_are_left_out_as_the_server_would(uplink: str | None, workers: int) -> None:
    expected = run(Plain(SPOILT_APP, 40), uplink)
    assert {c.status for c in expected[1]} == {"ok", "rejected", "error"}
    assert run(LocalGrid(SPOILT_APP, 40), uplink) == expected
    assert run(Workers(SPOILT_APP, 40, workers), uplink) == expected


@pytest.mark.parametrize("clients", [3, 50])
def test_models_are_summed_alike_however_their_arrays_lie(clients: int) -> None:
    shapes = {"w": (7, 5), "b": (7,), "scale": ()}
    layout = tuple((name, shape, "float32") for name, shape in shapes.items())
    plan = SumPlan(1, tuple(range(1, clients + 1)), ("",) * clients, layout, "num-examples")
    means = []
    for make in (dense_record, lambda x: ArrayRecord({k: Array(v) for k, v in x.items()})):
        sums, rng = RangeSums(plan), rng_for(2)
        for position, node_id in enumerate(plan.node_ids):
            arrays = {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()}
            if node_id == 2:
                arrays["b"][3] = np.inf
            metrics = MetricRecord({"num-examples": node_id})
            content = RecordDict({"arrays": make(arrays), "metrics": metrics})
            reply = Message(content, reply_to=Message(RecordDict(), node_id, "train"))
            assert is_hollow(sums.add(position, reply)) == (node_id != 2)
        (node,) = sums.take().nodes
        assert node.total is not None
        means.append((node.total.exponent, node.total.share, node.total.buffers[0].tolist()))
    assert means[0] == means[1]


def one_round(  # type: ignore[no-untyped-def]
    strategy: Compressed, grid: Grid, number: int, through=list, told=None, timeout=None
) -> object:
    random.seed(number)  # by which Flower draws clients, and so their order
    messages = strategy.configure_train(number, initial(), ConfigRecord(told or {}), grid)
    replies = grid.send_and_receive(messages, timeout=timeout)
    arrays, _ = strategy.aggregate_train(number, through(replies))
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

    assert mean(LocalGrid(CLIENT_APP, 40)) == mean(Plain(CLIENT_APP, 40))


def test_a_sum_that_holds_a_lost_reply_is_never_used() -> None:
    strategy = Compressed(FedAvg(fraction_evaluate=0.0))
    with pytest.raises(ConfigError, match="lost or changed on their way"):
        one_round(strategy, Workers(CLIENT_APP, 40, 2), 1, lambda replies: replies[1:])


@pytest.mark.parametrize(
    ("server", "uplink"), [(FedMedian, "raw()"), (FedMedian, None), (FedAvg, "ef21(top_k(0.1))")]
)
def test_strategies_that_need_single_replies_get_them(
    server: type[FedAvg], uplink: str | None
) -> None:
    grid = Workers(CLIENT_APP, 5, 2)
    one_round(Compressed(FedAvg(fraction_evaluate=0.0)), grid, 1)
    assert grid.hollow == 5
    one_round(Compressed(server(fraction_evaluate=0.0), uplink=uplink), grid, 1)
    assert grid.hollow == 5


def test_a_plan_is_for_its_round_alone() -> None:
    """A round that was configured and never sent leaves nothing behind."""
    grid = Workers(CLIENT_APP, 5, 1)
    armed = Compressed(FedAvg(fraction_evaluate=0.0))
    armed.configure_train(1, initial(), ConfigRecord(), grid)
    expected = one_round(Compressed(FedMedian(fraction_evaluate=0.0)), Plain(CLIENT_APP, 5), 1)
    median = Compressed(FedMedian(fraction_evaluate=0.0))
    assert one_round(median, grid, 1) == expected
    assert one_round(armed, grid, 2) == one_round(
        Compressed(FedAvg(fraction_evaluate=0.0)), Plain(CLIENT_APP, 5), 2
    )


@pytest.fixture(scope="module", params=[1, 2, 4])
def workers(request: pytest.FixtureRequest) -> Iterator[RayGrid]:
    with RayGrid(CLIENT_APP, 50, workers=request.param, use_ray=False) as grid:
        yield grid


@pytest.mark.parametrize("clients", [10, 50])
@pytest.mark.parametrize("uplink", UPLINKS)
def test_resident_workers_give_the_bits_of_the_server(
    uplink: str | None, clients: int, workers: RayGrid
) -> None:
    workers.reset(num_clients=clients)
    assert run(workers, uplink) == run(Plain(CLIENT_APP, clients), uplink)


def test_resident_workers_send_no_arrays(workers: RayGrid) -> None:
    workers.reset(num_clients=50)
    seen: list[Message] = []
    one_round(Compressed(FedAvg(fraction_evaluate=0.0)), workers, 1, lambda r: seen.extend(r) or r)
    assert [is_hollow(r) for r in seen if r.has_content()] == [True] * 46


@pytest.mark.parametrize("count", [1, 3])
def test_resident_workers_leave_odd_clients_out(count: int) -> None:
    with RayGrid(SPOILT_APP, 40, workers=count, use_ray=False) as grid:
        for uplink in (UPLINKS[1], None):
            grid.reset()
            assert run(grid, uplink) == run(Plain(SPOILT_APP, 40), uplink)


@pytest.mark.parametrize("victim", [1, 23, 50])
def test_a_killed_worker_changes_no_bit(victim: int, workers: RayGrid, tmp_path: Path) -> None:
    workers.reset(num_clients=50)
    told = {"kill": victim, "marker": str(tmp_path / "killed")}
    got = run(workers, UPLINKS[2], told=told)
    assert (tmp_path / "killed").exists()
    assert got == run(Plain(CLIENT_APP, 50), UPLINKS[2], told=told)


def without(node_id: int) -> Callable[[list[Message]], list[Message]]:
    return lambda replies: [r for r in replies if r.metadata.src_node_id != node_id]


def test_a_client_that_kills_every_worker_is_left_out(workers: RayGrid, tmp_path: Path) -> None:
    workers.reset(num_clients=50)
    told = {"kill": 23, "always": True, "marker": str(tmp_path / "killed")}
    got = one_round(Compressed(FedAvg(fraction_evaluate=0.0)), workers, 1, told=told)
    plain = Plain(CLIENT_APP, 50)
    expected = one_round(Compressed(FedAvg(fraction_evaluate=0.0)), plain, 1, without(23))
    assert got == expected


@pytest.mark.parametrize("client_timeout", [None, 3.0])
def test_a_client_that_hangs_is_left_out_of_the_sum(client_timeout: float | None) -> None:
    with RayGrid(CLIENT_APP, 40, workers=2, use_ray=False, client_timeout=client_timeout) as grid:
        strategy = Compressed(FedAvg(fraction_evaluate=0.0), uplink="raw()")
        timeout = None if client_timeout else 4.0
        got = one_round(strategy, grid, 1, told={"sleep": 7}, timeout=timeout)
        ok = {c.node_id for c in strategy.last_round.clients if c.status == "ok"}
        assert 7 not in ok
        assert len(ok) > 15
        assert client_timeout is None or len(ok) == 36
    plain = Plain(CLIENT_APP, 40)
    kept = lambda replies: [r for r in replies if r.metadata.src_node_id in ok]  # noqa: E731
    assert got == one_round(
        Compressed(FedAvg(fraction_evaluate=0.0), uplink="raw()"), plain, 1, kept
    )
