"""Compiled loops lie on disk, and every process reads them from there."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

_COMPILES = "FEDCOMPRESS_COMPILES"
_COMPILE = (
    "import importlib, json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "importlib.import_module(sys.argv[2])"
)


def read_from_disk(loop: Any, parts: Sequence[str], warm: Callable[[], object]) -> None:
    """Make sure that a compiled loop is on disk, and read it.

    What has just been compiled rounds otherwise than what is read back: the process that compiled
    it would disagree with all others. So a process of its own does.

    Parameters
    ----------
    loop : callable
        What numba made of a function, with its cache; the only one of its module.
    parts : sequence of str
        Modules, loaded by now, whose functions it calls: numba itself looks for changes in the
        loop's own module alone.
    warm : callable
        Calls the loop once, with arguments of every type that it will have.
    """
    name: str = loop.py_func.__module__
    files = [Path(str(sys.modules[module].__file__)) for module in (name, *parts)]
    newest = max(file.stat().st_mtime for file in files)
    is_kept = False
    for kept in Path(loop.stats.cache_path).glob(f"{files[0].stem}.{loop.py_func.__name__}-*.nbi"):
        with contextlib.suppress(OSError):  # another process may do the same
            if kept.stat().st_mtime >= newest:
                is_kept = True
            else:
                kept.unlink()
    if not is_kept and _COMPILES not in os.environ:
        subprocess.run(
            [sys.executable, "-c", _COMPILE, json.dumps(sys.path), name],
            env={**os.environ, _COMPILES: "1"},
            check=False,  # without a folder to keep it in this process compiles for itself
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    warm()
