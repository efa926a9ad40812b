"""A budget is met within two per cent, and no single setting does better in as many bytes."""

import numpy as np
import pytest
import torch

from fedcompress import BudgetError, LayoutError, SpecError, budget, parse, rng_for, with_importance
from fedcompress.rate_search import search_step
from fedcompress.testing import check_compressor


def layers(seed: int) -> dict[str, torch.Tensor]:
    """Give an update of a few layers whose rows, columns and arrays differ in scale."""
    draw = np.random.default_rng(seed)

    def layer(rows: int, columns: int, scale: float) -> torch.Tensor:
        by_row = np.exp(draw.normal(size=(rows, 1)))
        by_column = np.exp(draw.normal(size=(1, columns)))
        common = draw.normal(size=(rows, 2)) @ draw.normal(size=(2, columns))
        x = (common + draw.standard_t(4, size=(rows, columns))) * by_row * by_column * scale
        return torch.from_numpy(x.astype(np.float32))

    return {
        "hidden.weight": layer(120, 150, 1e-3),
        "hidden.bias": layer(1, 120, 3e-3)[0],
        "out.weight": layer(10, 120, 1e-2),
        "steps": torch.tensor(7),
    }


def squared_error(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return sum(float(((a[k] - b[k]).double() ** 2).sum()) for k in a)


def encoded(spec: str, update: dict[str, torch.Tensor]) -> tuple[int, float]:
    compressor = parse(spec)
    payload, _ = compressor.encode(update, compressor.init(update), rng_for(0, purpose="budget"))
    return len(payload), squared_error(compressor.decode(payload, update), update)


@pytest.mark.parametrize("bits", [4.0, 1.0, 0.3, 0.1])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_payload_lands_within_two_per_cent_under_the_budget(bits: float, seed: int) -> None:
    update = layers(seed)
    allowed = int(bits * sum(x.numel() for x in update.values()) / 8)
    size, _ = encoded(f"budget(bits_per_parameter={bits})", update)
    assert 0.98 * allowed <= size <= allowed


@pytest.mark.parametrize("bits", [1.0, 0.2])
def test_no_single_setting_of_another_chain_does_better_in_as_many_bytes(bits: float) -> None:
    update = layers(2)
    size, error = encoded(f"budget(bits_per_parameter={bits})", update)
    others = [
        *(f'quantize(step={s}, rounding="nearest") | entropy()' for s in (0.5, 1.0, 2.0, 4.0, 8.0)),
        *(f'top_k({f}) | cast("float16") | entropy()' for f in (0.003, 0.01, 0.03)),
        *(f"top_k({f}) | quantize(4) | entropy()" for f in (0.003, 0.01, 0.03)),
    ]
    tried = [encoded(spec, update) for spec in others]
    assert any(other_size <= size for other_size, _ in tried)
    assert all(error <= other for other_size, other in tried if other_size <= size)


def test_error_falls_as_the_budget_grows() -> None:
    update = layers(3)
    errors = [encoded(f"budget(bytes={n})", update)[1] for n in (400, 800, 1600, 3200, 6400)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 10


def test_importance_moves_error_away_from_what_matters() -> None:
    update = layers(4)
    compressor = budget(bytes=1500)
    squares = {k: torch.tensor(1e-6) for k in update if k != "steps"}
    squares["out.weight"] = torch.tensor(1e-2)
    state = with_importance(compressor.init(update), squares)
    weighted = compressor.decode(compressor.encode(update, state, rng_for(0))[0], update)
    plain = compressor.decode(compressor.encode(update, {}, rng_for(0))[0], update)
    one = {"out.weight": update["out.weight"]}
    assert squared_error(one, weighted) < squared_error(one, plain)  # type: ignore[arg-type]
    total = [squared_error(update, x) for x in (weighted, plain)]
    assert total[1] <= total[0]


def test_squared_updates_are_remembered_as_a_running_mean() -> None:
    update = layers(5)
    compressor = budget(bytes=2000, importance="squared_update")
    _, first = compressor.encode(update, compressor.init(update), rng_for(0))
    doubled = {k: x if k == "steps" else 2 * x for k, x in update.items()}
    _, second = compressor.encode(doubled, first, rng_for(0))
    for name, x in update.items():
        if name != "steps":
            mean = float((x.double() ** 2).mean())
            assert float(first[f"importance/{name}"]) == pytest.approx(mean, rel=1e-5)
            assert float(second[f"importance/{name}"]) == pytest.approx(1.3 * mean, rel=1e-5)


def test_a_budget_that_cannot_hold_the_update_names_the_least() -> None:
    with pytest.raises(BudgetError, match=r"40 bytes cannot hold this update; it takes \d+"):
        budget(bytes=40).encode(layers(0), {}, rng_for(0))


def test_state_of_other_arrays_is_refused() -> None:
    compressor = budget(bytes=500, importance="squared_update")
    with pytest.raises(LayoutError, match="importance"):
        compressor.encode(layers(0), {}, rng_for(0))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("budget()", "either bytes or bits_per_parameter"),
        ("budget(bytes=100, bits_per_parameter=1)", "either bytes or bits_per_parameter"),
        ("budget(bytes=3)", "bytes must be an integer from 32"),
        ("budget(bits_per_parameter=0)", "above 0"),
        ('budget(bytes=500, importance="fisher")', "importance must be"),
    ],
)
def test_settings_that_cannot_work_are_refused(spec: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse(spec)


def test_it_keeps_the_laws_of_compressors() -> None:
    check_compressor("budget(bytes=6000)")
    check_compressor("error_feedback(budget(bytes=6000))")


class _Size:
    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes


@pytest.mark.parametrize("power", [-0.3, -1.0, -3.0])
@pytest.mark.parametrize("budget_bytes", [300, 10_000, 3_000_000])
def test_the_search_meets_a_budget_on_any_power_law(power: float, budget_bytes: int) -> None:
    trials = []

    def trial(step: float) -> _Size:
        trials.append(step)
        return _Size(int(min(1e12, 50 + 1e4 * step**power)))

    found = search_step(trial, 1.0, budget_bytes)
    assert found.within is not None
    assert 0.98 * budget_bytes <= found.within[1].size_bytes <= budget_bytes
    assert len(trials) <= 25
