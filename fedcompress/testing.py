"""Laws that every compressor keeps, for the tests of those who write new stages.

::

    from fedcompress.testing import check_compressor

    def test_my_stage():
        check_compressor("my_stage(3) | entropy()")
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from fedcompress.compressor import Compressor, State
from fedcompress.errors import FedcompressError, NotFiniteError, PayloadError, StaleMemoryError
from fedcompress.randomness import rng_for
from fedcompress.spec import parse
from fedcompress.wire import HEADER_BYTES

_MOST_DRAWS = 4000


def sample_arrays() -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Give named updates that a codec may meet: shapes, dtypes, values at the edges."""
    draw = rng_for(0, purpose="sample_arrays")

    def normal(*shape: int) -> Tensor:
        return torch.from_numpy(draw.standard_normal(shape).astype(np.float32))

    heavy = normal(40, 30) ** 3
    heavy[3] = 0
    yield "a layer", {"weight": heavy * 1e-3, "bias": normal(40) * 1e-4}
    yield "empty", {"x": torch.zeros(0), "y": torch.zeros(3, 0, 2)}
    yield "no arrays", {}
    yield "scalar", {"x": torch.tensor(-2.5)}
    yield "one entry", {"x": torch.tensor([0.3])}
    yield "all zero", {"x": torch.zeros(70, 3)}
    yield "constant", {"x": torch.full((100,), -0.7)}
    yield "one far out", {"x": torch.cat([normal(500) * 1e-6, torch.tensor([1e6])])}
    yield "huge", {"x": torch.tensor([3e38, -3.4e38, 1.0, 0.0, 3e38])}
    yield "denormal", {"x": torch.tensor([1e-45, -3e-42, 1e-40, 0.0] * 5)}
    yield "non-contiguous", {"x": normal(30, 20).T, "y": normal(50)[::3]}
    yield "float16", {"x": normal(64).half()}
    yield "bfloat16", {"x": normal(64).bfloat16()}
    yield "float64", {"x": normal(64).double() * 1e-200}
    yield (
        "counters and masks",
        {
            "steps": torch.tensor(12345678901234567),
            "ids": torch.arange(-5, 60, dtype=torch.int32),
            "bytes": torch.arange(256).to(torch.uint8),
            "mask": torch.arange(33) % 3 == 0,
            "weight": normal(8, 8),
        },
    )


def check_compressor(
    compressor: str | Compressor, prepare: Callable[[Tensor], Tensor] | None = None
) -> None:
    """Check every law that a compressor keeps, whatever it does to the numbers.

    It is written as a spec that parses back to it; encoding neither changes the update nor
    depends on anything but its arguments; decoding gives names, shapes and dtypes back, all of
    it finite, and integers and booleans exactly; the bytes by stream add up; adding a payload
    to a sum equals adding the decoded update; what is not finite, cut short or damaged ends in
    the package's own error; and where the compressor says that it is unbiased, the mean of
    many decoded updates tends to the update. One that predicts is followed over rounds by a
    decoder that saw every payload, and refused by one that did not.

    Parameters
    ----------
    compressor : str or Compressor
        What to check.
    prepare : callable, optional
        Turns the floating-point arrays of the sample updates into such as it takes, as
        ``torch.sigmoid`` does for one that takes probabilities only.

    Raises
    ------
    AssertionError
        With the law and the update that break it.
    """
    compressor = parse(compressor)
    again = parse(str(compressor))
    assert again == compressor, f"parse(str(c)) gives {again}, not {compressor}"
    prepare = prepare or (lambda x: x)
    for what, update in sample_arrays():
        _check_round_trip(compressor, what, _prepared(update, prepare))
    _check_not_finite(compressor)
    _check_damage(compressor, prepare)
    if compressor.unbiased:
        _check_unbiased(compressor, prepare)


def _prepared(
    update: Mapping[str, Tensor], prepare: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    return {name: prepare(x) if x.is_floating_point() else x for name, x in update.items()}


def _check_round_trip(compressor: Compressor, what: str, update: Mapping[str, Tensor]) -> None:
    where = f"{compressor} on {what}"
    state = compressor.init(update)
    given = {name: x.clone() for name, x in update.items()}
    kept = {name: x.clone() for name, x in state.items()}
    payload, new_state = compressor.encode(update, state, _rng())
    assert same(update, given), f"{where}: encode changed the update"
    assert same(state, kept), f"{where}: encode changed the state"
    assert state.keys() == new_state.keys(), f"{where}: the state has other arrays than init's"
    twin, twin_state, expected = compressor.encode_and_decode(update, state, _rng())
    assert payload == twin, f"{where}: the same key gave other bytes"
    assert same(new_state, twin_state), f"{where}: the same key gave another state"
    decoded, counts = compressor.decode_counted(payload, update)
    assert same(decoded, expected), f"{where}: decode differs from what the encoder kept"
    assert list(decoded) == list(update), f"{where}: other names or another order"
    assert sum(counts.values()) == len(payload), f"{where}: {counts} of {len(payload)} bytes"
    streams = sum(x.numel() > 0 for x in update.values()) * 8
    assert counts["overhead"] <= HEADER_BYTES + 4 * streams, f"{where}: overhead {counts}"
    for name, x in update.items():
        y = decoded[name]
        assert (y.shape, y.dtype) == (x.shape, x.dtype), f"{where}: {name} came back as {y}"
        if x.is_floating_point():
            assert bool(torch.isfinite(y).all()), f"{where}: {name} came back not finite"
        else:
            assert torch.equal(x, y), f"{where}: {name} did not come back exactly"
        total = torch.zeros(x.shape, dtype=torch.float64)
        compressor.read(payload, update)[0][name].add_to(total, 0.25)
        scale = max(1.0, float(y.double().abs().max())) if y.numel() else 1.0
        near = torch.allclose(total, 0.25 * y.double(), rtol=1e-5, atol=1e-6 * scale)
        assert near, f"{where}: adding {name} to a sum differs from adding it decoded"
    if compressor.recalls:
        _check_recall(compressor, where, update, payload, new_state)


def _check_recall(
    compressor: Compressor, where: str, update: Mapping[str, Tensor], payload: bytes, state: State
) -> None:
    """Check that a decoder that saw every payload follows the encoder, and that no other does."""
    _, memory = compressor.decode_and_remember(payload, update, {})
    for i in range(2, 4):
        changed = {name: x / 8**i if x.is_floating_point() else x for name, x in update.items()}
        rng = rng_for(3, round=i, client=2, purpose="check")
        payload, state, expected = compressor.encode_and_decode(changed, state, rng)
        before = memory
        decoded, memory = compressor.decode_and_remember(payload, update, before)
        assert same(decoded, expected), f"{where}: in round {i} decode differs from the encoder's"
        if any(bool(x.any()) for x in before.values()):
            try:
                compressor.decode(payload, update, {})
            except StaleMemoryError:
                continue
            raise AssertionError(f"{where}: decoded without the memory that it builds on")


def _check_not_finite(compressor: Compressor) -> None:
    for value in (float("nan"), float("inf"), float("-inf")):
        update = {"x": torch.tensor([0.5, value, -1.0, 0.25])}
        try:
            payload, _ = compressor.encode(update, compressor.init(update), _rng())
        except NotFiniteError:
            continue
        decoded = compressor.decode(payload, update)
        assert torch.equal(decoded["x"].isfinite(), update["x"].isfinite()), (
            f"{compressor}: took {value} and gave back {decoded['x']}"
        )


def _check_damage(compressor: Compressor, prepare: Callable[[Tensor], Tensor]) -> None:
    update = _prepared(next(sample_arrays())[1], prepare)
    payload, _ = compressor.encode(update, compressor.init(update), _rng())
    for damaged in (b"", payload[:-1], payload[:9], payload + b"\0", payload[:20] + b"\xff" * 9):
        try:
            compressor.decode(damaged, update)
        except PayloadError:
            continue
        raise AssertionError(f"{compressor}: decoded {len(damaged)} damaged bytes")
    try:
        compressor.decode(payload, {**update, "bias": torch.zeros(41)})
    except FedcompressError:
        return
    raise AssertionError(f"{compressor}: decoded a payload for arrays of another shape")


def _check_unbiased(compressor: Compressor, prepare: Callable[[Tensor], Tensor]) -> None:
    """Check that the mean of decoded updates is within six standard errors of the update."""
    draw = rng_for(0, purpose="unbiased")
    update = {"x": prepare(torch.from_numpy(draw.standard_normal(64).astype(np.float32)))}
    state = compressor.init(update)
    draws = torch.stack(
        [
            compressor.encode_and_decode(update, state, rng_for(0, round=i, purpose="draw"))[2]["x"]
            for i in range(_MOST_DRAWS)
        ]
    ).double()
    error = (draws.mean(0) - update["x"].double()).abs()
    standard_error = draws.std(0) / _MOST_DRAWS**0.5
    worst = float((error - 6 * standard_error).max())
    assert worst <= 1e-6, f"{compressor}: says it is unbiased, but its mean is off by {error.max()}"


def _rng() -> np.random.Generator:
    return rng_for(3, round=1, client=2, purpose="check")


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Whether two mappings hold equal arrays, NaN being equal to itself."""
    return a.keys() == b.keys() and all(
        torch.equal(x, b[name])
        or (
            torch.equal(x.isnan(), b[name].isnan())
            and torch.equal(x.nan_to_num(), b[name].nan_to_num())
        )
        for name, x in a.items()
    )
