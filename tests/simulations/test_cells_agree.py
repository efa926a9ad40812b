"""One cell on every engine of ours: the same payload bytes, records and final model."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
import safetensors.numpy

from simulations.cell import Cell
from simulations.cell_run import run_cell
from simulations.engines import LocalGrid, RayGrid, SimulatedGrid
from simulations.materials import materials_of
from simulations.study import study_of
from simulations.study_folder import StudyFolder

APP = "simulations.client_app:app"
STRATEGIES = {
    "feedback both ways": {
        "uplink": "error_feedback(top_k(0.02) | quantize(4) | entropy())",
        "downlink": "error_feedback(quantize(8) | entropy())",
    },
    "robust": {"method": "multikrum", "uplink": "quantize(step=0.4) | entropy()"},
    "predicted": {"uplink": "momentum(delta(quantize(step=2.0) | entropy()))"},
    "adaptive": {"method": "fedadam", "uplink": "random_k(0.1) | quantize(4) | entropy()"},
    "cohorts": {"uplink": "error_feedback(top_k(0.1) | quantize(8) | entropy())"},
    "distilled": {"method": "feddf", "uplink": "sign() | entropy()", "distill": {"steps": 10}},
}


def cell(strategy: str) -> Cell:
    return Cell.model_validate(
        {
            "seed": 3,
            "rounds": 3,
            "partition": {"clients": 12, "alpha": 0.3},
            "model": {"name": "mlp", "hidden": [24]},
            "training": {
                "batch_size": 16,
                "path": "cohort" if strategy == "cohorts" else "auto",
            },
            "federation": {"fraction": 0.5},
            "proxy": {"samples": 40},
            "strategy": STRATEGIES[strategy],
        }
    )


Outcome = tuple[list[dict[str, object]], dict[str, np.ndarray]]


def run(one: Cell, grid: SimulatedGrid, folder: Path) -> Outcome:
    """Give the clients' records without clocks, and the final model."""
    claimed = StudyFolder(folder)
    grid.reset(num_clients=12, run_config=one.to_run_config())
    with claimed.claim(study_of(one), materials_of(one).data):
        own = claimed.cell(one)
        run_cell(one, grid, own)
    (path,) = folder.glob("cells/*/clients.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    kept = [{k: v for k, v in row.items() if not k.endswith("_seconds")} for row in rows]
    (model,) = folder.glob("cells/*/model.safetensors")
    return kept, safetensors.numpy.load(model.read_bytes())


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    with LocalGrid(APP, 12) as grid:
        return {
            name: run(cell(name), grid, tmp_path_factory.mktemp("local")) for name in STRATEGIES
        }


@pytest.fixture(scope="module")
def four_cpus() -> Iterator[None]:
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_every_client_of_the_local_run_sent_a_payload(local: dict[str, Outcome]) -> None:
    for rows, _ in local.values():
        assert len(rows) == 18
        assert all(row["status"] == "ok" and row["uplink_payload_checksum"] for row in rows)


@pytest.mark.ray
@pytest.mark.usefixtures("four_cpus")
@pytest.mark.parametrize(
    ("workers", "use_ray"), [(1, False), (2, False), (4, False), (1, True), (2, True)]
)
def test_workers_give_the_same_bytes_and_model(
    workers: int, use_ray: bool, tmp_path: Path, local: dict[str, Outcome]
) -> None:
    with RayGrid(APP, 12, workers=workers, use_ray=use_ray) as grid:
        for name in STRATEGIES:
            rows, model = run(cell(name), grid, tmp_path / name)
            assert rows == local[name][0]
            assert model.keys() == local[name][1].keys()
            for key, array in local[name][1].items():
                np.testing.assert_array_equal(model[key], array)
