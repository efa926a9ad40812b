"""What workers are sent in a round: what all its clients share, once, then ranges of clients."""

from __future__ import annotations

from collections.abc import Sequence

from flwr.app import Message

from fedcompress.flower_adapter import metadata_values
from simulations.engines import frames
from simulations.engines.channel import Part
from simulations.engines.client_call import Setting
from simulations.engines.held_states import HeldStates
from simulations.engines.packing import Json, Packer, SharedContents
from simulations.engines.pool import WorkerPool
from simulations.engines.shared_model import SharedModel
from simulations.engines.state_files import StateFiles
from simulations.engines.summing import RoundSums


class Sending:
    """Packs and sends; see `Round` for the parameters.

    Attributes
    ----------
    tells_begun : bool
        Whether workers are to tell of each client that they begin with.
    patience : float or None
        Seconds that answers whose updates are summed may wait for others to go with; None where
        nothing ends a call that takes long.
    save_as : dict
        By position: the file to which a worker of this machine writes the client's new state, or
        the number by which another machine keeps it.
    """

    def __init__(
        self,
        pool: WorkerPool,
        messages: Sequence[Message],
        setting: Setting,
        states: StateFiles,
        held: HeldStates,
        model: SharedModel,
        sums: RoundSums | None,
        sums_folder: str,
    ) -> None:
        self.tells_begun = False
        self.patience: float | None = None
        self.save_as: dict[int, str | int | None] = {}
        self._pool = pool
        self._messages = messages
        self._setting = setting
        self._states = states
        self._held = held
        self._model = model
        self._sums = sums
        self._sums_folder = sums_folder
        self._shared = SharedContents(message.content for message in messages)
        self._file: list[Part] | None = None
        self._at_node: dict[str, tuple[int, str | None]] = {}
        self._informed: set[int] = set()

    def send_range(self, worker: int, positions: Sequence[int], sums: bool) -> None:
        """Send a worker clients to call; it may sum their updates if `sums`."""
        packer = Packer(self._shared)
        node = self._pool.node(worker)
        # Where no client keeps a state, none needs a file for a new one; a first comes as bytes.
        writes = self._states.holds_any
        tasks = []
        for position in positions:
            message = self._messages[position]
            node_id = message.metadata.dst_node_id
            state: Json = self._states.path(node_id)
            save_as: str | int | None = None
            if node:
                save_as = self._held.new_number(node)
                held = self._held.number(node_id, node)
                if held is not None:
                    state = [held]
                elif state is not None:
                    state = packer.part(self._states.read(node_id))
            elif writes:
                save_as = self._states.new_path(node_id)
            self.save_as[position] = save_as
            tasks.append(
                [
                    position,
                    metadata_values(message.metadata),
                    packer.content(message.content),
                    state,
                    save_as,
                ]
            )
        sums = sums and self._sums is not None
        parts = packer.finish([self.tells_begun, self.patience, sums, tasks])
        self._pool.send(worker, frames.RANGE, parts)

    def inform(self, worker: int) -> bool:
        """Tell a worker what the round's clients share, once; False if it has to wait for that."""
        if worker in self._informed:
            return True
        node = self._pool.node(worker)
        if not self._shared.buffers:
            parts = self._round(node, None, keep=False)
        elif not node:
            if self._file is None:
                self._file = self._round("", self._model.write(self._shared.buffers), keep=False)
            parts = self._file
        else:
            path = self._at_node.get(node, (worker, ""))[1]
            if path is None:
                return False
            if not path:
                # The first of a machine keeps the arrays in a file there, for the others.
                neighbours = [one for one in self._pool.ready if self._pool.node(one) == node]
                keep = len(neighbours) > 1 and node not in self._at_node
                if keep:
                    self._at_node[node] = (worker, None)
                parts = self._round(node, None, keep=keep)
            else:
                parts = self._round(node, path, keep=False)
        self._pool.send(worker, frames.ROUND, parts)
        self._informed.add(worker)
        return True

    def stored(self, worker: int, path: str) -> None:
        """A worker has stored the arrays for its machine."""
        self._at_node[self._pool.node(worker)] = worker, path

    def forget(self, worker: int) -> None:
        """Forget that a worker was told anything, and that it was to keep arrays for others."""
        self._informed.discard(worker)
        for node, (storing, _) in list(self._at_node.items()):
            if storing == worker:
                del self._at_node[node]

    def _round(self, node: str, path: str | None, *, keep: bool) -> list[Part]:
        packer = Packer(self._shared)
        setting = self._setting
        config = setting.run_config
        buffers = self._shared.buffers
        places = [packer.part(buffer) for buffer in buffers] if path is None else []
        return packer.finish(
            [
                [
                    setting.run_id,
                    setting.num_clients,
                    list(config),
                    list(config.values()),
                    setting.num_messages,
                ],
                [path, [len(buffer) for buffer in buffers], places, keep, self._shared.blocks],
                self._shared.pack(packer),
                None if self._sums is None else self._sums.plan.to_json(),
                [f"{self._held.run}-{node}", self._held.take_outdated(node)] if node else None,
                "" if node else self._sums_folder,
            ]
        )
