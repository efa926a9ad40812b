"""Which program trains the cells of a study: decided by the driver, for every worker alike."""

from pathlib import Path

import torch

from simulations.cell import Cell
from simulations.materials import Materials, materials_of
from simulations.records import read_json, write_json
from simulations.training import (
    TrainingOptions,
    TrainingPath,
    choose_path,
    faster_path,
    has_no_rule,
)

_FILE = "training_path.json"


def with_training_path(cell: Cell, study_folder: Path) -> Cell:
    """Set `training.path` to the program that trains: by rule, or measured where none holds.

    What was measured is kept in the study's folder: programs round differently, so that all
    cells of a study, all workers, and a run that is resumed must train by the same one.
    """
    device = torch.device(cell.device)
    materials = materials_of(cell)
    model = materials.new_model(cell.model, cell.seed)
    path: TrainingPath = choose_path(cell.training.path, model, materials.data, device)
    if has_no_rule(cell.training.path, model, materials.data, device):
        path = _measured(cell, materials, study_folder)
    training = cell.training.model_copy(update={"path": path})
    return cell.model_copy(update={"training": training})


def _measured(cell: Cell, materials: Materials, study_folder: Path) -> TrainingPath:
    about = {
        "data": materials.data.name,
        "device": cell.device,
        "model": cell.model.model_dump(mode="json"),
        "training": cell.training.model_dump(mode="json"),
    }
    known = read_json(study_folder / _FILE)
    if known is None or known["about"] != about:
        options = TrainingOptions(**cell.training.model_dump(exclude={"path"}))
        model = materials.new_model(cell.model, cell.seed)
        found = faster_path(model, materials.data, options, torch.device(cell.device))
        known = {"about": about, "path": found}
        write_json(study_folder / _FILE, known)
    path: TrainingPath = known["path"]
    return path
