"""What a client's compressor remembers between rounds, in ``Context.state``.

Most state is the client's own, such as residuals. What a predictive compressor remembers must
be what the server remembers too. The server says of which round's reply that was; besides
the state that its last reply led to, such a client keeps the one that the reply was made from,
and goes back to it if that reply never arrived.

State is kept apart for each group of arrays that the client is sent, since it has their layout.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

from flwr.app import ArrayRecord, ConfigRecord, Context
from torch import Tensor

from fedcompress import protocol
from fedcompress.block import Block
from fedcompress.compressor import Compressor, State
from fedcompress.flower_adapter import filled, put
from fedcompress.memories import NO_ROUND
from fedcompress.wire import fingerprint_layout

logger = logging.getLogger(__name__)

_SPEC = "spec"
_LAYOUT = "layout"
_ROUND = "round"  # in which the state was made
_BEFORE_ROUND = "before-round"
_MOST_NAMES = 64
_MOST_GROUPS = 4  # beside the global model; each holds about a model


@dataclass(frozen=True)
class _Places:
    """Keys in ``Context.state`` of what is known of a state, of it, and of the one before."""

    kept: str
    state: str
    before: str


@lru_cache(maxsize=64)
def _places(group: str) -> _Places:
    if not group:
        return _Places(protocol.RECORD, protocol.STATE_RECORD, protocol.BEFORE_RECORD)
    keys = (protocol.KEPT_RECORD, protocol.STATE_RECORD, protocol.BEFORE_RECORD)
    return _Places(*(f"{key}.{group}" for key in keys))


def load_state(
    context: Context,
    compressor: Compressor,
    update: Mapping[str, Tensor],
    settings: dict[str, object],
) -> State:
    """Give the state from which this round's update is to be encoded."""
    group = str(settings.get(protocol.GROUP_KEY, ""))
    at = _places(group)
    kept = protocol.kept_in(context.state, at.kept)
    if at.state not in context.state or _LAYOUT not in kept:
        return compressor.init(update)
    layout = fingerprint_layout(update)
    names = _names_of(compressor.spec, layout, compressor, update)
    if not names:
        return {}
    if kept[_LAYOUT] != layout:
        # Whoever names a group changes its arrays on purpose.
        level = logging.DEBUG if group else logging.WARNING
        logger.log(level, "client %s: the model changed; its state is lost", client_key(context))
        _start_anew(context, at)
        return compressor.init(update)
    if compressor.recalls and not _go_to_round(context, at, kept, settings):
        _start_anew(context, at)
        return compressor.init(update)
    stored = context.state[at.state]
    tensors: Mapping[str, Tensor] = {}
    if isinstance(stored, ArrayRecord):
        tensors = protocol.record_to_block(stored) or protocol.record_to_tensors(stored)
    if isinstance(tensors, Block) and tensors.keys() == set(names):
        state: State = tensors
    elif tensors.keys() == set(names):
        state = {name: tensors[name] for name in names}
    else:
        # A spec that differs in its numbers only, as on a schedule, keeps the same state.
        logger.warning(
            "client %s: the spec changed from %s to %s; state that no longer fits is lost",
            *(client_key(context), kept.get(_SPEC), compressor),
        )
        fresh = compressor.init(update)
        state = {name: tensors.get(name, x) for name, x in fresh.items()}
    missed = _integer(settings, protocol.ROUND_KEY) - _integer(kept, _ROUND) - 1
    return compressor.after_absence(state, missed) if _ROUND in kept and missed > 0 else state


def save_state(
    context: Context,
    compressor: Compressor,
    update: Mapping[str, Tensor],
    state: State,
    round: int,
    group: str = "",
) -> None:
    """Keep the state for the next round, and what came before it where it may be needed again."""
    at = _places(group)
    if not state:
        _start_anew(context, at)
        return
    kept = protocol.kept_in(context.state, at.kept)
    before = context.state.get(at.state)
    if compressor.recalls and before is not None:
        context.state[at.before] = before
        kept[_BEFORE_ROUND] = _integer(kept, _ROUND)
    else:
        _forget_before(context, at)
    layout = fingerprint_layout(update)
    filled(kept, {_SPEC: compressor.spec, _LAYOUT: layout, _ROUND: round})
    put(context.state, at.kept, kept)
    put(context.state, at.state, protocol.tensors_to_record(state))
    if group:
        _drop_oldest(context)


def client_key(context: Context) -> int | str:
    """Give what keys the randomness of this client: its partition, or else its node."""
    partition = context.node_config.get("partition-id", context.node_id)
    return partition if isinstance(partition, int | str) else str(partition)


_NAMES: dict[tuple[str, int], tuple[str, ...]] = {}


def _names_of(
    spec: str, layout: int, compressor: Compressor, update: Mapping[str, Tensor]
) -> tuple[str, ...]:
    """Name what a compressor remembers of a model; found out once, for it takes a whole state."""
    if (spec, layout) not in _NAMES:
        if len(_NAMES) >= _MOST_NAMES:
            _NAMES.clear()
        _NAMES[spec, layout] = tuple(compressor.init(update))
    return _NAMES[spec, layout]


def _go_to_round(
    context: Context, at: _Places, kept: ConfigRecord, settings: dict[str, object]
) -> bool:
    """Make the state the one that the server has the reply of; false where it is lost."""
    held = _integer(settings, protocol.HELD_KEY)
    if held == NO_ROUND:
        return False
    if held == _integer(kept, _ROUND):
        return True
    before = context.state.get(at.before)
    if before is None or held != _integer(kept, _BEFORE_ROUND):
        return False
    logger.info(
        "client %s: its last reply was not used; it goes on from round %d",
        *(client_key(context), held),
    )
    context.state[at.state] = before
    kept[_ROUND] = held
    return True


def _drop_oldest(context: Context) -> None:
    """Drop the state of the group that was not sent for longest, if there are too many."""
    prefix = f"{protocol.KEPT_RECORD}."
    groups = [key.removeprefix(prefix) for key in context.state if key.startswith(prefix)]
    if len(groups) > _MOST_GROUPS:
        rounds = {
            group: _integer(protocol.kept_in(context.state, prefix + group), _ROUND)
            for group in groups
        }
        at = _places(min(groups, key=rounds.__getitem__))
        for key in (at.kept, at.state, at.before):
            context.state.pop(key, None)


def _start_anew(context: Context, at: _Places) -> None:
    """Drop states that the server does not hold, so that none of them is gone back to."""
    context.state.pop(at.state, None)
    _forget_before(context, at)


def _forget_before(context: Context, at: _Places) -> None:
    context.state.pop(at.before, None)
    kept = context.state.get(at.kept)
    if isinstance(kept, ConfigRecord):
        kept.pop(_BEFORE_ROUND, None)


def _integer(settings: "ConfigRecord | dict[str, object]", key: str) -> int:
    return int(cast(int, settings.get(key, NO_ROUND)))
