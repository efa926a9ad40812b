"""The abstract stage: one reversible step from an array to a smaller or simpler one."""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from fedcompress.spec_text import call_text
from fedcompress.streams import Forms, Layout, Streams

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
    """

    name: ClassVar[str]
    takes: ClassVar[Numbers] = "floats"
    gives: ClassVar[Numbers] = "floats"
    sparsifies: ClassVar[bool] = False

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

    def side_forms(self, like: Layout) -> Forms:
        """Name the side streams of an input of layout ``like``, in order."""
        del like
        return ()

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
