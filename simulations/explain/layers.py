"""Where weights are zero, gone, or differ from the dense model's, by layer and block."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from simulations.explain.explained import LayerFacts

Array = np.ndarray[Any, np.dtype[Any]]
MOST_BLOCKS = 8
"""Blocks along each side of a matrix."""


def layer_facts(arrays: Mapping[str, Array], dense: Mapping[str, Array] | None) -> list[LayerFacts]:
    """Compare arrays with the dense model's of the same name.

    Parameters
    ----------
    arrays : mapping of str to ndarray
        Float arrays of the model, quantized ones as the numbers that they stand for.
    dense : mapping of str to ndarray, optional
        Those of the dense model; None where another architecture makes names meaningless.
    """
    return [_facts(name, values, (dense or {}).get(name)) for name, values in arrays.items()]


def named_as_in_module(
    arrays: Mapping[str, Array],
    graph_arrays: Mapping[str, Array],
    module_arrays: Mapping[str, Array],
) -> dict[str, Array]:
    """Give a graph's arrays the names, and the orientation, that a module has them under.

    Exporters turn matrices and number what they make; the same steps for the same architecture.

    Parameters
    ----------
    arrays : mapping of str to ndarray
        Of the graph to be named.
    graph_arrays, module_arrays : mapping of str to ndarray
        Of another graph of that architecture, and of the module that it was exported from: what
        is equal there has the same name here.
    """
    known: dict[tuple[tuple[int, ...], bytes], tuple[str, bool]] = {}
    for name, values in module_arrays.items():
        if values.ndim == 2:
            known.setdefault((values.T.shape, values.T.tobytes()), (name, True))
        known[values.shape, values.tobytes()] = name, False
    found = {}
    for name, values in arrays.items():
        there = graph_arrays.get(name)
        same = None if there is None else known.get((there.shape, there.tobytes()))
        if name in module_arrays or same is None:
            found[name] = values
        else:
            found[same[0]] = values.T if same[1] else values
    return found


def _facts(name: str, values: Array, dense: Array | None) -> LayerFacts:
    entries = values.size if dense is None else max(dense.size, values.size)
    nonzero = int(np.count_nonzero(values))
    error = error_blocks = None
    if dense is not None and dense.shape == values.shape and np.any(dense):
        squares = np.square(values.astype(np.float64) - dense)
        mean_square = float(np.mean(np.square(dense, dtype=np.float64)))
        error = _rounded(float(squares.mean()) / mean_square)
        error_blocks = _blocks(squares / mean_square)
    return LayerFacts(
        name=name,
        shape=tuple(values.shape),
        dense_shape=None if dense is None else tuple(dense.shape),
        nonzero=nonzero,
        sparsity=_rounded(1 - nonzero / entries) if entries else 0.0,
        error=error,
        kept_blocks=_blocks(values != 0),
        error_blocks=error_blocks,
    )


def _blocks(values: Array) -> list[list[float]] | None:
    """Give the mean of each block of the matrix (outputs, all else); None for vectors."""
    if values.ndim < 2 or values.size == 0:
        return None
    matrix = values.reshape(values.shape[0], -1)
    rows, columns = (_edges(size) for size in matrix.shape)
    sums = np.add.reduceat(np.add.reduceat(matrix.astype(np.float64), rows, 0), columns, 1)
    heights, widths = (
        np.diff([*edges, size]) for edges, size in zip((rows, columns), matrix.shape, strict=True)
    )
    means = sums / np.outer(heights, widths)
    return [[_rounded(float(mean)) for mean in row] for row in means]


def _edges(size: int) -> Array:
    """Where each of at most `MOST_BLOCKS` blocks of nearly equal length begins."""
    blocks = min(size, MOST_BLOCKS)
    return np.arange(blocks) * size // blocks


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
