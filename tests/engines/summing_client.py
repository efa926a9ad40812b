"""A compressed client of unequal weights, for the tests of sums; workers import it by name."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedcompress import compression_mod, rng_for

Meddle = Callable[[int, int, RecordDict], None]


def make_app(meddle: Meddle | None = None) -> ClientApp:
    """An app of unequal weights, whose replies `meddle` may spoil."""

    def spoil(message: Message, context: Context, call_next: Callable[..., Message]) -> Message:
        reply = compression_mod(message, context, call_next)
        if meddle is not None and reply.has_content():
            number = int(message.content["config"]["server-round"])  # type: ignore[call-overload,index]
            meddle(number, context.node_id, reply.content)
        return reply

    app = ClientApp(mods=[spoil])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        number = int(message.content["config"]["server-round"])  # type: ignore[call-overload,index]
        rng = rng_for(3, round=number, client=context.node_id)
        _misbehave(dict(message.content["config"]), context.node_id)  # type: ignore[call-overload,arg-type]
        if context.node_id % 11 == 0:
            raise RuntimeError("no data")
        arrays = {name: a.numpy() for name, a in message.content["arrays"].items()}  # type: ignore[union-attr]
        trained = ArrayRecord(
            {
                name: Array(
                    (x + rng.standard_normal(x.shape)).astype(x.dtype)
                    if x.dtype.kind == "f"
                    else np.asarray(x + context.node_id)
                )
                for name, x in arrays.items()
            }
        )
        metrics = MetricRecord({"num-examples": context.node_id**2, "loss": float(rng.random())})
        return Message(RecordDict({"arrays": trained, "metrics": metrics}), reply_to=message)

    return app


def _misbehave(config: dict[str, object], node_id: int) -> None:
    if config.get("sleep") == node_id:
        time.sleep(60)
    if config.get("kill") == node_id:
        marker = Path(str(config["marker"]))
        if config.get("always") or not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def spoil(number: int, node_id: int, content: RecordDict) -> None:
    """Some clients of odd metrics, weights and arrays; in round 2 most metrics are others."""
    metrics = content["metrics"]
    if node_id in (1, 17, 34) or (number == 2 and node_id % 3):
        metrics["odd"] = 1.0  # type: ignore[index,call-overload]
    if node_id == 20:
        metrics["num-examples"] = -1  # type: ignore[index,call-overload]
    if node_id == 21:
        metrics["num-examples"] = 0  # type: ignore[index,call-overload]
    if node_id == 23 and "payload-0" not in content["arrays"]:  # type: ignore[operator]
        content["arrays"]["w"] = Array(np.full((40, 25), np.nan, np.float32))  # type: ignore[index,call-overload]
    elif node_id == 23:
        payload = content["arrays"]["payload-0"].data  # type: ignore[index,call-overload]
        content["arrays"]["payload-0"] = Array(  # type: ignore[index,call-overload]
            "uint8", (len(payload),), "fedcompress.v1", payload[:-1] + b"\x00"
        )


app = make_app()
spoilt_app = make_app(spoil)
