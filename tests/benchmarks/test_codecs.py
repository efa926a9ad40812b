"""The benchmark of codecs: what it measures adds up, and it runs."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import budgets, large, warm_start
from benchmarks.codec import BytesCodec, SpecCodec
from benchmarks.codecs import main
from benchmarks.codecs_figure import main as draw
from benchmarks.comparison import at_equal_error
from benchmarks.fixed_step import FixedStepAns, FixedStepZstd
from benchmarks.judge import nmse, order0_bits
from benchmarks.lossless import Raw, Zstd
from benchmarks.measure import Row
from benchmarks.updates import Update, successive_updates, train_update
from fedcompress.errors import ConfigError


@pytest.fixture(scope="module")
def update() -> Update:
    return train_update("digits_mlp")


def test_an_update_is_what_training_changed_and_can_be_made_again(update: Update) -> None:
    assert sum(x.size for x in update.values()) == 64 * 200 + 200 + 200 * 10 + 10
    assert all(x.dtype == np.float32 for x in update.values())
    again = train_update("digits_mlp")
    assert all(np.array_equal(x, again[name]) for name, x in update.items())
    other = train_update("digits_mlp", seed=1)
    assert not any(np.array_equal(x, other[name]) for name, x in update.items())


@pytest.mark.parametrize("codec", [Raw(), Zstd()], ids=lambda codec: codec.name)
def test_lossless_peers_lose_nothing(codec: BytesCodec, update: Update) -> None:
    decoded = codec.decode(codec.encode(update), update)
    assert all(np.array_equal(x, decoded[name]) for name, x in update.items())


@pytest.mark.parametrize("kind", [FixedStepAns, FixedStepZstd])
@pytest.mark.parametrize("step", [0.05, 1.0, 30.0])
def test_fixed_step_peers_err_by_half_a_step_at_most(
    kind: type[FixedStepAns], step: float, update: Update
) -> None:
    codec = kind(step)
    decoded = codec.decode(codec.encode(update), update)
    flat = np.concatenate([x.ravel() for x in update.values()])
    half = 0.5 * step * float(np.sqrt(np.mean(flat.astype(np.float64) ** 2)))
    for name, x in update.items():
        assert decoded[name].shape == x.shape
        assert np.abs(x - decoded[name]).max() <= half * 1.0001


def test_ans_reaches_the_order_0_entropy_of_what_it_decodes_to(update: Update) -> None:
    codec = FixedStepAns(0.5)
    payload = codec.encode(update)
    least = order0_bits(codec.decode(payload, update))
    assert least is not None
    assert 1 <= 8 * len(payload) / least < 1.06


def test_values_off_any_grid_have_no_symbols_to_count(update: Update) -> None:
    assert order0_bits(update) is None
    assert order0_bits({"x": np.zeros(100, np.float32)}) == 0


def test_the_error_is_that_of_the_whole_update() -> None:
    x = {"a": np.array([3.0, 0.0], np.float32), "b": np.array([4.0], np.float32)}
    arrived = {"a": np.array([3.0, 1.0], np.float32), "b": np.array([2.0], np.float32)}
    assert nmse(x, arrived) == pytest.approx((1 + 4) / 25)
    assert nmse(x, x) == 0


def row(curve: str, *, ours: bool, bits: float, error: float, speed: float) -> Row:
    return Row(curve, curve, ours, 0, bits, error, speed, 2 * speed, None, None)


def test_curves_are_compared_at_equal_error_and_never_beyond_their_ends() -> None:
    ours = [
        row("a", ours=True, bits=-0.5 * np.log2(error), error=error, speed=100.0)
        for error in (0.001, 0.1)
    ]
    peer = [
        row("peer", ours=False, bits=-np.log2(error), error=error, speed=20.0)
        for error in (0.0001, 0.02, 0.5)
    ]
    lone = row("b", ours=True, bits=1.0, error=0.02, speed=1.0)
    (only,) = at_equal_error([*ours, lone, *peer], "peer")
    assert (only.curve, only.nmse) == ("a", 0.02)
    assert only.bits_ratio == pytest.approx(0.5)
    assert only.encode_ratio == pytest.approx(5)
    assert only.decode_ratio == pytest.approx(5)


def test_a_codec_of_ours_is_named_by_its_canonical_spec(update: Update) -> None:
    codec = SpecCodec("quantize(4)")
    assert codec.name == "quantize(4) | entropy()"
    sent = codec.send(update, want_decoded=True)
    assert sent.decoded is not None
    assert sent.payload_bytes == len(codec.encode(update))


def test_the_command_measures_tells_and_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, figure = tmp_path / "out.json", tmp_path / "out.svg"
    specs = [
        "quantize(4)",
        "quantize(bits=4)",
        'quantize(step={}, rounding="nearest")',
        "no_such_stage(1)",
    ]
    main(
        [
            *("--models", "digits_mlp", "fashion_mlp", "--no-peers", "--repeat", "1"),
            *(f"--spec={spec}" for spec in specs),
            *("--json", str(file)),
        ]
    )
    told = capsys.readouterr().out
    assert "no_such_stage(1): left out" in told
    assert "fashion_mlp: left out" in told
    assert "digits_mlp: 15010 parameters" in told
    (result,) = json.loads(file.read_text("utf-8"))["updates"]
    assert sum(one["codec"] == "quantize(4) | entropy()" for one in result["rows"]) == 1
    for one in result["rows"]:
        assert one["bits_per_parameter"] == 8 * one["payload_bytes"] / 15010
        assert one["encode_mb_per_second"] > 0
    on_curve = [one for one in result["rows"] if "{}" in one["curve"]]
    assert len(on_curve) == 10
    errors = [one["nmse"] for one in on_curve]
    assert errors == sorted(errors)
    draw([str(file), str(figure)])
    assert figure.read_text("utf-8").lstrip().startswith("<?xml")


def test_a_folder_of_ones_own_updates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "mine.npz", w=np.linspace(-1, 1, 900, dtype=np.float32).reshape(30, 30))
    arguments = ["--updates", str(tmp_path), "--no-peers", "--repeat", "1", "--spec", "quantize(8)"]
    main(arguments)
    assert "mine: 900 parameters in 1 arrays" in capsys.readouterr().out
    for value, fault in ((np.nan, "w is not all finite"), (0.0, "all zero")):
        np.savez(tmp_path / "mine.npz", w=np.full(9, value, np.float32))
        with pytest.raises(SystemExit, match=fault):
            main(arguments)


def test_unknown_updates_are_refused() -> None:
    with pytest.raises(ConfigError, match="digits_mlp"):
        train_update("digits")


def test_budgets_are_set_beside_every_single_setting_that_fits(update: Update) -> None:
    (full, tight) = budgets.fill("digits", update)  # two hundredths of a bit are refused, and said
    assert (full.bits_per_parameter, tight.bits_per_parameter) == (1, 0.1)
    for one in (full, tight):
        assert 0.98 <= one.filled <= 1
        assert one.nmse < one.best_single_nmse < 1


def test_the_benchmark_of_large_arrays_writes_every_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = "quantize(step=0.4) | entropy()"
    large.main(
        ["--size", "40000", "--repeat", "1", "--spec", spec, "--json", str(tmp_path / "out.json")]
    )
    report = json.loads((tmp_path / "out.json").read_text("utf-8"))
    assert list(report["updates"]) == ["vector of 40000", "matrix of 158 × 253"]
    for rows in report["updates"].values():
        assert [row["codec"] for row in rows] == [spec]
        assert rows[0]["encode_mb_per_second"] > 0
    assert "matrix of 158 × 253" in capsys.readouterr().out


def test_a_warm_start_errs_less_on_successive_updates(capsys: pytest.CaptureFixture[str]) -> None:
    warm_start.main(["--models", "digits_mlp"])
    _, warm, cold = capsys.readouterr().out.strip().splitlines()
    assert warm.split()[:2] == ["digits_mlp", "yes"]
    assert float(warm.split()[-1]) < float(cold.split()[-1]) < 1


def test_the_first_of_successive_updates_is_that_of_one_training(update: Update) -> None:
    first, second = successive_updates("digits_mlp", 2, epochs=2)
    assert all(np.array_equal(x, update[name]) for name, x in first.items())
    assert not any(np.array_equal(x, second[name]) for name, x in first.items())
