"""Reference models that this process has decoded, so that its clients share one decode.

Many clients of a simulation run in one process, and in a round all of them are led to the same
model. What one of them has decoded another takes over if it starts from the same bytes and was
sent the same payload; so what comes out is what decoding would give, whoever asks.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock
from weakref import WeakValueDictionary

from flwr.app import ArrayRecord
from torch import Tensor

from fedcompress import protocol
from fedcompress.block import Block, as_block, is_same, share
from fedcompress.compressor import Compressor, SentParts

_MOST_BYTES = 128_000_000
_FEWEST = 2  # a model and the one that it leads to are kept however large they are


@dataclass(eq=False)
class Reference:
    """A reference model at one version; nothing of it may be changed.

    Attributes
    ----------
    version : int
        Of the server's count.
    tensors : Mapping[str, Tensor]
        Its arrays, in one block where they can lie in one.
    """

    version: int
    tensors: Mapping[str, Tensor]
    _next: WeakValueDictionary[tuple[str, bytes], "Reference"] = field(
        default_factory=WeakValueDictionary
    )

    @cached_property
    def record(self) -> ArrayRecord:
        """The same arrays as they are sent and kept."""
        return protocol.tensors_to_record(self.tensors)

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
            parts, _ = compressor.read(payload, self.tensors)
            arrays = protocol.advance(self.tensors, SentParts(parts))
            # Others may have been sent this model whole, or have come to it another way.
            led_to = _KNOWN.find(self.version + 1, as_block(arrays) or arrays)
            self._next[key] = led_to
        _KNOWN.keep(led_to)
        return led_to

    def is_of(self, arrays: Mapping[str, Tensor]) -> bool:
        """Whether these are its arrays, to the bit."""
        if isinstance(arrays, Block) and isinstance(self.tensors, Block):
            alike = arrays.layout.equals(self.tensors.layout)
            return alike and is_same(arrays.flat, self.tensors.flat)
        return protocol.tensors_to_record(arrays) == self.record


class _Known:
    """The references used last, in bounded memory."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._kept: OrderedDict[Reference, int] = OrderedDict()
        self._lock = Lock()

    def find(self, version: int, arrays: Mapping[str, Tensor]) -> Reference:
        with self._lock:
            same_version = [known for known in self._kept if known.version == version]
        for known in same_version:
            if known.is_of(arrays):
                self.keep(known)
                return known
        reference = Reference(version, arrays)
        if isinstance(arrays, Block):
            # Two models of one version and checksum would be one to every client in any case.
            share(arrays.flat, f"{version}-{reference.checksum:08x}-{arrays.flat.size}")
        self.keep(reference)
        return reference

    def keep(self, reference: Reference) -> None:
        with self._lock:
            if reference not in self._kept:
                size = sum(x.numel() * x.element_size() for x in reference.tensors.values())
                # What does not lie in a block lies there as tensors and as a record.
                size *= 1 if isinstance(reference.tensors, Block) else 2
                self._kept[reference] = size
                self._bytes += size
            self._kept.move_to_end(reference)
            while self._bytes > self._most_bytes and len(self._kept) > _FEWEST:
                self._bytes -= self._kept.popitem(last=False)[1]


_KNOWN = _Known(_MOST_BYTES)


def known_reference(version: int, record: ArrayRecord) -> Reference:
    """Give a version of the reference model from its arrays as they were sent or kept."""
    return _KNOWN.find(version, arrays_of(record))


def arrays_of(record: ArrayRecord) -> Mapping[str, Tensor]:
    """Read a model, in one block where it can lie in one; the same bytes again cost nothing."""
    block = protocol.record_to_block(record)
    if block is not None:
        return block
    data = [array.data for array in record.values()]
    known = _LAST.get("read")
    if known is not None and known.is_of(record, data):
        return known.arrays
    tensors = protocol.record_to_tensors(record)
    arrays = as_block(tensors) or tensors
    _LAST["read"] = _Read(list(record), data, arrays)
    return arrays


@dataclass(frozen=True, eq=False)
class _Read:
    """A record that was read, known by the very objects that hold its bytes."""

    names: list[str]
    data: list[bytes]
    arrays: Mapping[str, Tensor]

    def is_of(self, record: ArrayRecord, data: list[bytes]) -> bool:
        return (
            len(data) == len(self.data)
            and all(mine is other for mine, other in zip(self.data, data, strict=True))
            and self.names == list(record)
        )


_LAST: dict[str, _Read] = {}
