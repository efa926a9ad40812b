"""What the clients of a round start from: the global model, or what the strategy sends instead."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import final

import torch
from flwr.app import ArrayRecord, RecordDict
from torch import Tensor

from fedcompress import protocol
from fedcompress.broadcasts import Broadcasts
from fedcompress.compressor import Compressor
from fedcompress.downlink import Broadcast
from fedcompress.errors import ConfigError
from fedcompress.sent import Sent
from fedcompress.wire import fingerprint_layout


@final
@dataclass(frozen=True, eq=False)
class Start:
    """What the receivers of one message start from.

    Attributes
    ----------
    reference : Mapping[str, Tensor]
        What their updates are added to.
    group : str
        Names the layout of these arrays; empty for the global model.
    broadcast : Broadcast or None
        By which they are sent, where the downlink is compressed.
    """

    reference: Mapping[str, Tensor]
    group: str = ""
    broadcast: Broadcast | None = None
    _sent: dict[int, Sent] = field(default_factory=dict, init=False)  # by the compressor's id

    def sent(self, compressor: Compressor | None) -> Sent:
        """Give what a node was sent that is to answer by this compressor; alike nodes share it."""
        known = self._sent.get(id(compressor))
        if known is None:
            known = Sent(compressor, self.reference, self.group)
            self._sent[id(compressor)] = known
        return known


@final
class Starts:
    """What each message of one round starts from; contents and arrays that are alike are read once.

    The strategy inside mostly sends the record that it is given, or an equal one: the global
    model. Under a compressed downlink it is given what the clients will have of that model. One
    that sends arrays of its own (`sends_own_arrays`) is given the model as it is, since what it
    makes of it is what is broadcast; updates are then added to what it made, and the broadcast's
    reference catches up in the next rounds.

    Parameters
    ----------
    server_round : int
        The round.
    arrays : ArrayRecord
        The global model.
    broadcasts : Broadcasts or None
        The compressed downlink, if there is one.
    sends_own : bool
        Whether the strategy inside says that it sends arrays of its own.

    Attributes
    ----------
    arrays : ArrayRecord
        What the strategy inside is to be given.
    dtypes : dict of str to dtype
        Of the global model.
    """

    def __init__(
        self,
        server_round: int,
        arrays: ArrayRecord,
        broadcasts: Broadcasts | None,
        sends_own: bool,
    ) -> None:
        self.arrays = arrays
        self._round = server_round
        self._broadcasts = broadcasts
        model = protocol.record_to_block(arrays) or protocol.record_to_tensors(arrays)
        self.dtypes: dict[str, torch.dtype] = {name: x.dtype for name, x in model.items()}
        self._model: Start | None = Start(model)
        if broadcasts is not None and sends_own:
            self._model = None  # not known to be sent at all
        elif broadcasts is not None:
            broadcast = broadcasts.advance("", model, server_round)
            self.arrays = protocol.tensors_to_record(broadcast.reference)
            self._model = Start(broadcast.reference, "", broadcast)
        # By id, with the object itself, so that no other gets that id.
        self._contents: dict[int, tuple[RecordDict, Start]] = {}
        self._records: dict[int, tuple[ArrayRecord, dict[str, Tensor]]] = {}
        self._groups: dict[str, tuple[ArrayRecord, Start]] = {}

    def of(self, content: RecordDict) -> Start:
        """Give what the receivers of a message of this content start from.

        Raises
        ------
        LayoutError
            If it holds no single ArrayRecord, or one that cannot be read.
        ConfigError
            If, under a compressed downlink, its group was sent other arrays in this round.
        """
        known = self._contents.get(id(content))
        if known is None:
            known = content, self._read(content)
            self._contents[id(content)] = known
        return known[1]

    def _read(self, content: RecordDict) -> Start:
        _, record = protocol.single_array_record(content, "message")
        said = protocol.group_of(content)
        is_model = record is self.arrays or record == self.arrays
        if is_model and self._model is not None:
            return replace(self._model, group=said) if said else self._model
        reference = self._tensors(record)
        group = said or ("" if is_model else f"{fingerprint_layout(reference):08x}")
        if self._broadcasts is None:
            return Start(reference, group)
        if group in self._groups:
            return self._same(group, record)
        broadcast = self._broadcasts.advance(group, reference, self._round)
        start = Start(reference, group, broadcast)
        self._groups[group] = record, start
        return start

    def _tensors(self, record: ArrayRecord) -> dict[str, Tensor]:
        if id(record) not in self._records:
            self._records[id(record)] = record, protocol.record_to_tensors(record)
        return self._records[id(record)][1]

    def _same(self, group: str, record: ArrayRecord) -> Start:
        first, start = self._groups[group]
        if first is not record and first != record:
            raise ConfigError(
                f"Compressed: nodes of group {group!r} are sent different arrays in round "
                f"{self._round}; under a compressed downlink name a group for each, under "
                f"{protocol.GROUP_KEY!r} in the message's ConfigRecord"
            )
        return start
