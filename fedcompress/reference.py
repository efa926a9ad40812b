"""The client's copy of the reference model under a compressed downlink."""

from typing import cast

from flwr.app import ArrayRecord, Context

from fedcompress import protocol
from fedcompress.dense import share_record
from fedcompress.errors import PayloadError
from fedcompress.flower_adapter import put
from fedcompress.references import Reference, known_reference
from fedcompress.spec import parse

NEEDS_WHOLE_MODEL = "the whole model is needed"
_VERSION = "version"
NO_VERSION = -1


def restore_reference(
    record: ArrayRecord, settings: dict[str, object], context: Context
) -> Reference:
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
        reference = known_reference(version, record)
    else:
        reference = _apply(record, settings, context, base, version)
    if reference.checksum != settings[protocol.CHECKSUM_KEY]:
        _forget(context)
        raise PayloadError(
            f"reference model {version}: differs from the server's; {NEEDS_WHOLE_MODEL}"
        )
    kept = protocol.kept_in(context.state)
    kept[_VERSION] = version
    put(context.state, protocol.RECORD, kept)
    put(context.state, protocol.REFERENCE_RECORD, share_record(reference.record))
    return reference


def _apply(
    record: ArrayRecord, settings: dict[str, object], context: Context, base: int, version: int
) -> Reference:
    kept = protocol.kept_in(context.state)
    stored = context.state.get(protocol.REFERENCE_RECORD)
    held = int(cast(int, kept.get(_VERSION, NO_VERSION)))
    payloads = protocol.record_to_payloads(record)
    if len(payloads) != version - base:
        raise PayloadError(f"message: {len(payloads)} payloads from version {base} to {version}")
    if not isinstance(stored, ArrayRecord) or not base <= held <= version:
        _forget(context)
        raise PayloadError(
            f"reference model: this client holds version {held}, the server counted on {base}; "
            f"{NEEDS_WHOLE_MODEL}"
        )
    compressor = parse(str(settings[protocol.DOWNLINK_KEY]))
    reference = known_reference(held, stored)
    for payload in payloads[held - base :]:
        reference = reference.after(compressor, payload)
    return reference


def _forget(context: Context) -> None:
    context.state.pop(protocol.REFERENCE_RECORD, None)
