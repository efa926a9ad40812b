"""A client's state in a file of this machine, quick to write and quick to read.

Most of a state lies in blocks (`fedcompress.block`), which are written as they lie and read where
they come to lie. A block that many clients hold alike, such as a reference model, lies in a file of
its own beside theirs, under the name that it is shared by, and is one object to all that read it
here.
"""

from __future__ import annotations

import os
import struct
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from weakref import WeakValueDictionary

import numpy as np
from flwr.app import ArrayRecord, RecordDict

from fedcompress.block import share, shared_name
from fedcompress.dense import block_record, whole_block
from fedcompress.flower_adapter import filled
from fedcompress.protocol import KEY_PREFIX
from simulations.engines.channel import Part
from simulations.engines.flower_internals import records_from_bytes, records_to_bytes
from simulations.engines.mapped_files import MappedFiles
from simulations.engines.packing import Json, Packer, Unpacker, said_layout, say_layout
from simulations.engines.whole_files import read_buffer, write_file

_MAGIC = b"fcstate\x01"
_ALIGNED = 64
_COUNT = struct.Struct("<Q")
_PADDING = bytes(_ALIGNED)
_OWN, _SHARED, _OTHER = 0, 1, 2
_PREFIX = "shared-"
_MOST_BYTES = 64_000_000
_MOST_MAPPED_BYTES = 128_000_000
_EVEN_BYTES = 256  # to a multiple of which descriptions are filled, so that files keep their size


class StateFolder:
    """Reads and writes packed states; blocks that are shared are read and written once.

    A worker's blocks that are shared are known to it while somebody holds them, those that it read
    a little longer.
    """

    def __init__(self) -> None:
        self._by_name: WeakValueDictionary[str, np.ndarray] = WeakValueDictionary()
        self._mapped = MappedFiles(_MOST_MAPPED_BYTES)
        self._read: OrderedDict[str, np.ndarray] = OrderedDict()
        self._read_bytes = 0

    def write(self, path: str, state: RecordDict) -> list[str]:
        """Write a state to a file; return the names of the files beside it that it refers to.

        Raises
        ------
        OSError
            If there is no room; what was written of the file is left there.
        """
        packer = Packer()
        described: list[Json] = []
        names: list[str] = []
        for key, record in state.items():
            whole = whole_block(record) if isinstance(record, ArrayRecord) else None
            if whole is None:
                described.append([key, _OTHER, packer.record(record)])
                continue
            flat, layout = whole
            about = say_layout(layout)
            name = shared_name(flat)
            if name is not None:
                names.append(self._write_shared(path, flat, name))
                described.append([key, _SHARED, about, names[-1]])
            else:
                described.append([key, _OWN, about, packer.part(flat.data.cast("B"))])
        pieces = _framed(packer.finish(described))
        if not self._mapped.write(path, pieces):
            write_file(path, pieces)
        return names

    def read(self, path: str) -> RecordDict:
        """Read a state, which `write` or somebody who had only its bytes has written.

        Blocks of our own records may lie in the file itself, which nobody writes over while a
        call may read it; others are copied, for an app may keep them.
        """
        mapped = self._mapped.read(path)
        if mapped is None:
            return self._unpack(read_buffer(path), path)
        return self._unpack(mapped, path, is_lent=True)

    def read_bytes(self, path: str) -> bytes:
        """Read a state as Flower's protobuf message, whoever has written it."""
        buffer = read_buffer(path)
        is_packed = buffer[: len(_MAGIC)].tobytes() == _MAGIC
        return records_to_bytes(self._unpack(buffer, path)) if is_packed else buffer.tobytes()

    def _unpack(self, buffer: np.ndarray, path: str, is_lent: bool = False) -> RecordDict:
        if buffer[: len(_MAGIC)].tobytes() != _MAGIC:
            return records_from_bytes(buffer.tobytes())
        places = _places(buffer)
        unpacker = Unpacker([buffer.data[start:stop] for start, stop in places])
        records = {}
        for key, kind, *said in unpacker.value:
            if kind == _OTHER:
                records[key] = unpacker.record(said[0])
                continue
            about, where = said
            layout = said_layout(about)
            if kind == _OWN:
                start, stop = places[where]
                flat = buffer[start:stop].view(layout.dtype)
                if is_lent and not key.startswith(KEY_PREFIX):
                    flat = flat.copy()
            else:
                flat = self._read_shared(path, where, layout.dtype)
            records[key] = block_record(layout, flat)
        return filled(RecordDict(), records)

    def _write_shared(self, path: str, flat: np.ndarray, name: str) -> str:
        name = _PREFIX + name
        self._by_name.setdefault(name, flat)
        beside = _beside(path, name)
        if not os.path.exists(beside):  # noqa: PTH110 - a Path takes thrice as long
            # Whole or not at all: another worker may read it as soon as it has this name.
            half = f"{beside}-{os.getpid()}"
            try:
                write_file(half, [flat.data.cast("B")])
                Path(half).replace(beside)
            except OSError:
                Path(half).unlink(missing_ok=True)
                raise
        return name

    def _read_shared(self, path: str, name: str, dtype: np.dtype) -> np.ndarray:
        flat = self._by_name.get(name)
        if flat is None:
            flat = read_buffer(_beside(path, name)).view(dtype)
            share(flat, name.removeprefix(_PREFIX))
            self._by_name[name] = flat
            self._read[name] = flat
            self._read_bytes += flat.nbytes
            while self._read_bytes > _MOST_BYTES and len(self._read) > 1:
                self._read_bytes -= self._read.popitem(last=False)[1].nbytes
        elif name in self._read:
            self._read.move_to_end(name)
        return flat


def _beside(path: str, name: str) -> str:
    return f"{path.rpartition('/')[0]}/{name}"


def _framed(parts: Sequence[Part]) -> list[Part]:
    """Put parts one after another, each aligned, behind a table of their lengths.

    Of the first part, which is JSON, trailing blanks change nothing.
    """
    described = bytes(parts[0])
    parts = [described + b" " * (-len(described) % _EVEN_BYTES), *parts[1:]]
    lengths = struct.pack(f"<{1 + len(parts)}Q", len(parts), *map(len, parts))
    pieces: list[Part] = [_MAGIC + lengths]
    at = len(pieces[0])
    for part in parts:
        gap = -at % _ALIGNED
        pieces += [_PADDING[:gap], part] if gap else [part]
        at += gap + len(part)
    return pieces


def _places(buffer: np.ndarray) -> list[tuple[int, int]]:
    """Read where each part of a file begins and ends."""
    start = len(_MAGIC) + _COUNT.size
    (count,) = _COUNT.unpack_from(buffer.data, len(_MAGIC))
    at = start + _COUNT.size * count
    places = []
    for length in buffer[start:at].view("<u8").tolist():
        at += -at % _ALIGNED
        places.append((at, at + length))
        at += length
    return places
