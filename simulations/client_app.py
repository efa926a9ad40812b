"""The client's app: trains on its part of the data; it knows nothing but the run configuration."""

import time
from functools import lru_cache

import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict, UserConfig
from flwr.clientapp import ClientApp
from torch import nn

from fedcompress import compression_mod, rng_for
from fedcompress.flower_adapter import filled
from fedcompress.protocol import array_records
from simulations.cell import Cell, ModelSettings, TrainingSettings
from simulations.engines.cohort import offer_cohorts, one_of_a_cohort
from simulations.engines.facts import offer_facts
from simulations.materials import Materials, materials_of
from simulations.model_record import load_record, model_record
from simulations.settings import Scalar
from simulations.training import (
    CohortMember,
    LocalResult,
    TrainingOptions,
    evaluate,
    train_cohort,
    train_locally,
)

app = ClientApp(mods=[compression_mod])


@app.train()
@one_of_a_cohort
def train(message: Message, context: Context) -> Message:
    """Train the global model on this client's rows and return it with metrics."""
    cell, materials, client = _prepare(context)
    key, arrays = next(iter(array_records(message.content).items()))
    model = _model(cell.model, cell.data.name, materials)
    load_record(model, arrays)
    server_round, options = _told(cell, message)
    start = time.perf_counter()
    result = train_locally(
        model,
        materials.data,
        materials.rows(client),
        options,
        rng_for(cell.seed, round=server_round, client=client, purpose="training"),
        cell.device,
        cell.training.path,
    )
    return _reply(message, key, model, client, result, time.perf_counter() - start)


def train_many(messages: list[Message], contexts: list[Context]) -> list[Message]:
    """Train the clients of a cohort, which have the same global model, in one program."""
    cell, materials, _ = _prepare(contexts[0])
    clients = [int(context.node_config["partition-id"]) for context in contexts]
    key, arrays = next(iter(array_records(messages[0].content).items()))
    server_round, options = _told(cell, messages[0])
    for message in messages[1:]:
        sent = array_records(message.content)
        if sent != {key: arrays} or _told(cell, message) != (server_round, options):
            raise ValueError("the clients of a cohort were not sent the same")
    model = _model(cell.model, cell.data.name, materials)
    load_record(model, arrays)
    members = [
        CohortMember(
            materials.rows(client),
            rng_for(cell.seed, round=server_round, client=client, purpose="training"),
        )
        for client in clients
    ]
    start = time.perf_counter()
    cohort = train_cohort(model, materials.data, members, options, cell.device)
    seconds = (time.perf_counter() - start) / len(members)
    replies = []
    for place, (message, client) in enumerate(zip(messages, clients, strict=True)):
        cohort.load(place)
        replies.append(_reply(message, key, model, client, cohort.results[place], seconds))
    return replies


def facts_of(run_config: UserConfig) -> dict[str, str]:
    """Fingerprint what this process's clients would train on."""
    return _cell(tuple(run_config.items()))[1].facts()


offer_cohorts(app, train_many)
offer_facts(app, facts_of)


def _told(cell: Cell, message: Message) -> tuple[int, TrainingOptions]:
    """Read the round, and how to train, from the cell and what the server's rule adds to it."""
    config = message.content.get("config")
    config = config if isinstance(config, ConfigRecord) else ConfigRecord()
    proximal_mu = _number(config, "proximal-mu", cell.training.proximal_mu)
    return int(_number(config, "server-round", 0)), _options(cell.training, proximal_mu)


def _reply(
    message: Message,
    key: str,
    model: nn.Module,
    client: int,
    result: LocalResult,
    train_seconds: float,
) -> Message:
    metrics = {"num-examples": result.num_examples, "train_loss": result.loss}
    # Beside the metrics, because strategies average everything that stands there.
    client_says = {"partition-id": client, "train-seconds": train_seconds}
    records = {
        key: model_record(model),
        "metrics": filled(MetricRecord(), metrics),
        "client": filled(ConfigRecord(), client_says),
    }
    return Message(filled(RecordDict(), records), reply_to=message)


@app.evaluate()
def test(message: Message, context: Context) -> Message:
    """Measure the global model on this client's own training rows."""
    cell, materials, client = _prepare(context)
    arrays = next(iter(array_records(message.content).values()))
    model = _model(cell.model, cell.data.name, materials)
    load_record(model, arrays)
    rows, data = materials.rows(client), materials.data
    result = evaluate(model, data.train_x[rows], data.train_y[rows], data, device=cell.device)
    metrics = MetricRecord(
        {
            "num-examples": result.num_examples,
            "accuracy": result.accuracy,
            "loss": result.loss,
        }
    )
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def _prepare(context: Context) -> tuple[Cell, Materials, int]:
    cell, materials = _cell(tuple(context.run_config.items()))
    torch.set_num_threads(1)  # a call before this one may have set more
    return cell, materials, int(context.node_config["partition-id"])


@lru_cache(maxsize=2)
def _cell(run_config: tuple[tuple[str, Scalar], ...]) -> tuple[Cell, Materials]:
    cell = Cell.from_run_config(without_folder(dict(run_config)))
    return cell, materials_of(cell)


@lru_cache(maxsize=4)
def _options(settings: TrainingSettings, proximal_mu: float) -> TrainingOptions:
    return TrainingOptions(**{**settings.model_dump(exclude={"path"}), "proximal_mu": proximal_mu})


def without_folder(run_config: dict[str, Scalar]) -> dict[str, Scalar]:
    """Leave out `records`, the folder of the server's records: it is no setting of the cell."""
    return {key: value for key, value in run_config.items() if key != "records"}


_MODELS: dict[tuple[ModelSettings, str], nn.Module] = {}


def _model(settings: ModelSettings, data_name: str, materials: Materials) -> nn.Module:
    # Kept between calls: every weight and buffer of it is overwritten by the global model's.
    key = (settings, data_name)
    if key not in _MODELS:
        _MODELS.clear()
        _MODELS[key] = materials.new_model(settings, seed=0)
    return _MODELS[key]


def _number(config: ConfigRecord, name: str, default: float) -> float:
    value = config.get(name, default)
    return float(value) if isinstance(value, int | float) else default
