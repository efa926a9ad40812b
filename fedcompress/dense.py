"""Dense arrays as Flower carries them: the bytes that ``Array(ndarray)`` and ``.numpy()`` know.

Flower goes through `numpy.save` and `numpy.load` for every array, which write and parse the
same few headers again and again. Here a header is written once for each layout and parsed once
for each text; what is not plain goes Flower's way, with Flower's errors.

A model's arrays are copied once, into one block; their bytes are made when somebody asks for them,
which nobody does where updates are summed in the process in which they arise.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from io import BytesIO
from typing import Literal, final

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.lib import format as npy

from fedcompress.flower_adapter import record_of

STYPE = "numpy.ndarray"
_PLAIN_KINDS = "biufc"  # numbers; the others have no buffer or need more than a header
_LARGEST_HEAD = 1024  # bytes of a header that is worth remembering
_START = 10  # magic, version and length of a header of version 1


def dense_array(values: np.ndarray) -> Array:
    """Make what ``Array(values)`` is, byte for byte."""
    if type(values) is not np.ndarray or not values.flags.c_contiguous:
        return Array(values)
    dtype = values.dtype
    if dtype.kind not in _PLAIN_KINDS or dtype.metadata is not None:
        return Array(values)
    shape = values.shape
    name, head = _head(dtype, shape)
    return plain_array(name, shape, STYPE, b"".join((head, values.data)))


@final
class LateArray(Array):
    """A plain array whose bytes are made when they are asked for.

    It equals, and is pickled as, the Array of these bytes, and becomes that one when something of
    it is set.
    """

    def __init__(self, values: np.ndarray, block: np.ndarray, start: int) -> None:
        name, head = _head(values.dtype, values.shape)
        shape = values.shape
        vars(self).update(dtype=name, shape=shape, stype=STYPE, _late=(head, values, block, start))

    @property
    def data(self) -> bytes:  # type: ignore[override]  # a plain attribute of Array
        """The bytes that ``Array(values)`` holds."""
        held = vars(self)
        if "_bytes" not in held:
            head, values, _, _ = held["_late"]
            held["_bytes"] = b"".join((head, values.data))
        data: bytes = held["_bytes"]
        return data

    def numpy(self) -> np.ndarray:
        """Give a copy of the values, as an Array does."""
        values: np.ndarray = vars(self)["_late"][1].copy()
        return values

    def __setattr__(self, name: str, value: object) -> None:
        """Become a plain Array first."""
        data, held = self.data, vars(self)
        del held["_late"], held["_bytes"]
        object.__setattr__(self, "__class__", Array)
        held["data"] = data
        setattr(self, name, value)

    def __eq__(self, other: object) -> bool:
        """Compare with any Array."""
        if not isinstance(other, Array):
            return NotImplemented
        if self.dtype != other.dtype or self.shape != other.shape or self.stype != other.stype:
            return False
        if type(other) is LateArray and vars(self)["_late"][1] is vars(other)["_late"][1]:
            return True
        return self.data == other.data

    __hash__ = None  # type: ignore[assignment]  # as Array

    def __reduce__(self) -> tuple[type[Array], tuple[object, ...]]:
        """Let whoever reads a pickle get an Array."""
        return Array, (self.dtype, self.shape, self.stype, self.data)


def dense_record(arrays: Mapping[str, np.ndarray]) -> ArrayRecord:
    """Make the record of ``Array(values)`` by name, of copies of the values.

    Where all are of one plain dtype, they lie one after another in one block; see `whole_block`.
    """
    given = list(arrays.values())
    if not given or not _are_alike(given):
        return record_of({name: dense_array(values) for name, values in arrays.items()})
    block = np.concatenate([x.reshape(-1) for x in given])
    block.flags.writeable = False
    record: dict[str, Array] = {}
    start = 0
    for name, x in arrays.items():
        record[name] = LateArray(block[start : start + x.size].reshape(x.shape), block, start)
        start += x.size
    return record_of(record)


def whole_block(record: ArrayRecord) -> np.ndarray | None:
    """Give the block, read-only, of which the record's arrays are all, and in this order."""
    whole: np.ndarray | None = None
    end = 0
    for array in record.values():
        if type(array) is not LateArray:
            return None
        _, values, block, start = vars(array)["_late"]
        whole = block if whole is None else whole
        if block is not whole or start != end:
            return None
        end += values.size
    return whole if whole is not None and end == whole.size else None


def _are_alike(arrays: Sequence[np.ndarray]) -> bool:
    dtype = arrays[0].dtype
    return (
        dtype.kind in _PLAIN_KINDS
        and dtype.isnative
        and dtype.metadata is None
        and all(x.dtype == dtype and type(x) is np.ndarray for x in arrays)
    )


def array_bytes(array: Array) -> int:
    """Count ``len(array.data)``, without making the bytes of a late one."""
    if type(array) is not LateArray:
        return len(array.data)
    head, values, _, _ = vars(array)["_late"]
    return len(head) + int(values.nbytes)


def head_of(array: Array) -> bytes | None:
    """Give the header of a late array, without which its bytes are those of its values."""
    head: bytes | None = vars(array)["_late"][0] if type(array) is LateArray else None
    return head


def dense_values(array: Array) -> np.ndarray:
    """Read what ``array.numpy()`` gives, without a copy where that can be; then read-only.

    Raises
    ------
    TypeError, ValueError, EOFError, SyntaxError
        As ``array.numpy()`` does.
    """
    if type(array) is LateArray:
        late: np.ndarray = vars(array)["_late"][1]
        return late
    data = array.data
    if array.stype == STYPE and data[:8] == b"\x93NUMPY\x01\x00":
        start = _START + int.from_bytes(data[8:_START], "little")
        layout = _layout(data[:start]) if start <= min(len(data), _LARGEST_HEAD) else None
        if layout is not None:
            dtype, shape, order, count = layout
            if len(data) >= start + count * dtype.itemsize:
                return np.frombuffer(data, dtype, count, start).reshape(shape, order=order)
    values: np.ndarray = array.numpy()
    return values


def plain_array(dtype: str, shape: tuple[int, ...], stype: str, data: bytes) -> Array:
    """Make ``Array(dtype, shape, stype, data)`` of fields that are known to be of these types."""
    array = Array.__new__(Array)
    vars(array).update(dtype=dtype, shape=shape, stype=stype, data=data)
    return array


def share_record(record: ArrayRecord) -> ArrayRecord:
    """Copy a record and its arrays; the bytes, which nobody can change, are shared."""
    return record_of({name: share_array(array) for name, array in record.items()})


def share_array(array: Array) -> Array:
    """Copy one array without what Flower cached in it; the bytes are shared."""
    if type(array) is LateArray:
        _, values, block, start = vars(array)["_late"]
        return LateArray(values, block, start)
    return plain_array(array.dtype, tuple(array.shape), array.stype, bytes(array.data))


@lru_cache(maxsize=1024)
def _head(dtype: np.dtype, shape: tuple[int, ...]) -> tuple[str, bytes]:
    """Give the name of a dtype and the header of a contiguous array, as Flower writes both."""
    like = np.broadcast_to(np.zeros((), dtype), shape)
    buffer = BytesIO()
    header = npy.header_data_from_array_1_0(like)
    header["fortran_order"] = False
    npy.write_array_header_1_0(buffer, header)
    return str(dtype), buffer.getvalue()


@lru_cache(maxsize=1024)
def _layout(head: bytes) -> tuple[np.dtype, tuple[int, ...], Literal["C", "F"], int] | None:
    """Parse a header: dtype, shape, order and count; None where numpy must look itself."""
    stream = BytesIO(head)
    stream.seek(8)
    try:
        shape, is_fortran, dtype = npy.read_array_header_1_0(stream)
    except ValueError:
        return None
    count = 1
    for length in shape:
        count *= length
    if dtype.kind not in _PLAIN_KINDS or count <= 0:
        return None
    return dtype, shape, "F" if is_fortran else "C", count
