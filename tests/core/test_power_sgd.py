"""Low-rank factors: what has that rank comes back, and a warm start pays over rounds."""

import numpy as np
import pytest
import torch

from fedcompress import parse, rng_for
from fedcompress.aggregation import TreeSum
from fedcompress.errors import LayoutError, NotFiniteError, SpecError
from fedcompress.testing import check_compressor

EXACT = "factors=raw()"


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(rng_for(seed, purpose="x").standard_normal(shape).astype(np.float32))


def nmse(x: torch.Tensor, y: torch.Tensor) -> float:
    return float((x - y).double().square().sum() / x.double().square().sum())


@pytest.mark.parametrize(
    "spec",
    [
        "power_sgd(1)",
        "power_sgd(4)",
        "error_feedback(power_sgd(4))",
        'power_sgd(2, factors=quantize(8) | pack(), rest=sign() | pack(), warm_start="no")',
        'error_feedback(route({"*bias": raw()}, default=power_sgd(2, steps=1)))',
    ],
)
def test_laws(spec: str) -> None:
    check_compressor(spec)


@pytest.mark.parametrize("rank", [1, 2, 5])
@pytest.mark.parametrize("shape", [(30, 40), (16, 3, 5, 5), (200, 20)])
def test_a_matrix_of_that_rank_comes_back(rank: int, shape: tuple[int, ...]) -> None:
    columns = int(np.prod(shape[1:]))
    x = (normal(shape[0], rank) @ normal(rank, columns, seed=1)).reshape(shape) * 1e-3
    for spec, error in ((f"power_sgd({rank}, {EXACT})", 1e-11), (f"power_sgd({rank})", 1e-6)):
        compressor = parse(spec)
        payload, _ = compressor.encode({"w": x}, compressor.init({"w": x}), rng_for(1))
        assert nmse(x, compressor.decode(payload, {"w": x})["w"]) < error
    assert len(payload) <= 16 + 2 * rank * (shape[0] + columns) + 30


def test_near_the_best_approximation() -> None:
    x = normal(60, 80) @ torch.diag(0.9 ** torch.arange(80)) @ normal(80, 80, seed=1)
    best = float((torch.linalg.svdvals(x)[6:] ** 2).sum() / (x**2).sum())
    errors = []
    for steps in (1, 2, 3, 60):
        compressor = parse(f"power_sgd(6, steps={steps}, {EXACT})")
        decoded = compressor.encode_and_decode({"w": x}, compressor.init({"w": x}), rng_for(1))[2]
        errors.append(nmse(x, decoded["w"]))
    assert errors == sorted(errors, reverse=True)
    assert errors[3] == pytest.approx(best, rel=1e-3)
    assert errors[2] < 1.15 * best


def test_a_warm_start_errs_less_over_rounds() -> None:
    """One client's updates, of slowly turning subspace, over ten rounds."""
    left, right = normal(60, 10), normal(10, 90, seed=1)
    weights = torch.diag(0.7 ** torch.arange(10))
    errors: dict[str, list[float]] = {"yes": [], "no": []}
    for warm_start, found in errors.items():
        compressor = parse(f'power_sgd(3, warm_start="{warm_start}", steps=1)')
        state = compressor.init({"w": left @ right})
        for i in range(10):
            turned = left + 0.05 * i * normal(60, 10, seed=2)
            x = turned @ weights @ right + 0.1 * normal(60, 90, seed=10 + i)
            payload, state = compressor.encode({"w": x}, state, rng_for(1, round=i))
            found.append(nmse(x, compressor.decode(payload, {"w": x})["w"]))
    assert sum(errors["yes"][1:]) < 0.75 * sum(errors["no"][1:])
    assert max(errors["yes"][3:]) < min(errors["no"][3:])


def test_with_error_feedback_nothing_is_lost() -> None:
    compressor = parse("error_feedback(power_sgd(2, steps=1))")
    update = {"w": normal(30, 40)}
    state = compressor.init(update)
    sent = torch.zeros(30, 40)
    for i in range(60):
        payload, state = compressor.encode(update, state, rng_for(1, round=i))
        sent += compressor.decode(payload, update)["w"]
    assert nmse(60 * update["w"], sent) < 0.03


def test_coarse_factors_do_better_scaled_and_fitted() -> None:
    """One step for singular vectors times their values, against one for each plain factor."""
    x = normal(80, 12) @ torch.diag(0.6 ** torch.arange(12)) @ normal(12, 300, seed=1)
    coarse = 'quantize(step=1, rounding="nearest") | entropy()'
    compressor = parse(f"power_sgd(8, factors={coarse}, steps=10)")
    payload, _, decoded = compressor.encode_and_decode(
        {"w": x}, compressor.init({"w": x}), rng_for(1)
    )
    left, values, right = torch.linalg.svd(x, full_matrices=False)
    plain = {"p": left[:, :8], "q": (values[:8, None] * right[:8]).T.contiguous()}
    other, _, alone = parse(coarse).encode_and_decode(plain, {}, rng_for(1))
    assert nmse(x, decoded["w"]) < 0.6 * nmse(x, alone["p"] @ alone["q"].T)
    assert len(payload) < len(other) + 4 * 8 + 10


def test_faint_columns_cost_little() -> None:
    x = normal(200, 2) @ normal(2, 300, seed=1) + 0.01 * normal(200, 300, seed=2)
    sizes = []
    for rank in (2, 32):
        compressor = parse(f'power_sgd({rank}, factors=quantize(step=1, rounding="nearest"))')
        payload, _ = compressor.encode({"w": x}, compressor.init({"w": x}), rng_for(1))
        sizes.append(len(payload) - 4 * rank)
        assert nmse(x, compressor.decode(payload, {"w": x})["w"]) < 0.2
    assert sizes[1] < 2 * sizes[0]


def test_only_what_gets_smaller_is_factored() -> None:
    update = {"w": normal(12, 12), "b": normal(50), "n": torch.tensor(3), "s": normal(1, 9)}
    compressor = parse("power_sgd(6)")  # 6 · (12 + 12) numbers are all of w
    state = compressor.init(update)
    assert not state
    decoded = compressor.encode_and_decode(update, state, rng_for(1))[2]
    assert all(torch.equal(decoded[name], x) for name, x in update.items())


def test_products_are_added_without_being_expanded() -> None:
    update = {"w": normal(50, 70), "b": normal(50)}
    compressor = parse("power_sgd(3)")
    payload, _ = compressor.encode(update, compressor.init(update), rng_for(1))
    decoded = compressor.decode(payload, update)
    mean = TreeSum({name: torch.zeros_like(x) for name, x in update.items()}, 2)
    for position, weight in enumerate((1.0, 2.0)):
        mean.add(position, compressor.read(payload, update)[0], weight)
    for name, x in mean.mean().items():
        torch.testing.assert_close(x, decoded[name])


@pytest.mark.parametrize("size", [1e-42, 1e-30, 1e37])
def test_any_magnitude(size: float) -> None:
    x = normal(20, 2) @ normal(2, 30, seed=1) * size
    compressor = parse("power_sgd(2, factors=raw())")
    payload, state = compressor.encode({"w": x}, compressor.init({"w": x}), rng_for(1))
    y = compressor.decode(payload, {"w": x})["w"]
    assert nmse(x.double() / size, y.double() / size) < (0.01 if size < 1e-40 else 1e-10)
    assert all(bool(value.isfinite().all()) for value in state.values())


def test_after_a_round_of_zeros_it_goes_on() -> None:
    compressor = parse("power_sgd(2)")
    update = {"w": normal(20, 2) @ normal(2, 30, seed=1)}
    state = compressor.init(update)
    _, state = compressor.encode({"w": torch.zeros(20, 30)}, state, rng_for(1))
    payload, _ = compressor.encode(update, state, rng_for(1))
    assert nmse(update["w"], compressor.decode(payload, update)["w"]) < 1e-5


def test_errors() -> None:
    with pytest.raises(SpecError, match="rank must be an integer"):
        parse("power_sgd(0)")
    with pytest.raises(SpecError, match="warm_start must be"):
        parse('power_sgd(2, warm_start="maybe")')
    with pytest.raises(SpecError, match="around the whole"):
        parse("power_sgd(2, factors=error_feedback(sign()))")
    compressor = parse("power_sgd(2)")
    with pytest.raises(NotFiniteError, match="'w': holds NaN"):
        compressor.encode({"w": torch.full((20, 20), torch.nan)}, {}, rng_for(1))
    with pytest.raises(LayoutError, match="needs a start of shape"):
        compressor.encode({"w": torch.zeros(20, 20)}, {}, rng_for(1))
