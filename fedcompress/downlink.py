"""The server's end of a compressed downlink: one reference model, and who holds which version.

Every round the server encodes what leads from its reference model to the new global model and
moves the reference by what the clients will decode. A client that took part in the last round
needs that one payload; one that missed rounds needs the payloads of all of them, or the whole
model where that is smaller or where it holds nothing yet.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from flwr.app import ArrayRecord
from torch import Tensor

from fedcompress import protocol
from fedcompress.block import Block, as_block
from fedcompress.compressor import Compressor, State
from fedcompress.dense import record_bytes
from fedcompress.errors import NotFiniteError
from fedcompress.randomness import rng_for
from fedcompress.reference import NO_VERSION


@dataclass(frozen=True)
class Shipment:
    """What one client is sent: arrays, the version they build on, and their bytes."""

    record: ArrayRecord
    base: int
    payload_bytes: int
    catchup_bytes: int


@dataclass(eq=False)
class Broadcast:
    """Reference model, its recent payloads, and the version that each node is known to hold.

    Attributes
    ----------
    group : str
        Names the layout of the arrays; empty for the global model.
    remembers : bool
        Whether the compressor remembers what a broadcast left out, which the next target then
        lacks, since it came of the reference. Otherwise targets hold all of it: the difference
        to the reference is what was left out and what is new, and no state is kept.
    """

    compressor: Compressor
    seed: int
    group: str = ""
    remembers: bool = True
    version: int = NO_VERSION
    reference: Mapping[str, Tensor] = field(default_factory=dict)
    checksum: int = 0
    _stays: bool = False
    _state: State = field(default_factory=dict)
    _payloads: dict[int, bytes] = field(default_factory=dict)  # by the version they lead to
    _held: dict[int, int] = field(default_factory=dict)
    _shipments: dict[int, Shipment] = field(default_factory=dict)  # of this version, by base

    def advance_to(self, target: Mapping[str, Tensor], server_round: int) -> None:
        """Move the reference towards ``target`` by what this round's payload carries."""
        self._shipments = {}
        target = as_block(target) or target
        _check_finite(target, server_round)
        if self._stays:
            # What the last broadcast left out of this same target is in the residual already.
            target, self._stays = self.reference, False
        if self.version == NO_VERSION or not _same_layout(target, self.reference):
            self._restart(target)
            return
        purpose = f"downlink of {self.group}" if self.group else "downlink"
        rng = rng_for(self.seed, round=server_round, client="server", purpose=purpose)
        update = protocol.difference(target, self.reference)
        before = self._state if self.remembers else self.compressor.init(update)
        payload, after, decoded = self.compressor.encode_and_decode(update, before, rng)
        self._state = after if self.remembers else {}
        self.reference = protocol.advance(self.reference, decoded)
        self.version += 1
        self.checksum = protocol.checksum(self.reference)
        self._payloads[self.version] = payload
        self._drop_stale_payloads()

    def ship_to(self, node_id: int) -> Shipment:
        """Choose what brings a node to the reference: the payloads it lacks, or all of it."""
        base = self._held.get(node_id, NO_VERSION)
        wanted = range(base + 1, self.version + 1)
        known = all(v in self._payloads for v in wanted)
        if not known or sum(len(self._payloads[v]) for v in wanted) >= self._dense_bytes():
            base = NO_VERSION
        if base not in self._shipments:
            self._shipments[base] = self._pack(base)
        return self._shipments[base]

    def model_stays(self) -> None:
        """Note that the round gave no new model, so the next target is the one just broadcast."""
        self._stays = self.remembers

    def confirm(self, node_id: int, version: int | None = None) -> None:
        """Note that a node answered, so it holds the version it was sent (the current one)."""
        self._held[node_id] = self.version if version is None else version

    def forget(self, node_id: int) -> None:
        """Note that a node may have lost its copy; it is sent the whole model next."""
        self._held.pop(node_id, None)

    def state_dict(self) -> dict[str, object]:
        """Give everything that a later run needs to go on from here."""
        return {
            "version": self.version,
            "checksum": self.checksum,
            "stays": int(self._stays),
            "reference": {name: x.numpy() for name, x in self.reference.items()},
            "state": {name: x.numpy() for name, x in self._state.items()},
            "payloads": {
                str(v): np.frombuffer(p, np.uint8).copy() for v, p in self._payloads.items()
            },
            "held": {str(node_id): version for node_id, version in self._held.items()},
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Take up what `state_dict` gave."""
        arrays = {
            key: {str(k): np.asarray(x) for k, x in _mapping(state, key).items()}
            for key in ("reference", "state", "payloads")
        }
        self.version = int(str(state["version"]))
        self.checksum = int(str(state["checksum"]))
        self._stays = bool(state["stays"])
        reference = {k: torch.from_numpy(x.copy()) for k, x in arrays["reference"].items()}
        self.reference = as_block(reference) or reference
        self._state = {k: torch.from_numpy(x.copy()) for k, x in arrays["state"].items()}
        self._payloads = {int(v): p.tobytes() for v, p in arrays["payloads"].items()}
        self._held = {int(k): int(str(v)) for k, v in _mapping(state, "held").items()}
        self._shipments = {}

    def _restart(self, target: Mapping[str, Tensor]) -> None:
        """Start anew from the whole model; no node holds it yet."""
        is_own = isinstance(target, Block)  # which nobody changes
        self.reference = target if is_own else {name: x.clone() for name, x in target.items()}
        self.version += 1
        self.checksum = protocol.checksum(self.reference)
        self._state = self.compressor.init(self.reference) if self.remembers else {}
        self._payloads = {}
        self._held = {}

    def _pack(self, base: int) -> Shipment:
        latest = len(self._payloads.get(self.version, b""))
        if base == NO_VERSION:
            record = protocol.tensors_to_record(self.reference)
            size = record_bytes(record)
            return Shipment(record, base, size, size - min(size, latest))
        payloads = [self._payloads[v] for v in range(base + 1, self.version + 1)]
        size = sum(len(payload) for payload in payloads)
        catchup = size - len(payloads[-1]) if payloads else 0
        return Shipment(protocol.payloads_to_record(payloads), base, size, catchup)

    def _dense_bytes(self) -> int:
        if isinstance(self.reference, Block):
            return self.reference.flat.nbytes
        return sum(x.numel() * x.element_size() for x in self.reference.values())

    def _drop_stale_payloads(self) -> None:
        """Keep payloads only as far back as all of them together are smaller than the model."""
        room = self._dense_bytes()
        for version in sorted(self._payloads, reverse=True):
            room -= len(self._payloads[version])
            if room < 0 and version != self.version:
                del self._payloads[version]


def _mapping(state: Mapping[str, object], key: str) -> Mapping[str, object]:
    value = state[key]
    if not isinstance(value, Mapping):
        raise TypeError(f"state: {key} is a {type(value).__name__}, expected a mapping")
    return value


def _check_finite(target: Mapping[str, Tensor], server_round: int) -> None:
    name = protocol.not_finite(target)
    if name is not None:
        raise NotFiniteError(
            f"global model {name!r} holds NaN or infinity before round {server_round}: the "
            "server's rule has diverged; lower its learning rate"
        )


def _same_layout(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    if isinstance(a, Block) and isinstance(b, Block):
        return a.layout.equals(b.layout)
    return a.keys() == b.keys() and all(
        a[name].shape == x.shape and a[name].dtype == x.dtype for name, x in b.items()
    )
