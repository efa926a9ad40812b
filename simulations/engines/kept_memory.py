"""Memory that a worker has freed stays its own, for the next batch to be put there.

glibc gives large pieces back to the system as soon as they are freed, and the system fills their
pages with zeros whenever they are asked for again: with the convolutions of a ResNet a twentieth
of a client's time.
"""

import ctypes

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # of malloc.h
_MOST = 1 << 30
_MOST_FROM_HEAP = 1 << 25  # older versions of glibc refuse more
_PAD = 1 << 24


def keep_freed_memory() -> bool:
    """Ask the C library to keep freed memory; false where it cannot be asked."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    wanted = (_MMAP_THRESHOLD, _MOST_FROM_HEAP), (_TRIM_THRESHOLD, _MOST), (_TOP_PAD, _PAD)
    answers = [mallopt(setting, value) for setting, value in wanted]
    return all(answers)
