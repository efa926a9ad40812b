"""The process that workers are forked from: it has imported torch, Flower and the app's module.

It has one thread and has computed nothing, which is what makes forking safe; its memory is shared
with every worker until one of them writes to it.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import pickle
import random
import signal
import socket
import struct
import sys
from contextlib import suppress

FORK, END = b"F", b"E"
REQUEST = struct.Struct("<cq")
ANSWER = struct.Struct("<q")
_PR_SET_PDEATHSIG = 1


def serve(descriptor: int) -> None:
    """Load the app, then fork and end workers as the driver asks, until the driver is gone."""
    control = socket.socket(fileno=descriptor)
    gc.disable()
    client_app, said = _load(control)
    control.sendall(ANSWER.pack(len(said)) + said)
    # What is there now belongs to no garbage: collecting would write to pages that are shared.
    gc.collect()
    gc.freeze()
    children: set[int] = set()
    while True:
        request, descriptors, _, _ = socket.recv_fds(control, REQUEST.size, 1)
        if len(request) < REQUEST.size:
            break
        kind, number = REQUEST.unpack(request)
        if kind == FORK:
            pid = _fork(control, descriptors[0], client_app)
            os.close(descriptors[0])
            children.add(pid)
            control.sendall(ANSWER.pack(pid))
        else:
            control.sendall(ANSWER.pack(_end(number) if number in children else 0))
            children.discard(number)
    for pid in children:
        _end(pid)


def _load(control: socket.socket) -> tuple[object, bytes]:
    """Read what to import and import it; give the app's path or factory, and what went wrong."""
    (length,) = ANSWER.unpack(_exactly(control, ANSWER.size))
    told = json.loads(_exactly(control, length))
    import simulations.engines.worker  # noqa: F401 - torch and Flower, for every worker

    if told["app"] is not None:
        module = told["app"].partition(":")[0]
        with suppress(Exception):  # the worker imports it again and tells what is wrong
            importlib.import_module(module)
        return told["app"], b""
    try:
        # From the process that started this one, over a socket that no other has.
        return pickle.loads(bytes.fromhex(told["factory"])), b""  # noqa: S301
    except Exception as error:  # noqa: BLE001 - whatever unpickling runs may raise
        return None, f"{type(error).__name__}: {error}".encode()


def _exactly(control: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = control.recv(count - len(data))
        if not more:
            os._exit(0)  # the driver is gone
        data += more
    return data


def _fork(control: socket.socket, descriptor: int, client_app: object) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        control.close()
        _die_with(parent)
        gc.enable()
        _draw_anew()
        from simulations.engines.worker import work

        work(socket.socket(fileno=descriptor), client_app)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the driver is gone, or wants this worker no more
    except BaseException:  # noqa: BLE001 - nothing of the server's must run on in this process
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _die_with(parent: int) -> None:
    """Let the kernel end this process with its parent, also in the middle of a client."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def _draw_anew() -> None:
    """Seed the process-wide generators, which would draw the same numbers in every worker."""
    import numpy as np
    import torch

    random.seed()
    np.random.seed()  # noqa: NPY002 - an app may use it
    torch.seed()


def _end(pid: int) -> int:
    """Kill a worker that may be dead already, and return the status that it ended with."""
    os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]
