"""Which program trains the cells of a study: decided by the driver, for every worker alike."""

from pathlib import Path

import torch

from fedcompress.errors import ConfigError
from simulations.cell import Cell
from simulations.exchanges.exchange import exchange_kind
from simulations.exchanges.kept_models import trained_model
from simulations.materials import materials_of
from simulations.records import read_json, write_json
from simulations.training import (
    TrainingPath,
    choose_path,
    faster_path,
    has_no_rule,
)

_FILE = "training_path.json"


def with_training_path(cell: Cell, study_folder: Path) -> Cell:
    """Set `training.path` to the program that trains: by rule, or measured where none holds.

    What was decided is kept in the study's folder: programs round differently, so that all cells
    of a study, all workers, and a run that is resumed must train by the same one, also where
    another machine or a later version would decide otherwise.

    Raises
    ------
    ConfigError
        If the study has trained by a program that cannot train here.
    """
    about = {
        "data": cell.data.name,
        "device": cell.device,
        "model": cell.model.model_dump(mode="json"),
        "training": cell.training.model_dump(mode="json"),
    }
    materials = materials_of(cell)
    model = trained_model(cell.model, materials, cell.seed)
    device = torch.device(cell.device)
    known = read_json(study_folder / _FILE)
    if known is None or known["about"] != about:
        path: TrainingPath = choose_path(cell.training.path, model, materials.data, device)
        if has_no_rule(cell.training.path, model, materials.data, device):
            path = faster_path(model, materials.data, cell.training.options(), device)
        known = {"about": about, "path": path}
        write_json(study_folder / _FILE, known)
    kept: TrainingPath = known["path"]
    if choose_path(kept, model, materials.data, device) != kept:
        raise ConfigError(
            f"{study_folder}: this study has trained by the program {kept!r}, which cannot train "
            "its model here; go on where it began, or give another --out"
        )
    # What the clients of this cell train by, where its exchange has fewer programs than others.
    own = kept if kept in exchange_kind(cell).paths else "eager"
    training = cell.training.model_copy(update={"path": own})
    return cell.model_copy(update={"training": training})
