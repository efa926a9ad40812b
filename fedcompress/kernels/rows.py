"""Counts of positions by row and column, and what they say of the bits that positions take."""

import math

import numpy as np

from fedcompress.kernels.jit import kernel


@kernel
def count(
    indices: np.ndarray, counts: np.ndarray, turns: np.ndarray, columns: np.ndarray
) -> tuple[int, int]:
    """Count positions by row into ``counts``, by column into ``turns``; fill their ``columns``.

    Returns the largest of both counts.
    """
    width = np.uint64(turns.size)
    for i in range(indices.size):
        row = np.uint64(indices[i]) // width
        column = np.int64(np.uint64(indices[i]) - row * width)
        columns[i] = column
        counts[row] += 1
        turns[column] += 1
    return counts.max(), turns.max()


@kernel
def sequence_nats(counts: np.ndarray, largest: int, shapes: np.ndarray) -> np.ndarray:
    """Give the nats of a sequence with these counts from an urn, under each of the shapes."""
    beyond = np.zeros(largest + 1, np.int64)  # how many counts exceed 0, 1, 2, …
    total = 0
    for value in counts:
        beyond[value] += 1
        total += value
    above = 0
    for i in range(largest, -1, -1):
        here = beyond[i]
        beyond[i] = above
        above += here
    out = np.empty(shapes.size)
    for j in range(shapes.size):
        copies = shapes[j] * counts.size
        nats = math.lgamma(copies + total) - math.lgamma(copies)
        for i in range(largest):
            nats -= beyond[i] * math.log(shapes[j] + i)
        out[j] = nats
    return out


@kernel
def split(indices: np.ndarray, taps: int, kernels: np.ndarray, masks: np.ndarray) -> int:
    """Part ascending positions by kernel: its number, and its taps as a mask; give how many.

    ``masks`` (uint8) is zero, and has room for as many kernels as there are positions.
    """
    size = 0
    last = -1
    for i in indices:
        owner = i // taps
        if owner != last:
            last = owner
            kernels[size] = owner
            size += 1
        masks[size - 1, i - owner * taps] = 1
    return size
