"""Workers of other machines must have the driver's data, divided as the driver divides them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from fedcompress.errors import ConfigError
from simulations.cell import Cell
from simulations.cell_folder import CellFolder
from simulations.cell_run import run_cell
from simulations.client_app import app, facts_of
from simulations.engines import LocalGrid, RayGrid
from simulations.engines.facts import check_facts, pack_check
from simulations.materials import materials_of
from simulations.records import read_rows

pytestmark = pytest.mark.ray

CLIENT_APP = "simulations.client_app:app"


def write_pictures(folder: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for split, count in (("train", 60), ("test", 20)):
        pixels = rng.integers(0, 256, (count, 8, 8), dtype=np.uint8)
        columns = {"image": [Image.fromarray(x) for x in pixels], "label": [0, 1] * (count // 2)}
        kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
        table = datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))
        folder.mkdir(parents=True, exist_ok=True)
        table.to_parquet(folder / f"{split}-00000-of-00001.parquet")


def cell(folder: Path, **partition: Any) -> Cell:
    values: dict[str, Any] = {
        "rounds": 2,
        "data": {"name": "pictures", "data_dir": str(folder)},
        "partition": {"kind": "iid", "clients": 6, **partition},
        "model": {"hidden": (4,)},
    }
    return Cell.checked(values, "test")


def test_facts_tell_data_and_divisions_apart(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", 0)
    kinds: list[dict[str, Any]] = [
        {},
        {"clients": 5},
        {"kind": "dirichlet"},
        {"kind": "dirichlet", "alpha": 3.0},
        {"kind": "drawn", "samples_per_client": 7},
        {"kind": "drawn", "samples_per_client": 8},
        {"kind": "drawn_dirichlet", "samples_per_client": 8},
    ]
    cells = [cell(tmp_path, **kind) for kind in kinds]
    cells += [one.model_copy(update={"seed": 7}) for one in cells]
    found = [materials_of(one).facts() for one in cells]
    assert len({tuple(facts.values()) for facts in found}) == len(found)
    assert len({tuple(facts) for facts in found}) == 1
    assert str(tmp_path) in next(iter(found[0]))
    for one, facts in zip(cells, found, strict=True):
        assert facts_of(one.to_run_config()) == facts
        assert check_facts(app, pack_check(one.to_run_config(), facts)) == ""
    config = cells[0].to_run_config()
    said = check_facts(app, pack_check(config, {**found[0], next(iter(found[0])): "x"}))
    assert f"data 'pictures' in {tmp_path}: the worker has " in said
    assert "the driver x" in said
    lost = dict(config) | {"data.data_dir": str(tmp_path / "elsewhere")}
    assert str(tmp_path / "elsewhere") in check_facts(app, pack_check(lost, found[0]))
    assert check_facts(replace, pack_check(config, found[0])) == ""  # type: ignore[arg-type]


@pytest.mark.slow
def test_other_data_on_a_machine_end_the_run(cluster: Any, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    write_pictures(pictures, 0)
    settings = cell(tmp_path)
    config = settings.to_run_config()
    whole = CellFolder(tmp_path / "local", settings)
    run_cell(settings, LocalGrid(CLIENT_APP, 6, run_config=config), whole)
    for fault in ("none", "others", "none there"):
        folder = CellFolder(tmp_path / fault, settings)
        if fault == "others":
            write_pictures(pictures, 1)
        elif fault == "none there":
            shutil.rmtree(pictures)
        with RayGrid(CLIENT_APP, 6, run_config=config, address=cluster.address) as grid:
            assert grid.num_workers == 3
            if fault == "none":
                run_cell(settings, grid, folder)
                models = [one.path / "model.safetensors" for one in (folder, whole)]
                assert models[0].read_bytes() == models[1].read_bytes()
                continue
            said = f"the worker on Ray node .* has others than the driver: .*{tmp_path}"
            with pytest.raises(ConfigError, match=said):
                run_cell(settings, grid, folder)
        [row] = read_rows(folder.path / "faults.jsonl")
        assert (row["kind"], row["outcome"], row["round"]) == ("other_data", "stopped", 1)
