"""The round loop: Flower's `Strategy.start`, able to begin at a later round, and measured."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord

from fedcompress import Compressed, rng_for
from simulations.engines import SimulatedGrid
from simulations.engines.spans import ClientSpan
from simulations.timeline import Phase, PhaseName
from simulations.traffic import MeasuredGrid, MessageTraffic
from simulations.training import Evaluation


@final
@dataclass(frozen=True)
class Round:
    """What one round did.

    Attributes
    ----------
    number : int
        From 1.
    arrays : ArrayRecord
        The global model after it.
    messages, replies : list of Message
        What was sent, and what came back; a strategy may have emptied the replies' records.
    reports : dict of int to ClientReport
        What clients said of themselves, by node id.
    traffic : list of MessageTraffic
        Bytes of every message of the round.
    metrics : MetricRecord or None
        The strategy's own.
    evaluation : Evaluation or None
        The global model on the test data; None in rounds without a test.
    phases : tuple of Phase
        What the server did, from making the messages to the test.
    spans : tuple of ClientSpan
        When the clients trained, where the engine tells.
    began : float
        In seconds of `time.monotonic`.
    """

    number: int
    arrays: ArrayRecord
    messages: list[Message]
    replies: list[Message]
    reports: dict[int, "ClientReport"]
    traffic: list[MessageTraffic]
    metrics: MetricRecord | None
    evaluation: Evaluation | None
    phases: tuple[Phase, ...]
    spans: tuple[ClientSpan, ...]
    began: float
    round_seconds: float
    train_seconds: float
    evaluate_seconds: float


@final
@dataclass(frozen=True)
class ClientReport:
    """What a client's reply says beside its arrays."""

    client: int | None
    num_examples: int | None
    train_loss: float | None
    train_seconds: float | None


def run_rounds(
    strategy: Compressed,
    grid: MeasuredGrid,
    arrays: ArrayRecord,
    *,
    seed: int,
    first_round: int,
    last_round: int,
    timeout: float | None,
    evaluate: Callable[[int, ArrayRecord], Evaluation | None],
) -> Iterator[Round]:
    """Train round by round, yielding each as it ends.

    Clients are drawn by Flower's own sampling, which uses Python's `random`; it is seeded by
    (seed, round) for that call alone, so a resumed run draws as one that never stopped.

    Parameters
    ----------
    strategy : Compressed
        Its `last_round` is that of the round just yielded.
    grid : MeasuredGrid
        Around any engine's grid.
    arrays : ArrayRecord
        The global model before `first_round`.
    seed, first_round, last_round : int
        Rounds are counted from 1.
    timeout : float or None
        Seconds to wait for replies.
    evaluate : callable
        Tests the global model after a round; may return None.
    """
    for number in range(first_round, last_round + 1):
        clock = _Clock()
        with _seeded_sampling(seed, number):
            messages = list(strategy.configure_train(number, arrays, ConfigRecord(), grid))
        clock.ended("download")
        replies = list(grid.send_and_receive(messages, timeout=timeout))
        train_seconds = clock.ended("clients")
        spans = tuple(grid.grid.spans) if isinstance(grid.grid, SimulatedGrid) else ()
        reports = {reply.metadata.src_node_id: read_report(reply) for reply in replies}
        traffic = grid.take()
        clock.skip()
        aggregated, metrics = strategy.aggregate_train(number, replies)
        clock.ended_two("decode", "aggregate", strategy.last_round.aggregate_seconds)
        arrays = arrays if aggregated is None else aggregated
        _evaluate_on_clients(strategy, grid, arrays, seed, number, timeout)
        testing = time.monotonic()
        evaluation = evaluate(number, arrays)
        clock.ended("evaluate")
        yield Round(
            number=number,
            arrays=arrays,
            messages=messages,
            replies=replies,
            reports=reports,
            traffic=traffic,
            metrics=metrics,
            evaluation=evaluation,
            phases=tuple(clock.phases),
            spans=spans,
            began=clock.began,
            round_seconds=clock.now - clock.began,
            train_seconds=train_seconds,
            evaluate_seconds=clock.now - testing,
        )


@final
class _Clock:
    """Notes phases as they end, each beginning where the one before it ended."""

    def __init__(self) -> None:
        self.began = self.now = time.monotonic()
        self.phases: list[Phase] = []

    def ended(self, name: PhaseName) -> float:
        """Note a phase that ends now; return its seconds."""
        before, self.now = self.now, time.monotonic()
        self.phases.append(Phase(name, before, self.now - before))
        return self.now - before

    def ended_two(self, first: PhaseName, second: PhaseName, seconds: float) -> None:
        """Note two phases, of which the second ends now and took `seconds`."""
        before, self.now = self.now, time.monotonic()
        between = max(self.now - seconds, before)
        self.phases.append(Phase(first, before, between - before))
        self.phases.append(Phase(second, between, self.now - between))

    def skip(self) -> None:
        """Leave out what was done since the last phase."""
        self.now = time.monotonic()


def read_report(reply: Message) -> ClientReport:
    """Read what a client says of itself; None for what it does not say."""
    if reply.has_error():
        return ClientReport(None, None, None, None)
    records = reply.content.values()
    own = reply.content.get("client")
    own = own if isinstance(own, ConfigRecord) else ConfigRecord()
    metrics = next((r for r in records if isinstance(r, MetricRecord)), None) or MetricRecord()
    client, examples = own.get("partition-id"), metrics.get("num-examples")
    return ClientReport(
        client=client if isinstance(client, int) else None,
        num_examples=int(examples) if isinstance(examples, int | float) else None,
        train_loss=_number(metrics.get("train_loss")),
        train_seconds=_number(own.get("train-seconds")),
    )


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _evaluate_on_clients(
    strategy: Compressed,
    grid: MeasuredGrid,
    arrays: ArrayRecord,
    seed: int,
    number: int,
    timeout: float | None,
) -> None:
    with _seeded_sampling(seed, number):
        messages = list(strategy.configure_evaluate(number, arrays, ConfigRecord(), grid))
    if messages:
        strategy.aggregate_evaluate(number, grid.send_and_receive(messages, timeout=timeout))
        grid.take()  # what a test on clients costs is no part of training


@contextmanager
def _seeded_sampling(seed: int, number: int) -> Iterator[None]:
    rng = rng_for(seed, round=number, client="server", purpose="sample clients")
    state = random.getstate()
    random.seed(int(rng.integers(2**63)))
    try:
        yield
    finally:
        random.setstate(state)
