"""What both ends of the protocol agree on: record keys, and arrays to tensors and back.

An update holds after − before for floating-point arrays. Integers and booleans (counters,
masks) are sent as they are after training: a difference of them could wrap around.
"""

import math
import zlib
from collections.abc import Mapping

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from fedcompress.block import Block, BlockLayout
from fedcompress.compressor import FlatParts, SentParts
from fedcompress.dense import STYPE as DENSE_STYPE
from fedcompress.dense import (
    block_record,
    dense_array,
    dense_values,
    plain_array,
    record_bytes,
    whole_block,
)
from fedcompress.errors import LayoutError, PayloadError, diverged
from fedcompress.flower_adapter import MetricContent, filled, record_of

STYPE = "fedcompress.v1"
RECORD = "fedcompress"  # key of our own records in replies and in Context.state
STATE_RECORD = "fedcompress.state"
BEFORE_RECORD = "fedcompress.before"  # the state of before the last reply
REFERENCE_RECORD = "fedcompress.reference"
KEY_PREFIX = "fedcompress."
UPLINK_KEY = "fedcompress.uplink"  # spec of the client's compressor
SEED_KEY = "fedcompress.seed"
ROUND_KEY = "fedcompress.round"
HELD_KEY = "fedcompress.held"  # round of this client's reply that the server's memory is of
DOWNLINK_KEY = "fedcompress.downlink"  # spec of the payloads in this message
BASE_KEY = "fedcompress.base"  # version of the reference model that the payloads build on
VERSION_KEY = "fedcompress.version"  # version that they lead to
CHECKSUM_KEY = "fedcompress.checksum"  # of the reference model at that version
GROUP_KEY = "fedcompress.group"  # names the layout of the arrays, where it is not the model's
MASK_KEY = "fedcompress.mask"  # a coded mask, sent with its shapes to who has it not yet
SHAPES_KEY = "fedcompress.mask-shapes"  # names and shapes of the masked arrays, as JSON
MASK_VERSION_KEY = "fedcompress.mask-version"  # which mask the arrays are packed by
KEPT_RECORD = "fedcompress.kept"  # what is known of a group's state; of the model's, in RECORD
ENCODE_SECONDS_KEY = "encode-seconds"
_OF_THE_MOD = {
    UPLINK_KEY,
    SEED_KEY,
    ROUND_KEY,
    HELD_KEY,
    DOWNLINK_KEY,
    BASE_KEY,
    VERSION_KEY,
    CHECKSUM_KEY,
}
_PLAIN = {torch.float32: np.dtype(np.float32), torch.float64: np.dtype(np.float64)}
ERROR_PREFIX = "fedcompress: "  # of the reason in a client's error reply


def record_to_tensors(record: ArrayRecord) -> dict[str, Tensor]:
    """Read dense arrays as tensors."""
    return {name: _tensor(name, array) for name, array in record.items()}


def record_to_block(record: ArrayRecord) -> Block | None:
    """Read arrays of a record that lie in one block, where they lie; None for any other."""
    whole = whole_block(record)
    if whole is None or whole[0].dtype != np.float32:
        return None
    return Block(whole[1], whole[0])


def tensors_to_record(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Write tensors as dense arrays; those of a block are not copied."""
    if isinstance(tensors, Block):
        return block_record(tensors.layout, tensors.flat)
    return record_of({name: dense_array(x.detach().cpu().numpy()) for name, x in tensors.items()})


def payloads_to_record(payloads: list[bytes]) -> ArrayRecord:
    """Write payloads as opaque arrays, one each."""
    return record_of(
        {
            f"payload-{i}": plain_array("uint8", (len(payload),), STYPE, payload)
            for i, payload in enumerate(payloads)
        }
    )


def record_to_payloads(record: ArrayRecord) -> list[bytes]:
    """Read the payloads back.

    Raises
    ------
    PayloadError
        If an array is not a payload of this protocol.
    """
    for name, array in record.items():
        if array.stype != STYPE:
            raise PayloadError(
                f"array {name!r} is a dense {array.stype}, not a payload ({STYPE}); put "
                "compression_mod first in ClientApp(mods=[...]), or wrap the app by compress()"
            )
    return [array.data for array in record.values()]


def difference(after: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Give the update that leads from ``before`` to ``after``.

    Raises
    ------
    LayoutError
        If names, shapes or dtypes differ.
    """
    if (
        isinstance(after, Block)
        and isinstance(before, Block)
        and after.layout.equals(before.layout)
    ):
        return Block.difference(before.layout, after.flat, before.flat)
    check_same_layout(after, before)
    return {
        name: x - before[name] if x.is_floating_point() else x
        for name, x in ((name, after[name]) for name in before)
    }


def update_of(trained: ArrayRecord, before: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Give the update that leads from ``before`` to a record, as `difference` does.

    Raises
    ------
    LayoutError
        If names, shapes or dtypes differ, or an array cannot be read.
    """
    if isinstance(before, Block):
        after_all = record_to_block(trained)
        if after_all is not None:
            return difference(after_all, before)
    update: dict[str, Tensor] = {}
    for name, x in before.items():
        array = trained.get(name)
        # numpy reads where the bytes lie; torch would have to copy what it must not write to.
        plain = array is not None and x.dtype in _PLAIN and array.stype == DENSE_STYPE
        after = dense_values(array) if array is not None and plain else None
        if after is None or after.dtype != _PLAIN[x.dtype] or after.shape != x.shape:
            return difference(record_to_tensors(trained), before)
        update[name] = torch.from_numpy(np.asarray(after - x.numpy()))
    if len(trained) != len(before):
        return difference(record_to_tensors(trained), before)
    return update


def advance(before: Mapping[str, Tensor], update: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Apply an update; both ends do it by these same operations, so they stay equal."""
    if isinstance(before, Block):
        return Block(before.layout, before.flat + _flat_of(update, before.layout))
    return {
        name: x + update[name] if x.is_floating_point() else update[name]
        for name, x in before.items()
    }


def _flat_of(update: Mapping[str, Tensor], layout: BlockLayout) -> np.ndarray:
    """Put an update of a block's arrays one behind another."""
    parts = update.parts if isinstance(update, SentParts) else None
    if isinstance(parts, FlatParts) and parts.layout.equals(layout):
        flat = np.zeros(layout.stops[-1], np.float32)
        flat[parts.positions.numpy()] = parts.entries.numpy()
        return flat
    return np.concatenate([update[name].numpy().reshape(-1) for name in layout.names])


def check_finite(arrays: Mapping[str, Tensor]) -> None:
    """Raise `NotFiniteError` where a floating-point array holds NaN or infinity.

    A difference that nobody has reckoned yet is checked when it is.
    """
    if isinstance(arrays, Block) and arrays.terms is not None:
        return
    name = not_finite(arrays)
    if name is not None:
        raise diverged(name)


def not_finite(arrays: Mapping[str, Tensor]) -> str | None:
    """Name a floating-point array that holds NaN or infinity, None where there is none."""
    # A finite sum needs no second look; a sum may also overflow though every entry is finite.
    if isinstance(arrays, Block):
        with np.errstate(over="ignore", invalid="ignore"):
            if np.isfinite(arrays.flat.sum()):
                return None
    for name, x in arrays.items():
        if x.is_floating_point() and not (
            math.isfinite(x.sum().item()) or bool(torch.isfinite(x).all())
        ):
            return name
    return None


def check_same_layout(after: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> None:
    """Raise `LayoutError` unless both hold arrays of the same names, shapes and dtypes."""
    if after.keys() != before.keys():
        extra = sorted(after.keys() - before.keys())
        missing = sorted(before.keys() - after.keys())
        raise LayoutError(
            f"reply: arrays {extra} are new and {missing} are missing; "
            "return all arrays of the global model under the names they were sent with"
        )
    for name, x in before.items():
        got = after[name]
        if got.shape != x.shape or got.dtype != x.dtype:
            raise LayoutError(
                f"reply: array {name!r} is {tuple(got.shape)} {got.dtype}, the global model's is "
                f"{tuple(x.shape)} {x.dtype}; return it in the shape and dtype it was sent with"
            )


def checksum(arrays: Mapping[str, Tensor]) -> int:
    """Give the CRC-32 over the bytes of all arrays in order."""
    if isinstance(arrays, Block):
        return zlib.crc32(arrays.flat.data.cast("B"))
    value = 0
    for x in arrays.values():
        raw = np.ascontiguousarray(x.cpu().numpy()).reshape(-1).view(np.uint8)
        value = zlib.crc32(raw.data, value)
    return value


def kept_in(state: RecordDict, key: str = RECORD) -> ConfigRecord:
    """Give our own record in a client's state, an empty one where there is none."""
    kept = state.get(key)
    return kept if isinstance(kept, ConfigRecord) else ConfigRecord()


def settings_of(content: RecordDict) -> dict[str, object]:
    """Collect the settings that the server put into a message."""
    return {
        key: value
        for record in content.values()
        if isinstance(record, ConfigRecord)
        for key, value in record.items()
        if key.startswith(KEY_PREFIX)
    }


def group_of(content: RecordDict) -> str:
    """Read which group a strategy says that its arrays are of; empty where it says nothing."""
    return str(settings_of(content).get(GROUP_KEY, ""))


def without_settings(content: RecordDict) -> RecordDict:
    """Copy a message's content as the app inside should see it.

    What a strategy says of its arrays stays, such as their group.
    """
    clean: dict[str, ArrayRecord | MetricRecord | ConfigRecord] = {}
    for key, record in content.items():
        if key == RECORD:
            continue
        if isinstance(record, ConfigRecord):
            kept = {k: v for k, v in record.items() if k not in _OF_THE_MOD}
            clean[key] = filled(ConfigRecord(), kept)
        else:
            clean[key] = record
    return filled(RecordDict(), clean)


def single_array_record(content: RecordDict, what: str) -> tuple[str, ArrayRecord]:
    """Give the one ArrayRecord of a message and its key."""
    records = array_records(content)
    if len(records) != 1:
        raise LayoutError(
            f"{what}: holds {len(records)} ArrayRecords ({', '.join(records) or 'none'}), "
            "expected exactly one; send the model's arrays in one ArrayRecord"
        )
    key = next(iter(records))
    return key, records[key]


def array_records(content: RecordDict) -> dict[str, ArrayRecord]:
    """Give the ArrayRecords of a content by key; Flower's property of that name sets each anew."""
    return {key: record for key, record in content.items() if isinstance(record, ArrayRecord)}


def data_bytes(content: RecordDict) -> int:
    """Count the bytes of all arrays of a message as they lie in it, and of a mask beside them."""
    arrays = sum(record_bytes(record) for record in array_records(content).values())
    return arrays + mask_bytes(content)


def mask_bytes(content: RecordDict) -> int:
    """Count what a message's settings hold of a mask, which is as much data as arrays are."""
    size = 0
    for record in content.values():
        if isinstance(record, ConfigRecord) and MASK_KEY in record:
            parts = record[MASK_KEY], record.get(SHAPES_KEY)
            size += sum(len(part) for part in parts if isinstance(part, bytes | str))
    return size


def without_arrays(content: RecordDict) -> RecordDict:
    """Copy a reply's content without its arrays and our own record."""
    kept = (
        (key, record)
        for key, record in content.items()
        if key != RECORD and not isinstance(record, ArrayRecord)
    )
    return filled(MetricContent(), kept)


def with_model(content: RecordDict, model: Mapping[str, Tensor]) -> RecordDict:
    """Copy a reply's content with a dense model where its payload stood, without our own record."""
    dense = tensors_to_record(model)
    arrays = content.array_records
    return RecordDict({k: dense if k in arrays else r for k, r in content.items() if k != RECORD})


def _tensor(name: str, array: Array) -> Tensor:
    try:
        x = dense_values(array)
        if not x.flags.writeable or not x.dtype.isnative:
            x = x.astype(x.dtype.newbyteorder("="))
        return torch.from_numpy(x)
    except (TypeError, ValueError, EOFError, SyntaxError) as error:
        raise LayoutError(
            f"array {name!r} ({array.dtype}, serialized as {array.stype!r}) cannot be read: "
            f"{error}; send numpy arrays or torch tensors of numbers"
        ) from error
