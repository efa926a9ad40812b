"""What must hold for any bytes: a decoded update of the right form, or `PayloadError`.

A server reads a payload, looks whether its parts are finite, and adds them up later. What it may
refuse has to be refused by then: behind that, nothing may fail, or one client stops a round.
"""

from __future__ import annotations

import time
import tracemalloc

import torch
from corpus import Seed, place_of

from fedcompress.compressor import Part, memory_of
from fedcompress.errors import PayloadError

MOST_SECONDS = 2.0  # of processor time
# Integers are read as 64 bits, positions beside values: what forms allow, whatever is claimed.
_OF_MODEL = 8.0
_OF_VALID = 1.25
_CONSTANT = 1_500_000  # bytes: tables of symbols, a window of Zstandard


class BrokenLawError(Exception):
    """A payload did what none may do."""


def check(seed: Seed, payload: bytes, most_seconds: float = MOST_SECONDS) -> str:
    """Decode as a server does; give where it ended, a word for each way through the code.

    Raises
    ------
    BrokenLawError
        If anything but an update of the right form or `PayloadError` comes of it.
    """
    started = time.thread_time()
    try:
        outcome = _decode(seed, payload)
    except BrokenLawError:
        raise
    except Exception as error:
        raise BrokenLawError(f"raised {place_of(error)}: {error}") from error
    seconds = time.thread_time() - started
    if seconds > most_seconds:
        raise BrokenLawError(f"took {seconds:.1f} s, to end as {outcome}")
    return outcome


def check_memory(seed: Seed, payload: bytes, peak_of_valid: int) -> str:
    """Check also how much memory decoding takes; `tracemalloc` must be tracing."""
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    outcome = check(seed, payload)
    peak = tracemalloc.get_traced_memory()[1] - before
    most = max(_OF_MODEL * model_bytes(seed), _OF_VALID * peak_of_valid) + _CONSTANT
    if peak > most:
        raise BrokenLawError(f"allocated {peak} bytes where {most:.0f} are allowed, at {outcome}")
    return outcome


def model_bytes(seed: Seed) -> int:
    """Give the size of the arrays, those of narrow floats as the float32 they are decoded in."""
    return sum(max(4, x.element_size()) * x.numel() for x in seed.like.values())


def _decode(seed: Seed, payload: bytes) -> str:
    try:
        parts, counts = seed.compressor.read(payload, seed.like, seed.memory)
        finite = all(part.is_finite() for part in parts.values())
    except PayloadError as error:
        return place_of(error)
    try:
        _check_parts(seed, parts, finite)
        memory_of(parts)
    except PayloadError as error:
        if finite:
            raise BrokenLawError(f"refused only when added up, by {place_of(error)}") from error
        return place_of(error)
    if sum(counts.values()) != len(payload):
        raise BrokenLawError(f"{counts} do not add up to {len(payload)} bytes")
    sections = ",".join(f"{kind}{count.bit_length()}" for kind, count in counts.items())
    return f"decoded {finite} {sections}"


def _check_parts(seed: Seed, parts: dict[str, Part], finite: bool) -> None:
    if list(parts) != list(seed.like):
        raise BrokenLawError(f"arrays {list(parts)}, not {list(seed.like)}")
    for name, x in seed.like.items():
        y = parts[name].dense()
        if (y.shape, y.dtype, y.device) != (x.shape, x.dtype, x.device):
            raise BrokenLawError(f"{name} came as {y.dtype} {tuple(y.shape)}")
        if finite and not bool(torch.isfinite(y).all()):
            raise BrokenLawError(f"{name} holds NaN or infinity, though it says that it is finite")
        wide = x.dtype == torch.float64 or not x.is_floating_point()
        total = torch.zeros(x.shape, dtype=torch.float64 if wide else torch.float32)
        parts[name].add_to(total, 0.5)
