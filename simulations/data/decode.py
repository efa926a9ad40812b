"""Tables to arrays: images with labels, or windows of characters with the next one."""

import datasets
import numpy as np
from PIL import Image

from fedcompress.errors import ConfigError
from simulations.data.cache import Array, CachedArrays

_LABELS = ("label", "labels", "fine_label", "character")
_NATURAL_IDS = ("character_id", "writer_id", "client_id", "user_id", "user")
_ROWS_AT_ONCE = 1000


def decode_tables(tables: datasets.DatasetDict, name: str) -> CachedArrays:
    """Decode the tables ``"train"`` and ``"test"`` into arrays.

    Image data need one column of images and a column of class labels; character data need
    ``x`` (windows of equal length) and ``y`` (one character each), and tokens are the ranks
    of the characters among the sorted characters of both tables.

    Raises
    ------
    ConfigError
        If the columns are of neither kind, images differ in size, or labels are missing.
    """
    features = tables["train"].features
    images = [key for key, feature in features.items() if isinstance(feature, datasets.Image)]
    if images:
        decoded = _decode_images(tables, name, images[0])
    elif all(getattr(features.get(key), "dtype", "") == "string" for key in ("x", "y")):
        decoded = _decode_characters(tables, name)
    else:
        raise ConfigError(
            f"data: {name!r} has the columns {_told(features)}; needed are an Image and a label, "
            "or strings x (a window of characters) and y (the next one)"
        )
    arrays = dict(decoded.arrays)
    for key in _NATURAL_IDS:
        if key in features:
            arrays["natural_ids"] = np.array([str(i) for i in tables["train"][key][:]])
            break
    return CachedArrays(arrays, decoded.facts)


def _told(features: datasets.Features) -> str:
    """Name columns with their types: a table may have the right names and hold something else."""
    return ", ".join(
        f"{key} ({getattr(feature, 'dtype', type(feature).__name__)})"
        for key, feature in features.items()
    )


def _decode_images(tables: datasets.DatasetDict, name: str, column: str) -> CachedArrays:
    features = tables["train"].features
    classes = [key for key, f in features.items() if isinstance(f, datasets.ClassLabel)]
    label = next((key for key in (*_LABELS, *classes) if key in features), None)
    if label is None:
        raise ConfigError(
            f"data: {name!r} has no column of labels among {', '.join(features)}; call one label"
        )
    arrays: dict[str, Array] = {}
    for split in ("train", "test"):
        arrays[f"{split}_x"] = _pixels(tables[split], name, column)
        arrays[f"{split}_y"] = np.asarray(tables[split][label][:], dtype=np.int64)
    labels = np.concatenate([arrays["train_y"], arrays["test_y"]])
    if labels.size == 0 or labels.min() < 0:
        raise ConfigError(f"data: {name!r} has no rows, or rows without a label in {label!r}")
    if arrays["train_x"].shape[1:] != arrays["test_x"].shape[1:]:
        raise ConfigError(f"data: {name!r} trains and tests on images of different shape")
    num_classes = max(int(labels.max()) + 1, getattr(features[label], "num_classes", None) or 0)
    return CachedArrays(arrays, {"task": "image", "num_classes": num_classes})


def _pixels(table: datasets.Dataset, name: str, column: str) -> Array:
    pixels: Array | None = None
    mode = "L"
    for start in range(0, len(table), _ROWS_AT_ONCE):
        for row, image in enumerate(table[start : start + _ROWS_AT_ONCE][column], start):
            if not isinstance(image, Image.Image):
                raise ConfigError(f"data: {name!r} has no image in row {row}")
            if pixels is None:
                mode = "L" if image.mode in {"L", "1"} else "RGB"
                channels = len(mode) if mode == "RGB" else 1
                pixels = np.empty((len(table), channels, image.height, image.width), np.uint8)
            if (image.height, image.width) != pixels.shape[2:]:
                raise ConfigError(
                    f"data: {name!r} has an image of {image.height} × {image.width} pixels in row "
                    f"{row}, others of {pixels.shape[2]} × {pixels.shape[3]}; make them equal"
                )
            plane = np.asarray(image if image.mode == mode else image.convert(mode))
            pixels[row] = plane[None] if mode == "L" else plane.transpose(2, 0, 1)
    return pixels if pixels is not None else np.empty((0, 1, 1, 1), np.uint8)


def _decode_characters(tables: datasets.DatasetDict, name: str) -> CachedArrays:
    codes: dict[str, Array] = {}
    for split in ("train", "test"):
        table = tables[split]
        for column, length in (("x", len(tables["train"][0]["x"])), ("y", 1)):
            texts = table[column][:]
            wrong = next((row for row, text in enumerate(texts) if len(text) != length), None)
            if wrong is not None:
                raise ConfigError(
                    f"data: {name!r} has {len(texts[wrong])} characters in row {wrong} of "
                    f"{split} {column}, others have {length}; make them equal"
                )
            joined = "".join(texts).encode("utf-32-le")
            codes[f"{split}_{column}"] = np.frombuffer(joined, dtype="<u4").reshape(-1, length)
    alphabet = np.unique(np.concatenate([np.unique(array) for array in codes.values()]))
    narrow = np.uint8 if len(alphabet) <= 256 else np.int64
    arrays: dict[str, Array] = {}
    for key, array in codes.items():
        tokens = np.searchsorted(alphabet, array)
        arrays[key] = tokens[:, 0] if key.endswith("_y") else tokens.astype(narrow)
    vocabulary = "".join(chr(code) for code in alphabet)
    return CachedArrays(
        arrays,
        {"task": "characters", "num_classes": len(alphabet), "vocabulary": vocabulary},
    )
