"""Reference models that this process has decoded, so that its clients share one decode.

Many clients of a simulation run in one process, and in a round all of them are led to the same
model. What one of them has decoded another takes over if it starts from the same bytes and was
sent the same payload; so what comes out is what decoding would give, whoever asks.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock
from weakref import WeakValueDictionary

from flwr.app import ArrayRecord
from torch import Tensor

from fedcompress import protocol
from fedcompress.compressor import Compressor
from fedcompress.dense import share_record

_MOST_BYTES = 128_000_000
_FEWEST = 2  # a model and the one that it leads to are kept however large they are


@dataclass(eq=False)
class Reference:
    """A reference model at one version; nothing of it may be changed.

    Attributes
    ----------
    version : int
        Of the server's count.
    record : ArrayRecord
        Its arrays as they are sent and kept.
    """

    version: int
    record: ArrayRecord
    _next: WeakValueDictionary[tuple[str, bytes], "Reference"] = field(
        default_factory=WeakValueDictionary
    )

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The same arrays as tensors."""
        return protocol.record_to_tensors(self.record)

    @cached_property
    def checksum(self) -> int:
        """CRC-32 over the arrays."""
        return protocol.checksum(self.tensors)

    def after(self, compressor: Compressor, payload: bytes) -> "Reference":
        """Give the model that a payload leads to.

        Raises
        ------
        PayloadError
            If the payload does not verify.
        """
        key = (compressor.spec, payload)
        led_to = self._next.get(key)
        if led_to is None:
            update = compressor.decode(payload, self.tensors)
            arrays = protocol.advance(self.tensors, update)
            # Others may have been sent this model whole, or have come to it another way.
            led_to = _KNOWN.find(self.version + 1, protocol.tensors_to_record(arrays))
            self._next[key] = led_to
        _KNOWN.keep(led_to)
        return led_to


class _Known:
    """The references used last, in bounded memory."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._kept: OrderedDict[Reference, int] = OrderedDict()
        self._lock = Lock()

    def find(self, version: int, record: ArrayRecord) -> Reference:
        with self._lock:
            same_version = [known for known in self._kept if known.version == version]
        for known in same_version:
            if known.record == record:
                self.keep(known)
                return known
        reference = Reference(version, share_record(record))
        self.keep(reference)
        return reference

    def keep(self, reference: Reference) -> None:
        with self._lock:
            if reference not in self._kept:
                # Once as a record and once as tensors.
                size = 2 * sum(len(array.data) for array in reference.record.values())
                self._kept[reference] = size
                self._bytes += size
            self._kept.move_to_end(reference)
            while self._bytes > self._most_bytes and len(self._kept) > _FEWEST:
                self._bytes -= self._kept.popitem(last=False)[1]


_KNOWN = _Known(_MOST_BYTES)


def known_reference(version: int, record: ArrayRecord) -> Reference:
    """Give a version of the reference model from its arrays as they were sent or kept."""
    return _KNOWN.find(version, record)
