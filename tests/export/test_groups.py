"""Groups of clients with models of their own: each is exported, each is explained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fedcompress.errors import ConfigError
from simulations.explain.cell import explain_cell
from simulations.export import export_model, load_archive, load_deployable, read_recipe
from simulations.runner import run_study
from simulations.study import checked_study

CELL = "parts-seed0"


@pytest.fixture(scope="module")
def groups_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two groups."""
    study = {
        "seeds": [0],
        "rounds": 1,
        "engine": {"kind": "local"},
        "partition": {"clients": 4, "kind": "iid"},
        "proxy": {"samples": 40},
        "strategies": [
            {"label": "parts", "exchange": "groups", "groups": "mlp(hidden=[20]); lenet(width=0.5)"}
        ],
    }
    folder = tmp_path_factory.mktemp("groups")
    run_study(checked_study(study, "groups"), folder)
    return folder


def test_the_model_of_each_group_can_be_exported(groups_run: Path) -> None:
    tested = json.loads((groups_run / "cells" / CELL / "result.json").read_text())
    for name, accuracy in tested["final_accuracy_by_part"].items():
        deployable = load_deployable(groups_run, which=name)
        exported = export_model(deployable, read_recipe([], None, 0), "archive")
        assert exported.path.name == f"{name}.fca"
        assert exported.verified.accuracy == pytest.approx(accuracy)
        rows = torch.zeros(2, 1, 8, 8)
        assert torch.equal(load_archive(exported.path)(rows), deployable.model(rows))
    with pytest.raises(ConfigError, match="a model for each group; choose one with --model"):
        load_deployable(groups_run)
    with pytest.raises(ConfigError, match="no model 'lanet'; did you mean 'lenet'"):
        load_deployable(groups_run, which="lanet")


def test_each_group_is_compared_with_the_ensemble(groups_run: Path) -> None:
    pytest.importorskip("onnxruntime")
    deployable = load_deployable(groups_run, which="mlp")
    export_model(deployable, read_recipe(["2:4"], None, 0), "onnx")
    explanation = explain_cell(groups_run / "cells" / CELL)
    models = {model.name: model for model in explanation.models}
    result = json.loads((groups_run / "cells" / CELL / "result.json").read_text())
    assert not explanation.problems
    assert models["dense"].accuracy == pytest.approx(result["final_accuracy"])
    for name, accuracy in result["final_accuracy_by_part"].items():
        assert models[name].kind == "group"
        assert models[name].accuracy == pytest.approx(accuracy)
    parts = [models["mlp"], models["lenet"]]
    assert models["dense"].parameters == sum(part.parameters for part in parts)
    assert models["dense"].file_bytes > max(part.file_bytes for part in parts)
    pruned = models["mlp-2of4.onnx"]
    assert pruned.nonzero == models["mlp"].parameters - 20 * 32 - 10 * 10
    errors = {layer.name: layer.error for layer in pruned.layers}
    assert 0 < errors["layers.1.weight"] < 0.5
