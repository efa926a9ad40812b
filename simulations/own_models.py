"""The models that a finished cell holds: in which file each lies, and what it was built from."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import safetensors
import safetensors.numpy
from torch import nn

from fedcompress.checks import near
from fedcompress.errors import ConfigError, LayoutError
from simulations.cell import Cell
from simulations.materials import Materials
from simulations.model_settings import ModelSettings
from simulations.models.resized import with_arrays
from simulations.strategy_settings import StudentSettings

GLOBAL, STUDENT = "global", "student"
GLOBAL_FILE, STUDENT_FILE = "model.safetensors", "student.safetensors"
_JOINT_PREFIX = "models."

Settings = ModelSettings | StudentSettings


@final
@dataclass(frozen=True)
class OwnModel:
    """A model of a cell.

    Attributes
    ----------
    name : str
        ``global``, ``student``, or the group whose model it is.
    file : str
        The file in the cell's folder that holds its arrays.
    prefix : str
        With what the names of its arrays begin there.
    settings : tuple of ModelSettings or StudentSettings
        What it is built from; several where it is the ensemble of the groups' models.
    names : tuple of str
        Their names, where they are several.
    """

    name: str
    file: str
    prefix: str
    settings: tuple[Settings, ...]
    names: tuple[str, ...] = ()

    def build(self, materials: Materials, seed: int) -> nn.Module:
        """Build it, as it was before anything was pruned; its weights are drawn from the seed."""
        models = [materials.new_model(one, seed) for one in self.settings]
        if not self.names:
            return models[0]
        from simulations.exchanges.groups import JointModel

        return JointModel(dict(zip(self.names, models, strict=True)))

    def load(self, folder: Path, materials: Materials, seed: int) -> nn.Module:
        """Build it with the arrays that lie in a cell's folder, in evaluation mode.

        Raises
        ------
        ConfigError
            If the file is missing or damaged, holds another model, or numbers that are not finite.
        """
        file, mend = folder / self.file, f"remove {folder} and run the study again"
        arrays = self._read(file, mend)
        for name, x in arrays.items():
            if not np.isfinite(x).all():
                raise ConfigError(
                    f"{file}: array {name!r} is not finite, so its training has diverged; run the "
                    "study with a lower learning rate"
                )
        try:
            return with_arrays(self.build(materials, seed), arrays).eval()
        except LayoutError as error:
            raise ConfigError(f"{file} holds another model ({error}); {mend}") from error

    def _read(self, file: Path, mend: str) -> dict[str, np.ndarray[Any, Any]]:
        if not file.is_file():
            raise ConfigError(f"{file} is missing; {mend}")
        try:
            arrays = safetensors.numpy.load_file(file)
        except safetensors.SafetensorError as error:
            raise ConfigError(f"{file} is damaged ({error}); {mend}") from error
        start = self.prefix
        return {n.removeprefix(start): x for n, x in arrays.items() if n.startswith(start)}


def own_models(cell: Cell) -> Mapping[str, OwnModel]:
    """List a cell's models by name: the global one, those of its groups, the student.

    Where there are groups of one model each, the global model is the ensemble of all.
    """
    groups: Mapping[str, ModelSettings] = {}
    if cell.strategy.groups is not None:
        from simulations.exchanges.groups import groups_of

        groups = groups_of(cell)
    if len(groups) > 1:
        joint = OwnModel(GLOBAL, GLOBAL_FILE, "", tuple(groups.values()), tuple(groups))
        found = {GLOBAL: joint}
        for name, settings in groups.items():
            prefix = f"{_JOINT_PREFIX}{name}."
            found[name] = OwnModel(name, GLOBAL_FILE, prefix, (settings,))
    else:
        settings = next(iter(groups.values()), cell.model)
        found = {GLOBAL: OwnModel(GLOBAL, GLOBAL_FILE, "", (settings,))}
    if cell.strategy.student is not None:
        found[STUDENT] = OwnModel(STUDENT, STUDENT_FILE, "", (cell.strategy.student,))
    return found


def own_model(cell: Cell, name: str) -> OwnModel:
    """Give one of a cell's models.

    Raises
    ------
    ConfigError
        If it has no such model.
    """
    found = own_models(cell)
    if name in found:
        return found[name]
    if name == STUDENT:
        raise ConfigError(
            f"strategy {cell.label!r} has no student; choose another model, or give it a "
            "student = { … } and run the study again"
        )
    raise ConfigError(f"strategy {cell.label!r} has no model {name!r}; {near(name, list(found))}")
