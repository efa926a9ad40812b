"""Clients that fail, lie or lack the mod; apps that must stay untouched; partial participation."""

import itertools
import random
from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, FedMedian, FedXgbBagging

from fedcompress import Compressed, ConfigError, compress, compression_mod, parse, rng_for
from fedcompress.wire import HEADER_BYTES
from simulations.engines import LocalGrid

CLIENTS = 5
Change = Callable[[dict[str, np.ndarray], int, int], dict[str, np.ndarray]]


def trained(arrays: ArrayRecord, client: int, server_round: int) -> dict[str, np.ndarray]:
    draw = rng_for(2, round=server_round, client=client)
    return {
        name: array.numpy() + draw.standard_normal(array.shape).astype(np.float32)
        for name, array in arrays.items()
    }


def make_app(mods: list[object], change: Change | None = None) -> ClientApp:
    app = ClientApp(mods=mods)  # type: ignore[arg-type]

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        server_round = int(message.content["config"]["server-round"])  # type: ignore[call-overload,index]
        arrays = trained(message.content["arrays"], client, server_round)  # type: ignore[arg-type]
        if change is not None:
            arrays = change(arrays, client, server_round)
        record = ArrayRecord({k: Array(np.asarray(v)) for k, v in arrays.items()})
        metrics = MetricRecord({"num-examples": 1})
        return Message(RecordDict({"arrays": record, "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        assert list(message.content["arrays"]) == ["w"]  # type: ignore[arg-type]
        metrics = MetricRecord(
            {"num-examples": 1, "seen": float(message.content["arrays"]["w"].numpy().sum())}
        )  # type: ignore[index,call-overload]
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def initial() -> ArrayRecord:
    return ArrayRecord({"w": Array(np.zeros((30, 10), np.float32))})


def run(strategy, app: ClientApp, rounds: int = 2):  # type: ignore[no-untyped-def]
    grid = LocalGrid(lambda: app, CLIENTS)
    random.seed(1)
    return strategy.start(grid, initial(), num_rounds=rounds), grid


def breaks(client_that_breaks: int, how: Callable[[np.ndarray], np.ndarray]) -> Change:
    def change(arrays: dict[str, np.ndarray], client: int, _: int) -> dict[str, np.ndarray]:
        return {k: how(v) for k, v in arrays.items()} if client == client_that_breaks else arrays

    return change


def nan_in(x: np.ndarray) -> np.ndarray:
    x[0, 0] = np.nan
    return x


@pytest.mark.parametrize("strategy", [FedAvg, FedMedian])
@pytest.mark.parametrize(
    ("how", "says"),
    [
        (nan_in, "NaN or infinity"),
        (lambda x: x[:5], "the global model's is"),
        (lambda x: x.astype(np.float64), "float64"),
    ],
)
def test_a_client_with_a_bad_update_is_recorded_and_left_out(strategy, how, says) -> None:  # type: ignore[no-untyped-def]
    compressed = Compressed(strategy(fraction_evaluate=0.0), uplink="raw()")
    result, _ = run(compressed, make_app([compression_mod], breaks(2, how)), rounds=1)
    outcomes = {c.node_id - 1: c for c in compressed.last_round.clients}
    assert outcomes[2].status == "rejected"
    assert says in (outcomes[2].reason or "")
    assert all(outcomes[i].status == "ok" for i in (0, 1, 3, 4))
    kept = np.stack([trained(initial(), i, 1)["w"] for i in (0, 1, 3, 4)])
    expected = kept.mean(0) if strategy is FedAvg else np.median(kept, axis=0)
    np.testing.assert_allclose(result.arrays["w"].numpy(), expected, atol=1e-5)
    assert result.train_metrics_clientapp[1]["rejected-clients"] == 1


def test_a_dense_update_that_is_not_finite_is_left_out_too() -> None:
    counted = Compressed(FedAvg(fraction_evaluate=0.0), uplink=None)
    result, _ = run(counted, make_app([], breaks(2, nan_in)), rounds=1)
    assert [c.status for c in counted.last_round.clients].count("rejected") == 1
    kept = np.stack([trained(initial(), i, 1)["w"] for i in (0, 1, 3, 4)]).mean(0)
    np.testing.assert_allclose(result.arrays["w"].numpy(), kept, atol=1e-5)


def test_a_client_that_raises_is_recorded() -> None:
    def change(arrays: dict[str, np.ndarray], client: int, _: int) -> dict[str, np.ndarray]:
        if client == 3:
            raise RuntimeError("out of cheese")
        return arrays

    compressed = Compressed(FedAvg(fraction_evaluate=0.0), uplink="sign()")
    run(compressed, make_app([compression_mod], change), rounds=1)
    (failed,) = [c for c in compressed.last_round.clients if c.status != "ok"]
    assert (failed.node_id, failed.status) == (4, "error")
    assert "out of cheese" in (failed.reason or "")


def test_a_round_of_nothing_usable_keeps_the_model(caplog: pytest.LogCaptureFixture) -> None:
    def change(arrays: dict[str, np.ndarray], _: int, server_round: int) -> dict[str, np.ndarray]:
        return {k: nan_in(v) for k, v in arrays.items()} if server_round == 2 else arrays

    compressed = Compressed(FedAvg(fraction_evaluate=0.0), uplink="raw()")
    result, _ = run(compressed, make_app([compression_mod], change), rounds=2)
    one_round, _ = run(
        Compressed(FedAvg(fraction_evaluate=0.0), uplink="raw()"),
        make_app([compression_mod], change),
        rounds=1,
    )
    np.testing.assert_array_equal(result.arrays["w"].numpy(), one_round.arrays["w"].numpy())
    assert "nothing usable came back from 5 clients; the model stays" in caplog.text


@pytest.mark.parametrize("forge", ["flip", "nan", "weight", "huge weight"])
def test_a_payload_that_does_not_verify_is_left_out(forge: str) -> None:
    """A client that speaks the protocol, but wrongly."""

    def liar(message: Message, context: Context, call_next: Callable[..., Message]) -> Message:
        reply = compression_mod(message, context, call_next)
        if context.node_config["partition-id"] != 1 or not reply.has_content():
            return reply
        if "weight" in forge:
            reply.content["metrics"]["num-examples"] = (  # type: ignore[index,call-overload]
                -1.0 if forge == "weight" else float("inf")
            )
            return reply
        payload = bytearray(reply.content["arrays"]["payload-0"].data)  # type: ignore[index,call-overload]
        if forge == "flip":
            payload[HEADER_BYTES + 5] ^= 1
        else:
            like = {"w": np.zeros((30, 10), np.float32)}
            payload = bytearray(
                parse("raw()").encode({"w": nan_in(like["w"].copy())}, {}, rng_for(0))[0]
            )
        data = bytes(payload)
        reply.content["arrays"]["payload-0"] = Array("uint8", (len(data),), "fedcompress.v1", data)  # type: ignore[index,call-overload]
        return reply

    compressed = Compressed(FedAvg(fraction_evaluate=0.0), uplink="raw()")
    result, _ = run(compressed, make_app([liar]), rounds=1)
    (bad,) = [c for c in compressed.last_round.clients if c.status != "ok"]
    assert (bad.node_id, bad.status) == (2, "rejected")
    kept = np.stack([trained(initial(), i, 1)["w"] for i in (0, 2, 3, 4)]).mean(0)
    np.testing.assert_allclose(result.arrays["w"].numpy(), kept, atol=1e-5)


def test_without_the_mod_the_first_round_says_what_is_missing() -> None:
    with pytest.raises(ConfigError, match="put compression_mod first"):
        run(Compressed(FedAvg(fraction_evaluate=0.0), uplink="raw()"), make_app([]))


def test_without_the_server_half_the_mod_does_nothing() -> None:
    plain, _ = run(FedAvg(fraction_evaluate=0.0), make_app([]))
    with_mod, _grid = run(FedAvg(fraction_evaluate=0.0), make_app([compression_mod]))
    np.testing.assert_array_equal(plain.arrays["w"].numpy(), with_mod.arrays["w"].numpy())


def test_compress_wraps_an_app_that_stays_untouched() -> None:
    uplink = "error_feedback(top_k(0.05) | quantize(4) | entropy())"
    by_mod, _ = run(Compressed(FedAvg(), uplink=uplink), make_app([compression_mod]), rounds=3)
    wrapped, _ = run(Compressed(FedAvg(), uplink=uplink), compress(make_app([])), rounds=3)
    np.testing.assert_array_equal(by_mod.arrays["w"].numpy(), wrapped.arrays["w"].numpy())


def test_evaluation_passes_untouched() -> None:
    compressed = Compressed(FedAvg(), uplink="sign()", downlink="error_feedback(sign())")
    result, _ = run(compressed, make_app([compression_mod]), rounds=2)
    assert result.evaluate_metrics_clientapp[2]["seen"] == pytest.approx(
        float(result.arrays["w"].numpy().sum()), rel=1e-4, abs=1e-4
    )


def test_residuals_survive_rounds_without_the_client() -> None:
    """What a client sent in all its rounds, plus its residual, is what it trained in them."""
    spec = "error_feedback(top_k(0.02) | entropy())"
    sent: dict[int, np.ndarray] = {}

    class Watching(FedAvg):
        def aggregate_train(self, server_round, replies):  # type: ignore[no-untyped-def]
            for reply in replies:
                client = reply.metadata.src_node_id - 1
                model = next(iter(reply.content.array_records.values()))["w"].numpy()
                sent[client] = sent.get(client, 0) + model - reference["w"]
            return super().aggregate_train(server_round, replies)

        def configure_train(self, server_round, arrays, config, grid):  # type: ignore[no-untyped-def]
            reference["w"] = arrays["w"].numpy()
            messages = super().configure_train(server_round, arrays, config, grid)
            for message in messages:
                rounds.setdefault(message.metadata.dst_node_id - 1, []).append(server_round)
            return messages

    reference: dict[str, np.ndarray] = {}
    rounds: dict[int, list[int]] = {}
    strategy = Watching(fraction_train=0.4, fraction_evaluate=0.0)
    _, grid = run(Compressed(strategy, uplink=spec), make_app([compression_mod]), rounds=12)
    assert any(b - a > 1 for times in rounds.values() for a, b in itertools.pairwise(times))
    for client, times in rounds.items():
        update_sum = sum(trained(initial(), client, r)["w"] for r in times)
        state = grid._states[client + 1]
        residual = state.array_records["fedcompress.state"]["residual/w"].numpy()
        np.testing.assert_allclose(sent[client] + residual, update_sum, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Compressed(FedAvg(), uplink="top_k(5)"), "did you mean 0.05"),
        (lambda: Compressed(FedAvg(), downlink="zzz()"), "unknown stage 'zzz'"),
        (lambda: Compressed(Compressed(FedAvg())), "wrap it once"),
        (lambda: Compressed(FedXgbBagging()), "exchanges trees"),
        (lambda: Compressed("FedAvg"), "must be a flwr.serverapp.strategy.Strategy"),
    ],
)
def test_bad_settings_are_refused_when_built(make, says: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match=says):
        make()
