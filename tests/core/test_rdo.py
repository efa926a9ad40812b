"""What `rdo` promises: one step, orthonormal transforms, exact predictions, bits where they pay."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcompress import parse, rng_for
from fedcompress.errors import PayloadError, SpecError
from fedcompress.kernels import cosine, low_rank
from fedcompress.stages.axes import axes_of, choose_side
from fedcompress.stages.rdo import Rdo, root_mean_square
from fedcompress.streams import Layout, Stream, Symbols

SHAPE = (24, 6, 3, 3)


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return rng_for(seed, purpose="rdo").standard_normal(shape).astype(np.float32)


def smooth_images(rows: int, side: int) -> np.ndarray:
    waves = draw(rows, side, side).cumsum(1).cumsum(2)
    return (waves - waves.mean((1, 2), keepdims=True)).reshape(rows, side * side)


def sent(spec: str, **update: np.ndarray) -> tuple[int, dict[str, np.ndarray]]:
    compressor = parse(spec)
    payload, _ = compressor.encode(update, {}, rng_for(1))
    decoded = compressor.decode(payload, update)
    return len(payload), {name: x.numpy() for name, x in decoded.items()}


# The transform


@pytest.mark.parametrize(("h", "w"), [(3, 3), (1, 7), (5, 5), (28, 28), (2, 32), (64, 1), (1, 1)])
def test_transform_is_the_orthonormal_cosine_transform(h: int, w: int) -> None:
    x = draw(9, 3 * h * w)
    y = cosine.transform(x, h, w, 2.0)

    def basis(n: int) -> np.ndarray:
        k, j = np.arange(n)[:, None], np.arange(n)
        rows = np.cos(np.pi * k * (2 * j + 1) / (2 * n)) * np.sqrt(2 / n)
        rows[0] /= np.sqrt(2)
        return rows

    blocks = x.reshape(9, 3, h, w).astype(np.float64)
    expected = 2 * np.einsum("ai,rcij,bj->rcab", basis(h), blocks, basis(w)).reshape(x.shape)
    assert np.abs(y - expected).max() < 1e-5
    assert np.isclose((y.astype(float) ** 2).sum(), 4 * (x.astype(float) ** 2).sum(), rtol=1e-5)
    assert np.abs(cosine.inverse(y, h, w, 0.5) - x).max() < 1e-5


def test_no_entry_of_a_basis_is_rounded_differently_elsewhere() -> None:
    for n in range(2, cosine.MOST + 1):
        k, j = np.arange(n)[:, None], np.arange(n)
        exact = np.cos(np.pi / (2 * n) * (k * (2 * j + 1))) * np.sqrt(np.where(k == 0, 1, 2) / n)
        exact = np.abs(exact[np.abs(exact) > 1e-12])
        in_steps = exact / np.spacing(exact.astype(np.float32)).astype(np.float64)
        # 1e-6 of a float32 step is a thousand times what libraries of cosines differ by.
        assert np.abs(in_steps - np.floor(in_steps) - 0.5).min() > 1e-6


def test_smooth_kernels_and_images_are_transformed_and_noise_is_not() -> None:
    kernels = np.repeat(np.repeat(draw(40, 20, 1, 1), 5, 2), 5, 3) + 0.05 * draw(40, 20, 5, 5)
    for x in (kernels, smooth_images(64, 16)):
        assert axes_of(choose_side(x.reshape(len(x), -1), x.shape, 10.0), x.shape) == (
            (5, 5) if x.ndim == 4 else (16, 16)
        )
        with_transform, _ = sent("rdo(0.3, rank=0)", x=x)
        without, _ = sent("rdo(0.3, rank=0, transform=False)", x=x)
        assert with_transform < 0.9 * without
    for shape in [(40, 20, 5, 5), (64, 256)]:
        assert choose_side(draw(*shape).reshape(shape[0], -1), shape, 1.0) == 0


# The prediction


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.sampled_from([7, 300, 40_000]))
def test_product_equals_that_of_whole_numbers(seed: int, rank: int, peak: int) -> None:
    rng = rng_for(seed)
    a = rng.integers(-peak, peak + 1, (5, rank)).astype(np.int32)
    b = rng.integers(-peak, peak + 1, (8, rank)).astype(np.int32)
    shifts = rng.integers(-3, 9, rank).astype(np.int32)
    product = low_rank.product(a, b, shifts)
    for i in range(5):
        for j in range(8):
            terms = zip(a[i].tolist(), b[j].tolist(), shifts.tolist(), strict=True)
            exact = sum(Fraction(p * q) / Fraction(2) ** s for p, q, s in terms)
            assert product[i, j] == np.float32(float(exact))  # float() rounds nothing here


def test_product_refuses_what_no_float_holds() -> None:
    large = np.full((2, 1), 1 << 30, np.int32)
    with pytest.raises(OverflowError):
        low_rank.product(large, large, np.zeros(1, np.int32))


def test_factors_are_those_of_the_singular_value_decomposition() -> None:
    x = draw(80, 5) @ draw(5, 120, seed=1) + 0.02 * draw(80, 120, seed=2)
    singular = np.linalg.svd(x, compute_uv=False)
    u, v = low_rank.factors(x, 5)
    assert np.allclose((u**2).sum(0), singular[:5], rtol=1e-3)
    assert np.allclose((v**2).sum(0), singular[:5], rtol=1e-3)
    left = ((x - u @ v.T) ** 2).sum()
    assert left <= 1.01 * (singular[5:] ** 2).sum()
    again = low_rank.factors(x, 5)
    assert np.array_equal(u, again[0])
    assert np.array_equal(v, again[1])


@pytest.mark.parametrize("x", [np.zeros((9, 12), np.float32), np.ones((9, 12), np.float32)])
def test_factors_of_what_has_little_rank(x: np.ndarray) -> None:
    u, v = low_rank.factors(x, 4)
    assert np.abs(u @ v.T - x).max() < 1e-4


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.floats(1e-3, 10))
def test_rounding_of_factors_adds_the_noise_that_it_may(seed: int, noise: float) -> None:
    u, v = low_rank.factors(30 * draw(60, 90, seed=seed), 6)
    rounded = low_rank.product(*low_rank.round_factors(u, v, noise))
    assert ((rounded - u @ v.T) ** 2).mean() < 1.5 * noise


def test_a_matrix_of_low_rank_costs_little_more_than_its_factors() -> None:
    x = draw(256, 3) @ draw(3, 400, seed=1)
    size, decoded = sent("rdo(0.1)", x=x)
    alone, _ = sent("rdo(0.1, rank=0)", x=x)
    nmse = ((decoded["x"] - x) ** 2).sum() / (x**2).sum()
    assert nmse < 0.1**2 / 12
    assert size < 0.1 * alone
    assert size < 1.5 * 3 * (256 + 400)  # twelve bits for each number of the factors


def test_noise_is_not_predicted() -> None:
    x = draw(64, 100)
    plain, _ = sent("rdo(1.0, rank=0, transform=False)", x=x)
    chosen, _ = sent("rdo(1.0)", x=x)
    assert chosen <= plain + 8


# Step and error


@pytest.mark.parametrize("states", [0, 4, 8, 16])
@pytest.mark.parametrize("step", [0.05, 0.5, 2.0])
def test_error_without_weight_on_bits_is_that_of_a_uniform_quantizer(
    states: int, step: float
) -> None:
    update = {"conv": draw(*SHAPE), "dense": smooth_images(40, 8), "bias": draw(40)}
    rms = root_mean_square([torch.from_numpy(x) for x in update.values()])
    _, decoded = sent(f"rdo({step}, rate_weight=1e-6, states={states})", **update)
    count = sum(x.size for x in update.values())
    error = sum(((decoded[name] - x) ** 2).sum() for name, x in update.items())
    assert error / count < 1.02 * (step * rms) ** 2 / 12


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 100), st.floats(0.01, 20), st.floats(0.1, 3))
def test_error_never_exceeds_the_update(seed: int, step: float, weight: float) -> None:
    update = {"conv": draw(*SHAPE, seed=seed) ** 3, "bias": draw(24, seed=seed)}
    _, decoded = sent(f"rdo({step}, rate_weight={weight})", **update)
    error = sum(((decoded[name] - x) ** 2).sum() for name, x in update.items())
    assert error <= 1.001 * sum((x**2).sum() for x in update.values())


def test_weight_on_bits_and_a_trellis_save_bits_at_equal_error() -> None:
    x = draw(200, 300) * np.exp(draw(200, 1, seed=1))

    def bits_at(nmse: float, settings: str) -> float:
        points = []
        for step in (0.7, 1.0, 1.4, 2.0):
            size, decoded = sent(f"rdo({step}, {settings})", x=x)
            points.append((((decoded["x"] - x) ** 2).sum() / (x**2).sum(), size * 8 / x.size))
        errors, bits = np.array(points).T
        return float(np.interp(np.log(nmse), np.log(errors), bits))

    uniform, four, eight = (bits_at(0.08, f"states={s}") for s in (0, 4, 8))
    assert four < 0.97 * uniform
    assert eight < 0.99 * four or eight < 0.96 * uniform


def test_one_step_for_the_whole_update() -> None:
    large, small = draw(100, 60), 1e-3 * draw(100, 60, seed=1)
    _, decoded = sent("rdo(0.2)", large=large, small=small)
    assert np.all(decoded["small"] == 0)
    _, alone = sent("rdo(0.2)", small=small)
    assert np.any(alone["small"] != 0)


def test_root_mean_square_of_numbers_whose_squares_leave_the_floats() -> None:
    for scale in (1e-300, 1e-20, 1.0, 1e20, 1e300):
        arrays = [scale * torch.ones(3, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)]
        assert np.isclose(root_mean_square(arrays), scale * np.sqrt(0.75), rtol=1e-6)
    assert root_mean_square([]) == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_come_back_as_they_went(dtype: torch.dtype) -> None:
    x = torch.from_numpy(smooth_images(32, 8)).to(dtype)
    compressor = parse("rdo(0.05)")
    payload, _, kept = compressor.encode_and_decode({"x": x}, {}, rng_for(1))
    decoded = compressor.decode(payload, {"x": x})["x"]
    assert decoded.dtype == dtype
    assert torch.equal(decoded, kept["x"])
    assert float((decoded - x).double().square().mean() / x.double().square().mean()) < 1e-3


def test_the_decoder_adds_what_the_encoder_took_off() -> None:
    update = {"conv": draw(40, 20, 3, 3).cumsum(2), "dense": draw(90, 4) @ draw(4, 256)}
    compressor = parse("rdo(0.4)")
    payload, _, kept = compressor.encode_and_decode(update, {}, rng_for(1))
    decoded = compressor.decode(payload, update)
    assert all(torch.equal(decoded[name], kept[name]) for name in update)


def test_small_arrays_cost_one_number_beyond_their_symbols() -> None:
    stage = Rdo(1.0)
    _, side = stage.encode(torch.from_numpy(draw(10)), rng_for(1))
    assert len(side) == 1
    (step,) = side
    assert isinstance(step, Symbols)
    assert step.values.shape == (1,)


# Payloads that are not trusted


def prepared() -> tuple[Rdo, Layout, list[Stream]]:
    stage = Rdo(0.1)
    x = torch.from_numpy(draw(64, 2) @ draw(2, 144))
    _, side = stage.encode(x, rng_for(1))
    assert len(side) == 4
    return stage, Layout.of(x), list(side)


@pytest.mark.parametrize("header", [(-1, 0), (65, 0), (3, 5), (3, -2), (3, 1 << 30), (1 << 30, 0)])
def test_headers_out_of_range_are_refused(header: tuple[int, int]) -> None:
    stage, like, side = prepared()
    side[0] = Symbols(torch.tensor((0, *header)))
    with pytest.raises(PayloadError):
        stage.next_form(like, side[:1])


# As a bfloat16 less 0x3C00: zero, infinity, not a number, below zero, out of range.
@pytest.mark.parametrize("step", [-0x3C00, 0x4380, 0x4381, 0x4C00, 1 << 20, -(1 << 20)])
def test_steps_that_are_none_are_refused(step: int) -> None:
    stage, like, side = prepared()
    side[0] = Symbols(torch.tensor((step, 0, 0)))
    with pytest.raises(PayloadError):
        stage.decode(torch.zeros(like.shape, dtype=torch.int32), side, like)


@pytest.mark.parametrize("which", [(1,), (2, 3)])
def test_factors_out_of_range_are_refused(which: tuple[int, ...]) -> None:
    stage, like, side = prepared()
    for i in which:
        stream = side[i]
        assert isinstance(stream, Symbols)
        side[i] = Symbols(torch.full_like(stream.values, 2_000_000_000), stream.states)
    with pytest.raises(PayloadError):
        stage.decode(torch.zeros(like.shape, dtype=torch.int32), side, like)


@pytest.mark.parametrize(
    ("spec", "mend"),
    [
        ("rdo(0)", "step"),
        ("rdo(1, states=5)", "0, 4, 8 or 16"),
        ("rdo(1, rank=65)", "0 to 64"),
        ("rdo(1, transform=1)", "True or False"),
        ("rdo(1, rate_weight=-1)", "rate_weight"),
    ],
)
def test_settings_that_cannot_work(spec: str, mend: str) -> None:
    with pytest.raises(SpecError, match=mend):
        parse(spec)
