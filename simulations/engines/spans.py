"""When an engine worked on each client."""

from __future__ import annotations

from typing import NamedTuple


class ClientSpan(NamedTuple):
    """When one client was worked on.

    Attributes
    ----------
    node_id : int
        The client.
    worker : int
        Which worker of the engine, from 0.
    began : float
        In seconds of the driver's `time.monotonic`.
    seconds : float
        How long the worker was busy: reading state and message, `compute_seconds` in the app, and
        writing the answer. Clients that are trained together overlap.
    compute_seconds : float
        How long the app was at work for this client; of what is done for several, its share.
    node : str
        The id of the worker's machine; empty for the driver's own.
    """

    node_id: int
    worker: int
    began: float
    seconds: float
    compute_seconds: float
    node: str = ""
