"""One call of one client's app: the same in this process and in a Ray worker."""

from __future__ import annotations

import importlib
import itertools
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from flwr.app import Context, Error, Message, MessageType, Metadata, RecordDict, UserConfig
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable

from fedcompress.errors import ConfigError
from fedcompress.flower_adapter import message_of, metadata_of, metadata_values
from simulations.engines.cohort import (
    call_together,
    cohort_size,
    cohorts_of,
    wants_cohorts,
)
from simulations.engines.flower_internals import (
    CLIENT_RAISED,
    copy_records,
    set_message_id,
)

AppFactory = str | Callable[[], ClientAppCallable]


@dataclass(frozen=True)
class Setting:
    """What every client of one round shares."""

    run_id: int
    num_clients: int
    run_config: UserConfig
    num_messages: int = 0  # of the round; 0: unknown, and no client is trained in a cohort


@dataclass(frozen=True)
class ClientResult:
    """What came of one call; `state` is None where the client's state stays as it was."""

    reply: Message
    state: RecordDict | None
    compute_seconds: float
    failure: str | None = None


@dataclass(frozen=True)
class ClientCall:
    """What one client's app is called with; nothing of it is changed by the call."""

    metadata: Metadata
    content: RecordDict
    state: RecordDict
    position: int = 0  # of the message in its round


def load_app(client_app: AppFactory) -> ClientAppCallable:
    """Build the client's app from an import path or a factory.

    Parameters
    ----------
    client_app : str or callable
        ``"package.module:attribute"``, which names a ClientApp, or a function without
        arguments that returns one.

    Raises
    ------
    ConfigError
        If the path names nothing, or what it names cannot be called.
    """
    if isinstance(client_app, str):
        module, _, attribute = client_app.partition(":")
        if not module or not attribute:
            raise ConfigError(
                f'client_app: expected "package.module:attribute", got {client_app!r}; '
                'write for example "simulations.client_app:app"'
            )
        try:
            app = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                f"client_app: cannot load {client_app!r} ({error}); "
                "is the package installed where the workers run?"
            ) from error
    else:
        if isinstance(client_app, ClientApp):
            raise ConfigError(
                "client_app: got a ClientApp; pass its import path or a function that returns it"
            )
        app = client_app()
    if not callable(app):
        raise ConfigError(f"client_app: {client_app!r} gives {type(app).__name__}, not a ClientApp")
    loaded: ClientAppCallable = app
    return loaded


def call_clients(
    app: ClientAppCallable, calls: Iterable[ClientCall], setting: Setting
) -> Iterator[ClientResult]:
    """Call the app for clients; results come in their order, each when ready.

    Where the run wants cohorts and the app trains them (`offer_cohorts`), the calls of one cohort
    are made together. For results that do not depend on who makes which calls, all calls of a
    cohort must be among these; see `cohort_size`.
    """
    train_many = cohorts_of(app) if wants_cohorts(setting.run_config) else None
    if train_many is None or setting.num_messages < 2:
        for call in calls:
            yield call_client(app, call, setting)
        return
    size = cohort_size(setting.num_messages)
    for _, group in itertools.groupby(calls, key=lambda call: _cohort_of(call, size)):
        together = [partial(call_client, app, call, setting) for call in group]
        if len(together) == 1:
            yield together[0]()
            continue
        for result, seconds in call_together(together, train_many):
            yield replace(result, compute_seconds=result.compute_seconds + seconds)


def _cohort_of(call: ClientCall, size: int) -> tuple[bool, int]:
    is_train = call.metadata.message_type.split(".")[0] == MessageType.TRAIN
    return is_train, call.position // size if is_train else call.position


def call_client(app: ClientAppCallable, call: ClientCall, setting: Setting) -> ClientResult:
    """Call the app once; an exception becomes an error reply and leaves the state alone.

    `content` and `state` are copied, so nothing that the app does to them reaches another client.
    """
    metadata, content, state = call.metadata, call.content, call.state
    node_id = metadata.dst_node_id
    message = message_of(metadata_of(metadata_values(metadata)), copy_records(content))
    context = Context(
        run_id=setting.run_id,
        node_id=node_id,
        node_config={"partition-id": node_id - 1, "num-partitions": setting.num_clients},
        state=copy_records(state),
        run_config=dict(setting.run_config),
    )
    failure: str | None = None
    start = time.perf_counter()
    try:
        reply = app(message, context)
        if not isinstance(reply, Message):
            raise TypeError(f"the ClientApp returned {type(reply).__name__}, expected a Message")
    except Exception as error:  # noqa: BLE001 - an app may raise anything; it is its client's fault
        failure = traceback.format_exc()
        reason = f"{type(error).__name__}: {error}"
        request = message_of(metadata, content)
        reply = Message(Error(CLIENT_RAISED, reason), reply_to=request)
    compute_seconds = time.perf_counter() - start
    # The reply's id is as long as Flower's, for the bytes of what names it later.
    set_message_id(reply, "f" + metadata.message_id[1:])
    changed = failure is None and context.state != state
    new_state = copy_records(context.state) if changed else None
    return ClientResult(reply, new_state, compute_seconds, failure)
