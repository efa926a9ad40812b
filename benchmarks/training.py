"""Microseconds of CPU for one step of local training, by model and program.

``python -m benchmarks.training [--data-dir DIR] [--models NAME ...] [--json FILE]``: every client
of a round trains one epoch with SGD and batches of 32, on one thread; programs take turns, and the
median of the repetitions counts. ``bare`` is the plainest loop in PyTorch that does the same: the
client's rows made float once, a backward pass and one subtraction per parameter at each step.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import nn
from torch.nn import functional as F

from fedcompress import rng_for
from simulations.data import FederatedData, load_data
from simulations.drawn import DrawnPartition
from simulations.models import build_model
from simulations.partition import Partition, partition_data
from simulations.training import (
    CohortMember,
    TrainingOptions,
    choose_path,
    train_cohort,
    train_locally,
)

CLIENTS = 100
OPTIONS = TrainingOptions()
CPU = torch.device("cpu")


@final
@dataclass(frozen=True)
class Case:
    """A model, its data, and how many of the 100 clients train."""

    data: str
    model: str
    hidden: tuple[int, ...]
    trained: int


CASES: Mapping[str, Case] = {
    "digits_mlp": Case("digits", "mlp", (128,), 100),
    "digits_2nn": Case("digits", "mlp", (200, 200), 100),
    "fashion_mlp": Case("fashion_mnist", "mlp", (128,), 100),
    "fashion_2nn": Case("fashion_mnist", "mlp", (200, 200), 100),
    "fashion_lenet": Case("fashion_mnist", "lenet", (), 10),
    "fashion_resnet": Case("fashion_mnist", "resnet", (), 1),
}


@final
@dataclass(frozen=True)
class Round:
    """What a program trains on."""

    model: nn.Module
    start: dict[str, torch.Tensor]
    data: FederatedData
    partition: Partition | DrawnPartition
    clients: int

    def members(self) -> list[CohortMember]:
        """Give rows and random generator of each client, always the same."""
        return [
            CohortMember(self.partition.rows(client), rng_for(0, client=client))
            for client in range(self.clients)
        ]

    def steps(self) -> int:
        """Count the steps of all clients."""
        batch = OPTIONS.batch_size
        return sum(-(-len(member.rows) // batch) for member in self.members())


def bare(work: Round) -> None:
    """Train in the plainest way."""
    parameters = list(work.model.parameters())
    for member in work.members():
        work.model.load_state_dict(work.start)
        order = member.rng.permutation(member.rows)
        x = work.data.inputs(work.data.train_x[order])
        y = torch.from_numpy(work.data.train_y[order])
        for start in range(0, len(y), OPTIONS.batch_size):
            part = slice(start, start + OPTIONS.batch_size)
            loss = F.cross_entropy(work.model(x[part]), y[part])
            gradients = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.sub_(gradient, alpha=OPTIONS.learning_rate)


def eager(work: Round) -> None:
    """Train one by one in PyTorch."""
    for member in work.members():
        work.model.load_state_dict(work.start)
        train_locally(work.model, work.data, member.rows, OPTIONS, member.rng, path="eager")


def compiled(work: Round) -> None:
    """Train one by one in the compiled loop."""
    for member in work.members():
        work.model.load_state_dict(work.start)
        train_locally(work.model, work.data, member.rows, OPTIONS, member.rng, path="compiled")


def cohort(work: Round) -> None:
    """Train all in one program."""
    work.model.load_state_dict(work.start)
    train_cohort(work.model, work.data, work.members(), OPTIONS)


PROGRAMS: Mapping[str, Callable[[Round], None]] = {
    "bare": bare,
    "eager": eager,
    "compiled": compiled,
    "cohort": cohort,
}


def measure(case: Case, data_dir: str | None, repetitions: int) -> dict[str, float | None]:
    """Give the median microseconds a step by program, None for one that cannot train the model."""
    data = load_data(case.data, data_dir)
    model = build_model(
        case.model, data.sample_shape, data.num_classes, seed=0, hidden=case.hidden or (1,)
    )
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    partition = partition_data(data, "dirichlet", CLIENTS, 0, alpha=0.5)
    work = Round(model, start, data, partition, case.trained)
    known = [
        name
        for name in PROGRAMS
        if name in ("bare", "eager") or choose_path(name, model, data, CPU) == name  # type: ignore[arg-type]
    ]
    seconds: dict[str, list[float]] = {name: [] for name in known}
    for repetition in range(repetitions + 1):  # the first one compiles and warms up
        for name in known if repetition % 2 else reversed(known):
            began = time.process_time()
            PROGRAMS[name](work)
            if repetition:
                seconds[name].append(time.process_time() - began)
    steps = work.steps()
    return {
        name: statistics.median(seconds[name]) / steps * 1e6 if name in known else None
        for name in PROGRAMS
    }


def main() -> None:
    """Measure, print a table and write it as JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir")
    parser.add_argument("--models", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    write = sys.stdout.write
    write(f"{'µs of CPU a step':18}" + "".join(f"{name:>10}" for name in PROGRAMS) + "\n")
    table = {}
    for name in chosen.models:
        row = table[name] = measure(CASES[name], chosen.data_dir, chosen.repetitions)
        cells = ("-" if value is None else f"{value:.1f}" for value in row.values())
        write(f"{name:18}" + "".join(f"{cell:>10}" for cell in cells) + "\n")
        sys.stdout.flush()
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
