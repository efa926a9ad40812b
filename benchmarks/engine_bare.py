"""Two bare processes that run the same training with no framework: what an engine is held to.

Parameters, the sums and the work lists lie in shared memory or go through a pipe; each process
adds up the models of its clients, the parent adds the two sums.
"""

import random
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor, multiprocessing, nn

from benchmarks.engine_clock import Clock
from benchmarks.engine_rows import SKIPPED_ROUNDS, Workload
from fedcompress import rng_for
from simulations.cell import Cell
from simulations.materials import materials_of
from simulations.settings import Scalar
from simulations.training import train_locally

PROCESSES = 2


def run_bare(workload: Workload, settings: dict[str, Scalar]) -> dict[str, Any]:
    """Train by FedAvg and give the clock's figures."""
    cell = Cell.from_run_config(settings)
    materials = materials_of(cell)
    model = materials.new_model(cell.model, cell.seed)
    weights = _shared(_flat(model))
    sums = [_shared(torch.zeros_like(weights)) for _ in range(PROCESSES)]
    spawn = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for total in sums:
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=_work, args=(settings, weights, total, theirs), daemon=True)
        process.start()
        pipes.append(ours)
        processes.append(process)
    for pipe in pipes:
        pipe.recv()
    last = SKIPPED_ROUNDS + workload.rounds
    sizes = materials.partition.sizes().tolist()
    clock = Clock(last, [int(process.pid or 0) for process in processes])
    clock.start()
    for number in range(1, last + 1):
        sampled = random.Random(number).sample(range(workload.clients), workload.per_round)
        for pipe, part in zip(pipes, _halves(sampled, sizes), strict=True):
            pipe.send((number, part))
        for pipe in pipes:
            pipe.recv()
        torch.add(sums[0], sums[1], out=weights).div_(
            float(sum(sizes[client] for client in sampled))
        )
        clock.round_ended(number)
    for pipe in pipes:
        pipe.send(None)
    _load(model, weights)
    clock.test(model, materials.data)
    return clock.figures()


def _work(settings: dict[str, Scalar], weights: Tensor, total: Tensor, pipe: Connection) -> None:
    torch.set_num_threads(1)
    cell = Cell.from_run_config(settings)
    materials = materials_of(cell)
    model = materials.new_model(cell.model, 0)
    options = cell.training.options()
    pipe.send("ready")
    while (work := pipe.recv()) is not None:
        number, clients = work
        total.zero_()
        for client in clients:
            _load(model, weights)
            rng = rng_for(cell.seed, round=number, client=client, purpose="training")
            rows = materials.rows(client)
            train_locally(model, materials.data, rows, options, rng, path=cell.training.path)
            total.add_(_flat(model), alpha=len(rows))
        pipe.send("done")


def _halves(clients: list[int], sizes: Sequence[int]) -> list[list[int]]:
    """Give every client to the process with the fewest samples so far, the largest first."""
    halves: list[list[int]] = [[] for _ in range(PROCESSES)]
    loads = [0] * PROCESSES
    for client in sorted(clients, key=lambda client: -sizes[client]):
        least = loads.index(min(loads))
        halves[least].append(client)
        loads[least] += sizes[client]
    return halves


def _shared(x: Tensor) -> Tensor:
    moved: Tensor = x.share_memory_()  # type: ignore[no-untyped-call]
    return moved


def _state(model: nn.Module) -> list[Tensor]:
    """Give all that is averaged: parameters, and running statistics but not their counters."""
    floats = [x for x in model.buffers() if x.is_floating_point()]
    return [*(x.detach() for x in model.parameters()), *floats]


def _flat(model: nn.Module) -> Tensor:
    return torch.cat([x.reshape(-1) for x in _state(model)])


def _load(model: nn.Module, flat: Tensor) -> None:
    state = _state(model)
    for x, values in zip(state, torch.split(flat, [x.numel() for x in state]), strict=True):
        x.copy_(values.view(x.shape))
