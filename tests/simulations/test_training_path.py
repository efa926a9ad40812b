"""A measured program is chosen once for a study; rules need no measurement."""

from pathlib import Path

import pytest
import torch

from fedcompress import rng_for
from simulations import training_path
from simulations.cell import Cell
from simulations.data import load_data
from simulations.models import build_model
from simulations.training import TrainingOptions, faster_path, has_no_rule, train_locally
from simulations.training_path import with_training_path


def cell(model: str = "lenet", **settings: object) -> Cell:
    return Cell.model_validate({"device": "cuda", **settings, "model": {"name": model}})


def test_only_what_no_rule_covers_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_data("digits")
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    lenet = build_model("lenet", (1, 8, 8), 10, seed=0)
    mlp = build_model("mlp", (1, 8, 8), 10, seed=0)
    resnet = build_model("resnet", (1, 8, 8), 10, seed=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert has_no_rule("auto", lenet, data, cuda)
    assert not has_no_rule("eager", lenet, data, cuda)
    assert not has_no_rule("auto", lenet, data, cpu)
    assert not has_no_rule("auto", mlp, data, cuda)
    assert not has_no_rule("auto", resnet, data, cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not has_no_rule("auto", lenet, data, cuda)


def test_a_study_measures_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answers = iter(["cohort", "eager"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(training_path, "faster_path", lambda *_: next(answers))
    first = with_training_path(cell(), tmp_path)
    assert first.training.path == "cohort"
    assert with_training_path(cell(seed=7), tmp_path).training.path == "cohort"
    assert first.model_copy(update={"training": cell().training}) == cell()
    other = with_training_path(cell(training={"batch_size": 7}), tmp_path)
    assert other.training.path == "eager"
    assert with_training_path(cell("mlp"), tmp_path).training.path == "cohort"
    assert with_training_path(cell("mlp", device="cpu"), tmp_path).training.path == "compiled"
    lone = cell("resnet", training={"path": "cohort"})
    assert with_training_path(lone, tmp_path).training.path == "eager"


def test_measuring_leaves_the_model_alone() -> None:
    data, device = load_data("digits"), torch.device("cpu")
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten(), torch.nn.GELU(), torch.nn.Linear(72, 10)
    )
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert faster_path(model, data, TrainingOptions(), device) in ("eager", "cohort")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert train_locally(model, data, range(9), TrainingOptions(), rng_for(0)).steps == 1  # type: ignore[arg-type]
