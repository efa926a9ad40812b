"""Dense arrays are built and read as Flower's own constructor and reader do."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fedcompress.dense import STYPE, dense_array, dense_values, share_record
from fedcompress.flower_adapter import record_of

numbers = st.one_of(
    npst.boolean_dtypes(),
    npst.integer_dtypes(endianness="?"),
    npst.unsigned_integer_dtypes(endianness="?"),
    npst.floating_dtypes(endianness="?"),
    npst.complex_number_dtypes(),
)
any_array = npst.arrays(numbers, npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))


@given(any_array, st.booleans(), st.booleans())
def test_arrays_are_flowers_byte_for_byte(values: np.ndarray, turned: bool, stepped: bool) -> None:
    values = values.T if turned else values
    values = values[::2] if stepped and values.ndim else values
    array, flowers = dense_array(values), Array(values)
    assert array == flowers
    assert array.is_dirty
    assert array.object_id == flowers.object_id
    assert record_of({"a": array}) == ArrayRecord({"a": array})
    read, expected = dense_values(array), flowers.numpy()
    assert read.dtype == expected.dtype
    assert read.shape == expected.shape
    assert read.tobytes() == expected.tobytes()


def test_reading_takes_no_copy_and_gives_nothing_to_write_to() -> None:
    array = Array(np.arange(6, dtype=np.float32).reshape(2, 3))
    values = dense_values(array)
    assert not values.flags.owndata
    assert not values.flags.writeable


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:-1],
        lambda data: data[:4],
        lambda data: b"",
        lambda data: data[:8] + b"\xff\xff" + data[10:],
        lambda data: data.replace(b"descr", b"dexcr"),
        lambda data: data.replace(b"(3,)", b"(9,)"),
        lambda data: data.replace(b"(3,)", b"(-3)"),
        lambda data: data.replace(b"<f4", b"|O8"),
        lambda data: b"\x93NUMPY\x03\x00" + data[8:],
        lambda data: data + b"more",
    ],
)
def test_what_flower_refuses_is_refused_alike(spoil: object) -> None:
    data = spoil(Array(np.ones(3, np.float32)).data)  # type: ignore[operator]
    array = Array("float32", (3,), STYPE, data)
    outcomes = []
    for read in (Array.numpy, dense_values):
        try:
            outcomes.append(read(array).tolist())
        except (TypeError, ValueError, EOFError, SyntaxError) as error:
            outcomes.append((type(error), str(error)))
    assert outcomes[0] == outcomes[1]


def test_large_headers_and_other_serialisations_go_flowers_way() -> None:
    buffer = BytesIO()
    np.lib.format.write_array(buffer, np.ones(3), version=(2, 0))
    assert dense_values(Array("float64", (3,), STYPE, buffer.getvalue())).tolist() == [1, 1, 1]
    with pytest.raises(TypeError, match="serialization"):
        dense_values(Array("float64", (3,), "other", buffer.getvalue()))


def test_a_shared_record_is_another_with_the_same_bytes() -> None:
    record = ArrayRecord({"a": Array(np.ones(3))})
    shared = share_record(record)
    assert shared == record
    shared["a"].shape = (1, 3)
    shared["b"] = shared["a"]
    assert record["a"].shape == (3,)
    assert list(record) == ["a"]
    assert shared["a"].data is record["a"].data
