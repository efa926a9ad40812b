"""A small client with a state, for the tests of the engines; workers import it by name."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Halve the model, add the residual, and keep a new residual; misbehave where told to."""
    config = message.content["config"]
    assert isinstance(config, ConfigRecord)
    _misbehave(dict(config), context)
    model = message.content.array_records["arrays"]["weight"].numpy()
    known = context.state.get("residual")
    residual = known["weight"].numpy() if isinstance(known, ArrayRecord) else np.zeros_like(model)
    rng = np.random.default_rng((int(str(config["round"])), context.node_id))
    update = model / 2 + residual + rng.standard_normal(model.shape).astype(np.float32)
    context.state["residual"] = ArrayRecord({"weight": Array(update - model)})
    context.state["calls"] = MetricRecord({"calls": _calls(context) + 1})
    partition = int(str(context.node_config["partition-id"]))
    metrics = MetricRecord({"num-examples": partition, "calls": _calls(context)})
    content = RecordDict({"arrays": ArrayRecord({"weight": Array(update)}), "metrics": metrics})
    return Message(content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Say what this client was told, and change nothing."""
    told = {name: value for name, value in context.run_config.items() if isinstance(value, int)}
    numbers = MetricRecord({**told, "clients": int(str(context.node_config["num-partitions"]))})
    threads = ConfigRecord({"omp": os.environ.get("OMP_NUM_THREADS", ""), "pid": os.getpid()})
    return Message(RecordDict({"metrics": numbers, "process": threads}), reply_to=message)


@app.query()
def query(message: Message, context: Context) -> Message:
    """Change everything that was sent, and the state; send back what was there before."""
    arrays = message.content.array_records["arrays"]
    config = message.content.config_records["config"]
    seen = ConfigRecord({"round": config["round"], "list": list(config["list"])})  # type: ignore[arg-type]
    before = arrays["weight"].numpy()
    arrays["weight"] = Array(before + 1)
    arrays["weight"].data = arrays["weight"].data[:-4] + b"\x00\x00\x00\x00"
    config["round"] = -1
    config["list"].append(99)  # type: ignore[union-attr]
    message.content["more"] = MetricRecord({"more": 1})
    reply = RecordDict({"arrays": ArrayRecord({"weight": Array(before)}), "config": seen})
    return Message(reply, reply_to=message)


def _calls(context: Context) -> int:
    record = context.state.get("calls")
    return int(str(record["calls"])) if isinstance(record, MetricRecord) else 0


def _misbehave(config: dict[str, object], context: Context) -> None:
    if config.get("raise") == context.node_id:
        context.state["broken"] = MetricRecord({"broken": 1})
        raise RuntimeError(f"client {context.node_id} has no data")
    if config.get("hoard") == context.node_id:
        np.empty(1 << 60, np.uint8)
    if config.get("sleep") == context.node_id:
        time.sleep(float(str(config.get("seconds", 60))))
    if "slow" in config:
        time.sleep(float(str(config["slow"])))
    if config.get("kill") == context.node_id:
        marker = Path(str(config["marker"]))
        if config.get("always") or not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
