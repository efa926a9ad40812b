"""Arrays that are built once and memory-mapped by every process after."""

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

logger = logging.getLogger(__name__)

Array = np.ndarray[Any, np.dtype[Any]]
Facts = dict[str, str | int | list[float]]
_FACTS_FILE = "facts.json"


@dataclass(frozen=True)
class CachedArrays:
    """Read-only arrays by name, and the plain facts that belong to them."""

    arrays: Mapping[str, Array]
    facts: Facts


def cache_root() -> Path:
    """Give the folder below which arrays are cached: ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "fedcompress"


def cached(kind: str, key: str, build: Callable[[], CachedArrays]) -> CachedArrays:
    """Open the arrays stored under ``kind`` and ``key``; build and store them if there are none.

    A folder appears under its final name only when it is complete, so processes that build
    the same arrays at once do not disturb each other: the first to finish wins. Where
    nothing can be written, the arrays stay in memory and a warning is logged.

    Parameters
    ----------
    kind : str
        Sort of arrays, such as ``"data"``.
    key : str
        Name of these arrays, one path component that stands for all that they depend on.
    build : callable
        Makes the arrays when they are not cached.
    """
    folder = cache_root() / kind / key
    found = _open(folder)
    if found is not None:
        return found
    built = build()
    try:
        _store(folder, built)
    except OSError as error:
        logger.warning("cache: cannot write %s (%s); the arrays stay in memory", folder, error)
    return _open(folder) or _read_only(built)


def _open(folder: Path) -> CachedArrays | None:
    try:
        facts = json.loads((folder / _FACTS_FILE).read_text())
        arrays = {path.stem: np.load(path, mmap_mode="r") for path in folder.glob("*.npy")}
        if sorted(arrays) != facts.pop("arrays"):
            return None
    except (OSError, ValueError, KeyError):
        return None  # absent, or cut short by a crash of the machine: built again
    return CachedArrays(arrays, facts)


def _store(folder: Path, built: CachedArrays) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for name, array in built.arrays.items():
            np.save(draft / f"{name}.npy", array)
        facts = {**built.facts, "arrays": sorted(built.arrays)}
        (draft / _FACTS_FILE).write_text(json.dumps(facts, indent=1))
        if folder.exists() and _open(folder) is None:
            shutil.rmtree(folder)
        try:
            draft.rename(folder)
        except OSError:
            if _open(folder) is None:
                raise
            # Another process stored the same arrays first.
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _read_only(built: CachedArrays) -> CachedArrays:
    for array in built.arrays.values():
        array.setflags(write=False)
    return built
