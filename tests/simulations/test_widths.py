"""Ordered dropout, scaled outputs, and who is of which kind."""

from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from fedcompress import rng_for
from fedcompress.errors import ConfigError
from fedcompress.slices import slice_map, take
from simulations.cell import Cell
from simulations.data import load_data
from simulations.exchanges.assigned import Assigned
from simulations.exchanges.exchange import build_exchange
from simulations.materials import materials_of
from simulations.models import build_model
from simulations.readiness import check_ready
from simulations.training import TrainingOptions, evaluate
from simulations.training.eager import train_eagerly
from simulations.training.ordered_dropout import train_with_ordered_dropout

DATA = load_data("digits", None)
ROWS = np.arange(600)


def model(width: float = 1.0, seed: int = 0, name: str = "mlp") -> nn.Module:
    return build_model(name, DATA.sample_shape, 10, seed=seed, hidden=(32,), width=width)


def narrower(wide: nn.Module, *widths: float, name: str = "mlp") -> list[tuple[nn.Module, object]]:
    models = [model(width, seed=9, name=name) for width in widths]
    return [(one, slice_map(wide, one)) for one in models]


def accuracy(one: nn.Module) -> float:
    return evaluate(one, DATA.test_x, DATA.test_y, DATA).accuracy


def test_without_narrower_models_it_is_plain_training() -> None:
    options = TrainingOptions(momentum=0.5, local_epochs=2)
    ours, plain = model(), model()
    order = rng_for(1).permutation(ROWS)

    class SameOrder:
        """Plain training draws nothing but the order of the rows."""

        def permutation(self, rows: np.ndarray) -> np.ndarray:
            return order

        def integers(self, high: int) -> int:
            return 0

    drawn = SameOrder()
    got = train_with_ordered_dropout(ours, [], DATA, ROWS, options, drawn)  # type: ignore[arg-type]
    wanted = train_eagerly(plain, DATA, ROWS, options, drawn, torch.device("cpu"))  # type: ignore[arg-type]
    assert got == wanted
    for key, x in plain.state_dict().items():
        assert torch.equal(ours.state_dict()[key], x)


@pytest.mark.parametrize("self_distil", [False, True])
def test_every_slice_of_what_it_trains_is_a_model(self_distil: bool) -> None:
    options = TrainingOptions(learning_rate=0.1, local_epochs=20)
    wide, plain = model(), model()
    slices = narrower(wide, 0.5, 0.25)
    rng = rng_for(2)
    train_with_ordered_dropout(
        wide,
        slices,
        DATA,
        ROWS,
        options,
        rng,
        self_distil=self_distil,  # type: ignore[arg-type]
    )
    train_eagerly(plain, DATA, ROWS, options, rng_for(2), torch.device("cpu"))
    assert accuracy(wide) > 0.85
    for narrow, where in slices:
        found = {}
        for name, whole in (("ordered", wide), ("plain", plain)):
            narrow.load_state_dict(take(whole.state_dict(), where))  # type: ignore[arg-type]
            found[name] = accuracy(narrow)
        assert found["ordered"] > 0.75
        assert found["ordered"] > found["plain"] + 0.1


def test_the_same_generator_gives_the_same_model_and_normalisation_keeps_statistics() -> None:
    options = TrainingOptions(optimizer="adam", learning_rate=0.01, batch_size=100)
    ends = []
    for _ in range(2):
        wide = model(name="resnet", width=0.5)
        slices = narrower(wide, 0.25, name="resnet")
        rows = ROWS[:301]  # the last batch holds one sample
        train_with_ordered_dropout(wide, slices, DATA, rows, options, rng_for(4))  # type: ignore[arg-type]
        ends.append(wide.state_dict())
    for key, x in ends[0].items():
        assert torch.equal(x, ends[1][key])
        assert bool(x.isfinite().all())
    assert ends[0]["norm.num_batches_tracked"] == 4
    assert not torch.equal(ends[0]["norm.running_mean"], torch.zeros(8))


def test_no_rows_change_nothing() -> None:
    wide = model()
    before = {key: x.clone() for key, x in wide.state_dict().items()}
    result = train_with_ordered_dropout(wide, [], DATA, ROWS[:0], TrainingOptions(), rng_for(0))
    assert (result.num_examples, result.steps) == (0, 0)
    assert all(torch.equal(x, before[key]) for key, x in wide.state_dict().items())


@pytest.mark.parametrize("clients", [1, 3, 10, 101])
def test_kinds_are_dealt_out_by_their_shares(clients: int) -> None:
    shares = [0.5, 0.25, 0.25]
    dealt = Assigned("abc", shares, clients, seed=3, purpose="groups")
    again = Assigned("abc", shares, clients, seed=3, purpose="groups")
    kinds = [dealt.of_node(node) for node in range(1, clients + 1)]
    assert kinds == [again.of_node(node) for node in range(1, clients + 1)]
    counts = Counter(kinds)
    for kind, share in zip("abc", shares, strict=True):
        assert counts[kind] == dealt.count(kind)
        assert abs(counts[kind] - share * clients) <= 1


def test_nodes_of_other_engines_draw_by_the_shares() -> None:
    dealt = Assigned("ab", [0.8, 0.2], 10, seed=3, purpose="groups")
    drawn = Counter(dealt.of_node(node) for node in range(10**15, 10**15 + 2000))
    assert 0.76 < drawn["a"] / 2000 < 0.84
    rounds = Counter(dealt.drawn(1, number) for number in range(2000))
    assert 0.76 < rounds["a"] / 2000 < 0.84


def cell(**strategy: object) -> Cell:
    values = {"model": {"hidden": [16]}, "partition": {"clients": 4}, "proxy": {"samples": 20}}
    more = strategy.pop("more", {})
    return Cell.model_validate({**values, **more, "strategy": strategy})  # type: ignore[dict-item]


def test_outputs_of_narrowed_layers_are_scaled_in_training_alone() -> None:
    one = cell(exchange="slices", widths={"levels": "1.0,0.25"})
    exchange = build_exchange(one, materials_of(one))
    model = exchange._models["0.25"]  # type: ignore[attr-defined]
    first, last = model.layers[1], model.layers[-1]
    x = torch.rand(3, 64)
    model.eval()
    tested = first(x)
    model.train()
    assert torch.allclose(first(x), tested * 4)
    y = first(x)
    assert torch.equal(last(y), nn.functional.linear(y, last.weight, last.bias))
    whole = exchange._models["1"].train()  # type: ignore[attr-defined]
    assert torch.equal(whole.layers[1](x), whole.eval().layers[1](x))


def test_a_slice_is_tested_with_the_statistics_of_its_own_outputs() -> None:
    static = {"name": "conv4", "width": 0.0625, "norm_statistics": "static"}
    found = []
    for scale in (True, False):
        one = cell(
            exchange="slices", widths={"levels": "1.0,0.5", "scale": scale}, more={"model": static}
        )
        exchange = build_exchange(one, materials_of(one))
        parts = exchange.parts_of(exchange.start())
        found.append(parts["0.5"].state_dict()["norms.0.running_mean"])
    assert torch.equal(*found)


def test_the_global_model_is_as_wide_as_the_widest_level() -> None:
    one = cell(exchange="slices", widths={"levels": "0.5,0.25"})
    exchange = build_exchange(one, materials_of(one))
    shapes = {name: array.shape for name, array in exchange.start().items()}
    assert tuple(shapes["layers.1.weight"]) == (8, 64)


@pytest.mark.parametrize(
    ("one", "said"),
    [
        (cell(exchange="slices", widths={"levels": "0.5,0.5"}), "they are different fractions"),
        (cell(exchange="slices", widths={"self_distil": True}), "set ordered_dropout = true"),
        (cell(exchange="slices", server="krum"), "needs every client's whole model"),
        (cell(exchange="slices", distill=True), "sends no models to learn from"),
        (
            cell(exchange="slices", more={"model": {"name": "resnet"}}),
            'set model.norm_statistics = "static"',
        ),
        (cell(exchange="groups"), "groups: it is not set"),
        (
            cell(exchange="groups", groups="mlp; lenet", group_shares="0.5"),
            "there are 2 groups, got 1 shares",
        ),
        (
            cell(exchange="groups", groups="mlp; lenet", group_shares="0.99,0.01"),
            "no client of 4 is of group 'lenet'",
        ),
        (
            cell(exchange="groups", groups="mlp; lstm"),
            "lstm takes windows of characters",
        ),
        (
            cell(
                exchange="groups",
                groups='resnet(norm_statistics="static")',
                more={"proxy": {"samples": 0}},
            ),
            "statistics of resnet are estimated on proxy data",
        ),
        (
            cell(exchange="groups", groups="mlp", distill={"enabled": True, "memory": 0.5}),
            "distill.memory: distillation into several",
        ),
    ],
)
def test_what_cannot_work_is_refused(one: Cell, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_ready([one])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
