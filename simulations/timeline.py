"""Where the seconds of a round went: phases on the server, and what each worker did meanwhile."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, final

from simulations.engines.spans import ClientSpan

PhaseName = Literal["download", "clients", "decode", "aggregate", "evaluate"]
PARTS = (
    "download",
    "train",
    "encode",
    "transfer",
    "wait",
    "clients",
    "decode",
    "aggregate",
    "evaluate",
    "other",
)
"""Parts of a round in the order in which they happen; see `split_round`."""


class Phase(NamedTuple):
    """A step of the server's; `began` is in seconds of `time.monotonic`."""

    name: PhaseName
    began: float
    seconds: float


@final
@dataclass(frozen=True)
class ClientWork:
    """One client's call: what its engine saw, and what the client says of itself.

    Attributes
    ----------
    span : ClientSpan
        Where and when.
    client : int or None
        Partition id.
    train_seconds, encode_seconds : float
        Parts of `span.compute_seconds`; what is left of it took the model in, and made the reply.
    uplink_bytes : int
        Payload of its reply.
    """

    span: ClientSpan
    client: int | None
    train_seconds: float
    encode_seconds: float
    uplink_bytes: int = 0

    @classmethod
    def of(
        cls,
        span: ClientSpan,
        client: int | None,
        train_seconds: float | None,
        encode_seconds: float | None,
        uplink_bytes: int,
    ) -> "ClientWork":
        """Fit a client's own word to what its engine measured.

        A client that is trained together with others says how long all of them took.
        """
        encode = min(encode_seconds or 0.0, span.compute_seconds)
        train = min(train_seconds or 0.0, span.compute_seconds - encode)
        return cls(span, client, train, encode, uplink_bytes)


@final
@dataclass(frozen=True)
class RoundTimeline:
    """One round, from making its messages to the test of its model.

    Attributes
    ----------
    number : int
        Of the round.
    began, seconds : float
        The whole of it, in seconds of `time.monotonic`.
    phases : tuple of Phase
        What the server did, one after another.
    work : tuple of ClientWork
        The clients that trained; empty on engines that do not tell.
    workers : int
        How many workers there were.
    decode_seconds : float
        What the workers took, added up, to decode payloads where they sum them for the server.
    """

    number: int
    began: float
    seconds: float
    phases: tuple[Phase, ...]
    work: tuple[ClientWork, ...] = ()
    workers: int = 1
    decode_seconds: float = 0.0


def split_round(timeline: RoundTimeline) -> dict[str, float]:
    """Split a round's seconds; the parts, those of `PARTS` that there are, add up to the whole.

    ``download`` is making the messages on the server, and taking the model out of them on clients.
    While clients are at work the workers' mean counts: of two workers that train for 3 and 1
    seconds side by side, ``train`` is 2 and ``wait`` 1. ``encode`` is the clients' compression,
    ``transfer`` everything between server and apps: packing, sending, counting and unpacking
    messages, and clients' states; ``wait`` is for the slowest worker. ``clients`` stands for these
    five where the engine does not tell what its workers did. ``decode`` is the server's, or the
    workers' where they sum updates for it; ``aggregate`` and ``evaluate`` are the server's,
    ``other`` is what none of this explains.
    """
    parts = dict.fromkeys((part for part in PARTS if part != "clients"), 0.0)
    for phase in timeline.phases:
        if phase.name == "clients":
            inside = _split_clients(phase, timeline)
            for name, seconds in inside.items():
                parts[name] = parts.get(name, 0.0) + seconds
        else:
            parts[phase.name] += phase.seconds
    parts["other"] = max(timeline.seconds - sum(parts.values()), 0.0)
    return {part: parts[part] for part in PARTS if part in parts}


def _split_clients(phase: Phase, timeline: RoundTimeline) -> Mapping[str, float]:
    work = timeline.work
    if not work:
        return {"clients": phase.seconds}
    began, ended = phase.began, phase.began + phase.seconds
    by_worker = by_worker_of(work)
    count = max(timeline.workers, len(by_worker))
    total = dict.fromkeys(("download", "train", "encode", "transfer", "wait", "decode"), 0.0)
    busy = {
        worker: [
            # Clocks of other machines are a little off.
            (min(max(first, began), ended), min(max(last, began), ended))
            for first, last, _ in bursts(own)
        ]
        for worker, own in by_worker.items()
    }
    done = {worker: max(last for _, last in spans) for worker, spans in busy.items()}
    all_done = max(done.values())
    for worker, own in by_worker.items():
        compute = sum(one.span.compute_seconds for one in own)
        at_work = sum(last - first for first, last in busy[worker])
        fit = min(at_work / compute, 1.0) if compute else 0.0
        train = fit * sum(one.train_seconds for one in own)
        encode = fit * sum(one.encode_seconds for one in own)
        waited = all_done - done[worker]
        total["train"] += train
        total["encode"] += encode
        total["download"] += max(fit * compute - train - encode, 0.0)
        total["wait"] += waited
        total["transfer"] += max(phase.seconds - fit * compute - waited, 0.0)
    idle = count - len(by_worker)
    total["wait"] += idle * (all_done - began)
    total["transfer"] += idle * (ended - all_done)
    total["decode"] = min(timeline.decode_seconds, total["transfer"])
    total["transfer"] -= total["decode"]
    return {name: seconds / count for name, seconds in total.items()}


def trained_together(work: Sequence[ClientWork]) -> tuple[ClientWork, ...]:
    """Give each client of a cohort its share of the training.

    A client says how long it waited for the cohort's program: the first one for all of it, the last
    one hardly. Its share is in `compute_seconds`.
    """
    shared = []
    for own in by_worker_of(work).values():
        for _, _, together in bursts(own):
            longest = max(one.train_seconds for one in together)
            for one in together:
                most = one.span.compute_seconds - one.encode_seconds
                shared.append(replace(one, train_seconds=min(longest, most)))
    return tuple(shared)


def by_worker_of(work: Sequence[ClientWork]) -> dict[int, list[ClientWork]]:
    """Sort what was done by worker and by when it began."""
    found: dict[int, list[ClientWork]] = {}
    for one in sorted(work, key=lambda one: (one.span.worker, one.span.began)):
        found.setdefault(one.span.worker, []).append(one)
    return found


def bursts(own: Sequence[ClientWork]) -> list[tuple[float, float, list[ClientWork]]]:
    """Join one worker's clients that overlap, sorted by when they began: begin, end, clients."""
    joined: list[tuple[float, float, list[ClientWork]]] = []
    for one in own:
        begin, end = one.span.began, one.span.began + one.span.seconds
        if joined and begin < joined[-1][1]:
            before, until, together = joined[-1]
            joined[-1] = before, max(until, end), [*together, one]
        else:
            joined.append((begin, end, [one]))
    return joined
