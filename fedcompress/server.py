"""The server's end: a strategy around any Flower strategy."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import cast

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Strategy
from torch import Tensor

from fedcompress import protocol
from fedcompress.aggregation import WeightedSum
from fedcompress.compressor import Compressor, Part
from fedcompress.downlink import Broadcast
from fedcompress.errors import ConfigError, FedcompressError, PayloadError
from fedcompress.flower_adapter import (
    check_metrics_agree,
    metrics_from,
    uses_weighted_mean,
    with_content,
)
from fedcompress.reference import NO_VERSION
from fedcompress.spec import parse
from fedcompress.traffic import ClientDownlink, ClientTraffic, RoundTraffic

logger = logging.getLogger(__name__)

Uplink = str | Compressor | Callable[[int, int], "str | Compressor"]


class Compressed(Strategy):
    """Any Flower strategy over compressed updates.

    The clients' apps carry `compression_mod` (or are wrapped by `compress`). Each round the
    spec travels in the message's ConfigRecord; the client answers with one payload, which is
    checked, decoded and handed to the strategy inside. Strategies that take the weighted mean
    of the clients' arrays are given that mean alone: payloads are added to one running sum, in
    the order of the replies, sparse ones touching only the entries they hold. All others are
    given every decoded model. Either way the result is that of the strategy inside on the
    decoded models.

    A client whose payload does not verify, or whose numbers are not finite, is left out and
    recorded in `last_round`; a round in which nothing usable came back keeps the model.

    Parameters
    ----------
    strategy : Strategy
        Any strategy of ``flwr.serverapp.strategy``, or one that wraps it.
    uplink : str, Compressor or callable
        Spec of the clients' compressor, or a function of (node id, round) that gives one.
    downlink : str or Compressor, optional
        Spec for what the server sends. A lossy one should carry ``error_feedback(...)``, which
        remembers on the server what the broadcast left out. Default: dense arrays.
    seed : int
        Keys all randomness of compression, together with round and client.

    Attributes
    ----------
    last_round : RoundTraffic
        Bytes and outcome of every client of the last round.

    Raises
    ------
    ConfigError
        If a spec cannot work, or the strategy inside is already compressed.

    Examples
    --------
    >>> from flwr.serverapp.strategy import FedAvg
    >>> from fedcompress import Compressed
    >>> strategy = Compressed(
    ...     FedAvg(), uplink="error_feedback(top_k(0.01) | quantize(4) | entropy())"
    ... )
    """

    def __init__(
        self,
        strategy: Strategy,
        uplink: Uplink = "quantize(step=0.4) | entropy()",
        downlink: str | Compressor | None = None,
        seed: int = 0,
    ) -> None:
        if not isinstance(strategy, Strategy):
            raise ConfigError(
                f"Compressed: strategy must be a flwr.serverapp.strategy.Strategy, got {strategy!r}"
            )
        if isinstance(strategy, Compressed):
            raise ConfigError("Compressed: the strategy is compressed already; wrap it once")
        self.strategy = strategy
        self.uplink: Uplink = uplink if callable(uplink) else parse(uplink)
        self.downlink = None if downlink is None else parse(downlink)
        self.seed = seed
        self.last_round = RoundTraffic(server_round=0)
        self._broadcast = None if self.downlink is None else Broadcast(self.downlink, seed)
        self._reference: dict[str, Tensor] = {}
        self._sent: dict[int, Compressor] = {}  # by node id, in this round
        self._arrays_key = "arrays"

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Configure training inside, and add the spec (and a compressed model) to each message."""
        model = protocol.record_to_tensors(arrays)
        if self._broadcast is not None:
            self._broadcast.advance_to(model, server_round)
            model = self._broadcast.reference
            arrays = protocol.tensors_to_record(model)
        self._reference = model
        self._sent = {}
        self.last_round = RoundTraffic(server_round=server_round)
        messages = list(self.strategy.configure_train(server_round, arrays, config, grid))
        contents: dict[tuple[int, str, int], RecordDict] = {}
        for message in messages:
            self._prepare(message, server_round, contents)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Check and decode the payloads, and aggregate inside."""
        started = time.perf_counter()
        errors: list[Message] = []
        usable: list[tuple[Message, dict[str, Part]]] = []
        dense = 0
        for reply in sorted_by_message(replies, self._sent):
            if reply.has_error():
                errors.append(reply)
                self._note_error(reply)
                continue
            try:
                usable.append((reply, self._read(reply)))
            except FedcompressError as error:
                dense += _is_dense(reply)
                self._note_rejected(reply, str(error))
        self.last_round.decode_seconds = time.perf_counter() - started
        if dense and not usable:
            raise ConfigError(
                f"Compressed: {dense} clients sent dense arrays and none a payload; put "
                "compression_mod first in ClientApp(mods=[...]), or wrap the app by compress()"
            )
        started = time.perf_counter()
        aggregated = self._aggregate(server_round, usable, errors)
        self.last_round.aggregate_seconds = time.perf_counter() - started
        return aggregated

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Configure evaluation inside; these messages are not compressed."""
        return self.strategy.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Aggregate evaluation inside."""
        return self.strategy.aggregate_evaluate(server_round, replies)

    def summary(self) -> None:
        """Log the settings, then those of the strategy inside."""
        logger.info("\t├──> Compression:")
        logger.info("\t│\t├── Uplink: %s", self.uplink)
        logger.info("\t│\t└── Downlink: %s", self.downlink or "dense")
        self.strategy.summary()

    def state_dict(self) -> dict[str, object]:
        """Give what a later run needs of the protocol to go on from here (not of the inside)."""
        return {} if self._broadcast is None else self._broadcast.state_dict()

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Take up what `state_dict` gave."""
        if self._broadcast is not None and state:
            self._broadcast.load_state_dict(state)

    def _prepare(
        self,
        message: Message,
        server_round: int,
        contents: dict[tuple[int, str, int], RecordDict],
    ) -> None:
        node_id = message.metadata.dst_node_id
        uplink = self.uplink
        compressor = parse(uplink(node_id, server_round)) if callable(uplink) else uplink
        if not isinstance(compressor, Compressor):
            raise TypeError(f"uplink: {compressor!r} is no compressor")
        self._sent[node_id] = compressor
        base = NO_VERSION
        key, record = protocol.single_array_record(message.content, "message")
        self._arrays_key = key
        if self._broadcast is None:
            size = sum(len(array.data) for array in record.values())
            self.last_round.downlink.append(ClientDownlink(node_id, size, 0))
        else:
            shipment = self._broadcast.ship_to(node_id)
            record, base = shipment.record, shipment.base
            self.last_round.downlink.append(
                ClientDownlink(node_id, shipment.payload_bytes, shipment.catchup_bytes)
            )
        shared = (id(message.content), str(compressor), base)
        if shared not in contents:
            contents[shared] = self._content(
                message.content, key, record, self._settings(compressor, server_round, base)
            )
        message.content = contents[shared]

    def _settings(self, compressor: Compressor, server_round: int, base: int) -> ConfigRecord:
        settings = ConfigRecord(
            {
                protocol.UPLINK_KEY: str(compressor),
                protocol.SEED_KEY: self.seed,
                protocol.ROUND_KEY: server_round,
            }
        )
        if self._broadcast is not None:
            settings[protocol.DOWNLINK_KEY] = str(self.downlink)
            settings[protocol.BASE_KEY] = base
            settings[protocol.VERSION_KEY] = self._broadcast.version
            settings[protocol.CHECKSUM_KEY] = self._broadcast.checksum
        return settings

    def _content(
        self, given: RecordDict, key: str, record: ArrayRecord, settings: ConfigRecord
    ) -> RecordDict:
        """Copy a message's content with our settings in it; the given one may be shared."""
        content = RecordDict()
        configs = list(given.config_records)
        for name, value in given.items():
            if name == key:
                content[name] = record
            elif configs and name == configs[0]:
                content[name] = ConfigRecord({**given.config_records[name], **settings})
            else:
                content[name] = value
        if not configs:
            content[protocol.RECORD] = settings
        return content

    def _read(self, reply: Message) -> dict[str, Part]:
        node_id = reply.metadata.src_node_id
        if node_id not in self._sent:
            raise PayloadError(f"reply of node {node_id}: it was not asked in this round")
        _, record = protocol.single_array_record(reply.content, "reply")
        payloads = protocol.record_to_payloads(record)
        if len(payloads) != 1:
            raise PayloadError(f"reply: holds {len(payloads)} payloads, expected one")
        parts, by_stream = self._sent[node_id].read(payloads[0], self._reference)
        for name, part in parts.items():
            if not part.is_finite():
                raise PayloadError(f"update of {name!r} holds NaN or infinity; training diverged")
        self._check_weight(reply)
        own = reply.content.config_records.get(protocol.RECORD, ConfigRecord())
        seconds = own.get(protocol.ENCODE_SECONDS_KEY)
        self.last_round.clients.append(
            ClientTraffic(
                node_id=node_id,
                status="ok",
                uplink_payload_bytes=len(payloads[0]),
                uplink_bytes_by_stream=by_stream,
                encode_seconds=float(seconds) if isinstance(seconds, float) else None,
            )
        )
        if self._broadcast is not None:
            self._broadcast.confirm(node_id)
        return parts

    def _check_weight(self, reply: Message) -> None:
        if not isinstance(self.strategy, FedAvg):
            return
        key = self.strategy.weighted_by_key
        for metrics in reply.content.metric_records.values():
            weight = metrics.get(key)
            if isinstance(weight, int | float) and not (math.isfinite(weight) and weight >= 0):
                raise PayloadError(f"metric {key!r} is {weight}; a weight is finite and not below 0")

    def _note_error(self, reply: Message) -> None:
        node_id, reason = reply.metadata.src_node_id, reply.error.reason or "no reason given"
        rejected = reason.startswith("fedcompress: ")
        if self._broadcast is not None and "the whole model is needed" in reason:
            self._broadcast.forget(node_id)
        self.last_round.clients.append(
            ClientTraffic(node_id, "rejected" if rejected else "error", reason)
        )
        logger.warning("round %d: node %d: %s", self.last_round.server_round, node_id, reason)

    def _note_rejected(self, reply: Message, reason: str) -> None:
        node_id = reply.metadata.src_node_id
        size = sum(
            len(array.data)
            for record in reply.content.array_records.values()
            for array in record.values()
        )
        self.last_round.clients.append(
            ClientTraffic(node_id, "rejected", reason, uplink_payload_bytes=size)
        )
        logger.warning("round %d: node %d: %s", self.last_round.server_round, node_id, reason)

    def _aggregate(
        self,
        server_round: int,
        usable: list[tuple[Message, dict[str, Part]]],
        errors: list[Message],
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        arrays, metrics = None, None
        if not usable:
            logger.warning(
                "round %d: nothing usable came back from %d clients; the model stays as it is",
                server_round,
                len(self._sent),
            )
        elif uses_weighted_mean(self.strategy):
            arrays, metrics = self._aggregate_mean(server_round, usable, errors)
        else:
            replies = [self._dense_reply(reply, parts) for reply, parts in usable]
            arrays, metrics = self.strategy.aggregate_train(server_round, replies + errors)
        if arrays is not None:
            arrays = self._restore_dtypes(arrays)
        return arrays, self.last_round.add_to_metrics(metrics)

    def _aggregate_mean(
        self,
        server_round: int,
        usable: list[tuple[Message, dict[str, Part]]],
        errors: list[Message],
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        inner = cast(FedAvg, self.strategy)
        contents = [_without_payload(reply.content) for reply, _ in usable]
        check_metrics_agree(inner, contents)
        weighted = WeightedSum(self._reference)
        for content, (_, parts) in zip(contents, usable, strict=True):
            (metrics,) = content.metric_records.values()
            weighted.add(parts, float(cast(float, metrics[inner.weighted_by_key])))
        if weighted.weight == 0:
            logger.warning("round %d: all weights are 0; the model stays as it is", server_round)
            return None, None
        first = usable[0][0]
        summed = RecordDict(
            {
                self._arrays_key: protocol.tensors_to_record(weighted.mean()),
                "metrics": MetricRecord({inner.weighted_by_key: weighted.weight}),
            }
        )
        logger.info("round %d: one mean of %d clients follows", server_round, len(usable))
        with metrics_from(inner, contents):
            return inner.aggregate_train(server_round, [with_content(first, summed), *errors])

    def _dense_reply(self, reply: Message, parts: dict[str, Part]) -> Message:
        update = {name: part.dense() for name, part in parts.items()}
        model = protocol.advance(self._reference, update)
        content = _without_payload(reply.content)
        key = next(iter(reply.content.array_records))
        # Integers go in as float64, which holds every counter exactly: rules such as q-FedAvg
        # compute in place and fail on integer arrays.
        content[key] = protocol.tensors_to_record(
            {name: x if x.is_floating_point() else x.double() for name, x in model.items()}
        )
        return with_content(reply, content)

    def _restore_dtypes(self, arrays: ArrayRecord) -> ArrayRecord:
        """Give the aggregate the dtypes of the model; Flower's rules make floats of counters."""
        restored: dict[str, Tensor] = {}
        for name, x in protocol.record_to_tensors(arrays).items():
            like = self._reference.get(name)
            if like is None or like.dtype == x.dtype:
                restored[name] = x
            elif like.is_floating_point():
                restored[name] = x.to(like.dtype)
            elif like.dtype == torch.bool:
                restored[name] = x >= 0.5
            else:
                restored[name] = x.round().to(like.dtype)
        return protocol.tensors_to_record(restored)


def sorted_by_message(replies: Iterable[Message], sent: Mapping[int, object]) -> list[Message]:
    """Put replies into the order in which their messages were sent.

    Sums of floats depend on their order; replies arrive in any.
    """
    place = {node_id: i for i, node_id in enumerate(sent)}
    return sorted(replies, key=lambda reply: place.get(reply.metadata.src_node_id, len(place)))


def _is_dense(reply: Message) -> bool:
    records = reply.content.array_records.values()
    return any(array.stype != protocol.STYPE for record in records for array in record.values())


def _without_payload(content: RecordDict) -> RecordDict:
    arrays = content.array_records
    return RecordDict({k: r for k, r in content.items() if k not in arrays and k != protocol.RECORD})
