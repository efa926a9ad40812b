"""Dither and QSGD: errors that do not depend on the update, and means that equal it."""

import numpy as np
import pytest
import torch

from fedcompress import parse, rng_for
from fedcompress.errors import PayloadError, SpecError
from fedcompress.noise import uniform_noise
from fedcompress.rotation import random_words
from fedcompress.stages.blocks import read_scales, scale_stream
from fedcompress.stages.dither import Dither
from fedcompress.stages.qsgd import Qsgd
from fedcompress.streams import Layout, Scale, Symbols

CPU = torch.device("cpu")


def normal(n: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(rng_for(seed, purpose="x").standard_normal(n).astype(np.float32))


def send(spec: str, x: torch.Tensor, draw: int = 0) -> torch.Tensor:
    return parse(spec).encode_and_decode({"x": x}, {}, rng_for(1, round=draw))[2]["x"]


def kolmogorov(sample: np.ndarray) -> float:
    """Give √n times the distance of a sample from the uniform distribution over [0, 1]."""
    n = sample.size
    steps = np.arange(1, n + 1) / n
    ordered = np.sort(sample)
    return float(np.sqrt(n) * np.maximum(steps - ordered, ordered - steps + 1 / n).max())


@pytest.mark.parametrize("step", [0.1, 1.0, 4.0])
@pytest.mark.parametrize("shape", ["normal", "three values"])
def test_dither_error_is_uniform_whatever_the_update(step: float, shape: str) -> None:
    """Schuchman's condition, at steps so coarse that plain rounding would return zeros."""
    x = normal(200_000) if shape == "normal" else torch.tensor([-1.0, 0.0, 1e-3]).repeat(50_000)
    width = step * float(x.double().std(correction=0))
    error = ((send(f"dither({step})", x) - x) / width).double().numpy()
    assert np.abs(error).max() <= 0.5 + 1e-4
    assert np.square(error).mean() == pytest.approx(1 / 12, rel=0.01)
    assert abs(np.corrcoef(error, x.numpy())[0, 1]) < 4 / np.sqrt(x.numel())
    for part in (x <= x.median(), x > x.median()):  # and so within any set of entries
        if part.any():
            assert kolmogorov(error[part.numpy()] + 0.5) < 2  # 1.95 in a thousand exceeds it


def test_dither_has_half_the_error_of_stochastic_rounding() -> None:
    x = normal(200_000)
    plain = float((send("quantize(step=2)", x) - x).square().mean())
    assert float((send("dither(2)", x) - x).square().mean()) < 0.55 * plain


def test_dither_sends_zeros_as_zeros() -> None:
    assert not send("dither(0.4)", torch.zeros(1000)).any()


def test_noise_is_frozen_and_the_same_by_torch_and_kernel() -> None:
    assert (uniform_noise(7, 4, CPU) * 2**24).to(torch.int64).tolist() == [
        1224240,
        6540257,
        281660,
        15112256,
    ]
    for seed in (0, 1, 2**63 + 5, 2**64 - 1):
        words = random_words(seed, torch.arange(1000))
        top = (words >> 40) & 0xFFFFFF
        assert torch.equal(uniform_noise(seed, 1000, CPU), top.float() * 2.0**-24)
    assert kolmogorov(uniform_noise(3, 100_000, CPU).numpy()) < 1.95


@pytest.mark.parametrize("norm", ["l2", "max"])
@pytest.mark.parametrize(("levels", "bucket"), [(4, None), (4, 64), (1, 100), (16, 512)])
def test_qsgd_variance_is_the_exact_one(norm: str, levels: int, bucket: int | None) -> None:
    """Σ p (1 − p) step² where an entry lies the share p of a step above a multiple of it."""
    x = normal(3000) ** 3
    stage = Qsgd(levels, bucket, norm)
    symbols, side = stage.encode(x, rng_for(1))
    assert int(symbols.abs().max()) <= levels
    size = bucket or 3000
    steps = read_scales(side[0], Layout.of(x), 7).repeat_interleave(size)[:3000]
    norms = [float(b.norm() if norm == "l2" else b.abs().max()) for b in x.split(size)]
    exact = torch.tensor(norms).repeat_interleave(size)[:3000] / levels
    assert bool((steps >= exact * (1 - 1e-6)).all())
    assert bool((steps <= exact * (1 + 2**-7)).all())
    share = (x / steps) % 1
    variance = float((share * (1 - share) * steps**2).double().sum())
    draws = [send(f"{stage!r}", x, i).double() for i in range(40)]
    measured = float(np.mean([float((y - x).square().sum()) for y in draws]))
    assert measured == pytest.approx(variance, rel=0.06)
    if norm == "l2":  # the bound of the paper, up to the rounding of the norms
        bound = min(size / levels**2, size**0.5 / levels) * float(x.double().square().sum())
        assert measured <= 1.02 * bound


def test_a_whole_array_has_an_exact_norm() -> None:
    x = normal(1000)
    _, side = Qsgd(4).encode(x, rng_for(1))
    assert isinstance(side[0], Scale)
    assert float(side[0].values) == pytest.approx(float(x.norm()) / 4, rel=1e-6)


def test_qsgd_of_one_level_is_terngrad() -> None:
    x = normal(5000)
    y = send('qsgd(1, norm="max")', x)
    assert set(y.unique().tolist()) == {-float(x.abs().max()), 0.0, float(x.abs().max())}


def test_what_may_err_by_more_than_its_input_is_refused_under_error_feedback() -> None:
    parse("error_feedback(qsgd(16, bucket=255))")
    parse('error_feedback(qsgd(1, bucket=3, norm="max"))')
    for spec in ("qsgd(16)", "qsgd(16, bucket=256)", 'qsgd(7, norm="max")'):
        with pytest.raises(SpecError, match="bucket of fewer entries"):
            parse(f"error_feedback({spec})")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("up", [True, False])
@pytest.mark.parametrize("fraction_bits", [3, 7])
def test_scales_of_blocks_are_rounded_in_their_significant_bits(
    dtype: torch.dtype, up: bool, fraction_bits: int
) -> None:
    tiny, huge = torch.finfo(dtype).tiny, torch.finfo(dtype).max
    scales = torch.cat([normal(500).abs().to(dtype), torch.tensor([0, tiny, huge], dtype=dtype)])
    stream, read = scale_stream(scales, fraction_bits, up=up)
    like = Layout((503 * 8,), dtype, CPU)
    assert torch.equal(read_scales(stream, like, fraction_bits), read)
    assert bool(read.isfinite().all())
    error = (read - scales)[:-1] / scales[:-1].clamp(min=tiny)
    assert float(error.max()) <= 2.0 ** -(fraction_bits + (not up))
    assert float(error.min()) >= (0 if up else -(2.0 ** -(fraction_bits + 1)))


def test_scales_beyond_any_float_are_refused() -> None:
    like = Layout((100,), torch.float32, CPU)
    for code in (-1, 255 << 7, 1 << 30):
        with pytest.raises(PayloadError, match="out of range"):
            read_scales(Symbols(torch.tensor([5, code], dtype=torch.int32)), like, 7)
    with pytest.raises(PayloadError, match="negative"):
        read_scales(Scale(torch.tensor([-1.0])), like, 7)


def test_bad_settings_are_refused_by_name() -> None:
    for make, named in (
        (lambda: Dither(0), "dither: step"),
        (lambda: Qsgd(0), "qsgd: levels"),
        (lambda: Qsgd(4, 1), "qsgd: bucket"),
        (lambda: Qsgd(4, norm="l1"), "qsgd: norm"),
    ):
        with pytest.raises(SpecError, match=named):
            make()
