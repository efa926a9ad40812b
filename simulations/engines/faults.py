"""What went wrong in an engine, and what came of it: one record for each fault."""

from __future__ import annotations

from typing import Literal, NamedTuple

from fedcompress.errors import ConfigError

FaultKind = Literal[
    "client_raised",
    "client_hung",
    "client_late",
    "out_of_memory",
    "worker_died",
    "node_lost",
    "memory_full",
    "disk_full",
    "no_workers",
    "other_data",
    "ray_gone",
]
Outcome = Literal["run_again", "left_out", "replaced", "on_disk", "stopped"]

# Of Python, numpy, and PyTorch on a GPU; PyTorch's allocator on a CPU raises a RuntimeError.
_NO_MEMORY = ("MemoryError", "_ArrayMemoryError", "OutOfMemoryError")
_NO_MEMORY_TOLD = "can't allocate memory"


class Fault(NamedTuple):
    """One fault.

    Attributes
    ----------
    kind : str
        ``client_raised``; ``client_hung``, its call took longer than `client_timeout`;
        ``client_late``, it had not answered at the end of the round's timeout; ``out_of_memory``,
        of a client or of the machine under its worker; ``worker_died``; ``node_lost``, a machine
        of the cluster with a worker; ``memory_full``, the file system in memory has no room;
        ``disk_full``; ``no_workers``, none is left and none starts; ``other_data``, a worker's
        are not the driver's; ``ray_gone``, Ray does not answer any more.
    outcome : str
        What came of it: ``run_again``, the clients concerned run again; ``left_out``, the client
        of the round has no update; ``replaced``, an idle worker was; ``on_disk``, what was to lie
        in memory lies there; ``stopped``, the run ended, and goes on when it is resumed.
    reason : str
        In words.
    node_id : int or None
        The client; of several that a worker had not answered, the one it was at.
    worker : int or None
        Number of the worker.
    attempt : int
        How many workers have died at this client in this round.
    seconds : float or None
        How long the client had been worked on.
    clients : int
        How many clients are concerned.
    """

    kind: FaultKind
    outcome: Outcome
    reason: str
    node_id: int | None = None
    worker: int | None = None
    attempt: int = 1
    seconds: float | None = None
    clients: int = 1


class EngineGoneError(ConfigError):
    """The engine cannot go on; `kind` says what is gone."""

    def __init__(self, said: str, kind: FaultKind) -> None:
        super().__init__(said)
        self.kind: FaultKind = kind


def kind_of_failure(reason: str) -> FaultKind:
    """Tell what a client's exception was, from ``"NameOfTheException: words"``."""
    name = reason.partition(":")[0].rpartition(".")[2]
    no_memory = name in _NO_MEMORY or _NO_MEMORY_TOLD in reason
    return "out_of_memory" if no_memory else "client_raised"
