"""Payloads that this process has made itself, so that who adds them here need not decode them.

In a simulation a client's payload is mostly added where it was made. What the encoder knows that
decoding will give is kept until then, for those who ask beforehand; nobody asks in a deployment.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from threading import Lock
from typing import TYPE_CHECKING, TypeAlias
from weakref import WeakSet

from torch import Tensor

from fedcompress.wire import Framed, Section, fingerprint_layout

if TYPE_CHECKING:
    from fedcompress.compressor import Compressor, Part

_MOST = 64  # a cohort's

Read: TypeAlias = "tuple[Mapping[str, Part], dict[str, int]]"


class OwnPayloads:
    """What the payloads that are made from now on decode to, until it is taken; the last ones."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, int, bytes], Read] = OrderedDict()
        self._lock = Lock()
        _ASKING.add(self)

    def note(self, key: tuple[str, int, bytes], read: Read) -> None:
        """Keep what a payload decodes to."""
        with self._lock:
            self._kept[key] = read
            if len(self._kept) > _MOST:
                self._kept.popitem(last=False)

    def take(
        self, payload: bytes, compressor: Compressor, like: Mapping[str, Tensor]
    ) -> Read | None:
        """Give what reading a payload would give, if it was made here; but once."""
        with self._lock:
            if not self._kept:
                return None
            return self._kept.pop((compressor.spec, fingerprint_layout(like), payload), None)


_ASKING: WeakSet[OwnPayloads] = WeakSet()


def note_own(
    payload: bytes,
    spec: str,
    like: Mapping[str, Tensor],
    sections: Iterable[Section | Framed],
    parts: Mapping[str, Part],
) -> None:
    """Keep what a payload decodes to for those who asked."""
    if not _ASKING:
        return
    key = spec, fingerprint_layout(like), payload
    by_kind = {"overhead": len(payload)}
    for section in sections:
        for kind, size in section.bytes_by_kind.items():
            by_kind["overhead"] -= size
            by_kind[kind] = by_kind.get(kind, 0) + size
    for asking in tuple(_ASKING):
        asking.note(key, (parts, dict(by_kind)))
