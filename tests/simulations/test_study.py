"""Study files: what is read, what is refused and how, and cells as flat keys."""

from __future__ import annotations

import contextlib
from datetime import date
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
        (
            "strategies.0.distil=true",
            "unknown key 'strategies.fedavg.distil'; did you mean 'strategies.fedavg.distill'?",
        ),
        (
            'strategies.top.uplnk="raw()"',
            "unknown key 'strategies.top.uplnk'; did you mean 'strategies.top.uplink'?",
        ),
        (
            "strategies.top.student.hiden=[3]",
            "unknown key 'strategies.top.student.hiden'; did you mean 'strategies.top.student.hid",
        ),
        ("strategies.top.uplink=3", "strategies.top.uplink must be a valid string, got 3"),
        (
            "training.momentum=2",
            "mine.toml: training.momentum must be in [0, 1), got 2.0",
        ),
        (
            'training={optimizer="adam", momentum=0.9}',
            "training.momentum must be 0 with optimizer adam, got 0.9",
        ),
        ("model.hidden=[0]", "model.hidden.0 must be greater than or equal to 1, got 0"),
        ("model.hidden=[true]", "model.hidden must be a number, got [true]"),
        ("rounds=true", "rounds must be a number, got true"),
        ("training.batch_size=true", "training.batch_size must be a number, got true"),
        ("federation.fraction=true", "federation.fraction must be a number, got true"),
        ("seeds=[true]", "seeds must be a number, got [true]"),
        ("seeds=3", "seeds must be a list, got 3; write seeds = [3] for that one seed"),
        ("seeds=[-1]", "seeds.0 must be greater than or equal to 0, got -1"),
        (
            "seeds=[0, 9223372036854775808]",
            "seeds.1 must be less than or equal to 92233720368547758",
        ),
        ("device=cuda:one", "device must be cpu, cuda, cuda:N or mps, got 'cuda:one'"),
        ("device=cpu:7", "device must be cpu, cuda, cuda:N or mps, got 'cpu:7'"),
        ("data.name=", "data.name"),
        (
            "strategies.top.server=stc",
            "strategies.top.server must be a server rule: there is no rule 'stc'; "
            'stc is a method: write method = "stc"',
        ),
        ("strategies.top.server=feddf", 'feddf is a method: write method = "feddf"'),
        ("strategies.top.server=fedadm", "there is no rule 'fedadm'; did you mean 'fedadam'?"),
        (
            "strategies.top.server_options.fraction_train=0.5",
            "strategies.top.server_options.fraction_train is set by the study; "
            "who takes part is federation.fraction",
        ),
        (
            "strategies.top.server_options.arrayrecord_key=x",
            "strategies.top.server_options.arrayrecord_key is set by the study",
        ),
        (
            "strategies.top.server_options.weighted_by_key=",
            "strategies.top.server_options.weighted_by_key must not be empty; leave it out",
        ),
        (
            "strategies.top.server_options.eta=1",
            "fedavg: there is no setting 'eta'; known: weighted",
        ),
        ("rounds=abc", "rounds must be a valid integer"),
        ("rounds=0", "rounds must be greater than or equal to 1, got 0"),
        (
            "model.name=mpl",
            "must be one of mlp, lenet, resnet, conv4, lstm, transformer, got 'mpl'; "
            "did you mean 'mlp'?",
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


def test_who_takes_part_is_no_option_of_a_server_rule() -> None:
    for name in ("fraction_trian", "min_train_node", "configrecord_kay"):
        with pytest.raises(ConfigError, match="there is no setting") as caught:
            checked_study({"strategies": [{"server_options": {name: 1}}]}, "study")
        assert "known: weighted_by_key" in str(caught.value)


def test_a_label_that_stands_there_twice_is_told_how_to_differ() -> None:
    with pytest.raises(ConfigError, match="'fedavg' stands there twice; set label in each"):
        checked_study({"strategies": [{}, {}]}, "study")
    with pytest.raises(ConfigError, match="'q' stands there twice; give each its own"):
        checked_study({"strategies": [{"label": "q"}, {"label": "q"}]}, "study")


def test_strategies_of_one_name_are_named_by_their_place() -> None:
    with pytest.raises(ConfigError, match=r"'strategies.1.uplnk'; did .* 'strategies.1.uplink'"):
        checked_study({"strategies": [{}, {"uplnk": "raw()"}]}, "study")


def test_a_label_with_brackets_and_a_date_among_seeds_are_named_too() -> None:
    with pytest.raises(ConfigError, match=r"strategies\.k\[1\]\.uplnk.*strategies\.k\[1\]\.uplink"):
        checked_study({"strategies": [{"label": "k[1]", "uplnk": "raw()"}]}, "study")
    with pytest.raises(ConfigError, match="seeds must be a number"):
        checked_study({"seeds": [True, date(2020, 1, 1)], "strategies": [{}]}, "study")


def test_an_unknown_study_has_a_near_match() -> None:
    with pytest.raises(ConfigError, match="there is no file 'quikstart'; did you mean 'quickstart"):
        load_study("quikstart")
    with pytest.raises(ConfigError, match="give the path of a TOML file, or one of: "):
        load_study("x")


def test_a_study_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("rounds = 3\n[[strategies]]\n", encoding="utf-8-sig")
    assert load_study(file).rounds == 3


@pytest.mark.parametrize("hidden", [[], [7], [8, 9]])
def test_widths_survive_the_run_configuration(hidden: list[int]) -> None:
    values = {
        "model": {"hidden": hidden},
        "proxy": {"samples": 9},
        "seeds": [2**63 - 1],
        "strategies": [{"student": {"hidden": hidden}}],
    }
    (cell,) = checked_study(values, "study").cells()
    assert cell.model.hidden == tuple(hidden)
    assert Cell.from_run_config(cell.to_run_config()) == cell


def test_an_empty_text_means_unset_in_a_study_and_in_a_run_configuration_alike() -> None:
    values = {
        "data": {"data_dir": ""},
        "proxy": {"data": "", "samples": 5},
        "strategies": [{"label": "", "server": ""}],
    }
    (cell,) = checked_study({"seeds": [0], **values}, "study").cells()
    assert (cell.data.data_dir, cell.proxy.data, cell.strategy.server) == (None, None, None)
    assert Cell.from_run_config(cell.to_run_config()) == cell


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
