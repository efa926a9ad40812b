"""Our curves against the points of a peer, at equal error."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from benchmarks.measure import Row


@final
@dataclass(frozen=True)
class AtEqualError:
    """One of our curves at the NMSE of a peer's point. Ratios are ours ÷ theirs."""

    curve: str
    peer: str
    nmse: float
    our_bits_per_parameter: float
    peer_bits_per_parameter: float
    bits_ratio: float
    encode_ratio: float
    decode_ratio: float


def at_equal_error(rows: Sequence[Row], peer_curve: str) -> list[AtEqualError]:
    """Compare every curve of ours that has two points or more with every point of a peer.

    Between our points bits run linearly in ln NMSE, as R(D) of a memoryless source does where
    nothing is clipped to zero, and speeds' logarithms too. Nothing is extrapolated: a point
    beyond the ends of a curve is left out.
    """
    found = []
    peers = sorted((row for row in rows if row.curve == peer_curve), key=lambda row: row.nmse)
    for curve in dict.fromkeys(row.curve for row in rows if row.ours):
        points = sorted(
            (row for row in rows if row.curve == curve and row.nmse > 0), key=lambda row: row.nmse
        )
        for peer in peers:
            if len(points) > 1 and points[0].nmse <= peer.nmse <= points[-1].nmse:
                found.append(_compare(curve, points, peer))
    return found


def _compare(curve: str, points: Sequence[Row], peer: Row) -> AtEqualError:
    def at(value: Callable[[Row], float]) -> float:
        errors = [math.log(row.nmse) for row in points]
        return float(np.interp(math.log(peer.nmse), errors, [value(row) for row in points]))

    bits = at(lambda row: row.bits_per_parameter)
    encode = math.exp(at(lambda row: math.log(row.encode_mb_per_second)))
    decode = math.exp(at(lambda row: math.log(row.decode_mb_per_second)))
    return AtEqualError(
        curve=curve,
        peer=peer.codec,
        nmse=peer.nmse,
        our_bits_per_parameter=bits,
        peer_bits_per_parameter=peer.bits_per_parameter,
        bits_ratio=bits / peer.bits_per_parameter,
        encode_ratio=encode / peer.encode_mb_per_second,
        decode_ratio=decode / peer.decode_mb_per_second,
    )


def geometric_mean(values: Sequence[float]) -> float:
    """Give the mean of ratios."""
    return math.exp(sum(map(math.log, values)) / len(values))
