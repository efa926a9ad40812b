"""What every exchange promises: engines agree, resumed is uninterrupted, bytes are counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

from fedcompress.errors import ConfigError
from simulations.cell import Cell
from simulations.cell_run import run_cell
from simulations.engines import LocalGrid, RayGrid, SimulatedGrid
from simulations.exchanges import EXCHANGES
from simulations.exchanges.exchange import build_exchange
from simulations.materials import materials_of
from simulations.model_record import model_record
from simulations.models import load_arrays
from simulations.readiness import check_ready
from simulations.study import checked_study, study_of
from simulations.study_folder import StudyFolder
from strategies.methods import methods

APP = "simulations.client_app:app"
COMPRESSED = {
    "uplink": "error_feedback(quantize(8) | entropy())",
    "downlink": "error_feedback(quantize(8) | entropy())",
}
# One or more of each exchange; settings beside the strategy stand in the second table.
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "model": ({}, {}),
    "model, static norms": (
        COMPRESSED,
        {"model": {"name": "conv4", "width": 0.0625, "norm_statistics": "static"}},
    ),
    "packed": (
        {
            "exchange": "packed",
            "uplink": "quantize(step=0.4) | entropy()",
            "prune": {"sparsity": 0.8, "first": 1, "last": 2, "every": 1},
        },
        {"training": {"batch_size": 16, "optimizer": "adamw", "weight_decay": 0.1}},
    ),
    "packed, regrown": (
        {
            "exchange": "packed",
            "prune": {
                "sparsity": 0.7,
                "importance": "taylor",
                "pattern": "across",
                "first": 1,
                "last": 3,
                "every": 2,
                "regrow": 0.2,
                "adaptive_step": 0.5,
            },
            "downlink": "error_feedback(quantize(8) | entropy())",
        },
        {},
    ),
    "packed, units": (
        {
            "exchange": "packed",
            "uplink": "quantize(8) | entropy()",
            "prune": {"sparsity": 0.5, "pattern": "units", "first": 1, "last": 1},
        },
        {"model": {"name": "lenet", "width": 0.25}},
    ),
    "masks": (
        {
            "exchange": "masks",
            "uplink": "bernoulli_mask() | entropy()",
            "downlink": "error_feedback(quantize(8) | entropy())",
            "masks": {"reset_every": 2},
        },
        {},
    ),
    "slices": ({"exchange": "slices"}, {}),
    "slices, drawn and compressed": (
        {
            "exchange": "slices",
            "server": "fedadam",
            "widths": {"levels": "1.0,0.5", "drawn": True},
            **COMPRESSED,
        },
        {"model": {"name": "conv4", "width": 0.0625, "norm_statistics": "static"}},
    ),
    "slices, ordered dropout": (
        {
            "exchange": "slices",
            "widths": {"ordered_dropout": True, "self_distil": True, "scale": False},
        },
        {},
    ),
    "groups": ({"exchange": "groups", "groups": "mlp(hidden=[8]); mlp(hidden=[16, 16])"}, {}),
    "groups, distilled and compressed": (
        {
            "exchange": "groups",
            "server": "fedadam",
            "groups": "mlp(hidden=[16]); resnet(width=0.25)",
            "group_shares": "0.5,0.5",
            "distill": {"enabled": True, "steps": 5, "anchor": 0.2, "align": 0.5},
            **COMPRESSED,
        },
        {},
    ),
    "logits": ({"method": "fedmd", "logits": {"rows": 50, "digest_steps": 5}}, {}),
    "logits, compressed": (
        {"method": "dsfl", "logits": {"rows": 50, "digest_steps": 5}, **COMPRESSED},
        {},
    ),
}


def cell(kind: str, rounds: int = 3) -> Cell:
    strategy, more = KINDS[kind]
    return Cell.model_validate(
        {
            "seed": 3,
            "rounds": rounds,
            "partition": {"clients": 6, "alpha": 0.5},
            "model": {"name": "mlp", "hidden": [16]},
            "training": {"batch_size": 16, "milestones": [1], "decay": 0.5},
            "federation": {"fraction": 0.5},
            "proxy": {"samples": 60},
            "strategy": strategy,
            **more,
        }
    )


def run(one: Cell, grid: SimulatedGrid, folder: Path, stop_after: int | None = None) -> None:
    claimed = StudyFolder(folder)
    grid.reset(num_clients=6, run_config=one.to_run_config())

    def stop(event: object) -> None:
        row = getattr(event, "row", {})
        if stop_after is not None and row.get("round") == stop_after + 1:
            raise KeyboardInterrupt

    with claimed.claim(study_of(one), materials_of(one).data):
        run_cell(one, grid, claimed.cell(one), listen=stop, checkpoint_seconds=0.0)


def outcome(folder: Path) -> tuple[list[dict[str, Any]], list[Any], dict[str, np.ndarray]]:
    """Give the clients' rows without clocks, the accuracies, and the model."""
    (path,) = folder.glob("cells/*/clients.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    kept = [{k: v for k, v in row.items() if not k.endswith("_seconds")} for row in rows]
    (path,) = folder.glob("cells/*/rounds.jsonl")
    rounds = [json.loads(line) for line in path.read_text().splitlines()]
    tested = [(row["accuracy"], row.get("accuracy_by_part")) for row in rounds]
    (model,) = folder.glob("cells/*/model.safetensors")
    return kept, tested, safetensors.numpy.load(model.read_bytes())


def assert_same(one: Path, other: Path) -> None:
    for ours, theirs in zip(outcome(one)[:2], outcome(other)[:2], strict=True):
        assert ours == theirs
    model, twin = outcome(one)[2], outcome(other)[2]
    assert model.keys() == twin.keys()
    for name, values in model.items():
        np.testing.assert_array_equal(values, twin[name])


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {name: tmp_path_factory.mktemp("local") for name in KINDS}
    with LocalGrid(APP, 6) as grid:
        for name, folder in folders.items():
            run(cell(name), grid, folder)
    return folders


def test_every_exchange_is_tried() -> None:
    assert {cell(name).strategy.exchange_name for name in KINDS} == set(EXCHANGES)


@pytest.mark.parametrize("name", KINDS)
def test_every_client_answers_and_the_model_is_that_of_the_cell(
    local: dict[str, Path], name: str
) -> None:
    rows, tested, model = outcome(local[name])
    # Each group of three rounds its half up.
    asked = 12 if cell(name).strategy.exchange_name == "groups" else 9
    assert [row["status"] for row in rows] == ["ok"] * asked
    assert len(tested) == 4
    one = cell(name)
    whole = materials_of(one).new_model(one.model, 0)
    if one.strategy.exchange_name == "groups":
        whole = build_exchange(one, materials_of(one)).new_model()
    load_arrays(whole, model)
    (path,) = local[name].glob("cells/*/result.json")
    result = json.loads(path.read_text())
    assert result["exchange"] == one.strategy.exchange_name
    assert result["proxy"]["kind"] == "held_out"
    assert result["proxy"]["rows"] == 60


PARTS = {
    "slices": {"1", "0.5", "0.25"},
    "slices, drawn and compressed": {"1", "0.5"},
    "groups": {"mlp-1", "mlp-2"},
    "groups, distilled and compressed": {"mlp", "resnet"},
}


@pytest.mark.parametrize("name", PARTS)
def test_slices_and_groups_are_tested_by_themselves_too(local: dict[str, Path], name: str) -> None:
    tested = outcome(local[name])[1]
    assert all(parts is not None and parts.keys() == PARTS[name] for _, parts in tested)
    (path,) = local[name].glob("cells/*/result.json")
    result = json.loads(path.read_text())
    for part, accuracy in result["final_accuracy_by_part"].items():
        assert accuracy == pytest.approx(np.mean([parts[part] for _, parts in tested[1:]]))
    described = result["levels" if name.startswith("slices") else "groups"]
    assert described.keys() == result["final_accuracy_by_part"].keys() == PARTS[name]
    if name.startswith("groups"):
        assert [group["clients"] for group in described.values()] == [3, 3]
    else:  # the widest is the model
        assert max(level["parameters"] for level in described.values()) == result["parameters"]
        assert all(parts["1"] == accuracy for accuracy, parts in tested)


@pytest.mark.ray
@pytest.mark.parametrize("workers", [1, 2])
def test_engines_agree(local: dict[str, Path], tmp_path: Path, workers: int) -> None:
    with RayGrid(APP, 6, workers=workers, use_ray=False) as grid:
        for name in KINDS:
            run(cell(name), grid, tmp_path / name)
            assert_same(tmp_path / name, local[name])


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("stop_after", [1, 2])
def test_resumed_is_uninterrupted(
    local: dict[str, Path], tmp_path: Path, name: str, stop_after: int
) -> None:
    with LocalGrid(APP, 6) as grid:
        with pytest.raises(KeyboardInterrupt):
            run(cell(name), grid, tmp_path, stop_after)
        run(cell(name), grid, tmp_path)
    assert_same(tmp_path, local[name])


@pytest.mark.parametrize("name", KINDS)
def test_dense_bytes_are_those_of_the_arrays(local: dict[str, Path], name: str) -> None:
    one = cell(name)
    start = build_exchange(one, materials_of(one)).start()
    dense = sum(len(array.data) for array in start.values())
    compressed = not {"uplink", "prune"}.isdisjoint(KINDS[name][0])
    for row in outcome(local[name])[0]:
        up, down = row["uplink_payload_bytes"], row["downlink_payload_bytes"]
        if compressed:
            assert 0 < up < dense / 2
        elif one.strategy.exchange_name in ("slices", "groups"):
            assert 0 < up == down <= dense
        else:
            assert (up, down) == (dense, dense)


def test_static_statistics_do_not_travel_and_are_in_the_saved_model(local: dict[str, Path]) -> None:
    one = cell("model, static norms")
    start = build_exchange(one, materials_of(one)).start()
    assert not any("running" in name for name in start)
    model = outcome(local["model, static norms"])[2]
    assert {name for name in model if "running_mean" in name} == {
        f"norms.{i}.running_mean" for i in range(4)
    }


def test_whole_models_are_what_clients_start_from() -> None:
    one = cell("model")
    exchange = build_exchange(one, materials_of(one))
    start = exchange.start()
    assert {n: a.data for n, a in model_record(exchange.model_of(start)).items()} == {
        n: a.data for n, a in start.items()
    }


@pytest.mark.parametrize("name", sorted(methods()))
def test_every_method_exchanges_something_that_there_is(name: str) -> None:
    (one,) = checked_study(
        {
            "seeds": [0],
            "rounds": 20,
            "data": {"name": "digits"},
            "model": {"hidden": [8]},
            "proxy": {"samples": 60},
            "strategies": [{"method": name, **({"logits": {"rows": 9}} if name in LOGITS else {})}],
        },
        "study",
    ).cells()
    assert Cell.from_run_config(one.to_run_config()) == one
    check_ready([one])


LOGITS = [name for name, one in methods().items() if one.exchange == "logits"]


def test_a_methods_settings_hold_beneath_ones_own() -> None:
    (one,) = checked_study(
        {
            "seeds": [0],
            "proxy": {"samples": 9},
            "strategies": [{"method": "dsfl", "logits": {"rows": 5, "redraw": False}}],
        },
        "study",
    ).cells()
    assert one.strategy.logits is not None
    assert one.strategy.logits.model_dump() == {
        "rows": 5,
        "scores": "probabilities",
        "sharpen": 0.1,
        "digest_steps": 50,
        "redraw": False,
        "weighting": "uniform",
    }


@pytest.mark.parametrize(
    ("strategy", "said"),
    [
        ({"exchange": "logit"}, "did you mean 'logits'?"),
        ({"logits": {}}, "logits is not read by the exchange 'model'; set exchange = \"logits\""),
        ({"method": "fedmd", "exchange": "model", "logits": {}}, "is not read by the exchange"),
        ({"method": "fedmd", "logits": {"rows": 1}}, "greater than or equal to 2, got 1"),
        ({"method": "fedmd", "logits": {"sharpen": 0.5}}, 'set scores = "probabilities"'),
        ({"method": "dsfl", "logits": {"sharpen": 50}}, "did you mean 0.5?"),
        (
            {"prune": {"sparsity": 95}},
            "prune.sparsity must be in [0, 1), got 95; did you mean 0.95?",
        ),
        ({"exchange": "packed", "prune": {"only": "sise>3"}}, "did you mean 'size'?"),
        (
            {"exchange": "packed", "prune": {"pattern": "n_of_m", "n": 4}},
            "prune.n must be below m, and m at most 64, got n = 4 and m = 4",
        ),
        (
            {"exchange": "packed", "uplink": "raw()", "prune": {"adaptive_step": 1.0}},
            "uplink: prune.adaptive_step takes its place",
        ),
        ({"groups": "lennet()"}, "did you mean 'lenet'?"),
        ({"groups": " ; "}, "cannot be read: invalid syntax; write such as"),
        ({"exchange": "model", "groups": "mlp; lenet"}, "groups is not read by the exchange"),
    ],
)
def test_what_would_not_be_read_is_refused(strategy: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        checked_study({"strategies": [strategy]}, "study")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"proxy": {"samples": 9}}, "there are 9 proxy rows, got 50"),
        ({"proxy": {"samples": 0}}, "proxy.samples is 0"),
        ({"proxy": {"kind": "noise", "samples": 50}}, "'noise' are made anew in each round"),
        ({"proxy": {"data": "digits", "samples": 5000}}, "has 1442 rows, got 5000"),
        (
            {"strategy": {"exchange": "packed"}, "rounds": 10},
            "prune.last: weights are pruned until round 20 and there are 10 rounds",
        ),
        (
            {
                "strategy": {
                    "exchange": "groups",
                    "groups": "mlp(hidden=[20]); mlp(hidden=[8])",
                    "student": {"hidden": [64]},
                }
            },
            "student: it has 4810 parameters, the global model 2120",
        ),
        (
            {"strategy": {"method": "fedmd", "distill": True, "logits": {"rows": 9}}},
            "sends no models to learn from",
        ),
        ({"model": {"name": "resnet", "norm_statistics": "static"}}, "models stay where they are"),
        (
            {"strategy": {}, "model": {"norm_statistics": "static"}},
            "MLP has no batch normalisation",
        ),
        (
            {
                "strategy": {},
                "model": {"name": "resnet", "norm_statistics": "static"},
                "proxy": {"samples": 0},
            },
            "estimated on proxy data",
        ),
    ],
)
def test_what_does_not_fit_the_data_is_refused(settings: dict[str, Any], said: str) -> None:
    one = Cell.model_validate({**cell("logits").model_dump(), **settings})
    with pytest.raises(ConfigError) as caught:
        check_ready([one])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
