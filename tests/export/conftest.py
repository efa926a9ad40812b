"""A finished run to export from, made once: a small LeNet with a student, and an MLP."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulations.export import Deployable, load_deployable
from simulations.runner import run_study
from simulations.study import checked_study


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one finished cell."""
    folder = tmp_path_factory.mktemp("run")
    study = checked_study(
        {
            "seeds": [0],
            "rounds": 3,
            "engine": {"kind": "local"},
            "partition": {"kind": "iid", "clients": 3},
            "model": {"name": "lenet", "width": 2.0},
            "training": {"path": "eager", "local_epochs": 2, "learning_rate": 0.1},
            "proxy": {"samples": 300},
            "strategies": [
                {"label": "dense", "student": {"name": "mlp", "hidden": [24], "steps": 60}}
            ],
        },
        "test",
    )
    run_study(study, folder)
    return folder


@pytest.fixture(scope="session")
def deployable(run_folder: Path) -> Deployable:
    """The global model of the run: a LeNet."""
    return load_deployable(run_folder)


@pytest.fixture(scope="session")
def student(run_folder: Path) -> Deployable:
    """Its student: an MLP."""
    return load_deployable(run_folder, which="student")
