"""Distillation as a study names it: proxy data of every kind, whom to follow, who teaches."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from fedcompress.errors import ConfigError
from simulations.events import Event, RoundDone
from simulations.records import read_rows, without_seconds
from simulations.runner import run_study
from simulations.study import Study, checked_study

ENSEMBLE = {"teacher": "ensemble", "hidden": [4], "steps": 10}


def small_study(strategy: dict[str, Any], **changes: Any) -> Study:
    values: dict[str, Any] = {
        "name": "small",
        "seeds": [0],
        "rounds": 3,
        "partition": {"clients": 6, "min_samples": 5},
        "model": {"hidden": [8]},
        "federation": {"fraction": 0.5},
        "proxy": {"samples": 60},
        "engine": {"kind": "local"},
        "checkpoint_seconds": 0,
        "strategies": [{"label": "one", **strategy}],
    }
    return checked_study(values | changes, "study")


def outcome(folder: Path) -> tuple[list[Any], list[Any], dict[str, bytes]]:
    (cell,) = (folder / "cells").iterdir()
    result = json.loads((cell / "result.json").read_text())
    models = {path.name: path.read_bytes() for path in sorted(cell.glob("*.safetensors"))}
    rows = without_seconds(read_rows(cell / "rounds.jsonl"))
    return rows, without_seconds([result]), models


@pytest.mark.parametrize(
    "strategy",
    [
        {"method": "feddf", "distill": {"steps": 5, "memory": 0.5, "anchor": 0.2, "first": 2}},
        {
            "method": "feddf",
            "uplink": "quantize(step=1.0) | entropy()",
            "distill": {"steps": 5, "one_at_a_time": True, "combine": "probabilities"},
            "student": ENSEMBLE,
        },
        {"method": "krum", "student": ENSEMBLE},
    ],
    ids=["memory", "streamed", "asked only"],
)
def test_a_run_that_was_stopped_ends_like_one_that_was_not(tmp_path: Path, strategy) -> None:
    study = small_study(strategy)
    run_study(study, tmp_path / "whole")

    def stop(event: Event) -> None:
        if isinstance(event, RoundDone) and event.row["round"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(study, tmp_path / "stopped", listen=stop)
    run_study(study, tmp_path / "stopped")
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "whole")


@pytest.mark.parametrize("kind", ["held_out", "noise", "statistics", "generator"])
def test_the_result_says_what_was_distilled_on(tmp_path: Path, kind: str) -> None:
    study = small_study(
        {"method": "feddf", "distill": {"steps": 3}, "student": {"hidden": [4], "steps": 3}},
        model={"name": "resnet", "width": 0.25},
        proxy={"kind": kind, "samples": 40},
        rounds=2,
    )
    run_study(study, tmp_path / "run")
    rows, (result,), models = outcome(tmp_path / "run")
    assert result["proxy"]["kind"] == kind
    assert result["proxy"]["rows"] == 40
    assert ("fingerprint" in result["proxy"]) is (kind == "held_out")
    assert [row["strategy_metrics"]["distill-teachers"] for row in rows[1:]] == [3, 3]
    assert result["student"]["teacher"] == "global"
    model = safetensors.numpy.load(models["model.safetensors"])
    assert all(np.isfinite(array).all() for array in model.values())


def test_augmented_rows_are_distilled_on(tmp_path: Path) -> None:
    found = []
    for augment in ("none", "shift"):
        proxy = {"samples": 40, "augment": augment}
        study = small_study({"method": "feddf", "distill": {"steps": 5}}, proxy=proxy, rounds=1)
        run_study(study, tmp_path / augment)
        _, (result,), models = outcome(tmp_path / augment)
        assert result["proxy"]["augment"] == augment
        found.append(models["model.safetensors"])
    assert found[0] != found[1]


@pytest.mark.parametrize(
    ("strategy", "changes", "fault"),
    [
        ({"method": "feddf"}, {"proxy": {"kind": "statistics", "samples": 9}}, "no batch norm"),
        (
            {"method": "feddf"},
            {"proxy": {"kind": "noise", "samples": 9, "augment": "mixup"}},
            r"proxy.augment: only rows that are there .* 'mixup' with kind = 'noise'",
        ),
        (
            {"student": ENSEMBLE},
            {"proxy": {"kind": "noise", "samples": 9}},
            r"student.teacher: .* kind = 'noise' are others in each round",
        ),
        (
            {"method": "feddf", "distill": {"memory": 0.5}},
            {"proxy": {"kind": "noise", "samples": 9}},
            "memory = 0.5",
        ),
        (
            {"method": "krum", "distill": {"enabled": True, "one_at_a_time": True}},
            {},
            "one_at_a_time .* got Krum",
        ),
        (
            {"method": "fedavg", "distill": {"steps": 5}},
            {},
            "method 'fedavg' distils nothing.* add enabled = true",
        ),
    ],
)
def test_studies_that_cannot_be_distilled(
    tmp_path: Path, strategy: dict[str, Any], changes: dict[str, Any], fault: str
) -> None:
    with pytest.raises(ConfigError, match=fault):
        run_study(small_study(strategy, **changes), tmp_path / "run")
