"""k-means over short vectors.

Points are taken in tiles, a coordinate of all points of a tile side by side, so that one
centroid is compared with many points at once.
"""

import numpy as np

from fedcompress.kernels.jit import kernel

_TILE = 128


@kernel
def assign(points: np.ndarray, centroids: np.ndarray, out: np.ndarray) -> None:
    """Give the nearest centroid of each point, of equal ones the first.

    ``points`` (n, dim) and ``centroids`` (k, at least dim) are float32, ``out`` (n) is int32.
    Only the first ``dim`` coordinates of a centroid count.
    """
    n, dim = points.shape
    tile = np.empty((dim, _TILE), np.float32)
    distance = np.empty(_TILE, np.float32)
    best = np.empty(_TILE, np.float32)
    place = np.empty(_TILE, np.int32)
    for start in range(0, n, _TILE):
        count = min(_TILE, n - start)
        for i in range(count):
            for d in range(dim):
                tile[d, i] = points[start + i, d]
        best[:] = np.inf
        place[:] = 0
        for j in range(centroids.shape[0]):
            distance[:] = 0
            for d in range(dim):
                middle = centroids[j, d]
                row = tile[d]
                for i in range(_TILE):
                    distance[i] += (row[i] - middle) * (row[i] - middle)
            for i in range(_TILE):
                closer = distance[i] < best[i]
                place[i] = np.int32(j) if closer else place[i]
                best[i] = distance[i] if closer else best[i]
        for i in range(count):
            out[start + i] = place[i]


@kernel
def seed(points: np.ndarray, weights: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Choose a point for each of ``draws`` (uniform in [0, 1)) by k-means++, weights counting."""
    n, dim = points.shape
    columns = points.T.copy()
    centroids = np.empty((draws.size, dim), np.float32)
    left = np.full(n, np.inf, np.float32)
    share = weights.astype(np.float32)
    distance = np.empty(n, np.float32)
    for j in range(draws.size):
        at = _pick(share, draws[j])
        centroids[j] = points[at]
        distance[:] = 0
        for d in range(dim):
            middle = points[at, d]
            row = columns[d]
            for i in range(n):
                distance[i] += (row[i] - middle) * (row[i] - middle)
        for i in range(n):
            left[i] = min(left[i], distance[i])
            share[i] = left[i] * weights[i]
    return centroids


@kernel
def _pick(share: np.ndarray, draw: float) -> int:
    """Give a position drawn in proportion to ``share``, by blocks and then within one."""
    width = 128
    blocks = (share.size + width - 1) // width
    sums = np.zeros(blocks)
    for b in range(blocks):
        for value in share[b * width : (b + 1) * width]:
            sums[b] += value
    wanted = draw * sums.sum()
    b = 0
    while b + 1 < blocks and wanted >= sums[b]:
        wanted -= sums[b]
        b += 1
    at = b * width
    last = min(at + width, share.size) - 1
    while at < last and wanted >= share[at]:
        wanted -= share[at]
        at += 1
    return at


@kernel
def refine(points: np.ndarray, weights: np.ndarray, centroids: np.ndarray, rounds: int) -> None:
    """Move centroids to the weighted means of their points, for so many rounds, in place."""
    places = np.empty(points.shape[0], np.int32)
    for _ in range(rounds):
        assign(points, centroids, places)
        move(points, weights, places, centroids)


@kernel
def move(
    points: np.ndarray, weights: np.ndarray, places: np.ndarray, centroids: np.ndarray
) -> None:
    """Put the weighted mean of the points of each centroid in its place."""
    k, dim = centroids.shape
    totals = np.zeros((k, dim))
    mass = np.zeros(k)
    for i in range(points.shape[0]):
        j = places[i]
        mass[j] += weights[i]
        for d in range(dim):
            totals[j, d] += weights[i] * points[i, d]
    for j in range(k):
        if mass[j] > 0:
            for d in range(dim):
                centroids[j, d] = totals[j, d] / mass[j]
