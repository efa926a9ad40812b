"""The client's app: trains on its part of the data; it knows nothing but the run configuration."""

import time
from functools import lru_cache

import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict, UserConfig
from flwr.clientapp import ClientApp

from fedcompress import compression_mod
from fedcompress.flower_adapter import filled
from fedcompress.packing import packing_mod
from fedcompress.protocol import array_records, group_of
from simulations.cell import Cell, TrainingSettings
from simulations.engines.cohort import offer_cohorts, one_of_a_cohort
from simulations.engines.facts import offer_facts
from simulations.exchanges.exchange import Exchange, Told, Trained, build_exchange
from simulations.materials import Materials, materials_of
from simulations.settings import Scalar
from simulations.training import TrainingOptions, evaluate

app = ClientApp(mods=[compression_mod, packing_mod])


@app.train()
@one_of_a_cohort
def train(message: Message, context: Context) -> Message:
    """Train what the server sent on this client's rows and return it with metrics."""
    exchange = _prepare(context)
    told = _told(exchange.cell, message, context)
    start = time.perf_counter()
    trained = exchange.train(told, context)
    return _reply(message, told, trained, time.perf_counter() - start)


def train_many(messages: list[Message], contexts: list[Context]) -> list[Message]:
    """Train the clients of a cohort, which have the same global model, in one program."""
    exchange = _prepare(contexts[0])
    told = [_told(exchange.cell, *each) for each in zip(messages, contexts, strict=True)]
    start = time.perf_counter()
    trained = list(exchange.train_together(told, contexts))
    seconds = (time.perf_counter() - start) / len(trained)
    return [_reply(*each, seconds) for each in zip(messages, told, trained, strict=True)]


def facts_of(run_config: UserConfig) -> dict[str, str]:
    """Fingerprint what this process's clients would train on."""
    return _exchange(tuple(run_config.items())).data_facts()


offer_cohorts(app, train_many)
offer_facts(app, facts_of)


def _told(cell: Cell, message: Message, context: Context) -> Told:
    """Read the round, and how to train, from the cell and what the server's rule adds to it."""
    key, arrays = next(iter(array_records(message.content).items()))
    config = message.content.get("config")
    config = config if isinstance(config, ConfigRecord) else ConfigRecord()
    server_round = int(_number(config, "server-round", 0))
    proximal_mu = _number(config, "proximal-mu", cell.training.proximal_mu)
    return Told(
        arrays=arrays,
        key=key,
        client=int(context.node_config["partition-id"]),
        round=server_round,
        group=group_of(message.content),
        options=_options(cell.training, server_round, proximal_mu),
        config=config,
    )


def _reply(message: Message, told: Told, trained: Trained, train_seconds: float) -> Message:
    metrics = {
        "num-examples": trained.result.num_examples,
        "train_loss": trained.result.loss,
        **trained.metrics,
    }
    # Beside the metrics, because strategies average everything that stands there.
    client_says = {"partition-id": told.client, "train-seconds": train_seconds}
    records = {
        told.key: trained.arrays,
        "metrics": filled(MetricRecord(), metrics),
        "client": filled(ConfigRecord(), client_says),
    }
    return Message(filled(RecordDict(), records), reply_to=message)


@app.evaluate()
def test(message: Message, context: Context) -> Message:
    """Measure the global model on this client's own training rows."""
    exchange = _prepare(context)
    told = _told(exchange.cell, message, context)
    rows, data = exchange.materials.rows(told.client), exchange.materials.data
    model = exchange.model_of(told.arrays)
    x, y = data.train_x[rows], data.train_y[rows]
    result = evaluate(model, x, y, data, device=exchange.cell.device)
    metrics = MetricRecord(
        {
            "num-examples": result.num_examples,
            "accuracy": result.accuracy,
            "loss": result.loss,
        }
    )
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def _prepare(context: Context) -> Exchange:
    exchange = _exchange(tuple(context.run_config.items()))
    torch.set_num_threads(1)  # a call before this one may have set more
    return exchange


@lru_cache(maxsize=2)
def _cell(run_config: tuple[tuple[str, Scalar], ...]) -> tuple[Cell, Materials]:
    cell = Cell.from_run_config(without_folder(dict(run_config)))
    return cell, materials_of(cell)


@lru_cache(maxsize=2)
def _exchange(run_config: tuple[tuple[str, Scalar], ...]) -> Exchange:
    return build_exchange(*_cell(run_config))


@lru_cache(maxsize=4)
def _options(settings: TrainingSettings, server_round: int, mu: float) -> TrainingOptions:
    return settings.options(server_round, mu)


def without_folder(run_config: dict[str, Scalar]) -> dict[str, Scalar]:
    """Leave out `records`, the folder of the server's records: it is no setting of the cell."""
    return {key: value for key, value in run_config.items() if key != "records"}


def _number(config: ConfigRecord, name: str, default: float) -> float:
    value = config.get(name, default)
    return float(value) if isinstance(value, int | float) else default
