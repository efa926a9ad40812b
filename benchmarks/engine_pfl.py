"""pfl-research (Granqvist et al., 2024) on two processes: this one and one that it starts."""

import itertools
import os
import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.engine_clock import Clock
from benchmarks.engine_rows import SKIPPED_ROUNDS, Workload
from simulations.cell import Cell
from simulations.materials import materials_of
from simulations.settings import Scalar

PROCESSES = 2


def run_pfl(workload: Workload, settings: dict[str, Scalar]) -> dict[str, Any]:
    """Train by pfl's FederatedAveraging and give the clock's figures."""
    other = _start_ranks()
    # pfl reads the rank as it is imported.
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.aggregate.weighting import WeightByDatapoints
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.pytorch import PyTorchTensorDataset
    from pfl.hyperparam import NNTrainHyperParams
    from pfl.metrics import Metrics
    from pfl.model.pytorch import PyTorchModel

    cell = Cell.from_run_config(settings)
    materials = materials_of(cell)
    model = materials.new_model(cell.model, cell.seed)
    clients = range(workload.clients)
    data = materials.data
    users = {}
    for client in clients:
        rows = materials.rows(client)
        y = torch.from_numpy(np.array(data.train_y[rows]))
        users[client] = PyTorchTensorDataset((data.inputs(data.train_x[rows]), y), str(client))
    last = SKIPPED_ROUNDS + workload.rounds
    clock = Clock(last, None if other is None else [os.getpid(), other.pid])

    class Stamps(TrainingProcessCallback):  # type: ignore[misc]  # pfl carries no types here
        def on_train_begin(self, *, model: object) -> object:
            clock.start()
            return Metrics()

        def after_central_iteration(
            self, aggregate_metrics: object, model: object, *, central_iteration: int
        ) -> tuple[bool, object]:
            clock.round_ended(central_iteration + 1)
            return False, Metrics()

    np.random.seed(0)  # noqa: NPY002  pfl's own state, which has to be alike on all ranks
    sizes = {client: int(size) for client, size in enumerate(materials.partition.sizes())}
    dataset = FederatedDataset(users.__getitem__, _drawn(workload).__next__, sizes)
    training = cell.training
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=last,
            evaluation_frequency=last + 1,
            train_cohort_size=workload.per_round,
            val_cohort_size=None,
        ),
        backend=SimulatedBackend(dataset, dataset, [WeightByDatapoints()]),
        model=PyTorchModel(
            _with_loss(model), torch.optim.SGD, torch.optim.SGD(model.parameters(), lr=1.0)
        ),
        model_train_params=NNTrainHyperParams(
            local_num_epochs=training.local_epochs,
            local_learning_rate=training.learning_rate,
            local_batch_size=training.batch_size,
        ),
        callbacks=[Stamps()],
        send_metrics_to_platform=False,
    )
    if other is not None:
        other.wait()
    clock.test(model, data)
    return clock.figures()


def _start_ranks() -> "subprocess.Popen[bytes] | None":
    """Become rank 0 and start the other as `torchrun` would; None in the other itself."""
    torch.set_num_threads(1)
    if "RANK" in os.environ:
        return None
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "benchmark",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(PROCESSES),
        "LOCAL_WORLD_SIZE": str(PROCESSES),
    }
    command = [sys.executable, "-m", "benchmarks.engine_run", *sys.argv[1:]]
    environment = os.environ | {"RANK": "1", "LOCAL_RANK": "1"}
    other = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0"}
    return other


def _drawn(workload: Workload) -> Iterator[int]:
    """Draw the clients that the other engines draw, round after round."""
    for number in itertools.count(1):
        yield from random.Random(number).sample(range(workload.clients), workload.per_round)


def _with_loss(model: nn.Module) -> nn.Module:
    """Give a model the two methods that pfl asks for."""

    def loss(x: Tensor, y: Tensor) -> Tensor:
        model.train()
        return F.cross_entropy(model(x), y)

    def metrics(x: Tensor, y: Tensor) -> dict[str, object]:
        return {}

    model.loss = loss  # type: ignore[assignment]
    model.metrics = metrics  # type: ignore[assignment]
    return model
