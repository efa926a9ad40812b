"""Which program trains the cells of a study, decided once where only a measurement can tell."""

from pathlib import Path

import torch

from simulations.cell import Cell
from simulations.materials import materials_of
from simulations.records import read_json, write_json
from simulations.training import TrainingOptions, faster_path, has_no_rule

_FILE = "training_path.json"


def with_training_path(cell: Cell, study_folder: Path) -> Cell:
    """Set `training.path` where it is to be measured; every other cell stays as it is.

    What was measured is kept in the study's folder: programs round differently, so that all
    cells of a study, all workers, and a run that is resumed must train by the same one.
    """
    device = torch.device(cell.device)
    materials = materials_of(cell)
    model = materials.new_model(cell.model, cell.seed)
    if not has_no_rule(cell.training.path, model, materials.data, device):
        return cell
    about = {
        "data": materials.data.name,
        "device": cell.device,
        "model": cell.model.model_dump(mode="json"),
        "training": cell.training.model_dump(mode="json"),
    }
    known = read_json(study_folder / _FILE)
    if known is None or known["about"] != about:
        options = TrainingOptions(**cell.training.model_dump(exclude={"path"}))
        known = {"about": about, "path": faster_path(model, materials.data, options, device)}
        write_json(study_folder / _FILE, known)
    training = cell.training.model_copy(update={"path": known["path"]})
    return cell.model_copy(update={"training": training})
