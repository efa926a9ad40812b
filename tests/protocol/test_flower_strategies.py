"""Around every strategy that Flower ships: raw payloads give what the bare strategy gives."""

import gc
import random
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import adaptiveclipping_mod, fixedclipping_mod
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords
from hypothesis import given
from hypothesis import strategies as st

from fedcompress import Compressed, compression_mod, rng_for
from fedcompress.flower_adapter import mean_of_numbers, uses_weighted_mean
from simulations.engines import LocalGrid

CLIENTS = 8
ARRAY_STRATEGIES: dict[str, Callable[..., Strategy]] = {
    "FedAvg": flower.FedAvg,
    "FedProx": lambda **k: flower.FedProx(proximal_mu=0.1, **k),
    "FedAvgM": lambda **k: flower.FedAvgM(server_momentum=0.9, server_learning_rate=0.5, **k),
    "FedAdagrad": flower.FedAdagrad,
    "FedAdam": flower.FedAdam,
    "FedYogi": flower.FedYogi,
    "FedMedian": flower.FedMedian,
    "FedTrimmedAvg": flower.FedTrimmedAvg,
    "Krum": flower.Krum,
    "MultiKrum": lambda **k: flower.MultiKrum(num_nodes_to_select=4, **k),
    "Bulyan": lambda **k: flower.Bulyan(num_malicious_nodes=1, **k),
    "QFedAvg": lambda **k: flower.QFedAvg(
        client_learning_rate=0.1, train_loss_key="train-loss", **k
    ),
}
BY_MEAN = {"FedAvg", "FedProx", "FedAvgM", "FedAdagrad", "FedAdam", "FedYogi"}
NOT_ARRAYS = {"FedXgbBagging", "FedXgbCyclic"}  # these carry trees, not a model's arrays
DP_WRAPPERS: dict[str, tuple[Callable[..., Strategy], list[object]]] = {
    "DifferentialPrivacyServerSideFixedClipping": (
        lambda s: flower.DifferentialPrivacyServerSideFixedClipping(s, 0.0, 0.5, CLIENTS),
        [],
    ),
    "DifferentialPrivacyServerSideAdaptiveClipping": (
        lambda s: flower.DifferentialPrivacyServerSideAdaptiveClipping(s, 0.0, CLIENTS),
        [],
    ),
    "DifferentialPrivacyClientSideFixedClipping": (
        lambda s: flower.DifferentialPrivacyClientSideFixedClipping(s, 0.0, 0.5, CLIENTS),
        [fixedclipping_mod],
    ),
    "DifferentialPrivacyClientSideAdaptiveClipping": (
        lambda s: flower.DifferentialPrivacyClientSideAdaptiveClipping(s, 0.0, CLIENTS),
        [adaptiveclipping_mod],
    ),
}


@pytest.fixture(autouse=True, scope="module")
def imported_modules_are_not_searched() -> Iterator[None]:
    """Flower's robust strategies collect garbage for every client, a tenth of a second each."""
    gc.freeze()
    yield
    gc.unfreeze()


def client_app(mods: list[object]) -> ClientApp:
    app = ClientApp(mods=mods)  # type: ignore[arg-type]

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        server_round = int(message.content["config"]["server-round"])  # type: ignore[call-overload,index]
        assert not [k for k in message.content["config"] if k.startswith("fedcompress")]
        draw = rng_for(1, round=server_round, client=client, purpose="train")
        trained = {
            name: array.numpy() + np.asarray(draw.standard_normal(array.shape), array.numpy().dtype)
            for name, array in message.content["arrays"].items()  # type: ignore[union-attr]
        }
        metrics = {"num-examples": 10 + client, "train-loss": 1.0 + client / 10}
        return Message(
            RecordDict(
                {
                    "arrays": ArrayRecord({k: Array(np.asarray(v)) for k, v in trained.items()}),
                    "metrics": MetricRecord(metrics),
                }
            ),
            reply_to=message,
        )

    return app


def initial(with_counter: bool) -> ArrayRecord:
    draw = rng_for(0, purpose="initial")
    arrays: dict[str, np.ndarray] = {
        "w": draw.standard_normal((12, 7)).astype(np.float32),
        "b": draw.standard_normal(7),
    }
    if with_counter:
        arrays["steps"] = np.array(1000, np.int64)
    return ArrayRecord({k: Array(v) for k, v in arrays.items()})


def run(strategy: Strategy, mods: list[object], with_counter: bool = False, rounds: int = 4):  # type: ignore[no-untyped-def]
    grid = LocalGrid(lambda: client_app(mods), CLIENTS)
    random.seed(3)
    return strategy.start(grid, initial(with_counter), num_rounds=rounds)


def settings(name: str) -> dict[str, object]:
    return {"fraction_train": 0.75 if name in BY_MEAN else 1.0, "fraction_evaluate": 0.0}


def assert_equal_results(bare, compressed) -> None:  # type: ignore[no-untyped-def]
    for name, array in bare.arrays.items():
        ours, theirs = compressed.arrays[name].numpy(), array.numpy()
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-6)
    for server_round, metrics in bare.train_metrics_clientapp.items():
        ours = compressed.train_metrics_clientapp[server_round]
        for key, value in metrics.items():
            assert ours[key] == pytest.approx(value)


def test_the_battery_covers_every_strategy_that_flower_ships() -> None:
    shipped = {
        name
        for name in flower.__all__
        if isinstance(getattr(flower, name), type) and issubclass(getattr(flower, name), Strategy)
    }
    assert shipped - {"Strategy"} == set(ARRAY_STRATEGIES) | set(DP_WRAPPERS) | NOT_ARRAYS


@pytest.mark.parametrize("name", ARRAY_STRATEGIES)
def test_raw_payloads_give_what_the_bare_strategy_gives(name: str) -> None:
    make = ARRAY_STRATEGIES[name]
    bare = run(make(**settings(name)), [])
    compressed = run(Compressed(make(**settings(name)), uplink="raw()"), [compression_mod])
    assert_equal_results(bare, compressed)


@pytest.mark.parametrize("name", ARRAY_STRATEGIES)
def test_without_compression_it_is_the_bare_strategy_but_counted(name: str) -> None:
    make = ARRAY_STRATEGIES[name]
    bare = run(make(**settings(name)), [])
    counted = Compressed(make(**settings(name)), uplink=None)
    result = run(counted, [])
    assert_equal_results(bare, result)  # Flower's adaptive rules go on in float64, ours do not
    sizes = {c.uplink_payload_bytes for c in counted.last_round.clients}
    assert sizes == {sum(len(array.data) for array in initial(False).values())}


@pytest.mark.parametrize("name", DP_WRAPPERS)
def test_around_differential_privacy(name: str) -> None:
    wrap, mods = DP_WRAPPERS[name]
    bare = run(wrap(flower.FedAvg(fraction_evaluate=0.0)), mods)
    inner = wrap(flower.FedAvg(fraction_evaluate=0.0))
    compressed = run(Compressed(inner, uplink="raw()"), [compression_mod, *mods])
    assert_equal_results(bare, compressed)


@pytest.mark.parametrize("name", ARRAY_STRATEGIES)
def test_integers_keep_their_dtype(name: str) -> None:
    strategy = Compressed(ARRAY_STRATEGIES[name](**settings(name)), uplink="quantize(8)")
    result = run(strategy, [compression_mod], with_counter=True, rounds=2)
    steps = result.arrays["steps"].numpy()
    assert steps.dtype == np.int64
    assert abs(int(steps) - 1000) < 10
    assert all(c.status == "ok" for c in strategy.last_round.clients)


@pytest.mark.parametrize("name", ARRAY_STRATEGIES)
def test_which_strategies_are_given_the_mean_alone(name: str) -> None:
    strategy = ARRAY_STRATEGIES[name](**settings(name))
    assert uses_weighted_mean(strategy) == (name in BY_MEAN)


def test_a_subclass_with_its_own_rule_is_given_every_model() -> None:
    seen: list[int] = []

    class Own(flower.FedAvg):
        def aggregate_train(self, server_round, replies):  # type: ignore[no-untyped-def]
            seen.append(len(list(replies)))
            return super().aggregate_train(server_round, replies)

    assert not uses_weighted_mean(Own())
    run(Compressed(Own(fraction_evaluate=0.0), uplink="raw()"), [compression_mod], rounds=1)
    assert seen == [CLIENTS]


def test_custom_metrics_aggregation_sees_every_client() -> None:
    seen: list[int] = []

    def aggregate(records: list[RecordDict], key: str) -> MetricRecord:
        seen.append(len(records))
        return MetricRecord({"clients": len(records), "key": len(key)})

    inner = flower.FedAvg(fraction_evaluate=0.0, train_metrics_aggr_fn=aggregate)
    result = run(Compressed(inner, uplink="sign()"), [compression_mod], rounds=2)
    assert seen == [CLIENTS, CLIENTS]
    assert result.train_metrics_clientapp[1]["clients"] == CLIENTS
    assert inner.train_metrics_aggr_fn is aggregate


values = st.floats(-1e6, 1e6) | st.integers(-1000, 1000)


@given(
    st.lists(st.tuples(st.integers(1, 500), values, values), min_size=1, max_size=20),
    st.booleans(),
)
def test_the_mean_of_metrics_is_flowers_to_the_bit(
    clients: list[tuple[int, float, float]], holds_list: bool
) -> None:
    contents = [
        RecordDict(
            {
                "metrics": MetricRecord(
                    {"loss": a, "num-examples": n, "other": [float(b), 1.0] if holds_list else b}
                ),
                "config": ConfigRecord({"loss": 1}),
            }
        )
        for n, a, b in clients
    ]
    mean = mean_of_numbers(contents, "num-examples")
    if holds_list:
        assert mean is None
    else:
        assert mean is not None
        expected = aggregate_metricrecords(contents, "num-examples")
        assert list(mean.items()) == list(expected.items())
        assert [type(x) for x in mean.values()] == [type(x) for x in expected.values()]
