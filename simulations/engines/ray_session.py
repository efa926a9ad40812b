"""Joining or starting Ray, and how many workers fit."""

from __future__ import annotations

import logging
import math
import os
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from fedcompress.errors import ConfigError
from simulations.engines.faults import EngineGoneError

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 5.0
NODE_ANSWER_SECONDS = 2.0
ANSWER_SECONDS = 20.0

T = TypeVar("T")


def open_session(address: str | None, needed_cpus: float = 0) -> bool:
    """Join the Ray that runs already in this process or at `address`, or start one here.

    Parameters
    ----------
    address : str or None
        ``"host:port"`` of a cluster's head, ``"auto"`` for the cluster of this machine, or None
        for the session of this process, else a new one.
    needed_cpus : float
        What all workers need together: a new session declares at least as many CPUs, since on
        few cores more workers than cores may be wanted. 0 takes what Ray finds.

    Returns
    -------
    bool
        Whether this call made the session, so that it is ours to leave.

    Raises
    ------
    ConfigError
        If nothing answers at `address`.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray 2.55 announces that it will stop hiding GPUs from processes that ask for none.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if ray.is_initialized():
        return False
    quiet: dict[str, Any] = {
        "include_dashboard": False,
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "configure_logging": False,
        "job_config": ray.job_config.JobConfig(_py_driver_sys_path=_project_paths()),
    }
    if address is None:
        cpus = None
        if needed_cpus:
            cpus = max(len(os.sched_getaffinity(0)), math.ceil(needed_cpus))
        # Ray would give its workers the lowest priority, and any neighbour the processor.
        ray.init(address="local", num_cpus=cpus, _system_config={"worker_niceness": 0}, **quiet)
        return True
    host, port = _host_and_port(address)
    _expect_cluster(host, port)
    quiet.pop("include_dashboard")
    try:
        ray.init(address=f"{host}:{port}", **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"address: cannot join the Ray cluster at {host}:{port} ({error}); "
            "does it run the same Ray and Python?"
        ) from error
    return True


def _expect_cluster(host: str, port: int) -> None:
    """Ask the cluster's head for its id: left to itself, Ray tries for 100 s and then exits."""
    import grpc  # type: ignore[import-untyped]  # Flower brings it

    if os.environ.get("RAY_USE_TLS", "0") == "1":
        return  # Ray has the certificates
    with grpc.insecure_channel(f"{host}:{port}") as channel:
        ask = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")
        try:
            ask(b"", timeout=CONNECT_SECONDS)
        except grpc.RpcError as error:
            missing = (
                grpc.StatusCode.UNAVAILABLE,
                grpc.StatusCode.DEADLINE_EXCEEDED,
                grpc.StatusCode.UNIMPLEMENTED,
            )
            if error.code() in missing:
                raise ConfigError(
                    f"address: no Ray cluster answers at {host}:{port}; start one with "
                    "`ray start --head`, or leave the address out to start Ray here"
                ) from error


def _project_paths() -> list[str]:
    """Where this process finds modules that are not installed; Ray itself passes the cwd only."""
    installed = (sys.prefix, sys.base_prefix)
    entries = [str(Path(entry).resolve()) for entry in sys.path]
    mine = [entry for entry in dict.fromkeys(entries) if not entry.startswith(installed)]
    return mine[::-1]  # a worker puts each one in front of the one before


def _host_and_port(address: str) -> tuple[str, int]:
    if address == "auto":
        from ray._private.utils import read_ray_address

        found = read_ray_address()
        if not found:
            raise ConfigError(
                'address: "auto" finds no Ray cluster on this machine; start one with '
                "`ray start --head`, or leave the address out to start Ray here"
            )
        address = str(found)
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        raise ConfigError(
            f'address: expected "host:port" of a Ray head or "auto", got {address!r}; '
            "`ray start --head` prints it"
        )
    return host, int(port)


def workers_that_fit(cpus_per_worker: float, gpus_per_worker: float) -> int:
    """Count the workers that the nodes of the session can hold at once, node by node."""
    import ray

    fit = 0
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        if not node["Alive"]:
            continue
        resources = node["Resources"]
        by_cpu = resources.get("CPU", 0.0) / cpus_per_worker if cpus_per_worker else math.inf
        by_gpu = resources.get("GPU", 0.0) / gpus_per_worker if gpus_per_worker else math.inf
        fit += int(min(by_cpu, by_gpu, 1024.0) + 1e-9)
    return fit


def node_answers(node_id: str) -> bool:
    """Whether Ray on a node still takes connections; the cluster's head may learn it much later."""
    import ray

    for node in ray.nodes():  # type: ignore[no-untyped-call]
        if node["NodeID"] == node_id and node["Alive"]:
            place = node["NodeManagerAddress"], node["NodeManagerPort"]
            try:
                socket.create_connection(place, NODE_ANSWER_SECONDS).close()
            except OSError:
                return False
            return True
    return False


def ask_ray(question: Callable[[], T]) -> T:
    """Ask Ray for something while a run goes on: it waits for ever for a head that is gone.

    Raises
    ------
    EngineGoneError
        If Ray does not answer.
    """
    answers: list[T] = []
    errors: list[Exception] = []

    def ask() -> None:
        try:
            answers.append(question())
        except Exception as error:  # noqa: BLE001 - told below
            errors.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(ANSWER_SECONDS)
    if answers:
        return answers[0]
    why = f" ({errors[0]})" if errors else ""
    raise EngineGoneError(
        f"engine: Ray does not answer any more{why}, so a lost worker cannot be replaced; "
        "start the cluster again and resume the run",
        "ray_gone",
    )
