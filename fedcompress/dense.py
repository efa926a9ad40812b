"""Dense arrays as Flower carries them: the bytes that ``Array(ndarray)`` and ``.numpy()`` know.

Flower goes through `numpy.save` and `numpy.load` for every array, which write and parse the
same few headers again and again. Here a header is written once for each layout and parsed once
for each text; what is not plain goes Flower's way, with Flower's errors.
"""

from functools import lru_cache
from io import BytesIO
from typing import Literal

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


def dense_values(array: Array) -> np.ndarray:
    """Read what ``array.numpy()`` gives, without a copy where that can be; then read-only.

    Raises
    ------
    TypeError, ValueError, EOFError, SyntaxError
        As ``array.numpy()`` does.
    """
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
