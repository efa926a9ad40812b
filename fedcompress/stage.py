"""The abstract stage: one reversible step from an array to a smaller or simpler one."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from fedcompress.spec_text import call_text
from fedcompress.streams import (
    FloatForm,
    Floats,
    Form,
    Forms,
    Layout,
    Stream,
    Streams,
    SymbolForm,
    Symbols,
)

Numbers = Literal["floats", "narrow floats", "symbols"]


class Stage(ABC):
    """One step of a chain, array in, array out. Final subclasses are frozen dataclasses.

    A stage holds its settings and nothing else. What undoing it needs beyond the array
    itself it returns as side streams, whose forms it can name beforehand.

    Attributes
    ----------
    name : str
        Name in spec strings.
    takes, gives : {"floats", "narrow floats", "symbols"}
        What the array holds before and after the stage.
    sparsifies : bool
        Whether the stage keeps some entries only, so that adding its decoded array to a
        sum touches only those (see `add_to`).
    joins_vectors : bool
        Whether a chain that begins with the stage codes short vectors, such as biases, as one.
    contracting : str
        What to write in place of a stage that `expands`, for the error that refuses it.
    """

    name: ClassVar[str]
    takes: ClassVar[Numbers] = "floats"
    gives: ClassVar[Numbers] = "floats"
    sparsifies: ClassVar[bool] = False
    joins_vectors: ClassVar[bool] = False
    contracting: ClassVar[str] = "take a stage whose error stays below its input"

    @property
    def expands(self) -> bool:
        """Whether the error can exceed the input, so that error feedback would diverge."""
        return False

    @property
    @abstractmethod
    def unbiased(self) -> bool:
        """Whether the decoded array equals the input in expectation over ``rng``."""

    @abstractmethod
    def encode(self, x: Tensor, rng: np.random.Generator) -> tuple[Tensor, Streams]:
        """Turn ``x`` (float32 or float64, finite, any shape, any device) into a smaller array.

        Returns the array that the next stage takes, and the side streams.
        """

    @abstractmethod
    def decode(self, x: Tensor, side: Streams, like: Layout) -> Tensor:
        """Undo `encode`: an array of the shape and dtype of ``like``."""

    def encode_through(
        self, following: Sequence["Stage"], x: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, list[Streams]] | None:
        """Do in one go what this stage and then all ``following`` ones do, to the bit.

        Returns the array that the last stage gives and each stage's side streams; None where
        there is no faster way than one stage after another.
        """
        del following, x, rng
        return None

    def for_update(self, update: Mapping[str, Tensor]) -> "Stage":
        """Give the stage that encodes the arrays of this update.

        A stage that stands first in its chain sees the whole update before its arrays, so that
        it can choose a setting across them, such as one step or one threshold for all. The
        stage it gives must decode as itself does: what it chose travels in side streams.

        Parameters
        ----------
        update : Mapping[str, Tensor]
            The floating-point arrays of the update, finite, by name; do not change them.
        """
        del update
        return self

    def side_forms(self, like: Layout) -> Forms:
        """Name the side streams of an input of layout ``like``, in order."""
        del like
        return ()

    def next_form(self, like: Layout, read: Streams) -> Form | None:
        """Name the side stream that follows those already read; None behind the last.

        A stage whose later side streams depend on what the earlier ones say defines this
        instead of `side_forms`; it checks what it has read, and raises `PayloadError`.
        """
        forms = self.side_forms(like)
        return forms[len(read)] if len(read) < len(forms) else None

    def last_stream(self, x: Tensor) -> Stream:
        """Give the stream of the array that `encode` returned, where the chain ends here."""
        return Floats(x) if x.is_floating_point() else Symbols(x)

    def last_form(self, layout: Layout) -> Form:
        """Name the form of `last_stream` for an array of this layout."""
        if layout.dtype.is_floating_point:
            return FloatForm(layout.shape, layout.dtype)
        return SymbolForm(layout.shape)

    def layout_after(self, like: Layout, side: Streams) -> Layout:
        """Give the layout of the array that `encode` returned for an input like ``like``."""
        del side
        dtype = torch.int32 if self.gives == "symbols" else like.dtype
        return Layout(like.shape, dtype, like.device)

    def add_to(self, total: Tensor, x: Tensor, side: Streams, like: Layout, weight: float) -> None:
        """Add ``weight`` times the decoded array to ``total`` (shape of ``like``) in place."""
        total.add_(self.decode(x, side, like), alpha=weight)

    def __repr__(self) -> str:
        return call_text(self)
