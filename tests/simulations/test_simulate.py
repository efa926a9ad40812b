"""`fedcompress simulate`: somebody's Flower app on our engines, compressed without its knowing."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

from fedcompress import Compressed, compress
from fedcompress.errors import ConfigError
from simulations.cli import main
from simulations.compressed_grid import CompressedGrid
from simulations.engines import LocalGrid
from simulations.engines.ray_session import open_session
from simulations.flower_app import ClientLoader, read_flower_app
from simulations.gathered_grid import GatheredGrid
from simulations.recorded_grid import RecordedGrid
from simulations.traffic import MeasuredGrid

TASK = """
import numpy as np

SIZE = 400

def begin():
    return {"weight": np.zeros(SIZE, np.float32), "seen": np.zeros(1, np.int64)}

def descend(weight, part):
    rng = np.random.default_rng(part)
    x = rng.standard_normal((200, SIZE), dtype=np.float32)
    y = x @ np.linspace(-1, 1, SIZE, dtype=np.float32)
    for _ in range(2):
        weight = weight - np.float32(0.1) * x.T @ (x @ weight - y) / 200
    return weight.astype(np.float32), 200 + part

def loss(weight):
    return float(np.mean((weight - np.linspace(-1, 1, SIZE)) ** 2))
"""

CLIENT = """
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from {package}.task import descend, loss

app = ClientApp()

@app.train()
def train(message, context):
    arrays = message.content["arrays"]
    part = context.node_config["partition-id"]
    if context.run_config["broken"] == part:
        raise RuntimeError("no data here")
    weight, examples = descend(arrays["weight"].numpy(), part)
    seen = arrays["seen"].numpy().astype("int64") + 2**40 + part
    calls = context.state.get("calls") or MetricRecord({{"calls": 0}})
    context.state["calls"] = MetricRecord({{"calls": calls["calls"] + 1}})
    reply = ArrayRecord({{"weight": Array(weight), "seen": Array(seen)}})
    metrics = MetricRecord({{"num-examples": examples, "calls": calls["calls"] + 1}})
    return Message(RecordDict({{"arrays": reply, "metrics": metrics}}), reply_to=message)

@app.evaluate()
def evaluate(message, context):
    error = loss(message.content["arrays"]["weight"].numpy())
    return Message(
        RecordDict({{"metrics": MetricRecord({{"num-examples": 1, "loss": error}})}}),
        reply_to=message,
    )
"""

SERVER = """
import json
import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp import strategy as strategies
from {package}.task import begin, loss

app = ServerApp()

@app.main()
def main(grid, context):
    config = context.run_config
    strategy = getattr(strategies, config["server.rule"])(fraction_evaluate=config["evaluate"])
    arrays = ArrayRecord({{name: Array(x) for name, x in begin().items()}})
    result = strategy.start(grid=grid, initial_arrays=arrays, num_rounds=config["rounds"])
    print("the ServerApp says hello")
    np.savez(config["out"], **{{name: x.numpy() for name, x in result.arrays.items()}})
"""

OLD_CLIENT = """
from flwr.clientapp import ClientApp
from flwr.client import NumPyClient
from {package}.task import begin, descend, loss

class Client(NumPyClient):
    def __init__(self, part):
        self.part = part
    def get_parameters(self, config):
        return list(begin().values())
    def fit(self, parameters, config):
        weight, examples = descend(parameters[0], self.part)
        return [weight, parameters[1].astype("int64") + 1], examples, {{"asked": config["asked"]}}
    def evaluate(self, parameters, config):
        return loss(parameters[0]), 1, {{}}

app = ClientApp(client_fn=lambda context: Client(context.node_config["partition-id"]).to_client())
"""

OLD_SERVER = """
import numpy as np
from flwr.common import parameters_to_ndarrays
from flwr.server import ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.serverapp import ServerApp

def server_fn(context):
    class Saving(FedAvg):
        def aggregate_fit(self, server_round, results, failures):
            assert not failures, failures
            assert all(fit.metrics["asked"] == server_round for _, fit in results)
            parameters, metrics = super().aggregate_fit(server_round, results, failures)
            weight, seen = parameters_to_ndarrays(parameters)
            np.savez(context.run_config["out"], weight=weight, seen=seen)
            return parameters, metrics
    return ServerAppComponents(
        strategy=Saving(on_fit_config_fn=lambda number: {{"asked": number}}),
        config=ServerConfig(num_rounds=context.run_config["rounds"]),
    )

app = ServerApp(server_fn=server_fn)
"""

PROJECT = """
[project]
name = "somebodys-app"
version = "1.0.0"
[tool.flwr.app]
publisher = "somebody"
[tool.flwr.app.components]
serverapp = "{package}.server_app:app"
clientapp = "{package}.client_app:app"
[tool.flwr.app.config]
rounds = 3
out = ""
broken = -1
evaluate = 0.0
server.rule = "FedAvg"
[tool.flwr.federations]
default = "here"
[tool.flwr.federations.here]
options.num-supernodes = 5
"""

Run = Callable[..., tuple[int, str, str, dict[str, Any] | None, dict[str, np.ndarray] | None]]
PACKAGES = iter(range(1_000_000))


def write_app(folder: Path, client: str = CLIENT, server: str = SERVER) -> Path:
    """Write an app; its package has a name of its own, since modules stay imported."""
    package = f"somebodys_app_{next(PACKAGES)}"
    (folder / package).mkdir(parents=True)
    files = {"__init__": "", "task": TASK, "client_app": client, "server_app": server}
    for name, text in files.items():
        code = text if name in ("task", "__init__") else text.format(package=package)
        (folder / package / f"{name}.py").write_text(code)
    (folder / "pyproject.toml").write_text(PROJECT.format(package=package))
    return folder


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command here; give status, output, errors, the JSON and the final model."""

    def run_app(app: Path, *arguments: object, engine: str = "local", **settings: object) -> Any:
        out = tmp_path / f"out-{next(PACKAGES)}"
        changed = {"out": f"{out}.npz", **settings}
        config = " ".join(f"{key}={json.dumps(value)}" for key, value in changed.items())
        options = ["--engine", engine, "--run-config", config, "--json", f"{out}.json"]
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.setattr(
            sys, "argv", ["fedcompress", "simulate", str(app), *options, *map(str, arguments)]
        )
        with pytest.raises(SystemExit) as stopped:
            main()
        said = capsys.readouterr()
        written = Path(f"{out}.json")
        model = Path(f"{out}.npz")
        return (
            int(stopped.value.code or 0),
            said.out,
            said.err,
            json.loads(written.read_text()) if written.exists() else None,
            dict(np.load(model)) if model.exists() else None,
        )

    return run_app


@pytest.fixture
def app(tmp_path: Path) -> Path:
    return write_app(tmp_path / "app")


def distance(model: dict[str, np.ndarray]) -> float:
    weight = model["weight"]
    return float(np.mean((weight - np.linspace(-1, 1, weight.size)) ** 2))


def local_result(app: Path, rounds: int = 3, clients: int = 5) -> ArrayRecord:
    """Run the app's strategy on a bare LocalGrid."""
    settings = read_flower_app(app, [f"rounds={rounds}"])
    loader = ClientLoader(settings.folder, settings.clientapp, compressed=False)
    begin = {"weight": np.zeros(400, np.float32), "seen": np.zeros(1, np.int64)}
    arrays = ArrayRecord({name: _array(x) for name, x in begin.items()})
    with LocalGrid(loader, clients, run_config=settings.run_config) as grid:
        strategy = FedAvg(fraction_evaluate=0.0)
        return strategy.start(grid=grid, initial_arrays=arrays, num_rounds=rounds).arrays


def _array(x: np.ndarray) -> Any:
    from flwr.app import Array

    return Array(x)


def test_uncompressed_app_gives_what_it_gives_elsewhere(run: Run, app: Path) -> None:
    status, said, errors, figures, model = run(app)
    assert status == 0, errors
    assert "the ServerApp says hello" in said
    assert "5 clients" in said  # as its pyproject.toml says
    expected = local_result(app)
    assert model is not None
    for name, array in expected.items():
        assert np.allclose(model[name], array.numpy(), rtol=1e-6)
    assert figures is not None
    assert [row["messages"] for row in figures["rounds"]] == [5, 5, 5]
    total = figures["total"]
    assert total["uplink_bytes"] == total["dense_uplink_bytes"] > 3 * 5 * 1600
    assert total["downlink_bytes"] == total["dense_downlink_bytes"] > 3 * 5 * 1600


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    """Ray in this process, started once."""
    import ray

    open_session(None, needed_cpus=2)
    yield
    ray.shutdown()


@pytest.mark.ray
@pytest.mark.parametrize("uplink", [None, "error_feedback(top_k(0.1) | quantize(4) | entropy())"])
def test_engines_agree(run: Run, app: Path, uplink: str | None) -> None:
    options = [] if uplink is None else ["--uplink", uplink]
    status, _, errors, here, model = run(app, *options)
    assert status == 0, errors
    status, said, errors, there, on_ray = run(app, *options, "--workers", 1, engine="ray")
    assert status == 0, errors
    assert "on 1 workers" in said
    assert model is not None
    assert on_ray is not None
    for name, array in model.items():
        np.testing.assert_array_equal(array, on_ray[name])
    assert here is not None
    assert there is not None
    for key in ("uplink_bytes", "downlink_bytes", "dense_uplink_bytes"):
        assert here["total"][key] == there["total"][key]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_client_app_that_no_worker_can_load(run: Run, app: Path) -> None:
    file = app / "pyproject.toml"
    file.write_text(file.read_text().replace(".client_app:app", ".clientapp:app"))
    status, _, errors, _, _ = run(app, "--workers", 1, engine="ray")
    assert (status, errors.count("\n")) == (2, 1)
    assert "no worker could start: clientapp: cannot load" in errors


@pytest.mark.flower
@pytest.mark.slow
def test_flowers_own_simulation_gives_the_same(run: Run, app: Path, tmp_path: Path) -> None:
    from flwr.simulation import run_simulation

    _, _, _, _, model = run(app)
    settings = read_flower_app(app, [f"out='{tmp_path / 'flower.npz'}'"])
    server, held = settings.load_server(), ServerApp()

    @held.main()
    def start(grid: Any, context: Context) -> None:
        while len(list(grid.get_node_ids())) < 5:  # Flower's come one by one
            time.sleep(0.1)
        server(grid, Context(1, 0, {}, RecordDict(), dict(settings.run_config)))

    inside = ClientLoader(settings.folder, settings.clientapp, compressed=False)
    client = ClientApp()

    @client.train()
    def train(message: Message, context: Context) -> Message:
        told = Context(
            run_id=context.run_id,
            node_id=context.node_id,
            node_config=context.node_config,
            state=context.state,
            run_config=dict(settings.run_config),
        )
        return inside()(message, told)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{app}:{Path(__file__).parents[2]}")
        run_simulation(held, client, num_supernodes=5)
    flower = np.load(tmp_path / "flower.npz")
    assert model is not None
    np.testing.assert_allclose(model["weight"], flower["weight"], rtol=1e-5, atol=1e-6)


def test_compressed_app_sends_less_and_still_learns(run: Run, app: Path) -> None:
    _, _, _, dense, dense_model = run(app, rounds=6, evaluate=1.0)
    status, said, errors, figures, model = run(
        app, "--uplink", "quantize(4) | entropy()", rounds=6, evaluate=1.0
    )
    assert status == 0, errors
    assert dense is not None
    assert figures is not None
    assert model is not None
    assert dense_model is not None
    assert "Up ×" in said
    assert figures["total"]["uplink_payload_bytes"] * 4 < dense["total"]["uplink_payload_bytes"]
    assert distance(model) < 1.5 * distance(dense_model) + 1e-4
    # A sum of integers beyond what float32 holds: they travelled exactly.
    assert model["seen"] == dense_model["seen"] > 2**40
    # What the report calls dense is what the app sends without compression, to the byte; the
    # counter comes back from Flower's mean as float64, which only the dense app goes on sending.
    for mine, plain in zip(figures["rounds"], dense["rounds"], strict=True):
        assert mine["dense_uplink_bytes"] == plain["uplink_bytes"]
        assert mine["dense_downlink_bytes"] == plain["downlink_bytes"]
    summed = sum(row["uplink_bytes"] for row in figures["rounds"])
    assert summed == figures["total"]["uplink_bytes"]


def test_residuals_last_from_round_to_round(run: Run, app: Path) -> None:
    _, _, _, _, without = run(app, "--uplink", "top_k(0.05) | entropy()", rounds=12)
    _, _, _, _, corrected = run(
        app, "--uplink", "error_feedback(top_k(0.05) | entropy())", rounds=12
    )
    assert without is not None
    assert corrected is not None
    assert distance(corrected) < 0.8 * distance(without)


def test_predictive_uplink_and_both_directions(run: Run, app: Path) -> None:
    status, said, errors, figures, model = run(
        *(app, "--uplink", "ef21(top_k(0.2) | entropy())"),
        *("--downlink", "error_feedback(quantize(6) | entropy())"),
        rounds=8,
        evaluate=1.0,
    )
    assert status == 0, errors
    assert figures is not None
    assert model is not None
    assert distance(model) < 0.25
    assert "Evaluation is sent the exact model, dense" in said
    trained = [row["downlink_bytes"] - row["evaluate_downlink_bytes"] for row in figures["rounds"]]
    assert max(trained[1:]) * 2 < trained[0]  # the first model goes whole
    assert figures["total"]["failed"] == 0


@pytest.mark.parametrize("options", [[], ["--uplink", "quantize(8) | entropy()"]])
def test_older_apps_run(run: Run, tmp_path: Path, options: list[str]) -> None:
    app = write_app(tmp_path / "old", OLD_CLIENT, OLD_SERVER)
    status, said, errors, figures, model = run(app, *options)
    assert status == 0, errors
    assert figures is not None
    assert model is not None
    assert [row["number"] for row in figures["rounds"]] == [0, 1, 2, 3]
    assert figures["total"]["messages"] == 1 + 3 * 10  # one asked for its parameters
    expected = local_result(write_app(tmp_path / "new"))["weight"].numpy()
    np.testing.assert_allclose(model["weight"], expected, atol=0.05 if options else 1e-6)
    if options:
        sent = sum(row["uplink_payload_bytes"] for row in figures["rounds"][1:])
        assert sent * 2 < 3 * 5 * 1600
        assert "Up ×" in said


def test_grid_compresses_as_the_strategy_does(app: Path) -> None:
    settings = read_flower_app(app)
    uplink = "error_feedback(top_k(0.2) | quantize(4) | entropy())"
    results, sent = [], []
    for around in ("strategy", "grid"):
        loader = ClientLoader(settings.folder, settings.clientapp, compressed=True)
        engine = MeasuredGrid(LocalGrid(loader, 5, run_config=settings.run_config))
        plain = FedAvg(fraction_evaluate=0.0)
        strategy = Compressed(plain, uplink, seed=3) if around == "strategy" else plain
        grid = engine if around == "strategy" else CompressedGrid(engine, uplink, seed=3)
        begin = {"weight": np.zeros(400, np.float32), "seen": np.zeros(1, np.int64)}
        arrays = ArrayRecord({name: _array(x) for name, x in begin.items()})
        result = strategy.start(grid=grid, initial_arrays=arrays, num_rounds=3)
        results.append(result.arrays["weight"].numpy())
        sent.append([one.payload_bytes for one in engine.take() if one.direction == "uplink"])
    np.testing.assert_allclose(*results, atol=1e-6)
    # Clients are drawn in any order; later models differ in the last bits.
    assert sorted(sent[0][:5]) == sorted(sent[1][:5])


def by_hand(grid: Any, kind: str, number: int, pulled: bool) -> list[Message]:
    """Ask two clients, without a strategy; say no round."""
    weight = np.linspace(0, 1, 3000, dtype=np.float32) * number
    arrays = ArrayRecord({"weight": _array(weight)})
    content = RecordDict({"model": arrays, "told": ConfigRecord({"lr": 0.5})})
    messages = [Message(content, node_id, kind) for node_id in (1, 2)]
    if not pulled:
        return list(grid.send_and_receive(messages))
    replies = list(grid.pull_messages(grid.push_messages(messages)))
    assert set(messages[0].content) == {"model", "told"}  # the app's own stay as they are
    return replies


def hand_client() -> ClientApp:
    app = ClientApp()

    @app.train()
    @app.train("slowly")
    @app.query()
    def double(message: Message, context: Context) -> Message:
        assert dict(message.content["told"]) == {"lr": 0.5}
        doubled = message.content["model"]["weight"].numpy() * 2
        reply = {"mine": ArrayRecord({"weight": _array(doubled)}), "n": MetricRecord({"n": 1})}
        return Message(RecordDict(reply), reply_to=message)

    return compress(app)


@pytest.mark.parametrize("pulled", [False, True])
@pytest.mark.parametrize("kind", ["train", "train.slowly", "query"])
@pytest.mark.parametrize("downlink", [None, "error_feedback(quantize(8) | entropy())"])
def test_loop_written_by_hand(kind: str, pulled: bool, downlink: str | None) -> None:
    sent = MeasuredGrid(LocalGrid(hand_client, 2))
    dense = MeasuredGrid(CompressedGrid(sent, "quantize(8) | entropy()", downlink))
    recorded = RecordedGrid(dense, sent)
    for number in (1, 2, 3):
        for reply in by_hand(recorded, kind, number, pulled):
            assert list(reply.content) == ["mine", "n"]
            got = reply.content["mine"]["weight"].numpy()
            wanted = 2 * number * np.linspace(0, 1, 3000, dtype=np.float32)
            np.testing.assert_allclose(got, wanted, atol=0.05 * number if kind != "query" else 0)
    rounds = recorded.finish()
    trained = kind != "query"
    assert [row.number for row in rounds] == ([1, 2, 3] if trained else [0])
    assert all((row.dense_uplink_bytes > 2 * row.uplink_bytes) == trained for row in rounds)
    if downlink and trained:
        assert all(row.dense_downlink_bytes > row.downlink_bytes for row in rounds[1:])


def test_late_answers_do_not_mislead_the_downlink(caplog: pytest.LogCaptureFixture) -> None:
    grid = CompressedGrid(
        LocalGrid(hand_client, 2),
        "quantize(8) | entropy()",
        "error_feedback(quantize(8) | entropy())",
    )

    def send(node_id: int, number: int) -> list[str]:
        weight = np.linspace(0, 1, 3000, dtype=np.float32) * number
        told = ConfigRecord({"lr": 0.5})
        content = RecordDict({"model": ArrayRecord({"weight": _array(weight)}), "told": told})
        return list(grid.push_messages([Message(content, node_id, "train")]))

    first = send(1, 1)
    second = send(2, 2)  # the broadcast goes on before the first client has answered
    replies = [*grid.pull_messages(second), *grid.pull_messages(first)]
    replies += grid.pull_messages(send(1, 3))
    assert not any(reply.has_error() for reply in replies)
    for reply, number in zip(replies, (2, 1, 3), strict=True):
        wanted = 2 * number * np.linspace(0, 1, 3000, dtype=np.float32)
        got = reply.content["mine"]["weight"].numpy()
        np.testing.assert_allclose(got, wanted, atol=0.05 * number)
    assert caplog.text == ""


def test_what_is_no_model_passes_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    app = ClientApp()

    @app.train()
    def echo(message: Message, context: Context) -> Message:
        return Message(message.content, reply_to=message)

    grid = CompressedGrid(LocalGrid(lambda: compress(app), 2), "sign() | entropy()")
    trees = ArrayRecord({"trees": _array(np.arange(50, dtype=np.uint8))})
    two = {"model": ArrayRecord({"w": _array(np.ones(9, np.float32))}), "control": trees}
    for content in (RecordDict({"a": trees}), RecordDict(two), RecordDict()):
        (reply,) = grid.send_and_receive([Message(content, 1, "train")])
        assert reply.content == content
    assert "without floating-point" in caplog.text
    assert "2 ArrayRecords" in caplog.text


def test_faulty_clients_are_errors_to_the_strategy(
    run: Run, app: Path, caplog: pytest.LogCaptureFixture
) -> None:
    status, said, _, figures, model = run(app, "--uplink", "quantize(8) | entropy()", broken=2)
    assert status == 0
    assert figures is not None
    assert model is not None
    assert figures["total"]["failed"] == 3
    assert "Failed" in said
    assert "no data here" in caplog.text
    assert [fault["kind"] for fault in figures["faults"]] == ["client_raised"] * 3
    assert all("no data here" in fault["reason"] for fault in figures["faults"])
    assert "client raised, left out: 3 times" in said
    assert distance(model) < 0.2


def test_threads_get_their_own_replies() -> None:
    grid = GatheredGrid(LocalGrid(hand_client, 40))
    got: dict[int, list[int]] = {}

    def ask(node_id: int) -> None:
        content = RecordDict(
            {
                "model": ArrayRecord({"weight": _array(np.ones(3, np.float32))}),
                "told": ConfigRecord({"lr": 0.5}),
            }
        )
        replies = grid.send_and_receive([Message(content, node_id, "query")])
        got[node_id] = [reply.metadata.src_node_id for reply in replies]

    threads = [threading.Thread(target=ask, args=(node_id,)) for node_id in range(1, 41)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == {node_id: [node_id] for node_id in range(1, 41)}


MISTAKES = [
    (["--clients", "0"], {}, "--clients: must be at least 1, got 0"),
    (["--uplink", "topk(0.1)"], {}, "did you mean 'top_k'?"),
    (["--downlink", "delta(quantize(4) | entropy())"], {}, "write error_feedback"),
    (["--workers", "none"], {}, "--workers: must be a number from 1"),
    (["--address", "1.2.3.4:5"], {}, "needs --engine ray"),
    ([], {"round": 3}, "no setting 'round'; did you mean 'rounds'?"),
    (["--run-config", "rounds"], {}, "'rounds' sets nothing; write key=value"),
    (["--run-config", "out=text"], {}, "text in quotes"),
    (["--run-config", "out='text"], {}, "close the quotes"),
    (["--seed", "-1"], {}, "seed must be an integer"),
]


@pytest.mark.parametrize(("options", "settings", "wanted"), MISTAKES)
def test_mistakes(
    run: Run, app: Path, options: list[str], settings: dict[str, object], wanted: str
) -> None:
    status, said, errors, _, _ = run(app, *options, **settings)
    assert (status, said, errors.count("\n")) == (2, "", 1)
    assert errors.startswith("fedcompress: ")
    assert wanted in errors


BROKEN_APPS = [
    ("[tool.flwr.app.components]", "[tool.flwr.app.parts]", "[tool.flwr.app.components] section"),
    ("server_app:app", "server_app", 'write "package.module:app"'),
    (".server_app:app", ".serverapp:app", "cannot load"),
    (".server_app:app", ".server_app:application", "Unable to load attribute application"),
    (".server_app:app", ".server_app:main", "is a function, expected a ServerApp"),
    (".client_app:app", ".client_app:train", "is a function, expected a ClientApp"),
    (".client_app:app", ".clientapp:app", "cannot load"),
    ("[project]", "[project", "describes no Flower app"),
]


@pytest.mark.parametrize(("old", "new", "wanted"), BROKEN_APPS)
def test_broken_apps(run: Run, app: Path, old: str, new: str, wanted: str) -> None:
    file = app / "pyproject.toml"
    file.write_text(file.read_text().replace(old, new, 1))
    status, _, errors, _, _ = run(app)
    assert (status, errors.count("\n")) == (2, 1)
    assert wanted in errors


def test_folder_without_an_app(run: Run, tmp_path: Path) -> None:
    status, _, errors, _, _ = run(tmp_path)
    assert status == 2
    assert errors == (
        f"fedcompress: simulate: {tmp_path} holds no pyproject.toml; name the folder of a Flower "
        "app\n"
    )


def test_missing_package_is_to_be_installed(run: Run, tmp_path: Path) -> None:
    app = write_app(tmp_path / "needy", server="import a_package_nobody_has\n" + SERVER)
    status, _, errors, _, _ = run(app)
    assert (status, errors.count("\n")) == (2, 1)
    assert "No module named 'a_package_nobody_has'); install what the app needs" in errors


def test_server_app_that_raises_shows_where(run: Run, app: Path) -> None:
    status, _, errors, figures, _ = run(app, **{"server.rule": "FedSomething"})
    assert status == 1
    first, *below = errors.splitlines()
    assert first.startswith("fedcompress: the ServerApp ")
    assert "raised AttributeError" in first
    assert below[0].startswith("Traceback")
    assert "server_app.py" in below[1]  # the frames before it are ours
    assert figures is not None
    assert figures["rounds"] == []


def test_app_that_waits_for_more_clients_is_stopped(
    run: Run, app: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simulations.gathered_grid.LOOKING_SECONDS", 0.0)
    monkeypatch.setattr("simulations.gathered_grid.MOST_LOOKS", 2)
    status, _, errors, _, _ = run(app, "--clients", 1)
    assert status == 2
    assert "waits for more clients than the 1 that there are" in errors


def test_app_that_compresses_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedcompress", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        said = capsys.readouterr()
        return int(stopped.value.code or 0), said.out, said.err

    assert command("init", "start")[0] == 0
    simulate = ["simulate", "start/app", "--engine", "local", "--clients", "3"]
    status, said, _ = command(*simulate)
    assert status == 0
    assert "The app compresses by itself" in said
    status, _, errors = command(*simulate, "--uplink", "sign() | entropy()")
    assert status == 2
    assert "leave --uplink and --downlink out" in errors


def test_default_number_of_clients(app: Path) -> None:
    file = app / "pyproject.toml"
    assert read_flower_app(app).clients == 5
    whole = file.read_text()
    file.write_text(whole.replace('default = "here"', ""))
    assert read_flower_app(app).clients == 5
    file.write_text(whole[: whole.index("[tool.flwr.federations]")])
    assert read_flower_app(app).clients == 2  # Flower's own


def test_grid_without_specs_is_refused() -> None:
    with pytest.raises(ConfigError, match="name an uplink or a downlink"):
        CompressedGrid(LocalGrid(hand_client, 2))
