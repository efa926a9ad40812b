"""The client's end: a Flower mod that sends a payload in place of the trained arrays."""

import logging
import time
from collections.abc import Mapping
from typing import cast

from flwr.app import ConfigRecord, Context, Error, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable
from flwr.common.constant import ErrorCode
from torch import Tensor

from fedcompress import protocol
from fedcompress.client_state import client_key, load_state, save_state
from fedcompress.dense import share_record
from fedcompress.errors import FedcompressError
from fedcompress.flower_adapter import filled, put, with_content
from fedcompress.randomness import rng_for
from fedcompress.reference import restore_reference
from fedcompress.references import arrays_of
from fedcompress.spec import parse

logger = logging.getLogger(__name__)


def compression_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Compress the update that a client sends back from training.

    Put it first in the list, so that it stands outermost and other mods (clipping, privacy)
    see dense arrays: ``ClientApp(mods=[compression_mod])``. It takes no settings: the server's
    `Compressed` sends the spec along. Messages other than training, and all messages of a
    server without `Compressed`, pass untouched. Residuals, and with a compressed downlink the
    reference model, are kept in ``context.state`` under keys that begin with ``fedcompress``.

    Parameters
    ----------
    message : Message
        From the server.
    context : Context
        Of this client; ``node_config["partition-id"]`` (else the node id) keys its randomness.
    call_next : callable
        The app inside.

    Returns
    -------
    Message
        The app's reply with its ArrayRecord replaced by one payload; or an error reply that
        says why there is none, such as an update that is not finite.
    """
    settings = protocol.settings_of(message.content) if message.has_content() else {}
    is_train = message.metadata.message_type.split(".")[0] == MessageType.TRAIN
    if not is_train or protocol.UPLINK_KEY not in settings:
        return call_next(message, context)
    try:
        return _train(message, context, call_next, settings)
    except FedcompressError as error:
        logger.info("client %s: no update sent: %s", client_key(context), error)
        reason = f"{protocol.ERROR_PREFIX}{error}"
        return Message(Error(ErrorCode.MOD_FAILED_PRECONDITION, reason), reply_to=message)


class CompressedClientApp(ClientApp):
    """A ClientApp around another that stays untouched; see `compress`."""

    def __init__(self, client_app: ClientApp) -> None:
        super().__init__()
        self._inside = client_app

    def __call__(self, message: Message, context: Context) -> Message:
        """Handle a message: the app inside, with `compression_mod` around it."""
        return compression_mod(message, context, self._inside)


def compress(client_app: ClientApp) -> ClientApp:
    """Wrap a ClientApp that must stay untouched, as if `compression_mod` were its first mod.

    Parameters
    ----------
    client_app : ClientApp
        Any Flower ClientApp, with mods of its own or without.

    Returns
    -------
    ClientApp
        What to name as the component in ``[tool.flwr.app.components]``.
    """
    return CompressedClientApp(client_app)


def _train(
    message: Message, context: Context, call_next: ClientAppCallable, settings: dict[str, object]
) -> Message:
    key, record = protocol.single_array_record(message.content, "message")
    content = protocol.without_settings(message.content)
    if protocol.VERSION_KEY in settings:
        reference = restore_reference(record, settings, context)
        before: Mapping[str, Tensor] = reference.tensors
        put(content, key, share_record(reference.record))
    else:
        before = arrays_of(record)
    reply = call_next(with_content(message, content), context)
    if reply.has_error():
        return reply
    started = time.perf_counter()
    reply_key, trained = protocol.single_array_record(reply.content, "reply")
    update = protocol.update_of(trained, before)
    protocol.check_finite(update)
    compressor = parse(str(settings[protocol.UPLINK_KEY]))
    server_round = int(cast(int, settings[protocol.ROUND_KEY]))
    rng = rng_for(
        int(cast(int, settings[protocol.SEED_KEY])),
        round=server_round,
        client=client_key(context),
        purpose="uplink",
    )
    state = load_state(context, compressor, update, settings)
    payload, state = compressor.encode(update, state, rng)
    group = str(settings.get(protocol.GROUP_KEY, ""))
    save_state(context, compressor, update, state, server_round, group)
    own = {
        protocol.ROUND_KEY: server_round,
        protocol.ENCODE_SECONDS_KEY: time.perf_counter() - started,
    }
    reply.content = filled(
        RecordDict(),
        {
            **reply.content,
            reply_key: protocol.payloads_to_record([payload]),
            protocol.RECORD: filled(ConfigRecord(), own),
        },
    )
    return reply
