"""Quantizers that look values up: NF4, codebooks, product quantization, and the one-bit kin."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcompress import parse, rng_for
from fedcompress.errors import PayloadError, SpecError
from fedcompress.stage import Stage
from fedcompress.stages.codebook import Codebook
from fedcompress.stages.levels import look_up, nearest
from fedcompress.stages.nf4 import _LEVELS, Nf4
from fedcompress.stages.product_quantize import ProductQuantize
from fedcompress.streams import Layout

NF4 = torch.tensor(_LEVELS)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(rng_for(seed, purpose="x").standard_normal(shape).astype(np.float32))


def apply(stage: Stage, x: torch.Tensor) -> torch.Tensor:
    symbols, side = stage.encode(x, rng_for(1))
    return stage.decode(symbols, side, Layout.of(x))


def nmse(x: torch.Tensor, y: torch.Tensor) -> float:
    return float((x - y).double().square().sum() / x.double().square().sum())


arrays = st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=60).map(
    lambda values: torch.tensor(values, dtype=torch.float32)
)


@given(arrays, st.floats(0.1, 3))
def test_ternary_has_the_least_error_of_its_signs(x: torch.Tensor, threshold: float) -> None:
    """‖x‖² − ‖kept‖₁²/k, which no other magnitude for these signs goes below."""
    y = apply(parse(f"ternary({threshold})").stages[0], x).double()  # type: ignore[attr-defined]
    kept = x.double()[y != 0].abs()
    least = float(x.double().square().sum() - kept.sum() ** 2 / max(len(kept), 1))
    assert float((x - y).square().sum()) == pytest.approx(least, rel=1e-4, abs=1e-2)
    mean = float(x.double().abs().mean())
    slack = 1e-5 * mean
    assert torch.equal(
        y[x.abs() > threshold * mean + slack].sign(),
        x.double()[x.abs() > threshold * mean + slack].sign(),
    )
    assert not y[x.abs() <= threshold * mean - slack].any()


@given(arrays)
def test_sign_has_the_least_error_of_one_magnitude(x: torch.Tensor) -> None:
    y = apply(parse("sign()").stages[0], x).double()  # type: ignore[attr-defined]
    least = float(x.double().square().sum() - x.double().abs().sum() ** 2 / x.numel())
    assert float((x - y).square().sum()) == pytest.approx(least, rel=1e-4, abs=1e-2)
    bare = apply(parse('sign("none")').stages[0], x)  # type: ignore[attr-defined]
    assert torch.equal(bare, torch.where(x >= 0, 1.0, -1.0))


def test_bare_signs_are_one_bit_and_refused_under_error_feedback() -> None:
    x = {"x": normal(8000)}
    payload, _ = parse('sign("none") | pack()').encode(x, {}, rng_for(1))
    assert len(payload) <= 1000 + 16 + 6
    with pytest.raises(SpecError, match=r"write sign\(\)"):
        parse('error_feedback(sign("none"))')


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("exponent", [-60, -20, 0, 30])
def test_cast_returns_every_float8_exactly(dtype: str, exponent: int) -> None:
    """Whatever octave an array lies in: the scale is a power of two."""
    codes = torch.arange(256, dtype=torch.uint8).view(getattr(torch, dtype)).float()
    codes = codes[codes.isfinite()]
    codes = codes[codes.abs() < (256 if "e4m3" in dtype else 2**15)]
    x = codes * 2.0**exponent
    assert torch.equal(apply(parse(f'cast("{dtype}")').stages[0], x), x)  # type: ignore[attr-defined]


@pytest.mark.parametrize("size", [1e-30, 1e-6, 1.0, 1e30])
def test_cast_to_float8_keeps_small_updates(size: float) -> None:
    x = torch.where(normal(10_000).abs() < 1, normal(10_000) * 1e-9, normal(10_000)) * size
    for dtype, bits, range_bits in (("float8_e4m3fn", 4, 13), ("float8_e5m2", 3, 28)):
        y = apply(parse(f'cast("{dtype}")').stages[0], x)  # type: ignore[attr-defined]
        kept = x.abs() >= x.abs().max() * 2.0**-range_bits
        assert float(((x - y) / x).abs()[kept].max()) <= 2.0**-bits
        spacing = float(x.abs().max()) * 2.0 ** (-range_bits - bits + 1)
        assert float((x - y).abs()[~kept].max()) <= spacing


def test_nf4_levels_are_quantiles_of_the_normal() -> None:
    """The construction of the paper: eight quantiles below zero, nine from zero up."""
    inverse = torch.distributions.Normal(0.0, 1.0).icdf
    ends = torch.tensor([0.9677083, 0.5], dtype=torch.float64)
    upper = inverse(torch.linspace(*ends.tolist(), 9, dtype=torch.float64)[:-1])
    lower = -inverse(torch.linspace(*ends.tolist(), 8, dtype=torch.float64)[:-1])
    levels = torch.cat([lower, torch.zeros(1, dtype=torch.float64), upper.flip(0)])
    assert torch.allclose(levels / levels.max(), NF4.double(), atol=1e-6)


@pytest.mark.parametrize("n", [1, 63, 64, 65, 1000])
def test_nf4_gives_each_entry_the_nearest_level_of_its_block(n: int) -> None:
    x = normal(n) * torch.linspace(1e-6, 1, n)
    y = apply(Nf4(64), x)
    for block, decoded in zip(x.split(64), y.split(64), strict=True):
        scale = float(block.abs().max())
        if n > 64:  # rounded to four significant bits
            mantissa, exponent = np.frexp(scale)
            scale = float(np.ldexp(np.floor(mantissa * 16 + 0.5) / 16, exponent))
        distance = (block[:, None] - scale * NF4).abs()
        assert torch.allclose((block - decoded).abs(), distance.min(1).values, atol=1e-6 * scale)


def test_nf4_is_four_bits_and_a_short_scale() -> None:
    x = {"x": normal(64_000)}
    compressor = parse("nf4() | pack()")
    payload, _ = compressor.encode(x, {}, rng_for(1))
    assert compressor.breakdown(payload, x)["symbols"] * 8 / 64_000 <= 4 + 8 / 64 + 0.01
    assert nmse(x["x"], compressor.decode(payload, x)["x"]) < 0.0095
    assert not apply(Nf4(), torch.zeros(100)).any()


# Distortion of the optimal quantizers of the standard normal (Max, 1960, table I).
MAX_1960 = {2: 0.3634, 4: 0.1175, 8: 0.03454, 16: 0.009497, 32: 0.002499}


@pytest.mark.parametrize("k", list(MAX_1960))
def test_codebook_of_a_normal_is_that_of_max(k: int) -> None:
    x = normal(400_000) * 1e-4
    assert nmse(x, apply(Codebook(k), x)) == pytest.approx(MAX_1960[k], rel=0.02)


@pytest.mark.parametrize("k", [2, 3, 8, 64])
@pytest.mark.parametrize("zero", ["no", "yes"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_codebook_keeps_the_conditions_of_lloyd(k: int, zero: str, dtype: torch.dtype) -> None:
    x = (normal(5000).to(dtype) ** 3) * (1e-200 if dtype == torch.float64 else 1e-3)
    x[::7] = 0
    symbols, side = Codebook(k, zero).encode(x, rng_for(1))
    y = Codebook(k, zero).decode(symbols, side, Layout.of(x))
    centroids = side[0].values.to(dtype)  # type: ignore[attr-defined]
    assert torch.equal(centroids.sort().values, centroids)
    for symbol in symbols.unique():
        cell = x[symbols == symbol]
        sent = y[symbols == symbol][0]
        rounding = 2.0**-8 * float(cell.abs().max())
        assert float((cell.mean() - sent).abs()) <= rounding or (zero == "yes" and sent == 0)
    least = (x[:, None] - centroids).abs().min(1).values / x.abs().max()
    excess = float(((x - y) / x.abs().max()).square().sum() / least.square().sum())
    assert excess < 1.01  # the centroids moved to their means after entries chose
    if zero == "yes":
        assert not y[x == 0].any()


def least_error(x: np.ndarray, k: int) -> float:
    """Squared error of the optimal k-means in one dimension, by dynamic programming."""
    x = np.sort(x.astype(np.float64))
    sums, squares = (np.concatenate([[0], np.cumsum(x**p)]) for p in (1, 2))
    n = x.size
    start, end = np.meshgrid(np.arange(n), np.arange(1, n + 1), indexing="ij")
    count = np.maximum(end - start, 1)
    cost = squares[end] - squares[start] - (sums[end] - sums[start]) ** 2 / count
    cost[end <= start] = np.inf
    best = cost[0]
    for _ in range(k - 1):
        best = np.minimum(best, np.min(best[:-1, None] + cost[1:], axis=0, initial=np.inf))
    return float(best[-1])


@pytest.mark.parametrize("power", [1, 3])
@pytest.mark.parametrize("k", [2, 4, 16])
def test_codebook_is_near_the_optimum(k: int, power: int) -> None:
    x = normal(800, seed=k) ** power
    error = float((x - apply(Codebook(k), x)).double().square().sum())
    assert error <= 1.12 * least_error(x.numpy(), k) + 1e-4


@given(st.lists(st.sampled_from([-3.0, -0.5, 0.0, 0.25, 8.0]), min_size=1, max_size=50))
def test_codebook_returns_a_few_short_values_exactly(values: list[float]) -> None:
    x = torch.tensor(values)
    assert torch.equal(apply(Codebook(5), x), x)


@given(arrays, st.integers(1, 40), st.data())
def test_nearest_and_look_up_agree(x: torch.Tensor, k: int, data: st.DataObject) -> None:
    levels = normal(k, seed=k).sort().values * 100
    zero = data.draw(st.integers(0, k - 1))
    y = look_up(nearest(x, levels, zero), levels, zero)
    least = (x[:, None] - levels).abs().min(1).values
    assert torch.allclose((x - y).abs(), least, rtol=1e-4, atol=1e-4)


@settings(deadline=None)
@given(
    st.tuples(st.integers(1, 5), st.integers(1, 23)),
    st.integers(2, 9),
    st.integers(2, 12),
)
def test_product_quantize_keeps_shapes_that_do_not_divide(
    shape: tuple[int, int], k: int, dim: int
) -> None:
    x = normal(*shape, seed=k)
    stage = ProductQuantize(k, dim)
    symbols, side = stage.encode(x, rng_for(1))
    width = min(dim, shape[1])
    assert symbols.shape == (shape[0], -(-shape[1] // width))
    assert symbols.shape == stage.layout_after(Layout.of(x), side).shape
    y = stage.decode(symbols, side, Layout.of(x))
    assert y.shape == x.shape
    vectors = side[0].values.float()  # type: ignore[attr-defined]
    assert vectors.shape == stage.side_forms(Layout.of(x))[0].shape  # type: ignore[attr-defined]
    for block, decoded, symbol in zip(x.split(width, 1), y.split(width, 1), symbols.T, strict=True):
        assert torch.equal(decoded, vectors[symbol.long(), : block.shape[1]])


def test_product_quantize_returns_a_few_vectors_exactly() -> None:
    vectors = (normal(8, 4) * 16).round() / 16
    drawn = torch.from_numpy(rng_for(3).integers(0, 8, (40, 25)))
    x = vectors[drawn].reshape(40, 100)
    assert torch.equal(apply(ProductQuantize(8, 4), x), x)
    assert torch.equal(apply(ProductQuantize(64, 4), x * 2.0**-100), x * 2.0**-100)


def test_vectors_err_less_than_scalars_at_equal_bits() -> None:
    """Two-entry blocks of 256 vectors, and sixteen levels, both take four bits an entry."""
    x = normal(64, 8192)
    scalar = nmse(x, apply(Codebook(16), x))
    assert nmse(x, apply(ProductQuantize(256, 2), x)) < 0.93 * scalar
    correlated = x + x.roll(1, 1)
    error = nmse(correlated, apply(ProductQuantize(256, 2), correlated))
    assert error < 0.85 * nmse(correlated, apply(Codebook(16), correlated))


def test_product_quantize_sends_small_vectors_as_small_numbers() -> None:
    x = normal(64, 1024) ** 3
    symbols, _ = ProductQuantize(64, 4).encode(x, rng_for(1))
    norms = x.reshape(-1, 4).norm(dim=1)
    order = symbols.reshape(-1).double()
    assert (
        float(
            torch.corrcoef(
                torch.stack([order.argsort().argsort(), norms.argsort().argsort()]).double()
            )[0, 1]
        )
        > 0.8
    )


@pytest.mark.parametrize("stage", [Nf4(), Codebook(16), ProductQuantize(8, 4)], ids=repr)
@pytest.mark.parametrize("symbol", [-30_000, -9, 16, 30_000])
def test_symbols_beyond_the_table_are_refused(stage: Stage, symbol: int) -> None:
    x = normal(40, 8)
    symbols, side = stage.encode(x, rng_for(1))
    symbols = symbols.clone()
    symbols.view(-1)[3] = symbol
    with pytest.raises(PayloadError, match="beyond"):
        stage.decode(symbols, side, Layout.of(x))


def test_bad_settings_are_refused_by_name() -> None:
    for make, named in (
        (lambda: Nf4(1), "nf4: block"),
        (lambda: Codebook(1), "codebook: k"),
        (lambda: Codebook(16, "maybe"), "codebook: zero"),
        (lambda: ProductQuantize(1, 4), "product_quantize: k"),
        (lambda: ProductQuantize(16, 1), "product_quantize: dim"),
        (lambda: parse('sign("sum")'), "sign: scale"),
    ):
        with pytest.raises(SpecError, match=named):
            make()
