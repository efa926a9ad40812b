"""The registry of published methods, and the Flower strategies that they build."""

import re

import pytest
from flwr.serverapp.strategy import FedAdam, FedAvg, FedTrimmedAvg, QFedAvg

from fedcompress import parse
from fedcompress.errors import ConfigError
from strategies.methods import SERVERS, Method, build_server, method, methods, parameters

WANTED = {
    *SERVERS,
    "fedpaq", "uniform", "stc", "top_k", "qsparse", "ef_sign", "sign", "terngrad", "random_k",
    "fedavg_float16", "feddf", "feddf_quantized", "feddf_uniform", "fedmd", "dsfl",
    "gradual_pruning", "prunefl", "fedpm",
    "heterofl", "fjord",
}  # fmt: skip


def test_all_methods_are_there():
    assert set(methods()) == WANTED


@pytest.mark.parametrize("name", sorted(WANTED))
def test_every_method_is_complete(name: str):
    one = methods()[name]
    assert one == method(name)
    assert one.name == name
    assert re.search(r"\b(19|20)\d\d\b", one.source), "the source lacks a year"
    assert one.summary.endswith(".")
    assert len(one.summary) < 100
    strategy = build_server(one, fraction_train=0.5, min_train_nodes=3)
    assert type(strategy) is SERVERS[one.server]
    assert (strategy.fraction_train, strategy.min_train_nodes) == (0.5, 3)
    for option, value in one.server_options.items():
        assert getattr(strategy, option) == value


@pytest.mark.parametrize("name", sorted(WANTED))
def test_every_spec_parses(name: str):
    for spec in (methods()[name].uplink, methods()[name].downlink):
        if spec is not None:
            assert parse(str(parse(spec))) == parse(spec)


def test_parameters_reach_the_specs():
    assert method("fedpaq", bits=2).uplink == "quantize(2) | entropy()"
    assert (
        method("uniform", step=2.0).uplink == 'quantize(step=2.0, rounding="nearest") | entropy()'
    )
    assert method("uniform", downlink_step=2.0).downlink == (
        'error_feedback(quantize(step=2.0, rounding="nearest") | entropy())'
    )
    stc = method("stc", fraction=0.0025, downlink_fraction=0.02)
    assert stc.uplink == "error_feedback(top_k(0.0025) | sign() | entropy())"
    assert stc.downlink == "error_feedback(top_k(0.02) | sign() | entropy())"
    assert method("top_k", error_feedback=False).uplink == "top_k(0.01) | entropy()"
    assert method("fedavg_float16", both_ways=True).downlink == 'cast("float16") | raw()'
    assert parameters("stc") == {"fraction": 0.01, "downlink_fraction": None}
    assert method("prunefl", sparsity=0.5).options["prune.sparsity"] == 0.5
    assert method("fedpm").exchange == "masks"
    assert method("feddf").distill
    assert not method("fedavg").distill


@pytest.mark.parametrize(
    ("name", "options", "fault"),
    [
        ("fedpack", {}, "there is no 'fedpack'; did you mean 'fedpaq'"),
        ("zzz", {}, "known: bulyan, dsfl, ef_sign"),
        (
            "stc",
            {"fractoin": 0.1},
            "stc: there is no parameter 'fractoin'; did you mean 'fraction'",
        ),
        ("fedavg", {"bits": 1}, "fedavg: there is no parameter 'bits'; it takes none"),
        ("stc", {"fraction": 5}, r"stc: fraction must be in \(0, 1\], got 5; did you mean 0.05"),
        ("top_k", {"fraction": 0}, r"top_k: fraction"),
        ("fedpaq", {"bits": 0}, "fedpaq: bits must be an integer from 2 to 16, got 0"),
        ("uniform", {"step": -1.0}, "uniform: step"),
        ("uniform", {"downlink_step": "x"}, "uniform: downlink_step"),
        ("fedtrimmedavg", {"beta": 0.5}, r"fedtrimmedavg: beta must be in \[0, 0.5\), got 0.5"),
        ("fedprox", {"proximal_mu": -1}, "fedprox: proximal_mu must be .* >= 0, got -1"),
        ("fedadam", {"beta_1": 1.0}, r"fedadam: beta_1 must be in \[0, 1\), got 1.0"),
        ("fedadam", {"eta": 0}, "fedadam: eta"),
        ("fedavgm", {"server_momentum": 1}, "fedavgm: server_momentum"),
        ("krum", {"num_malicious_nodes": 0.5}, "krum: num_malicious_nodes"),
        ("multikrum", {"num_nodes_to_select": 0}, "multikrum: num_nodes_to_select"),
        ("qfedavg", {"q": float("nan")}, "qfedavg: q"),
        ("fedavg_float16", {"dtype": "float8"}, "dtype must be 'float16' or 'bfloat16'"),
    ],
)
def test_unknown_names_and_values_out_of_range(name: str, options: dict[str, object], fault: str):
    with pytest.raises(ConfigError, match=fault):
        method(name, **options)


def test_server_options_replace_the_methods_own():
    strategy = build_server("fedadam", {"eta": 0.5})
    assert isinstance(strategy, FedAdam)
    assert (strategy.eta, strategy.beta_2) == (0.5, 0.99)
    assert isinstance(build_server("qfedavg"), QFedAvg)
    assert isinstance(build_server("fedtrimmedavg", {"beta": 0}), FedTrimmedAvg)
    assert type(build_server("stc")) is FedAvg


@pytest.mark.parametrize(
    ("name", "options", "fault"),
    [
        ("fedadam", {"etta": 1}, "fedadam: there is no setting 'etta'; did you mean 'eta'"),
        ("fedavg", {"eta": 1}, "fedavg: there is no setting 'eta'"),
        ("fedadam", {"eta": "big"}, "fedadam: eta must be a finite number, got 'big'"),
        ("fedadam", {"eta": True}, "fedadam: eta must be a finite number, got True"),
        ("fedavg", {"min_train_nodes": 2.5}, "min_train_nodes must be a whole number"),
        ("fedavg", {"weighted_by_key": 3}, "weighted_by_key must be a string, got 3"),
        ("fedavg", {"fraction_train": 10}, r"fraction_train must be in \[0, 1\], got 10; .*0.1"),
        ("fedtrimmedavg", {"beta": 0.7}, "fedtrimmedavg: .*beta.*0.7"),
        ("fedavgg", {}, "there is no 'fedavgg'"),
    ],
)
def test_servers_that_cannot_be_built(name: str, options: dict[str, object], fault: str):
    with pytest.raises(ConfigError, match=fault):
        build_server(name, options)


def test_a_method_of_ones_own_with_an_unknown_server():
    mine = Method("mine", "me, 2026", "Mine.", "fedagv", {}, "raw()", None, False)
    with pytest.raises(ConfigError, match="there is no rule 'fedagv'; did you mean 'fedavg'"):
        build_server(mine)
