"""The abstract compressor: named arrays to a payload and back."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, TypeAlias

import numpy as np
import torch
from torch import Tensor

from fedcompress.block import Block, BlockLayout
from fedcompress.errors import LayoutError
from fedcompress.own_payloads import note_own
from fedcompress.wire import Framed, Section, SectionReader, write_payload

Arrays: TypeAlias = Mapping[str, "Tensor | np.ndarray"]
State: TypeAlias = Mapping[str, Tensor]
Memory: TypeAlias = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Encoded:
    """Sections of a payload, the next state, and what the other side will decode.

    ``parts`` is what the other side will read, where that is at hand and nothing will change it.
    """

    sections: Sequence[Section | Framed]
    state: State
    decoded: Mapping[str, Tensor] | None
    parts: Mapping[str, "Part"] | None = None


class Part(ABC):
    """One decoded array of an update, in the form in which it was sent."""

    @abstractmethod
    def dense(self) -> Tensor:
        """Expand to the whole array."""

    @abstractmethod
    def add_to(self, total: Tensor, weight: float) -> None:
        """Add ``weight`` times the array to ``total`` in place, in O(entries sent)."""

    @abstractmethod
    def is_finite(self) -> bool:
        """Whether no entry is NaN or infinite."""

    def memory(self) -> Tensor | None:
        """Give what decoding this array of the same sender's next payload needs; mostly None."""
        return None


class FlatParts(Mapping[str, Part]):
    """Parts of a few finite entries each, of float32 arrays that lie one behind another.

    Parameters
    ----------
    layout : BlockLayout
        How the arrays lie.
    parts : callable
        Gives the part of each array by name; called when somebody asks for one of them.
    positions : Tensor
        int64, where all these entries lie, counted over all arrays; each once.
    entries : Tensor
        float32, what lies there.
    """

    def __init__(
        self,
        layout: BlockLayout,
        parts: Callable[[], Mapping[str, Part]],
        positions: Tensor,
        entries: Tensor,
    ) -> None:
        self.layout = layout
        self.positions = positions
        self.entries = entries
        self._make_parts = parts

    @cached_property
    def _parts(self) -> Mapping[str, Part]:
        return self._make_parts()

    def __getitem__(self, name: str) -> Part:
        """Give the part of one array."""
        return self._parts[name]

    def __iter__(self) -> Iterator[str]:
        """Walk the names."""
        return iter(self._parts)

    def __len__(self) -> int:
        """Count the arrays."""
        return len(self._parts)


class SentParts(Mapping[str, Tensor]):
    """What the other side will decode, expanded array by array as it is asked for."""

    def __init__(self, parts: Mapping[str, Part]) -> None:
        self.parts = parts
        self._dense: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        """Give one array, expanded."""
        if name not in self._dense:
            self._dense[name] = self.parts[name].dense()
        return self._dense[name]

    def __iter__(self) -> Iterator[str]:
        """Walk the names."""
        return iter(self.parts)

    def __len__(self) -> int:
        """Count the arrays."""
        return len(self.parts)


class Compressor(ABC):
    """Turns an update (named arrays) into a payload (bytes) and back.

    Compressors hold settings only; what they remember between rounds goes in and comes out
    as ``state``. Final subclasses are frozen dataclasses. A subclass works on sections; the
    frame around them is the wire's business.

    Attributes
    ----------
    name : str
        Name in spec strings.
    corrects : bool
        Whether it corrects updates itself for what earlier rounds did, so that error feedback or
        prediction around it would correct them twice.
    expands : bool
        Whether its own error, apart from that of stages in it, can exceed its input, so that
        error feedback would diverge.
    """

    name: ClassVar[str]
    corrects: ClassVar[bool] = False
    expands: ClassVar[bool] = False

    @cached_property
    def spec(self) -> str:
        """The canonical spec, ``str(self)``, written once."""
        return str(self)

    def inside(self) -> Sequence["Compressor"]:
        """Give the compressors that this one wraps."""
        return ()

    @property
    def recalls(self) -> bool:
        """Whether decoding needs the memory of the same sender's earlier payloads."""
        return any(inner.recalls for inner in self.inside())

    @property
    @abstractmethod
    def unbiased(self) -> bool:
        """Whether the decoded update equals the given one in expectation over ``rng``."""

    @abstractmethod
    def init_state(self, like: Mapping[str, Tensor]) -> State:
        """Make the state before the first round; empty where nothing is remembered."""

    def after_absence(self, state: State, rounds: int) -> State:
        """Give the state as it is after ``rounds`` rounds in which nothing was encoded."""
        del rounds
        return state

    @abstractmethod
    def encode_sections(
        self,
        update: Mapping[str, Tensor],
        state: State,
        rng: np.random.Generator,
        want_decoded: bool,
    ) -> Encoded:
        """Encode; ``decoded`` is given if ``want_decoded``, equal to what decoding gives."""

    @abstractmethod
    def read_sections(
        self, reader: SectionReader, like: Mapping[str, Tensor]
    ) -> Mapping[str, Part]:
        """Read the update back, checked but not yet expanded: names of ``like``, in its order."""

    def init(self, like: Arrays) -> State:
        """Make the state for the first `encode` of arrays like ``like``.

        Parameters
        ----------
        like : Mapping[str, Tensor or ndarray]
            Arrays of the names, shapes and dtypes of the global model.

        Returns
        -------
        Mapping[str, Tensor]
            What the compressor remembers between rounds, such as residuals.
        """
        return self.init_state(as_tensors(like))

    def encode(self, update: Arrays, state: State, rng: np.random.Generator) -> tuple[bytes, State]:
        """Encode an update.

        Parameters
        ----------
        update : Mapping[str, Tensor or ndarray]
            After − before of local training; numpy arrays are taken without a copy.
        state : Mapping[str, Tensor]
            From `init` or the last `encode`; it is not changed.
        rng : numpy.random.Generator
            From `rng_for`; all randomness comes from it.

        Returns
        -------
        payload : bytes
            What is sent.
        state : Mapping[str, Tensor]
            For the next `encode`.

        Raises
        ------
        NotFiniteError
            If a lossy stage meets NaN or infinity.
        LayoutError
            If the state was made for other arrays.
        """
        tensors = as_tensors(update)
        encoded = self.encode_sections(tensors, state, rng, want_decoded=False)
        payload = write_payload(encoded.sections, self.spec, tensors)
        if encoded.parts is not None:
            note_own(payload, self.spec, tensors, encoded.sections, encoded.parts)
        return payload, encoded.state

    def encode_and_decode(
        self, update: Arrays, state: State, rng: np.random.Generator
    ) -> tuple[bytes, State, Mapping[str, Tensor]]:
        """Encode, and also give what the other side will decode, without decoding bytes."""
        tensors = as_tensors(update)
        encoded = self.encode_sections(tensors, state, rng, want_decoded=True)
        payload = write_payload(encoded.sections, self.spec, tensors)
        if encoded.decoded is None:
            return payload, encoded.state, self.decode(payload, tensors)
        return payload, encoded.state, encoded.decoded

    def decode(
        self, payload: bytes, like: Arrays, memory: Memory | None = None
    ) -> dict[str, Tensor]:
        """Decode a payload.

        Parameters
        ----------
        payload : bytes
            From `encode` of an equal compressor; not trusted.
        like : Mapping[str, Tensor or ndarray]
            Arrays of the names, shapes and dtypes that were encoded.
        memory : Mapping[str, Tensor], optional
            From `decode_and_remember` of the same sender's last payload, where the compressor
            `recalls`; none before the first.

        Returns
        -------
        dict[str, Tensor]
            The update, with the names, shapes, dtypes and devices of ``like``.

        Raises
        ------
        PayloadError
            If the bytes are damaged, cut short, or made by another spec or for other arrays.
        """
        return self.decode_counted(payload, like, memory)[0]

    def decode_and_remember(
        self, payload: bytes, like: Arrays, memory: Memory
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Decode a payload, and give the memory for the same sender's next one."""
        parts, _ = self.read(payload, like, memory)
        return {name: part.dense() for name, part in parts.items()}, memory_of(parts)

    def decode_counted(
        self, payload: bytes, like: Arrays, memory: Memory | None = None
    ) -> tuple[dict[str, Tensor], dict[str, int]]:
        """Decode a payload and count its bytes by kind of stream."""
        parts, counts = self.read(payload, like, memory)
        return {name: part.dense() for name, part in parts.items()}, counts

    def read(
        self, payload: bytes, like: Arrays, memory: Memory | None = None
    ) -> tuple[Mapping[str, Part], dict[str, int]]:
        """Read and check a payload without expanding it, and count its bytes by kind."""
        tensors = as_tensors(like)
        reader = SectionReader(payload, self.spec, tensors)
        reader.memory = memory or {}
        parts = self.read_sections(reader, tensors)
        reader.finish()
        return parts, dict(reader.bytes_by_kind)

    def breakdown(
        self, payload: bytes, like: Arrays, memory: Memory | None = None
    ) -> dict[str, int]:
        """Count the bytes of a payload by kind of stream; they add up to its length."""
        return self.read(payload, like, memory)[1]


def memory_of(parts: Mapping[str, Part]) -> dict[str, Tensor]:
    """Collect the memory for the same sender's next payload; empty for most compressors."""
    memories = {name: part.memory() for name, part in parts.items()}
    return {name: memory for name, memory in memories.items() if memory is not None}


def all_inside(compressor: Compressor) -> Iterator[Compressor]:
    """Give a compressor and all that it wraps, however deep."""
    yield compressor
    for inner in compressor.inside():
        yield from all_inside(inner)


def under(state: State, prefix: str) -> dict[str, Tensor]:
    """Give the part of a state whose names begin with ``prefix``, without it."""
    # A block makes its arrays when one is asked for.
    return {name.removeprefix(prefix): state[name] for name in state if name.startswith(prefix)}


def as_tensors(arrays: Arrays) -> Mapping[str, Tensor]:
    """View numpy arrays as tensors, without a copy where torch can."""
    if isinstance(arrays, Block):
        return arrays
    return {name: _as_tensor(name, x) for name, x in arrays.items()}


def _as_tensor(name: str, x: "Tensor | np.ndarray") -> Tensor:
    if isinstance(x, Tensor):
        if x.is_complex():
            raise LayoutError(
                f"array {name!r}: is complex; send its real and imaginary parts apart"
            )
        return x.detach()
    if not isinstance(x, np.ndarray):
        raise LayoutError(
            f"array {name!r}: expected a torch tensor or numpy array, got {type(x).__name__}"
        )
    native = x if x.dtype.isnative else x.astype(x.dtype.newbyteorder("="))
    if any(stride < 0 for stride in native.strides) or not native.flags.writeable:
        # torch refuses negative strides, and warns of read-only memory though we never write.
        native = native.copy()
    if np.iscomplexobj(native):
        raise LayoutError(f"array {name!r}: is complex; send its real and imaginary parts apart")
    try:
        return torch.from_numpy(native)
    except TypeError as error:
        raise LayoutError(
            f"array {name!r}: torch has no dtype {x.dtype}; convert it before encoding"
        ) from error
