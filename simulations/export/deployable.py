"""A trained model of a run, with the data that it is pruned, tuned and checked on."""

from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import Tensor, nn

from fedcompress import rng_for
from fedcompress.checks import near
from fedcompress.errors import ConfigError
from simulations.cell import Cell
from simulations.data import FederatedData
from simulations.materials import PROXY_ROWS, Materials, materials_of
from simulations.own_models import GLOBAL, Settings, own_model
from simulations.records import read_json

_CALIBRATION_ROWS = 1000


@final
@dataclass(frozen=True, eq=False)
class Deployable:
    """A finished cell's model and what belongs to it.

    Attributes
    ----------
    model : nn.Module
        The trained model, on the CPU, in evaluation mode.
    settings : ModelSettings or StudentSettings
        What it was built from.
    cell : Cell
        The cell that trained it.
    folder : Path
        The cell's folder.
    which : str
        Which of the cell's models it is: ``global``, ``student``, or its group.
    data : FederatedData
        The cell's data set; its test part checks what is exported.
    unlabelled : Tensor
        Inputs, shape (rows, ...), that ranges are measured and models are tuned on: the cell's
        proxy data, or else a keyed draw of training rows.
    unlabelled_from : str
        Which of the two they are.
    """

    model: nn.Module
    settings: Settings
    cell: Cell
    folder: Path
    which: str
    data: FederatedData
    unlabelled: Tensor
    unlabelled_from: str

    @property
    def example(self) -> Tensor:
        """Four inputs, as models take them."""
        return self.data.inputs(self.data.train_x[:4])


def load_deployable(
    folder: Path, cell_name: str | None = None, which: str = GLOBAL, data_dir: str | None = None
) -> Deployable:
    """Load a model of a finished cell.

    Parameters
    ----------
    folder : Path
        Folder of the run.
    cell_name : str, optional
        Name of the cell's folder, ``LABEL-seedK``; needed where the run has several cells.
    which : str
        ``global``, the ``student`` that was distilled, or the group of clients whose model it is.
    data_dir : str, optional
        Folder of data sets, where they lie elsewhere now than when the run was made.

    Raises
    ------
    ConfigError
        If there is no such cell, it is not finished, it has no such model, or its data are gone.
    """
    path = find_cell(folder, cell_name)
    cell = read_cell(path, data_dir)
    try:
        own = own_model(cell, which)
        if own.names:
            raise ConfigError(
                f"strategy {cell.label!r} has a model for each group; choose one with --model, "
                f"such as --model {own.names[0]}"
            )
        materials = materials_of(cell)
        model = own.load(path, materials, cell.seed)
    except ConfigError as error:
        raise ConfigError(f"export: {error}") from error
    unlabelled, origin = _unlabelled(cell, materials)
    return Deployable(
        model.eval(), own.settings[0], cell, path, which, materials.data, unlabelled, origin
    )


def find_cell(folder: Path, name: str | None) -> Path:
    """Find the folder of a finished cell.

    Raises
    ------
    ConfigError
        If there is no such cell, several to choose from, or it is not finished.
    """
    cells = sorted(path.parent for path in folder.glob("cells/*/cell.json"))
    names = [path.name for path in cells]
    if not cells:
        raise ConfigError(
            f"export: {folder} holds no cell; give the output folder of `fedcompress run`"
        )
    if name is None and len(cells) > 1:
        raise ConfigError(
            f"export: {folder} holds {len(cells)} cells; choose one with --cell, "
            f"such as --cell {names[0]}"
        )
    if name is not None and name not in names:
        raise ConfigError(f"export: {folder} has no cell {name!r}; {near(name, names)}")
    path = cells[0] if name is None else cells[names.index(name)]
    if (read_json(path / "result.json") or {}).get("finished") is not True:
        raise ConfigError(
            f"export: cell {path.name} is not finished; run the study to its end with "
            "`fedcompress run` and the same --out"
        )
    return path


def read_cell(path: Path, data_dir: str | None = None) -> Cell:
    """Read the settings of a cell, its data in ``data_dir`` where that is given.

    Raises
    ------
    ConfigError
        If ``cell.json`` cannot be read.
    """
    values = read_json(path / "cell.json")
    if values is None:
        raise ConfigError(f"export: {path / 'cell.json'} cannot be read; run the study again")
    if data_dir is not None:
        values["data"] = {**values.get("data", {}), "data_dir": data_dir}
    return Cell.checked(values, str(path / "cell.json"))


def _unlabelled(cell: Cell, materials: Materials) -> tuple[Tensor, str]:
    # What a generator or noise gives stands for rows in a round, not for what a device will see.
    if cell.proxy.samples > 0 and cell.proxy.source in PROXY_ROWS:
        return materials.proxy_inputs(), "proxy data"
    data = materials.data
    count = len(data.train_y)
    rng = rng_for(cell.seed, client="server", purpose="calibration")
    rows = rng.choice(count, size=min(_CALIBRATION_ROWS, count), replace=False)
    rows.sort()
    with torch.no_grad():
        return data.inputs(data.train_x[rows]), "training rows, without labels"
