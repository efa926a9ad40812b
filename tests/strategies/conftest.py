"""What the tests of strategies share: a round without a network, small models, skewed digits."""

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import cast

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from flwr.supercore.task_identity import TaskIdentity
from sklearn.datasets import load_digits
from torch import Tensor, nn

Aggregate = tuple[ArrayRecord | None, MetricRecord | None]


class NodesOnly:
    """The part of a Grid that strategies ask for when they sample."""

    def __init__(self, count: int) -> None:
        self.count = count

    def get_node_ids(self) -> Iterable[int]:
        return range(1, self.count + 1)


class Toys:
    """Small models, and a training round played without a network."""

    @staticmethod
    def mlp() -> nn.Module:
        return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

    @staticmethod
    def normalised_mlp() -> nn.Module:
        return nn.Sequential(
            nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 10)
        )

    @staticmethod
    def seeded(make: Callable[[], nn.Module], seed: int) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return make()

    @staticmethod
    def arrays_of(model: nn.Module) -> ArrayRecord:
        return ArrayRecord({name: Array(v.numpy()) for name, v in model.state_dict().items()})

    @staticmethod
    def load(make: Callable[[], nn.Module], arrays: ArrayRecord) -> nn.Module:
        model = make()
        model.load_state_dict({k: torch.tensor(a.numpy()) for k, a in arrays.items()})
        return model

    @staticmethod
    def run_round(
        strategy: Strategy,
        start: nn.Module | ArrayRecord,
        clients: Sequence[nn.Module | ArrayRecord],
        *,
        server_round: int = 1,
        examples: Sequence[float] | None = None,
        failing: int = 0,
    ) -> Aggregate:
        """Client i answers with ``clients[i]``, and `failing` more answer with an error."""
        grid = cast(Grid, NodesOnly(len(clients) + failing))
        arrays = Toys.arrays_of(start) if isinstance(start, nn.Module) else start
        messages = list(strategy.configure_train(server_round, arrays, ConfigRecord(), grid))
        messages.sort(key=lambda message: message.metadata.dst_node_id)
        replies = []
        for number, message in enumerate(messages):
            if number >= len(clients):
                replies.append(Message(Error(code=0, reason="it fell over"), reply_to=message))
                continue
            client = clients[number]
            content = RecordDict(
                {
                    "arrays": Toys.arrays_of(client) if isinstance(client, nn.Module) else client,
                    "metrics": MetricRecord(
                        {
                            "num-examples": 10 if examples is None else examples[number],
                            "train_loss": 1.0,
                            "norm_bit": 1.0,  # adaptive clipping asks for it
                        }
                    ),
                }
            )
            replies.append(Message(content, reply_to=message))
        return strategy.aggregate_train(server_round, replies)

    @staticmethod
    def train(model: nn.Module, x: Tensor, y: Tensor, steps: int, rate: float = 0.1) -> None:
        optimiser = torch.optim.SGD(model.parameters(), lr=rate)
        model.train()
        for _ in range(steps):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimiser.step()
        model.eval()

    @staticmethod
    def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
        model.eval()
        with torch.no_grad():
            return float((model(x).argmax(-1) == y).double().mean())


@pytest.fixture(scope="session")
def toys() -> Toys:
    return Toys()


@pytest.fixture(scope="session")
def nodes() -> type[NodesOnly]:
    return NodesOnly


@pytest.fixture(scope="session", autouse=True)
def _quick_collections() -> Iterator[None]:
    # Some of Flower's strategies call gc.collect() for each array; freezing what is loaded
    # keeps that from walking all of torch each time.
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _task_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    # Flower makes no message outside of a running task.
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@pytest.fixture(scope="session")
def digits() -> Mapping[str, Tensor]:
    """Load the digits as tensors: 1,000 rows to train, 397 unlabelled proxy rows, 400 to test."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.data))
    x = torch.tensor(data.data[order] / 16, dtype=torch.float32)
    y = torch.tensor(data.target[order], dtype=torch.int64)
    return {
        "train_x": x[:1000],
        "train_y": y[:1000],
        "proxy": x[1000:1397],
        "test_x": x[1397:],
        "test_y": y[1397:],
    }
