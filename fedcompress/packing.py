"""The client's end of pruning: a Flower mod that packs and unpacks what the app trains.

A server that prunes sends the kept entries of each pruned array as one vector, and the mask, which
says where they lie, once for each version of it. The app inside sees whole arrays with zeros, and
of what it returns the kept entries are sent: both directions carry only what is left.
"""

import json
import logging
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import cast

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MessageType, RecordDict
from flwr.clientapp.typing import ClientAppCallable
from flwr.common.constant import ErrorCode
from torch import Tensor

from fedcompress import protocol
from fedcompress.client_state import client_key
from fedcompress.errors import FedcompressError, PayloadError
from fedcompress.flower_adapter import with_content
from fedcompress.protocol import MASK_KEY, MASK_VERSION_KEY, SHAPES_KEY
from fedcompress.pruning import decode_mask, encode_mask, pack, unpack

logger = logging.getLogger(__name__)

MASK_RECORD = "fedcompress.mask"  # of Context.state: the mask of the last message
NEEDS_MASK = "the mask is needed"
_MOST_ENTRIES = 2000  # of an unpacked array for each that is kept
_MOST_DIMENSIONS = 8


def packing_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Unpack a pruned model for the app, and pack what it returns.

    Put it behind `compression_mod`, which decodes what arrives packed and codes what leaves
    packed: ``ClientApp(mods=[compression_mod, packing_mod])``. It takes no settings: what the
    strategy `Pruned` says in its messages is all that it goes by, and other messages pass
    untouched. An app that trains pruned entries all the same has them left out of what it
    returns. One that does not want to asks `mask_in_use`.

    Parameters
    ----------
    message : Message
        From the server.
    context : Context
        Of this client; the mask is kept in ``context.state`` under ``fedcompress.mask``.
    call_next : callable
        The app inside.

    Returns
    -------
    Message
        The app's reply with its arrays packed; or an error reply that says why there is none,
        such as a mask that this client has not.
    """
    settings = protocol.settings_of(message.content) if message.has_content() else {}
    is_train = message.metadata.message_type.split(".")[0] == MessageType.TRAIN
    if not is_train or MASK_VERSION_KEY not in settings:
        return call_next(message, context)
    try:
        key, record = protocol.single_array_record(message.content, "message")
        packed = protocol.record_to_tensors(record)
        _keep_mask(settings, context)
        mask = _held_mask(int(cast(int, settings[MASK_VERSION_KEY])), context, packed)
        arrays = unpack(packed, mask)
        content = _without_mask(message.content)
        content[key] = protocol.tensors_to_record(arrays)
        reply = call_next(with_content(message, content), context)
        return reply if reply.has_error() else _packed_reply(reply, arrays, mask)
    except FedcompressError as error:
        logger.info("client %s: no update sent: %s", client_key(context), error)
        reason = f"{protocol.ERROR_PREFIX}{error}"
        return Message(Error(ErrorCode.MOD_FAILED_PRECONDITION, reason), reply_to=message)


def mask_in_use(config: Mapping[str, object], context: Context) -> Mapping[str, Tensor] | None:
    """Give the mask of the model that an app was sent, so that it trains no more than that.

    Parameters
    ----------
    config : Mapping[str, object]
        The ConfigRecord of the message, as the app sees it.
    context : Context
        Of this client.

    Returns
    -------
    Mapping[str, Tensor] or None
        bool, true where an entry is kept, by the names of the pruned arrays; None where the
        message holds a whole model. Do not write to it: it is shared by the clients of a process.
    """
    version = config.get(MASK_VERSION_KEY)
    kept = context.state.get(MASK_RECORD)
    if version is None or not isinstance(kept, ConfigRecord):
        return None
    return _decoded(*_said(kept))


def mask_settings(mask: Mapping[str, Tensor]) -> dict[str, str | bytes]:
    """Write a mask as settings of a message, for who has it not yet."""
    shapes = {name: list(x.shape) for name, x in mask.items()}
    return {
        MASK_KEY: encode_mask(mask),
        SHAPES_KEY: json.dumps(shapes, separators=(",", ":")),
    }


def _keep_mask(settings: Mapping[str, object], context: Context) -> None:
    """Keep the mask that came with a message, if one did."""
    data, shapes = settings.get(MASK_KEY), settings.get(SHAPES_KEY)
    if not isinstance(data, bytes) or not isinstance(shapes, str):
        return
    version = int(cast(int, settings[MASK_VERSION_KEY]))
    context.state[MASK_RECORD] = ConfigRecord(
        {MASK_VERSION_KEY: version, MASK_KEY: data, SHAPES_KEY: shapes}
    )


def _held_mask(
    version: int, context: Context, packed: Mapping[str, Tensor]
) -> Mapping[str, Tensor]:
    kept = context.state.get(MASK_RECORD)
    held = kept.get(MASK_VERSION_KEY) if isinstance(kept, ConfigRecord) else None
    if not isinstance(kept, ConfigRecord) or held != version:
        raise PayloadError(
            f"mask {version}: this client holds {'none' if held is None else repr(held)}; "
            f"{NEEDS_MASK}"
        )
    data, shapes = _said(kept)
    claimed = sum(math.prod(shape) for shape in _shapes(shapes).values())
    room = _MOST_ENTRIES * (1 + sum(x.numel() for x in packed.values()))
    if claimed > room:
        context.state.pop(MASK_RECORD)
        raise PayloadError(
            f"mask {version}: is for {claimed} entries, more than {_MOST_ENTRIES} for each that "
            f"came; {NEEDS_MASK}"
        )
    try:
        return _decoded(data, shapes)
    except PayloadError:
        context.state.pop(MASK_RECORD)
        raise


def _said(kept: ConfigRecord) -> tuple[bytes, str]:
    return cast(bytes, kept[MASK_KEY]), str(kept[SHAPES_KEY])


@lru_cache(maxsize=4)
def _decoded(data: bytes, shapes: str) -> Mapping[str, Tensor]:
    like = {name: torch.empty(shape, device="meta") for name, shape in _shapes(shapes).items()}
    return decode_mask(data, like)


@lru_cache(maxsize=4)
def _shapes(text: str) -> dict[str, tuple[int, ...]]:
    try:
        read = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PayloadError(f"mask: shapes cannot be read: {error}; {NEEDS_MASK}") from error
    if not isinstance(read, dict) or not all(map(_is_shape, read.values())):
        raise PayloadError(f"mask: {text[:80]!r} are no shapes by name; {NEEDS_MASK}")
    return {name: tuple(shape) for name, shape in read.items()}


def _is_shape(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= _MOST_DIMENSIONS
        and all(type(size) is int and 0 <= size < 1 << 40 for size in value)
    )


def _without_mask(content: RecordDict) -> RecordDict:
    """Copy a message's content as the app should see it: the version stays, for `mask_in_use`."""
    clean = RecordDict()
    for key, record in content.items():
        if isinstance(record, ConfigRecord):
            kept = {k: v for k, v in record.items() if k not in (MASK_KEY, SHAPES_KEY)}
            clean[key] = ConfigRecord(kept)
        else:
            clean[key] = record
    return clean


def _packed_reply(
    reply: Message, sent: Mapping[str, Tensor], mask: Mapping[str, Tensor]
) -> Message:
    key, record = protocol.single_array_record(reply.content, "reply")
    trained = protocol.record_to_tensors(record)
    protocol.check_same_layout(trained, sent)
    content = RecordDict()
    content.update(reply.content)
    content[key] = _in_order(protocol.tensors_to_record(pack(trained, mask)), list(sent))
    return with_content(reply, content)


def _in_order(record: ArrayRecord, names: list[str]) -> ArrayRecord:
    """Put arrays into the order in which they were sent."""
    return record if list(record) == names else ArrayRecord({n: record[n] for n in names})
