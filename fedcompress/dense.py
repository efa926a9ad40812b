"""Dense arrays as Flower carries them: the bytes that ``Array(ndarray)`` and ``.numpy()`` know.

Flower goes through `numpy.save` and `numpy.load` for every array, which write and parse the
same few headers again and again. Here a header is written once for each layout and parsed once
for each text; what is not plain goes Flower's way, with Flower's errors.

A model's arrays are copied once, into one block; their bytes are made when somebody asks for them,
which nobody does where updates are summed in the process in which they arise.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, wraps
from io import BytesIO
from typing import Literal, final

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.lib import format as npy

from fedcompress.block import BlockLayout, block_layout, is_same, npy_head
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
    name, head = npy_head(dtype, shape)
    return plain_array(name, shape, STYPE, b"".join((head, values.data)))


@final
class LateArray(Array):
    """A plain array whose bytes are made when they are asked for.

    It equals, and is pickled as, the Array of these bytes, and becomes that one when something of
    it is set.
    """

    __qualname__ = "Array"  # which Flower writes into the bytes that it names an object by

    @property
    def data(self) -> bytes:  # type: ignore[override]  # a plain attribute of Array
        """The bytes that ``Array(values)`` holds."""
        held = vars(self)
        if "_bytes" not in held:
            held["_bytes"] = b"".join((held["_head"], _late_values(self).data))
        data: bytes = held["_bytes"]
        return data

    def numpy(self) -> np.ndarray:
        """Give a copy of the values, as an Array does."""
        return _late_values(self).copy()

    def __setattr__(self, name: str, value: object) -> None:
        """Become a plain Array before one of its fields is set."""
        if name in ("dtype", "shape", "stype", "data"):
            data, held = self.data, vars(self)
            for late in ("_head", "_bytes", "_block", "_start"):
                del held[late]
            object.__setattr__(self, "__class__", Array)
            held["data"] = data
        Array.__setattr__(self, name, value)

    def __eq__(self, other: object) -> bool:
        """Compare with any Array."""
        if not isinstance(other, Array):
            return NotImplemented
        if self.dtype != other.dtype or self.shape != other.shape or self.stype != other.stype:
            return False
        if type(other) is LateArray:
            mine, others = vars(self), vars(other)
            if mine["_block"] is others["_block"] and mine["_start"] == others["_start"]:
                return True
            return is_same(_late_values(self), _late_values(other))
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
    layout = block_layout(given[0].dtype, tuple(arrays), tuple([x.shape for x in given]))
    return block_record(layout, block)


class LateArrays(dict[str, Array]):
    """The arrays in a block by name, made when somebody looks at any of them.

    A record of a small model is handed on ten times in a client's call, mostly unread, and to make
    and walk its arrays took longer than to copy their numbers.
    """

    __slots__ = ("block", "layout", "made")

    def __init__(self, layout: BlockLayout, block: np.ndarray) -> None:
        super().__init__()
        self.layout = layout
        self.block = block
        self.made: list[Array] | None = None
        """The arrays as they were made, None before."""

    @property
    def is_whole(self) -> bool:
        """Whether the arrays are still those in the block."""
        if self.made is None:
            return True
        # One that was set is no late array any more.
        named = list(self) == self.layout.names
        return named and list(self.values()) == self.made and _are_late(self.made)

    def make(self) -> None:
        """Make the arrays."""
        if self.made is not None:
            return
        made: dict[str, Array] = {}
        start = 0
        layout = self.layout
        for (name, shape, dtype), head, stop in zip(
            layout.described, layout.heads, layout.stops, strict=True
        ):
            made[name] = _late_array(dtype, shape, head, self.block, start)
            start = stop
        self.made = list(made.values())
        super().update(made)

    def __eq__(self, other: object) -> bool:
        """Compare with any dictionary; with one of the same layout without making arrays."""
        if (
            isinstance(other, LateArrays)
            and self.is_whole
            and other.is_whole
            and self.layout.equals(other.layout)
        ):
            return is_same(self.block, other.block)
        self.make()
        if isinstance(other, LateArrays):
            other.make()
        return super().__eq__(other)

    def __ne__(self, other: object) -> bool:
        """Whether it equals another dictionary not."""
        return not self == other

    __hash__ = None  # as dict

    def __reduce__(self) -> tuple[type[dict[str, Array]], tuple[list[tuple[str, Array]]]]:
        """Let whoever reads a pickle get a dictionary."""
        return dict, (list(self.items()),)


def _made_first(name: str) -> Callable[..., object]:
    of_dict = getattr(dict, name)

    @wraps(of_dict)
    def method(self: LateArrays, *args: object, **named: object) -> object:
        self.make()
        return of_dict(self, *args, **named)

    return method


for _name in (
    *("__contains__", "__delitem__", "__getitem__", "__ior__", "__iter__", "__len__", "__or__"),
    *("__repr__", "__reversed__", "__ror__", "__setitem__", "clear", "copy", "get", "items"),
    *("keys", "pop", "popitem", "setdefault", "update", "values"),
):
    setattr(LateArrays, _name, _made_first(_name))


def block_record(layout: BlockLayout, block: np.ndarray) -> ArrayRecord:
    """Make the record of the arrays in a block, which must not be changed from then on."""
    record = ArrayRecord.__new__(ArrayRecord)
    vars(record).update(_OF_A_RECORD, _data=LateArrays(layout, block))
    return record


_OF_A_RECORD = vars(ArrayRecord())


def whole_block(record: ArrayRecord) -> tuple[np.ndarray, BlockLayout] | None:
    """Give the block, not to be written to, that the arrays of a record of `dense_record` lie in.

    None for any other record, and for one that was changed since.
    """
    arrays = vars(record)["_data"]
    if type(arrays) is not LateArrays or not arrays.is_whole:
        return None
    return arrays.block, arrays.layout


def record_bytes(record: ArrayRecord) -> int:
    """Count the bytes of all arrays of a record, without making those of late ones."""
    whole = whole_block(record)
    if whole is not None:
        return whole[1].data_bytes
    return sum([len(array.data) for array in record.values()])


def _late_array(
    dtype: str, shape: tuple[int, ...], head: bytes, block: np.ndarray, start: int
) -> LateArray:
    array = LateArray.__new__(LateArray)
    vars(array).update(
        dtype=dtype, shape=shape, stype=STYPE, _head=head, _block=block, _start=start
    )
    return array


def _late_values(array: LateArray) -> np.ndarray:
    held = vars(array)
    start, shape = held["_start"], held["shape"]
    values: np.ndarray = held["_block"][start : start + math.prod(shape)].reshape(shape)
    values.flags.writeable = False
    return values


def _are_late(arrays: Sequence[Array]) -> bool:
    return {type(x) for x in arrays} == {LateArray}


def _are_alike(arrays: Sequence[np.ndarray]) -> bool:
    dtype = arrays[0].dtype
    return (
        dtype.kind in _PLAIN_KINDS
        and dtype.isnative
        and dtype.metadata is None
        and all(x.dtype == dtype and type(x) is np.ndarray for x in arrays)
    )


def dense_values(array: Array) -> np.ndarray:
    """Read what ``array.numpy()`` gives, without a copy where that can be; then read-only.

    Raises
    ------
    TypeError, ValueError, EOFError, SyntaxError
        As ``array.numpy()`` does.
    """
    if type(array) is LateArray:
        return _late_values(array)
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
    whole = whole_block(record)
    if whole is not None:
        return block_record(whole[1], whole[0])
    return record_of({name: share_array(array) for name, array in record.items()})


def share_array(array: Array) -> Array:
    """Copy one array without what Flower cached in it; the bytes are shared."""
    if type(array) is LateArray:
        held = vars(array)
        return _late_array(array.dtype, array.shape, held["_head"], held["_block"], held["_start"])
    return plain_array(array.dtype, tuple(array.shape), array.stype, bytes(array.data))


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
