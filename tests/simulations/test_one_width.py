"""Slices of one level that is whole are federated averaging, to the bit and on every engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from simulations.cell import Cell
from simulations.cell_run import run_cell
from simulations.engines import LocalGrid, RayGrid, SimulatedGrid
from simulations.materials import materials_of
from simulations.study import study_of
from simulations.study_folder import StudyFolder

APP = "simulations.client_app:app"
PLAIN = {"levels": "1.0", "scale": False, "mask_loss": False}
UPLINKS = ["raw()", "error_feedback(top_k(0.1) | quantize(6) | entropy())"]


def cell(exchange: str, uplink: str) -> Cell:
    sliced = {"widths": PLAIN} if exchange == "slices" else {}
    return Cell.model_validate(
        {
            "rounds": 3,
            "partition": {"clients": 6},
            "model": {"hidden": [16]},
            "federation": {"fraction": 0.7},
            "strategy": {"exchange": exchange, "server": "fedadam", "uplink": uplink, **sliced},
        }
    )


def run(one: Cell, grid: SimulatedGrid, folder: Path) -> tuple[list[Any], dict[str, np.ndarray]]:
    """Give what clients sent, and the model."""
    claimed = StudyFolder(folder)
    grid.reset(num_clients=6, run_config=one.to_run_config())
    with claimed.claim(study_of(one), materials_of(one).data):
        run_cell(one, grid, claimed.cell(one))
    (path,) = folder.glob("cells/*/clients.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    # The message names the level, so only payloads are of one size.
    kept = ("round", "client", "status", "uplink_payload_bytes", "uplink_payload_checksum")
    (model,) = folder.glob("cells/*/model.safetensors")
    said = [[row[name] for name in (*kept, "downlink_payload_bytes")] for row in rows]
    return said, safetensors.numpy.load(model.read_bytes())


def assert_one_width_is_averaging(grid: SimulatedGrid, uplink: str, folder: Path) -> None:
    sliced = run(cell("slices", uplink), grid, folder / "slices")
    whole = run(cell("model", uplink), grid, folder / "model")
    assert sliced[0] == whole[0]
    assert len(whole[0]) == 12
    assert sliced[1].keys() == whole[1].keys()
    for name, x in whole[1].items():
        np.testing.assert_array_equal(sliced[1][name], x)


@pytest.mark.parametrize("uplink", UPLINKS)
def test_here(uplink: str, tmp_path: Path) -> None:
    with LocalGrid(APP, 6) as grid:
        assert_one_width_is_averaging(grid, uplink, tmp_path)


@pytest.mark.ray
@pytest.mark.parametrize("uplink", UPLINKS)
def test_in_workers_that_sum(uplink: str, tmp_path: Path) -> None:
    with RayGrid(APP, 6, workers=2, use_ray=False) as grid:
        assert_one_width_is_averaging(grid, uplink, tmp_path)
