"""scikit-learn's embedded digits: 1,797 grey images of 8 × 8 pixels."""

import numpy as np

from simulations.data.cache import CachedArrays

_TEST_EVERY = 5


def decode_digits() -> CachedArrays:
    """Give the digits, every fifth image of each class held out for testing.

    The split is fixed and stratified. Pixels, 0 to 16 at the source, are scaled to 0 to 255.
    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits (1998).
    """
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    x = np.rint(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    y = labels.astype(np.int64)
    held_out = np.zeros(len(y), dtype=bool)
    for label in range(10):
        held_out[np.flatnonzero(y == label)[_TEST_EVERY - 1 :: _TEST_EVERY]] = True
    arrays = {
        "train_x": x[~held_out],
        "train_y": y[~held_out],
        "test_x": x[held_out],
        "test_y": y[held_out],
    }
    return CachedArrays(arrays, {"task": "image", "num_classes": 10})
