"""Updates to measure codecs on: what one client's local training changes."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.resnet18 import resnet18
from fedcompress import rng_for
from fedcompress.errors import ConfigError
from simulations.data import FederatedData, load_data
from simulations.models import build_model
from simulations.partition import partition_data
from simulations.training import TrainingOptions, train_locally

Update: TypeAlias = Mapping[str, NDArray[np.float32]]


@final
@dataclass(frozen=True)
class Training:
    """How an update comes about.

    Attributes
    ----------
    data : str
        ``"digits"``, or the folder of a data set below ``--data-dir``.
    build : callable
        Makes the model with freshly drawn weights.
    warm_samples : int
        Samples of all clients on which the model has trained before, one pass.
    clients : int
        Clients among whom the data are divided, Dirichlet(.3); the first with a fair share trains.
    local_epochs : int
        Passes of the client over its samples: batches of 32, SGD with learning rate .05.
    """

    data: str
    build: Callable[[], nn.Module]
    warm_samples: int
    clients: int
    local_epochs: int


def _small(name: str, side: int, **size: object) -> Callable[[], nn.Module]:
    return lambda: build_model(name, (1, side, side), 10, seed=0, **size)  # type: ignore[arg-type]


TRAININGS: Mapping[str, Training] = {
    "digits_mlp": Training("digits", _small("mlp", 8, hidden=(200,)), 1200, 10, 2),
    "digits_cnn": Training("digits", _small("lenet", 8), 1200, 10, 2),
    "fashion_small": Training("fashion_mnist", _small("lenet", 28, width=0.25), 6000, 100, 2),
    "fashion_mlp": Training("fashion_mnist", _small("mlp", 28), 6000, 100, 2),
    "fashion_mlp_long": Training("fashion_mnist", _small("mlp", 28), 6000, 10, 5),
    "fashion_cnn": Training("fashion_mnist", _small("lenet", 28), 6000, 100, 2),
    "fashion_resnet": Training("fashion_mnist", resnet18, 1024, 100, 1),
}
"""Names of updates. A client of ``fashion_mlp_long`` takes 25 times as many steps as one of
``fashion_mlp``: the fewer the steps, the more an update is like a matrix of low rank.
``fashion_resnet`` takes about a minute of training."""


def train_update(name: str, data_dir: str | None = None, *, seed: int = 0) -> Update:
    """Train as `TRAININGS` says and give after − before of the parameters, float32 by name.

    Statistics of batch normalisation are left out: they are no part of the gradient's change.

    Raises
    ------
    ConfigError
        If there is no such training, or its data set is not in ``data_dir``.
    """
    training = _training(name)
    (update,) = successive_updates(name, 1, data_dir, seed=seed, epochs=training.local_epochs)
    return update


def successive_updates(
    name: str, count: int, data_dir: str | None = None, *, seed: int = 0, epochs: int = 1
) -> Iterator[Update]:
    """Train one client again and again, and give what each call of ``epochs`` passes changed.

    Raises
    ------
    ConfigError
        As `train_update` does.
    """
    training = _training(name)
    data = load_data(training.data, data_dir)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = training.build()
    rng = rng_for(seed, purpose="warm")
    warm = rng.permutation(len(data.train_y))[: training.warm_samples]
    train_locally(model, data, warm, TrainingOptions(local_epochs=1), rng)
    rows, options = _rows(data, training.clients, seed), TrainingOptions(local_epochs=epochs)
    for number in range(count):
        before = {key: p.detach().clone() for key, p in model.named_parameters()}
        train_locally(model, data, rows, options, rng_for(seed, round=number))
        yield {
            key: np.ascontiguousarray((p.detach() - before[key]).numpy())
            for key, p in model.named_parameters()
        }


def _training(name: str) -> Training:
    if name not in TRAININGS:
        raise ConfigError(f"updates: there is no {name!r}; use one of {', '.join(TRAININGS)}")
    return TRAININGS[name]


def _rows(data: FederatedData, clients: int, seed: int) -> NDArray[np.int64]:
    partition = partition_data(data, "dirichlet", clients, seed, alpha=0.3, min_samples=10)
    sizes = partition.sizes()
    typical = int(np.abs(sizes - np.median(sizes)).argmin())
    return np.asarray(partition.rows(typical), dtype=np.int64)


def stored_updates(folder: Path) -> dict[str, Update]:
    """Read every ``.npz`` of a folder: one update each, float arrays by parameter name.

    Raises
    ------
    ConfigError
        If the folder holds none, an array is not of finite floats, or an update is all zero.
    """
    files = sorted(folder.glob("*.npz"))
    if not files:
        raise ConfigError(
            f"updates: no .npz in {folder}; save one with numpy.savez(file, **update)"
        )
    return {file.stem: _read(file) for file in files}


def _read(file: Path) -> Update:
    update: dict[str, NDArray[np.float32]] = {}
    with np.load(file, allow_pickle=False) as stored:
        for name in stored.files:
            if stored[name].dtype.kind != "f" or not np.isfinite(stored[name]).all():
                raise ConfigError(f"updates: {file}: {name} is not all finite floats; leave it out")
            update[name] = np.ascontiguousarray(stored[name], dtype=np.float32)
    if not any(x.any() for x in update.values()):
        raise ConfigError(f"updates: {file} is all zero; give what training changed")
    return update
