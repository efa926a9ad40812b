"""What can be known to fail before a run begins, told before anything is written."""

from collections.abc import Sequence
from pathlib import Path

import torch

from fedcompress.errors import ConfigError
from simulations.cell import Cell
from simulations.exchanges.exchange import Exchange, build_exchange
from simulations.materials import Materials, materials_of
from simulations.strategy import build_strategy
from strategies.student import count_parameters


def check_ready(cells: Sequence[Cell]) -> None:
    """Refuse cells that cannot run here, with these data and these models.

    Every strategy is built once, and the data are divided with every seed.

    Parameters
    ----------
    cells : sequence of Cell
        Those that are to run.

    Raises
    ------
    ConfigError
        If a device or a folder is not there, the data cannot be divided so, or a model, a
        strategy or a student does not fit.
    """
    for cell in cells:
        check_device(cell.device)
        folder = cell.data.data_dir
        if folder is not None and not Path(folder).is_dir():
            raise ConfigError(
                f"data.data_dir: there is no folder {folder!r}; name an existing one, or leave it "
                "out"
            )
    built: set[str] = set()
    for cell in cells:
        materials = materials_of(cell)
        if cell.label not in built:
            built.add(cell.label)
            exchange = build_exchange(cell, materials)
            build_strategy(cell, materials, exchange)
            _check_models(cell, materials, exchange)


def check_device(device: str) -> None:
    """Refuse a device that this machine does not have.

    Raises
    ------
    ConfigError
        Names the device, and what there is.
    """
    kind, _, number = device.partition(":")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"device: {device!r} is not available here; use device = {_found()!r}")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"device: {device!r} is not available here, torch finds no CUDA; use device = 'cpu'"
        )
    count = torch.cuda.device_count() if kind == "cuda" else 0
    if kind == "cuda" and int(number or 0) >= count:
        last = f"cuda:0 to cuda:{count - 1}" if count > 1 else "cuda:0 alone"
        raise ConfigError(f"device: there is no {device!r}; this machine has {last}")


def _found() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _check_models(cell: Cell, materials: Materials, exchange: Exchange) -> None:
    """Build the global model and the student, which has to be the smaller."""
    teacher = count_parameters(exchange.new_model())
    settings = cell.strategy.student
    if settings is None:
        return
    key = f"strategies.{cell.label}.student"
    try:
        student = count_parameters(materials.new_model(settings, cell.seed))
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from error
    if student >= teacher:
        raise ConfigError(
            f"{key}: it has {student} parameters, the global model {teacher}; "
            f"choose a smaller one by {key}.hidden or {key}.width"
        )
