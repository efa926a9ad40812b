"""How a kernel is compiled."""

from collections.abc import Callable
from typing import TypeVar

from numba import njit

F = TypeVar("F", bound=Callable[..., object])


def kernel(function: F) -> F:
    """Compile a function over numpy arrays: kept on disk, without the interpreter's lock."""
    compiled: F = njit(cache=True, nogil=True, error_model="numpy")(function)
    return compiled


def inlined(function: F) -> F:
    """Compile a function that kernels call in their innermost loops."""
    compiled: F = njit(cache=True, nogil=True, error_model="numpy", inline="always")(function)
    return compiled
