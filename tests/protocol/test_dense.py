"""Dense arrays are built and read as Flower's own constructor and reader do."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from io import BytesIO

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fedcompress.dense import (
    STYPE,
    LateArray,
    dense_array,
    dense_record,
    dense_values,
    record_bytes,
    share_record,
    whole_block,
)
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


def model() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    shapes = {"w": (3, 4), "b": (3,), "scale": (), "none": (0, 2)}
    return {k: np.asarray(rng.standard_normal(s), np.float32) for k, s in shapes.items()}


def plain(arrays: dict[str, np.ndarray]) -> ArrayRecord:
    return ArrayRecord({name: Array(x) for name, x in arrays.items()})


@given(any_array, any_array)
def test_a_record_of_copies_is_that_of_flowers_arrays(a: np.ndarray, b: np.ndarray) -> None:
    for arrays in ({"a": a, "b": b}, {"a": a, "b": a[::-1] if a.ndim else a}):
        record, flowers = dense_record(arrays), plain(arrays)
        assert record == flowers
        assert flowers == record
        assert record.object_id == flowers.object_id
        assert record_bytes(dense_record(arrays)) == sum(len(x.data) for x in flowers.values())
        for name, array in dense_record(arrays).items():
            assert array.numpy().tobytes() == flowers[name].numpy().tobytes()
            assert array.numpy().flags.writeable
            assert type(array) is Array or not dense_values(array).flags.writeable


def test_arrays_of_one_dtype_lie_in_one_block_until_one_is_changed() -> None:
    arrays = model()
    record = dense_record(arrays)
    whole = whole_block(record)
    assert whole is not None
    assert whole[0].tobytes() == b"".join(x.tobytes() for x in arrays.values())
    arrays["w"][:] = 0
    assert record["w"].numpy().any()
    assert whole_block(ArrayRecord(dict(record))) is None
    for change in ("shape", "data", "place", "less"):
        record, expected = dense_record(model()), plain(model())
        for one in (record, expected):
            if change == "shape":
                one["w"].shape = (4, 3)
            elif change == "data":
                one["w"].data = Array(np.zeros((3, 4), np.float32)).data
            elif change == "place":
                one["b"], one["w"] = one["w"], one["b"]
            else:
                del one["b"]
        assert whole_block(record) is None
        assert record == expected
        assert record_bytes(record) == record_bytes(expected)
        assert record.object_id == expected.object_id
    assert whole_block(dense_record({"a": np.ones(2), "b": np.ones(2, np.float32)})) is None


def _replace(arrays: dict[str, Array]) -> object:
    arrays["w"] = arrays["b"]
    return None


LOOKS: dict[str, Callable[[dict[str, Array]], object]] = {
    "length": len,
    "names": list,
    "backwards": lambda arrays: list(reversed(arrays)),
    "one": lambda arrays: arrays["b"],
    "one that may be there": lambda arrays: (arrays.get("b"), arrays.get("c")),
    "whether it is there": lambda arrays: ("b" in arrays, "c" in arrays),
    "keys": lambda arrays: list(arrays.keys()),
    "values": lambda arrays: list(arrays.values()),
    "items": lambda arrays: list(arrays.items()),
    "text": lambda arrays: [f"'{name}'" in repr(arrays) for name in ("w", "b", "none", "c")],
    "copied": lambda arrays: arrays.copy(),
    "unpacked": lambda arrays: {**arrays},
    "made anew": dict,
    "joined": lambda arrays: arrays | {"c": arrays["b"]},
    "joined to": lambda arrays: {"c": arrays["b"]} | arrays,
    "deeply copied": copy.deepcopy,
    "pickled": lambda arrays: pickle.loads(pickle.dumps(arrays)),
    "taken out": lambda arrays: arrays.pop("b"),
    "last taken out": lambda arrays: arrays.popitem(),
    "set if missing": lambda arrays: arrays.setdefault("c", arrays["b"]),
    "updated": lambda arrays: arrays.update(c=arrays["b"]),
    "emptied": lambda arrays: arrays.clear(),
    "replaced": _replace,
}


@pytest.mark.parametrize("look", LOOKS)
def test_arrays_that_are_made_late_are_a_dictionary_all_the_same(look: str) -> None:
    late, made = vars(dense_record(model()))["_data"], vars(plain(model()))["_data"]
    assert late.made is None
    assert LOOKS[look](late) == LOOKS[look](made)
    assert late == made
    assert made == late
    assert (late != {}) == (look != "emptied")
    changes = ("taken out", "last taken out", "set if missing", "updated", "emptied", "replaced")
    assert late.is_whole == (look not in changes)


def test_late_arrays_are_shared_and_pickled() -> None:
    record = dense_record(model())
    shared = share_record(record)
    assert shared == record
    shared["w"].shape = (12,)
    assert type(shared["w"]) is Array
    assert type(record["w"]) is LateArray
    assert record["w"].shape == (3, 4)
    there = pickle.loads(pickle.dumps(record["b"]))
    assert type(there) is Array
    assert there == record["b"]
    assert record["b"] != 3
