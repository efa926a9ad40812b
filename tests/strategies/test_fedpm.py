"""FedPM: means of masks, less than a bit for each weight, and training of nothing but masks."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, FedMedian

from fedcompress import Compressed, ConfigError, compression_mod, rng_for
from fedcompress.protocol import record_to_tensors
from fedcompress.pruning import fold
from simulations.cell import Cell
from simulations.engines import LocalGrid
from simulations.exchanges.exchange import Told, build_exchange
from simulations.materials import materials_of
from simulations.training import evaluate
from strategies import MaskAveraged

CLIENTS = 6
SHAPES = {"a": (60, 80), "b": (10, 60)}


def start() -> ArrayRecord:
    draw = rng_for(3, purpose="start")
    arrays = {name: draw.random(shape, np.float32) for name, shape in SHAPES.items()}
    return ArrayRecord({name: Array(x) for name, x in arrays.items()})


def client_app(probabilities: list[dict[str, torch.Tensor]] | None = None) -> ClientApp:
    """Make clients that have made up their minds: what was likely has become likelier."""
    app = ClientApp(mods=[compression_mod])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        sent = record_to_tensors(message.content["arrays"])
        noise = rng_for(5, client=client)
        trained = {
            name: (3 * (x - 0.5) + 0.5 + 0.1 * torch.from_numpy(noise.random(x.shape))).clamp(0, 1)
            for name, x in sent.items()
        }
        trained = {name: x.to(torch.float32) for name, x in trained.items()}
        if probabilities is not None:
            probabilities.append(trained)
        folded = fold(trained, sent)
        answer = ArrayRecord({n: Array((x + folded[n]).numpy()) for n, x in sent.items()})
        metrics = MetricRecord({"num-examples": 1 + client, "train_loss": 1.0})
        return Message(RecordDict({"arrays": answer, "metrics": metrics}), reply_to=message)

    return app


def compressed(reset_every: int = 1, downlink: str | None = None) -> Compressed:
    inner = FedAvg(fraction_evaluate=0.0, min_available_nodes=CLIENTS)
    return Compressed(
        MaskAveraged(inner, reset_every=reset_every),
        uplink="bernoulli_mask() | entropy()",
        downlink=downlink,
    )


@pytest.mark.parametrize("downlink", [None, "error_feedback(quantize(8) | entropy())"])
def test_every_round_takes_less_than_a_bit_for_each_weight(downlink: str | None) -> None:
    strategy, arrays, sizes = compressed(downlink=downlink), start(), []
    with LocalGrid(client_app, CLIENTS) as grid:
        for number in range(1, 5):
            messages = list(strategy.configure_train(number, arrays, ConfigRecord(), grid))
            arrays, metrics = strategy.aggregate_train(number, grid.send_and_receive(messages))
            clients = strategy.last_round.clients
            assert all(client.status == "ok" for client in clients)
            sizes.append(max(client.uplink_payload_bytes for client in clients))
            for x in record_to_tensors(arrays).values():
                assert 0 <= float(x.min()) <= float(x.max()) <= 1
            assert 0 < metrics["mask-entropy"] < 1
    entries = sum(int(np.prod(shape)) for shape in SHAPES.values())
    assert all(8 * size < entries for size in sizes)
    assert all(after < before for before, after in pairwise(sizes))


def test_the_mean_mask_is_the_mean_probability() -> None:
    """Folded, drawn, coded, averaged by examples and unfolded: unbiased."""
    seen: list[dict[str, torch.Tensor]] = []
    total = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    runs = 60
    for seed in range(runs):
        strategy = compressed()
        strategy.seed = seed
        with LocalGrid(lambda: client_app(seen), CLIENTS) as grid:
            messages = list(strategy.configure_train(1, start(), ConfigRecord(), grid))
            arrays, _ = strategy.aggregate_train(1, grid.send_and_receive(messages))
        for name, x in record_to_tensors(arrays).items():
            total[name] += x / runs
    weights = torch.arange(1, CLIENTS + 1) / sum(range(1, CLIENTS + 1))
    for name, mean in total.items():
        stacked = torch.stack([one[name] for one in seen[:CLIENTS]])
        expected = (weights.reshape(-1, 1, 1) * stacked).sum(0)
        variance = (weights.square().reshape(-1, 1, 1) * stacked * (1 - stacked)).sum(0) / runs
        off = (mean - expected).abs() / (variance.sqrt() + 1e-3)
        assert float(off.square().mean()) < 1.5
        assert abs(float((mean - expected).mean())) < 0.002


def test_counts_are_kept_until_they_are_reset() -> None:
    strategy = MaskAveraged(
        FedAvg(fraction_evaluate=0.0, min_available_nodes=2, min_train_nodes=2), reset_every=2
    )
    sent = {"w": torch.tensor([[0.2, 0.9]])}
    masks = [[1.0, 1.0], [0.0, 1.0], [1.0, 0.0]]
    kept = []
    for number, mask in enumerate(masks, start=1):
        strategy._sent, strategy._asked = sent, 2
        folded = fold({"w": torch.tensor([mask])}, sent)
        reply = ArrayRecord({"w": Array((sent["w"] + folded["w"]).numpy())})
        content = RecordDict({"arrays": reply, "metrics": MetricRecord({"num-examples": 1})})
        message = Message(RecordDict(), dst_node_id=1, message_type="train")
        arrays, _ = strategy.aggregate_train(number, [Message(content, reply_to=message)])
        kept.append(np.round(arrays["w"].numpy(), 5).tolist())
        state = strategy.state_dict()
        strategy.load_state_dict(state)
    assert kept == [[[1.0, 1.0]], [[0.5, 1.0]], [[1.0, 0.0]]]


def cell(**more: object) -> Cell:
    return Cell.model_validate(
        {
            "seed": 1,
            "partition": {"kind": "iid", "clients": 2},
            "model": {"name": "mlp", "hidden": [64]},
            "training": {"batch_size": 32, "local_epochs": 3},
            "strategy": {"exchange": "masks", "uplink": "bernoulli_mask() | entropy()"},
            **more,
        }
    )


def test_a_client_trains_which_weights_to_keep_and_no_weight() -> None:
    one = cell()
    materials = materials_of(one)
    exchange = build_exchange(one, materials)
    sent = exchange.start()
    assert list(sent) == [n for n, x in exchange.new_model().named_parameters() if x.dim() > 1]

    def trained(client: int, arrays: ArrayRecord) -> ArrayRecord:
        context = Context(1, 1, {"partition-id": client}, RecordDict(), {})
        told = Told(arrays, "arrays", client, 1, "", one.training.options(), ConfigRecord())
        answer = exchange.train(told, context)
        assert not context.state
        before = record_to_tensors(arrays)
        folded = {n: x - before[n] for n, x in record_to_tensors(answer.arrays).items()}
        kept = {n: x.clamp(0, 1) for n, x in fold(folded, before).items()}
        return ArrayRecord({n: Array(x.numpy()) for n, x in kept.items()})

    data = materials.data

    def accuracy(arrays: ArrayRecord) -> float:
        return evaluate(exchange.model_of(arrays), data.test_x, data.test_y, data).accuracy

    model = exchange.model_of(sent)
    for name, x in model.named_parameters():
        sizes = x.abs().unique().tolist()
        # None but one size in each layer, and biases are 0.
        assert len(sizes) == (2 if x.dim() > 1 else 1)
        assert sizes[0] == 0, name
    untrained = accuracy(sent)
    assert accuracy(sent) == untrained  # the mask that is tested is a function of the arrays
    first, again = trained(0, sent), trained(0, sent)
    assert all(np.array_equal(first[n].numpy(), again[n].numpy()) for n in first)
    other = trained(1, sent)
    assert not any(np.array_equal(first[n].numpy(), other[n].numpy()) for n in first)
    assert accuracy(trained(0, first)) > untrained + 0.3


def test_what_masks_cannot_carry() -> None:
    one = cell(model={"name": "resnet", "width": 0.25})
    with pytest.raises(ConfigError, match="keeps statistics of normalisation"):
        build_exchange(one, materials_of(one))
    strategy = MaskAveraged(FedAvg(fraction_evaluate=0.0))
    counts = ArrayRecord({"n": Array(np.arange(3))})
    with pytest.raises(ConfigError, match=r"holds torch\.int64; start from probabilities"):
        strategy.configure_train(1, counts, ConfigRecord(), None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="FedMedian makes something else of masks"):
        MaskAveraged(FedMedian(fraction_evaluate=0.0))
    with pytest.raises(ConfigError, match="reset_every"):
        MaskAveraged(FedAvg(fraction_evaluate=0.0), reset_every=-1)
