"""A cell trained by each program: the same records but for rounding."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from simulations.cell import Cell
from simulations.cell_run import run_cell
from simulations.engines import LocalGrid
from simulations.materials import materials_of
from simulations.study import study_of
from simulations.study_folder import StudyFolder

FEEDBACK = "error_feedback(top_k(0.05) | quantize(8) | entropy())"
Outcome = tuple[dict[str, object], list[dict[str, object]], np.ndarray]


def run(folder: Path, path: str, **strategy: object) -> Outcome:
    cell = Cell.model_validate(
        {
            "seed": 3,
            "rounds": 2,
            "partition": {"clients": 20, "alpha": 0.2},
            "model": {"name": "mlp", "hidden": [24]},
            "training": {"batch_size": 16, "path": path, "momentum": 0.5},
            "strategy": strategy,
        }
    )
    claimed = StudyFolder(folder)
    with (
        LocalGrid("simulations.client_app:app", 20, run_config=cell.to_run_config()) as grid,
        claimed.claim(study_of(cell), materials_of(cell).data),
    ):
        result = run_cell(cell, grid, claimed.cell(cell))
    (rows,) = folder.glob("cells/*/clients.jsonl")
    (model,) = folder.glob("cells/*/model.safetensors")
    arrays = safetensors.numpy.load(model.read_bytes())
    return (
        result,
        [json.loads(line) for line in rows.read_text().splitlines()],
        np.concatenate([array.ravel() for _, array in sorted(arrays.items())]),
    )


@pytest.mark.parametrize(
    "strategy", [{}, {"method": "fedprox"}, {"uplink": FEEDBACK, "downlink": FEEDBACK}]
)
def test_every_program_trains_the_same_model(tmp_path: Path, strategy: dict[str, object]) -> None:
    eager = run(tmp_path / "eager", "eager", **strategy)
    for path in ("compiled", "cohort"):
        found = run(tmp_path / path, path, **strategy)
        assert (eager[0]["training_path"], found[0]["training_path"]) == ("eager", path)
        assert len(found[1]) == len(eager[1]) == 40
        for one, other in zip(found[1], eager[1], strict=True):
            assert one["status"] == other["status"]
            assert one["num_examples"] == other["num_examples"]
            assert one["train_loss"] == pytest.approx(other["train_loss"], rel=0.02)
        # What rounding moves past a threshold is another entry sent: far less than the model.
        assert np.linalg.norm(found[2] - eager[2]) < 0.02 * np.linalg.norm(eager[2])
        if "uplink" not in strategy:
            assert np.abs(found[2] - eager[2]).max() < 1e-4


def test_auto_names_what_it_took(tmp_path: Path) -> None:
    assert run(tmp_path, "auto")[0]["training_path"] == "compiled"
