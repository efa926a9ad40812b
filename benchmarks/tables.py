"""Measurements as text."""

from collections.abc import Sequence

from benchmarks.comparison import AtEqualError, geometric_mean
from benchmarks.measure import Row

_HEADINGS = ("bytes", "bits", "NMSE", "× order 0", "× limit", "enc MB/s", "dec MB/s")


def rows_table(rows: Sequence[Row]) -> str:
    """Lay out one update's rows: ours first, then peers, each curve by its error."""
    first = {row.curve: place for place, row in reversed(list(enumerate(rows)))}
    ordered = sorted(rows, key=lambda row: (not row.ours, first[row.curve], row.nmse))
    return text_table(
        ("codec", *_HEADINGS),
        [
            (
                row.codec,
                f"{row.payload_bytes}",
                f"{row.bits_per_parameter:.4g}",
                f"{row.nmse:.3g}",
                _times(row.bits_per_parameter, row.order0_bits_per_parameter),
                _times(row.bits_per_parameter, row.bound_bits_per_parameter),
                f"{row.encode_mb_per_second:.0f}",
                f"{row.decode_mb_per_second:.0f}",
            )
            for row in ordered
        ],
    )


def comparison_table(found: Sequence[AtEqualError]) -> str:
    """Lay out comparisons at equal error: one table for each curve, closed by geometric means."""
    curves = dict.fromkeys(one.curve for one in found)
    return "\n\n".join(
        f"{curve}\n{_curve_table([one for one in found if one.curve == curve])}" for curve in curves
    )


def _curve_table(ones: Sequence[AtEqualError]) -> str:
    lines: list[tuple[str, ...]] = [
        (
            one.peer,
            f"{one.nmse:.3g}",
            f"{one.our_bits_per_parameter:.4g}",
            f"{one.peer_bits_per_parameter:.4g}",
            *_ratios(one.bits_ratio, one.encode_ratio, one.decode_ratio),
        )
        for one in ones
    ]
    means = _ratios(
        geometric_mean([one.bits_ratio for one in ones]),
        geometric_mean([one.encode_ratio for one in ones]),
        geometric_mean([one.decode_ratio for one in ones]),
    )
    lines.append(("mean", "", "", "", *means))
    headings = ("peer", "NMSE", "our bits", "peer's", "bits ÷", "enc speed ÷", "dec speed ÷")
    return text_table(headings, lines)


def _ratios(bits: float, encode: float, decode: float) -> tuple[str, str, str]:
    return f"{bits:.3f}", f"{encode:.1f}", f"{decode:.1f}"


def _times(bits: float, least: float | None) -> str:
    if not least:
        return ""
    ratio = bits / least
    return f"{ratio:.3f}" if ratio < 10 else f"{ratio:.0f}"


def text_table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Lay out lines under headings, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(headings, *lines, strict=True)]
    words = {place for place, cells in enumerate(zip(*lines, strict=True)) if not _number(cells)}
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place in words else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in (headings, *lines)
    )


def _number(cells: Sequence[str]) -> bool:
    return all(cell == "" or cell[0].isdigit() for cell in cells)
