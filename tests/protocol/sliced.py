"""A strategy whose clients get slices of the model, and their app, for the tests of groups."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Strategy

from fedcompress import Compressed, compression_mod, rng_for
from fedcompress.protocol import GROUP_KEY
from simulations.engines import LocalGrid

ROWS = 40
Arrays = dict[str, np.ndarray]
LevelOf = Callable[[int, int], int]
Losing = Callable[[int, list[Message]], Iterable[Message]]


def make_app(
    seen: dict[tuple[int, int], Arrays] | None = None,
    change: float = 1.0,
    told: list[dict[str, object]] | None = None,
) -> ClientApp:
    """An app that adds a draw to whatever it is sent, and notes that by round and node."""
    app = ClientApp(mods=[compression_mod])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        config = message.content["config"]
        number = int(config["server-round"])  # type: ignore[call-overload,index,arg-type]
        before = arrays_of(message.content.array_records["arrays"])
        if seen is not None:
            seen[number, context.node_id] = before
        if told is not None:
            told.append(dict(config))  # type: ignore[call-overload,arg-type]
        draw = rng_for(5, round=number, client=context.node_id)
        after = {
            "w": before["w"] + change * draw.standard_normal(before["w"].shape).astype("f4"),
            "steps": np.asarray(before["steps"] + context.node_id),
        }
        metrics = MetricRecord({"num-examples": context.node_id})
        return Message(
            RecordDict({"arrays": record_of(after), "metrics": metrics}), reply_to=message
        )

    return app


class Sliced(Strategy):
    """Sends each node the first rows of the model, and averages each row over those that had it."""

    sends_own_arrays = True

    def __init__(self, level_of: LevelOf, named: bool = True, fraction: float = 1.0) -> None:
        self.strategy = FedAvg(fraction_train=fraction, fraction_evaluate=0.0)
        self.level_of, self.named = level_of, named
        self.model: Arrays = {}
        self.replies: dict[int, Arrays] = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        self.model = arrays_of(arrays)
        messages = list(self.strategy.configure_train(server_round, arrays, config, grid))
        contents: dict[int, RecordDict] = {}
        for message in messages:
            level = self.level_of(server_round, message.metadata.dst_node_id)
            if level not in contents:
                slices = record_of({"w": self.model["w"][:level], "steps": self.model["steps"]})
                told = {**config, **({GROUP_KEY: f"level {level}"} if self.named else {})}
                contents[level] = RecordDict({"arrays": slices, "config": ConfigRecord(told)})
            message.content = contents[level]
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord, MetricRecord]:
        self.replies = {
            reply.metadata.src_node_id: arrays_of(reply.content.array_records["arrays"])
            for reply in replies
            if reply.has_content()
        }
        held = np.zeros(ROWS)
        total = np.zeros((ROWS, 25))
        for arrays in self.replies.values():
            held[: len(arrays["w"])] += 1
            total[: len(arrays["w"])] += arrays["w"]
        mean = total / np.maximum(held, 1)[:, None]
        w = np.where(held[:, None] > 0, mean, self.model["w"]).astype("f4")
        return record_of({"w": w, "steps": self.model["steps"]}), MetricRecord()

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> None:
        return None

    def summary(self) -> None:
        self.strategy.summary()


def initial() -> ArrayRecord:
    w = rng_for(1).standard_normal((ROWS, 25)).astype(np.float32)
    return record_of({"w": w, "steps": np.array(7)})


def run(
    strategy: Compressed,
    grid: LocalGrid,
    rounds: Iterable[int],
    arrays: ArrayRecord | None = None,
    losing: Losing = lambda _, replies: replies,
) -> ArrayRecord:
    """Train the rounds of these numbers, and give the model after them."""
    arrays = arrays or initial()
    for number in rounds:
        random.seed(number)
        messages = list(strategy.configure_train(number, arrays, ConfigRecord(), grid))
        replies = losing(number, list(grid.send_and_receive(messages)))
        new, _ = strategy.aggregate_train(number, replies)
        arrays = new or arrays
    return arrays


def arrays_of(record: ArrayRecord) -> Arrays:
    return {name: array.numpy() for name, array in record.items()}


def record_of(arrays: Arrays) -> ArrayRecord:
    return ArrayRecord({name: Array(np.ascontiguousarray(x)) for name, x in arrays.items()})
