"""Codecs on one update, turn by turn."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

from benchmarks.codec import Codec, Sent
from benchmarks.judge import nmse, order0_bits
from benchmarks.rate_distortion import RateDistortion
from benchmarks.updates import Update


@final
@dataclass(frozen=True)
class Row:
    """What one setting of a codec did with one update; MB are 10⁶ bytes of float32.

    Attributes
    ----------
    order0_bits_per_parameter : float or None
        Order-0 entropy of the decoded values of each array; None where they are no grid.
    bound_bits_per_parameter : float or None
        The memoryless rate–distortion bound at this NMSE; None outside of the traced curve.
    """

    codec: str
    curve: str
    ours: bool
    payload_bytes: int
    bits_per_parameter: float
    nmse: float
    encode_mb_per_second: float
    decode_mb_per_second: float
    order0_bits_per_parameter: float | None
    bound_bits_per_parameter: float | None


def measure(
    update: Update,
    codecs: Sequence[Codec],
    bound: RateDistortion,
    *,
    repeat: int,
    tell: Callable[[str], None],
) -> list[Row]:
    """Measure all codecs on an update.

    Every codec runs once to compile and to be judged, then ``repeat`` times more; each round
    goes through all codecs, so that a slow spell of the machine falls on all of them, and
    medians are taken. A codec that fails is named through ``tell`` and left out.
    """
    judged: list[tuple[Codec, _Verdict, list[Sent]]] = []
    for codec in codecs:
        try:
            judged.append((codec, _judge(update, codec), []))
        except Exception as error:  # noqa: BLE001  a peer's codec may fail in any way; the others still count
            words = str(error).partition("\n")[0]
            tell(f"{codec.name}: failed: {type(error).__name__}: {words}")
    for _ in range(repeat):
        for codec, _, times in judged:
            times.append(codec.send(update, want_decoded=False))
    parameters = sum(x.size for x in update.values())
    return [
        Row(
            codec=codec.name,
            curve=codec.curve,
            ours=codec.ours,
            payload_bytes=verdict.payload_bytes,
            bits_per_parameter=8 * verdict.payload_bytes / parameters,
            nmse=verdict.nmse,
            encode_mb_per_second=_speed(parameters, [sent.encode_seconds for sent in times]),
            decode_mb_per_second=_speed(parameters, [sent.decode_seconds for sent in times]),
            order0_bits_per_parameter=verdict.order0_bits_per_parameter,
            bound_bits_per_parameter=bound.bits_at(verdict.nmse),
        )
        for codec, verdict, times in judged
    ]


@final
@dataclass(frozen=True)
class _Verdict:
    payload_bytes: int
    nmse: float
    order0_bits_per_parameter: float | None


def _judge(update: Update, codec: Codec) -> _Verdict:
    sent = codec.send(update, want_decoded=True)
    assert sent.decoded is not None
    order0 = order0_bits(sent.decoded)
    parameters = sum(x.size for x in update.values())
    return _Verdict(
        sent.payload_bytes,
        nmse(update, sent.decoded),
        None if order0 is None else order0 / parameters,
    )


def _speed(parameters: int, seconds: Sequence[float]) -> float:
    # A clock's tick, where a copy of a small update takes less than one.
    return 4e-6 * parameters / max(statistics.median(seconds), 1e-7)
