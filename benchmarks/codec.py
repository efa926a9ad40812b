"""What is measured: one setting of a codec, on one update at a time."""

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from benchmarks.updates import Update
from fedcompress import parse, rng_for


@final
@dataclass(frozen=True, eq=False)
class Sent:
    """One update there and back.

    Attributes
    ----------
    payload_bytes : int
        Bytes of all that the decoder needs beside names and shapes.
    encode_seconds, decode_seconds : float
        CPU time of the whole process, all threads together.
    decoded : mapping or None
        What arrived, where it was asked for.
    """

    payload_bytes: int
    encode_seconds: float
    decode_seconds: float
    decoded: Mapping[str, NDArray[np.float32]] | None


class Codec(ABC):
    """One setting of one codec.

    Attributes
    ----------
    name : str
        What tables call it.
    curve : str
        Name shared by the settings of one codec, whose points make one curve.
    ours : bool
        Whether it is one of fedcompress.
    """

    name: str
    curve: str
    ours: bool = False

    @abstractmethod
    def send(self, update: Update, *, want_decoded: bool) -> Sent:
        """Encode and decode once."""


class BytesCodec(Codec):
    """A codec that runs in this process, from arrays to bytes and back."""

    @abstractmethod
    def encode(self, update: Update) -> bytes:
        """Give the bytes."""

    @abstractmethod
    def decode(self, payload: bytes, like: Update) -> Mapping[str, NDArray[np.float32]]:
        """Give the arrays; ``like`` tells names and shapes only."""

    def send(self, update: Update, *, want_decoded: bool) -> Sent:
        # Zeros: a decoder must not see what was sent.
        like = {name: np.zeros_like(x) for name, x in update.items()}
        start = time.process_time()
        payload = self.encode(update)
        middle = time.process_time()
        decoded = self.decode(payload, like)
        stop = time.process_time()
        return Sent(len(payload), middle - start, stop - middle, decoded if want_decoded else None)


@final
class SpecCodec(BytesCodec):
    """A codec of fedcompress, by its spec string.

    Raises
    ------
    SpecError
        If the spec cannot be read.
    """

    ours = True

    def __init__(self, spec: str, curve: str | None = None) -> None:
        self._compressor = parse(spec)
        self.name = str(self._compressor)
        self.curve = curve or self.name

    def encode(self, update: Update) -> bytes:
        state = self._compressor.init(update)
        return self._compressor.encode(update, state, rng_for(0, purpose="encode"))[0]

    def decode(self, payload: bytes, like: Update) -> Mapping[str, NDArray[np.float32]]:
        decoded = self._compressor.decode(payload, like)
        return {name: x.numpy() for name, x in decoded.items()}
