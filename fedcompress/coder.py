"""The abstract coder: typed streams to bytes and back."""

from abc import ABC, abstractmethod
from typing import ClassVar

from fedcompress.spec_text import call_text
from fedcompress.streams import Form, Stream


class Coder(ABC):
    """Turns each stream into bytes. Lossless; final subclasses are frozen dataclasses.

    Attributes
    ----------
    name : str
        Name in spec strings.
    takes_symbols : bool
        Whether streams of small integers may be given to it.
    """

    name: ClassVar[str]
    takes_symbols: ClassVar[bool] = True

    @abstractmethod
    def encode(self, stream: Stream) -> bytes:
        """Code one stream."""

    @abstractmethod
    def decode(self, data: memoryview, form: Form) -> Stream:
        """Read the stream of the given form back from exactly ``data``.

        The bytes are not trusted: anything that does not fit the form raises
        `PayloadError`, and nothing larger than the form allows is allocated.
        """

    def __repr__(self) -> str:
        return call_text(self)
