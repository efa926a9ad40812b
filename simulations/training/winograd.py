"""Matrices of Winograd's minimal filtering, F(2, r): two outputs of a filter of r taps at once.

``y = A.T @ ((G @ g) * (B.T @ d))`` is the correlation of r + 1 inputs with r taps (Winograd, 1980;
Lavin and Gray, 2016). It is the transpose of Toom and Cook's product of polynomials: evaluate both
at r + 1 points, multiply, interpolate. In two dimensions a filter of 5 × 5 takes 36 products for
four outputs instead of 100, one of 3 × 3 takes 16 instead of 36.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

Matrix = tuple[tuple[float, ...], ...]

OUTPUTS = 2
# The filters' sizes, and where polynomials are evaluated beside infinity. Of the points that were
# tried for 5 taps, these round least: errors twice those of the definition, of 0, ±1, ±2 four.
_POINTS: Mapping[int, tuple[Fraction, ...]] = {
    3: (Fraction(0), Fraction(1), Fraction(-1)),
    5: (Fraction(0), Fraction(2, 3), Fraction(-2, 3), Fraction(3, 2), Fraction(-3, 2)),
}
TAPS = tuple(_POINTS)


def minimal_filtering(taps: int) -> tuple[Matrix, Matrix, Matrix]:
    """Give A (r + 1, 2), G (r + 1, r) and B.T (r + 1, r + 1) for a filter of r = ``taps``.

    Raises
    ------
    ValueError
        If ``taps`` is neither 3 nor 5.
    """
    if taps not in _POINTS:
        raise ValueError(f"minimal_filtering: taps must be 3 or 5, got {taps}")
    points = _POINTS[taps]
    size = taps + 1
    interpolate = _inverse(_evaluate(points, size))
    data = [[interpolate[j][i] for j in range(size)] for i in range(size)]
    # Rows of whole numbers: what makes them whole is divided out of the taps.
    whole = [math.lcm(*(x.denominator for x in row)) for row in data]
    filters = _evaluate(points, taps)
    return (
        _floats(_evaluate(points, OUTPUTS)),
        _floats([[x / w for x in row] for row, w in zip(filters, whole, strict=True)]),
        _floats([[x * w for x in row] for row, w in zip(data, whole, strict=True)]),
    )


def _evaluate(points: tuple[Fraction, ...], terms: int) -> list[list[Fraction]]:
    """Give what coefficients are multiplied by: rows for the points, then infinity."""
    rows = [[point**power for power in range(terms)] for point in points]
    return [*rows, [Fraction(int(power == terms - 1)) for power in range(terms)]]


def _inverse(matrix: list[list[Fraction]]) -> list[list[Fraction]]:
    size = len(matrix)
    rows = [[*row, *(Fraction(int(i == j)) for j in range(size))] for i, row in enumerate(matrix)]
    for i in range(size):
        pivot = next(k for k in range(i, size) if rows[k][i])
        rows[i], rows[pivot] = rows[pivot], rows[i]
        rows[i] = [x / rows[i][i] for x in rows[i]]
        for k in range(size):
            if k != i:
                rows[k] = [x - rows[k][i] * y for x, y in zip(rows[k], rows[i], strict=True)]
    return [row[size:] for row in rows]


def _floats(matrix: list[list[Fraction]]) -> Matrix:
    return tuple(tuple(float(x) for x in row) for row in matrix)
