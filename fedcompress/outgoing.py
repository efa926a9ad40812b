"""What the server adds to the messages of a round: the spec, and a compressed model."""

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from fedcompress import protocol
from fedcompress.compressor import Compressor
from fedcompress.downlink import Broadcast
from fedcompress.flower_adapter import filled
from fedcompress.memories import NO_ROUND, Memories
from fedcompress.reference import NO_VERSION
from fedcompress.traffic import ClientDownlink


class Outgoing:
    """Prepares the messages of one round; messages that are alike share one content.

    Parameters
    ----------
    server_round : int
        Round that the messages belong to.
    seed : int
        Seed of the run.
    memories : Memories
        What the server remembers of each client.
    """

    def __init__(self, server_round: int, seed: int, memories: Memories) -> None:
        self._round = server_round
        self._seed = seed
        self._memories = memories
        self._contents: dict[tuple[int, str, int, int], RecordDict] = {}
        self._specs: dict[int, tuple[Compressor, str]] = {}  # by the compressor's id
        # By the content's id; it is kept so that no other gets that id.
        self._given: dict[int, tuple[RecordDict, str, ArrayRecord, int]] = {}

    def prepare(
        self,
        message: Message,
        compressor: Compressor | None,
        broadcast: Broadcast | None,
        group: str = "",
    ) -> ClientDownlink:
        """Give a message its new content, and say what it weighs.

        Parameters
        ----------
        message : Message
            From the strategy.
        compressor : Compressor or None
            What the client is to use; None leaves the message as it is.
        broadcast : Broadcast or None
            By which its arrays are sent, advanced to this round; None sends them as they are.
        group : str
            Names the layout of these arrays; empty for the global model.
        """
        node_id = message.metadata.dst_node_id
        key, record, size = self._read(message.content)
        base = NO_VERSION
        if broadcast is None:
            traffic = ClientDownlink(node_id, size, 0)
        else:
            shipment = broadcast.ship_to(node_id)
            record, base = shipment.record, shipment.base
            traffic = ClientDownlink(node_id, shipment.payload_bytes, shipment.catchup_bytes)
        if compressor is None:
            return traffic
        held = self._memories.round_of(node_id, group) if compressor.recalls else NO_ROUND
        shared = (id(message.content), self.spec(compressor), base, held)
        if shared not in self._contents:
            settings = self._settings(compressor, base, held, broadcast)
            if group:
                settings[protocol.GROUP_KEY] = group
            self._contents[shared] = _with_settings(message.content, key, record, settings)
        message.content = self._contents[shared]
        return traffic

    def _read(self, content: RecordDict) -> tuple[str, ArrayRecord, int]:
        """Find the arrays of a content, which mostly is one object for all clients."""
        known = self._given.get(id(content))
        if known is None:
            key, record = protocol.single_array_record(content, "message")
            known = content, key, record, protocol.data_bytes(content)
            self._given[id(content)] = known
        return known[1:]

    def spec(self, compressor: Compressor) -> str:
        """Give the spec of a compressor, which mostly is the same one for all clients."""
        if id(compressor) not in self._specs:
            self._specs[id(compressor)] = compressor, str(compressor)
        return self._specs[id(compressor)][1]

    def _settings(
        self, compressor: Compressor, base: int, held: int, broadcast: Broadcast | None
    ) -> dict[str, str | int]:
        settings: dict[str, str | int] = {
            protocol.UPLINK_KEY: self.spec(compressor),
            protocol.SEED_KEY: self._seed,
            protocol.ROUND_KEY: self._round,
        }
        if compressor.recalls:
            settings[protocol.HELD_KEY] = held
        if broadcast is not None:
            settings[protocol.DOWNLINK_KEY] = broadcast.compressor.spec
            settings[protocol.BASE_KEY] = base
            settings[protocol.VERSION_KEY] = broadcast.version
            settings[protocol.CHECKSUM_KEY] = broadcast.checksum
        return settings


def _with_settings(
    given: RecordDict, key: str, record: ArrayRecord, settings: dict[str, str | int]
) -> RecordDict:
    """Copy a content with our settings in its first ConfigRecord; the given one may be shared."""
    records = dict(given.items())
    configs = [name for name, one in records.items() if isinstance(one, ConfigRecord)]
    place = configs[0] if configs else protocol.RECORD
    theirs = records[place].items() if configs else ()
    return filled(
        RecordDict(),
        {**records, key: record, place: filled(ConfigRecord(), {**dict(theirs), **settings})},
    )
