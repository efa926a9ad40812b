"""Study files: what is read, what is refused and how, and cells as flat keys."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedcompress.errors import ConfigError
from simulations.cell import Cell
from simulations.overrides import apply_overrides
from simulations.study import checked_study, load_study, slug, studies, study_of


@pytest.mark.parametrize("name", sorted(studies()))
def test_bundled_studies_load_and_their_cells_survive_flattening(name: str) -> None:
    study = load_study(name)
    cells = study.cells()
    assert len(cells) == len(study.seeds) * len(study.strategies)
    for cell in cells:
        assert Cell.from_run_config(cell.to_run_config()) == cell
        assert study_of(cell).cells() == [cell]


def test_the_quickstart_compares_five_strategies_over_three_seeds() -> None:
    study = load_study("quickstart")
    assert len(study.strategies) >= 5
    assert len(study.seeds) == 3
    assert study.partition.clients >= 20
    assert study.partition.kind == "dirichlet"


def test_run_configuration_holds_only_scalars_and_empty_means_unset() -> None:
    flat = load_study("quickstart").cells()[-1].to_run_config()
    assert all(isinstance(value, bool | int | float | str) for value in flat.values())
    assert flat["model.hidden"] == "128,64"
    assert Cell.from_run_config({**flat, "strategy.server": "", "data.data_dir": ""}).data == (
        Cell.from_run_config(flat).data
    )


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("trainin.learning_rate=1", "unknown key 'trainin'; did you mean 'training'?"),
        ("training.lerning_rate=1", "did you mean 'training.learning_rate'?"),
        (
            "federation.fraction=5",
            "federation.fraction must be in (0, 1], got 5; did you mean 0.05?",
        ),
        (
            "strategies.top.uplink=topk(0.1)",
            "unknown stage 'topk' in 'topk(0.1)'; did you mean 'top_k'?",
        ),
        ("strategies.top.uplink=top_k(5)", "fraction must be in (0, 1], got 5; did you mean 0.05?"),
        ("strategies.tip.uplink=raw()", "there is no strategy 'tip'; did you mean 'top'?"),
        ("strategies.0.method=fedpac", "there is no 'fedpac'; did you mean 'fedpaq'?"),
        ("strategies.0.distil=true", "unknown key 'strategies.0.distil'"),
        ("rounds=abc", "rounds must be a valid integer"),
        ("rounds=0", "rounds must be greater than or equal to 1, got 0"),
        (
            "model.name=mpl",
            "must be one of mlp, lenet, resnet, lstm, got 'mpl'; did you mean 'mlp'?",
        ),
        ("partition.kind=dirichle", "did you mean 'dirichlet'?"),
        ("partition.clients=0", "clients must be at least 1, got 0"),
        ("seeds=[1, 1]", "seeds must differ, got [1, 1]"),
        ("strategies=[]", "strategies must hold at least one entry"),
        ("training=3", "training must be a table of keys, got 3"),
        ("network=5x", "unknown profile '5x'"),
        ("engine.workers=0", 'engine.workers must be a number from 1 or "auto", got 0'),
        ("strategies.top.distill=true", "proxy.samples must be at least 2 for strategy 'top'"),
        ("rounds", "write key=value"),
    ],
)
def test_a_mistake_is_one_line_with_thing_value_and_mend(
    tmp_path: Path, assignment: str, said: str
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[[strategies]]\n[[strategies]]\nlabel = "top"\nuplink = "top_k(0.1)"\n')
    load_study(file)
    with pytest.raises(ConfigError) as caught:
        load_study(file, [assignment])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_labels_that_would_share_a_folder_are_refused() -> None:
    with pytest.raises(ConfigError, match="too close"):
        checked_study({"strategies": [{"label": "Top K"}, {"label": "top-k"}]}, "study")


def test_a_label_never_leaves_the_folder() -> None:
    assert slug("../../etc/x") == "etc-x"
    assert slug("STC 1 %, EF up + down") == "stc-1-%-ef-up-down"
    assert slug("∞") == "strategy"


def test_overrides_reach_strategies_by_label_and_by_number() -> None:
    values = {"strategies": [{"label": "a 0.1"}, {"method": "stc"}]}
    changed = apply_overrides(
        values,
        ["strategies.a 0.1.uplink=sign() | entropy()", "strategies.1.method_options.fraction=0.1"],
    )
    assert changed["strategies"][0]["uplink"] == "sign() | entropy()"
    assert changed["strategies"][1]["method_options"] == {"fraction": 0.1}
    assert values == {"strategies": [{"label": "a 0.1"}, {"method": "stc"}]}


@given(st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=30))
def test_any_override_gives_a_study_or_a_config_error(text: str) -> None:
    values = {"strategies": [{"label": "a"}]}
    with contextlib.suppress(ConfigError):
        checked_study(apply_overrides(values, [text]), "study")
