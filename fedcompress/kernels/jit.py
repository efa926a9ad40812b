"""How a kernel is compiled, and when compiled code on disk is out of date."""

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from numba import njit

F = TypeVar("F", bound=Callable[..., object])


def kernel(function: F) -> F:
    """Compile a function over numpy arrays: kept on disk, without the interpreter's lock."""
    return _stamped(njit(cache=True, nogil=True, error_model="numpy")(function))


def inlined(function: F) -> F:
    """Compile a function that kernels call in their innermost loops."""
    return _stamped(njit(cache=True, nogil=True, error_model="numpy", inline="always")(function))


def _stamped(compiled: F) -> F:
    """Tie code on disk to the sources of all kernels.

    Kernels call one another, and compiled code holds the code of what it calls. numba looks at
    the source of the outermost function only, so after a change of another file it would run the
    old code of that other file, and write payloads that nothing else reads. It offers no other
    way in than this attribute; a test tells when it goes.
    """
    cache_file = compiled._cache._cache_file  # type: ignore[attr-defined]
    cache_file._source_stamp = (cache_file._source_stamp, _FINGERPRINT)
    return compiled


def _fingerprint() -> int:
    checksum = 0
    for path in sorted(Path(__file__).parent.glob("*.py")):
        checksum = zlib.crc32(path.read_bytes(), checksum)
    return checksum


_FINGERPRINT = _fingerprint()
