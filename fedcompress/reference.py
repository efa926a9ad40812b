"""The client's copy of the reference model under a compressed downlink."""

from typing import cast

from flwr.app import ArrayRecord, ConfigRecord, Context
from torch import Tensor

from fedcompress import protocol
from fedcompress.errors import PayloadError
from fedcompress.spec import parse

NEEDS_WHOLE_MODEL = "the whole model is needed"
_VERSION = "version"
NO_VERSION = -1


def restore_reference(
    record: ArrayRecord, settings: dict[str, object], context: Context
) -> dict[str, Tensor]:
    """Bring this client's reference model to the version that the server trains from.

    The message holds either the whole model as dense arrays (base −1), or the payloads of the
    versions after its base, of which those that this client already has are passed over.

    Raises
    ------
    PayloadError
        If this client lacks the base, or ends at other numbers than the server; it then
        forgets its copy, and the server sends the whole model the next time.
    """
    base = int(cast(int, settings[protocol.BASE_KEY]))
    version = int(cast(int, settings[protocol.VERSION_KEY]))
    if base == NO_VERSION:
        reference = protocol.record_to_tensors(record)
    else:
        reference = _apply(record, settings, context, base, version)
    if protocol.checksum(reference) != settings[protocol.CHECKSUM_KEY]:
        _forget(context)
        raise PayloadError(
            f"reference model {version}: differs from the server's; {NEEDS_WHOLE_MODEL}"
        )
    kept = context.state.config_records.get(protocol.RECORD, ConfigRecord())
    kept[_VERSION] = version
    context.state[protocol.RECORD] = kept
    context.state[protocol.REFERENCE_RECORD] = protocol.tensors_to_record(reference)
    return reference


def _apply(
    record: ArrayRecord, settings: dict[str, object], context: Context, base: int, version: int
) -> dict[str, Tensor]:
    kept = context.state.config_records.get(protocol.RECORD, ConfigRecord())
    stored = context.state.array_records.get(protocol.REFERENCE_RECORD)
    held = int(cast(int, kept.get(_VERSION, NO_VERSION)))
    payloads = protocol.record_to_payloads(record)
    if len(payloads) != version - base:
        raise PayloadError(f"message: {len(payloads)} payloads from version {base} to {version}")
    if stored is None or not base <= held <= version:
        _forget(context)
        raise PayloadError(
            f"reference model: this client holds version {held}, the server counted on {base}; "
            f"{NEEDS_WHOLE_MODEL}"
        )
    compressor = parse(str(settings[protocol.DOWNLINK_KEY]))
    reference = protocol.record_to_tensors(stored)
    for payload in payloads[held - base :]:
        reference = protocol.advance(reference, compressor.decode(payload, reference))
    return reference


def _forget(context: Context) -> None:
    context.state.pop(protocol.REFERENCE_RECORD, None)
