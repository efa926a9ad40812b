"""Every published method plays rounds through both ends of the protocol."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, Strategy

from fedcompress import Compressed, compression_mod
from strategies import Distilled
from strategies.methods import build_server, method, methods

CLIENTS = 5


class Federation:
    """Clients with two or three classes each, answering through `compression_mod`."""

    def __init__(self, toys, digits, grid: Callable[[int], object]) -> None:
        self.toys, self.digits, self.grid = toys, digits, grid(CLIENTS)
        self.contexts = {
            node: Context(
                run_id=1,
                node_id=node,
                node_config={"partition-id": node - 1},
                state=RecordDict(),
                run_config={},
            )
            for node in range(1, CLIENTS + 1)
        }

    def app(self, message: Message, context: Context) -> Message:
        model = self.toys.load(self.toys.mlp, message.content["arrays"])
        partition = int(context.node_config["partition-id"])
        rows = torch.isin(self.digits["train_y"], torch.tensor([2 * partition, 2 * partition + 1]))
        self.toys.train(model, self.digits["train_x"][rows], self.digits["train_y"][rows], 10)
        content = RecordDict(
            {
                "arrays": self.toys.arrays_of(model),
                "metrics": MetricRecord({"num-examples": int(rows.sum()), "train_loss": 0.5}),
            }
        )
        return Message(content, reply_to=message)

    def play(self, strategy: Strategy, arrays: ArrayRecord, rounds: int):
        metrics = None
        for server_round in range(1, rounds + 1):
            messages = strategy.configure_train(server_round, arrays, ConfigRecord(), self.grid)
            replies = [
                compression_mod(message, self.contexts[message.metadata.dst_node_id], self.app)
                for message in messages
            ]
            arrays, metrics = strategy.aggregate_train(server_round, replies)
        return arrays, metrics


@pytest.fixture
def federation(toys, digits, nodes) -> Federation:
    return Federation(toys, digits, nodes)


OF_MODELS = sorted(name for name, one in methods().items() if one.exchange == "model")


@pytest.mark.parametrize("name", OF_MODELS)
def test_every_method_plays_rounds(toys, digits, federation, name: str):
    one = method(name)
    strategy: Strategy = build_server(one, min_train_nodes=CLIENTS)
    if one.distill:
        strategy = Distilled(strategy, model=toys.mlp, proxy=digits["proxy"], steps=20)
    strategy = Compressed(strategy, uplink=one.uplink, downlink=one.downlink)
    start = toys.arrays_of(toys.seeded(toys.mlp, 0))
    arrays, metrics = federation.play(strategy, start, 3)
    assert [c.status for c in strategy.last_round.clients] == ["ok"] * CLIENTS
    assert [(n, a.dtype, a.shape) for n, a in arrays.items()] == [
        (n, a.dtype, a.shape) for n, a in start.items()
    ]
    for key, array in arrays.items():
        assert np.isfinite(array.numpy()).all()
        assert not np.array_equal(array.numpy(), start[key].numpy())
    assert ("distill-steps" in metrics) is one.distill


def test_distilled_inside_lossless_compression_is_distilled_alone(toys, digits, federation):
    def distilled() -> Distilled:
        return Distilled(
            FedAvg(min_train_nodes=CLIENTS), model=toys.mlp, proxy=digits["proxy"], steps=30
        )

    start = toys.arrays_of(toys.seeded(toys.mlp, 0))
    bare, bare_metrics = federation.play(distilled(), start, 1)
    arrays, metrics = federation.play(Compressed(distilled(), uplink="raw()"), start, 1)
    assert metrics["distill-kl-after"] < metrics["distill-kl-before"]
    assert metrics["distill-kl-after"] == pytest.approx(bare_metrics["distill-kl-after"], rel=0.01)
    for name in bare:
        np.testing.assert_allclose(arrays[name].numpy(), bare[name].numpy(), rtol=0, atol=1e-4)
