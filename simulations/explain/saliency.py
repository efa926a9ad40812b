"""What a model looks at: how much an answer suffers when a place of the input is covered."""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.stats import rankdata

Array = np.ndarray[Any, np.dtype[Any]]
Predict = Callable[[Array], Array]
IMAGE_SIDE = 7
"""Places along each side of an image, at most."""
TEXT_PIECES = 20
"""Places of a text, at most."""


def places(sample_shape: tuple[int, ...]) -> list[tuple[slice, ...]]:
    """Cut a sample into the places that are covered one at a time.

    Parameters
    ----------
    sample_shape : tuple of int
        (channels, height, width), or (window,).

    Returns
    -------
    list of tuple of slice
        Squares of an image by rows, or pieces of a text, that index a batch of samples.
    """
    most = TEXT_PIECES if len(sample_shape) == 1 else IMAGE_SIDE
    sides = [_pieces(size, most) for size in sample_shape[-2:]]
    if len(sample_shape) == 1:
        return [(slice(None), piece) for piece in sides[0]]
    return [(slice(None), slice(None), down, across) for down in sides[0] for across in sides[1]]


def map_shape(sample_shape: tuple[int, ...]) -> tuple[int, int]:
    """Give rows and columns of a map; a text has one row."""
    if len(sample_shape) == 1:
        return 1, len(_pieces(sample_shape[0], TEXT_PIECES))
    height, width = (len(_pieces(size, IMAGE_SIDE)) for size in sample_shape[1:])
    return height, width


def occlusion_maps(predict: Predict, inputs: Array, classes: Array, cover: float | int) -> Array:
    """Measure by how much a class's logit falls when each place is covered.

    Occlusion (Zeiler & Fergus, 2014) asks a model for nothing but answers, so that it measures
    integer graphs, which have no gradients, as it does float ones.

    Parameters
    ----------
    predict : callable
        Inputs to logits of shape (rows, classes).
    inputs : ndarray
        Shape (rows, channels, height, width), or (rows, window).
    classes : ndarray
        Shape (rows,): the class whose logit is watched.
    cover : float or int
        What a covered place is filled with: 0, the data set's mean, in images; a token in texts.

    Returns
    -------
    ndarray
        Shape (rows, places), float64: logit of the class before − after.
    """
    rows = np.arange(len(inputs))
    before = predict(inputs)[rows, classes].astype(np.float64)
    falls = []
    for place in places(inputs.shape[1:]):
        covered = inputs.copy()
        covered[place] = cover
        falls.append(before - predict(covered)[rows, classes])
    return np.stack(falls, axis=1)


def similarity(maps: Array, dense_maps: Array) -> float | None:
    """Give the mean rank correlation of maps, row by row (Adebayo et al., 2018).

    Ranks do not see the scale of logits, which differs between models.

    Parameters
    ----------
    maps, dense_maps : ndarray
        Shape (rows, places).

    Returns
    -------
    float or None
        Spearman's ρ, −1 to 1, mean over the rows whose maps both have more than one value; None
        without any.
    """
    ranks, dense_ranks = (_centred_ranks(each) for each in (maps, dense_maps))
    scale = np.sqrt(np.square(ranks).sum(1) * np.square(dense_ranks).sum(1))
    told = scale > 0
    if not told.any():
        return None
    return float(((ranks * dense_ranks).sum(1)[told] / scale[told]).mean())


def _centred_ranks(maps: Array) -> Array:
    return np.asarray(rankdata(maps, axis=1) - (maps.shape[1] + 1) / 2)


def _pieces(size: int, most: int) -> list[slice]:
    length = -(-size // most)
    return [slice(start, min(start + length, size)) for start in range(0, size, length)]
