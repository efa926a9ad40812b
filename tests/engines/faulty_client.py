"""The simulations' client, which is killed or raises where the environment says so."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from simulations.client_app import app as client_app


class _Faulty(ClientApp):
    def __call__(self, message: Message, context: Context) -> Message:
        told = json.loads(os.environ["FAULTY_CLIENT"])
        if told.get("kill") == context.node_id and not Path(told["marker"]).exists():
            Path(told["marker"]).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if told.get("raise") == context.node_id:
            raise RuntimeError("no data")
        return client_app(message, context)


app = _Faulty()
