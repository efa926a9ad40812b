"""Load a data set by name."""

from typing import cast

import numpy as np
import xxhash

from simulations.data.cache import Array, CachedArrays, Facts, cached
from simulations.data.federated import FederatedData, Task
from simulations.data.source import EMBEDDED, Source, find_source

# The number counts changes in what is stored.
_CACHE = "data-2"


def load_data(name: str, data_dir: str | None = None) -> FederatedData:
    """Load a data set, decoding it the first time and mapping its arrays ever after.

    Parameters
    ----------
    name : str
        ``"digits"``, scikit-learn's embedded digits; the name of a folder below
        ``data_dir`` or a path, holding parquet files as the Hugging Face hub lays them out;
        or a hub id such as ``"ylecun/mnist"``, with a revision as ``"ylecun/mnist@main"``.
        What a hub id leads to is kept in the cache and not asked for again.
    data_dir : str, optional
        Folder of data sets.

    Returns
    -------
    FederatedData
        The arrays, read-only, cached below ``$XDG_CACHE_HOME`` or ``~/.cache``.

    Raises
    ------
    ConfigError
        If the data set does not exist or cannot be read as images with labels or as
        windows of characters.
    """
    source = find_source(name, data_dir)
    stored = cached(_CACHE, source.key, lambda: _decode(source))
    facts, arrays = stored.facts, stored.arrays
    return FederatedData(
        name=source.name,
        task=cast("Task", facts["task"]),
        num_classes=cast("int", facts["num_classes"]),
        train_x=arrays["train_x"],
        train_y=arrays["train_y"],
        test_x=arrays["test_x"],
        test_y=arrays["test_y"],
        natural_ids=arrays.get("natural_ids"),
        fingerprint=str(facts["fingerprint"]),
        vocabulary=str(facts["vocabulary"]),
        pixel_mean=tuple(cast("list[float]", facts["pixel_mean"])),
        pixel_std=tuple(cast("list[float]", facts["pixel_std"])),
    )


def _decode(source: Source) -> CachedArrays:
    # Imported when the cache is cold only: the libraries take seconds to import.
    if source.location == EMBEDDED:
        from simulations.data.digits import decode_digits

        decoded = decode_digits()
    else:
        from simulations.data.decode import decode_tables
        from simulations.data.tables import load_tables

        decoded = decode_tables(load_tables(source), source.name)
    digest = xxhash.xxh3_128()
    for name, array in sorted(decoded.arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        digest.update(array.tobytes())
    facts: Facts = {"vocabulary": "", "pixel_mean": [], "pixel_std": [], **decoded.facts}
    if facts["task"] == "image":
        facts["pixel_mean"], facts["pixel_std"] = _pixel_statistics(decoded.arrays["train_x"])
    return CachedArrays(decoded.arrays, {**facts, "fingerprint": digest.hexdigest()})


def _pixel_statistics(pixels: Array) -> tuple[list[float], list[float]]:
    """Give mean and standard deviation of each channel, for pixels from 0 to 1."""
    levels = np.arange(256) / 255
    counts = [np.bincount(pixels[:, c].ravel(), minlength=256) for c in range(pixels.shape[1])]
    means = [float(np.average(levels, weights=count)) for count in counts]
    spreads = [
        float(np.sqrt(np.average((levels - mean) ** 2, weights=count)))
        for count, mean in zip(counts, means, strict=True)
    ]
    # A channel of one level has no spread to divide by.
    return means, [spread or 1.0 for spread in spreads]
