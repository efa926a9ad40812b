"""Error feedback: what was not sent is remembered and added to the next update."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedcompress.chain import Chain, as_compressor, narrow
from fedcompress.compressor import Compressor, Encoded, Part, State
from fedcompress.errors import LayoutError, SpecError
from fedcompress.wire import SectionReader

_RESIDUAL = "residual/"
_INNER = "inner/"


@dataclass(frozen=True, repr=False)
class ErrorFeedback(Compressor):
    """Add the residual of earlier rounds to the update, and keep what is left unsent.

    Seide et al. (2014); Karimireddy et al. (2019), "Error feedback fixes SignSGD and other
    gradient compression schemes" (EF14). State: one residual for each floating-point array,
    ``sent + residual == update + old residual``.

    Parameters
    ----------
    compressor : Compressor
        What sends the corrected update.
    """

    name: ClassVar[str] = "error_feedback"

    compressor: Compressor

    def __post_init__(self) -> None:
        object.__setattr__(self, "compressor", as_compressor(self.compressor, self.name))
        for inner in _all_inside(self.compressor):
            if isinstance(inner, ErrorFeedback):
                raise SpecError("error_feedback: stands twice around the same chain; write it once")
            for stage in inner.stages if isinstance(inner, Chain) else ():
                if stage.expands:
                    raise SpecError(
                        f"error_feedback: {stage} magnifies what it keeps, and the residual would "
                        'grow without bound; write random_k(…, rescale="no")'
                    )

    def inside(self) -> Sequence[Compressor]:
        """Give the compressor that sends."""
        return (self.compressor,)

    @property
    def unbiased(self) -> bool:
        """Not in a single round; over rounds what was left out is made up for."""
        return False

    def init_state(self, like: Mapping[str, Tensor]) -> State:
        """Start with residuals of zero."""
        residuals = {
            _RESIDUAL + name: torch.zeros_like(x, dtype=_residual_dtype(x.dtype))
            for name, x in like.items()
            if x.is_floating_point()
        }
        inner = self.compressor.init_state(like)
        return {**residuals, **{_INNER + name: x for name, x in inner.items()}}

    def encode_sections(
        self,
        update: Mapping[str, Tensor],
        state: State,
        rng: np.random.Generator,
        want_decoded: bool,
    ) -> Encoded:
        """Send update + residual, keep the difference."""
        corrected = {name: self._correct(name, x, state) for name, x in update.items()}
        sendable = {name: narrow(corrected[name], x.dtype) for name, x in update.items()}
        inner_state = {
            name.removeprefix(_INNER): x for name, x in state.items() if name.startswith(_INNER)
        }
        inner = self.compressor.encode_sections(sendable, inner_state, rng, want_decoded=True)
        if inner.decoded is None:
            raise TypeError(f"{self.compressor.name}: gave no decoded update when asked for it")
        residuals = {
            _RESIDUAL + name: corrected[name] - inner.decoded[name].to(corrected[name].dtype)
            for name, x in update.items()
            if x.is_floating_point()
        }
        new_state = {**residuals, **{_INNER + name: x for name, x in inner.state.items()}}
        return Encoded(inner.sections, new_state, inner.decoded if want_decoded else None)

    def read_sections(self, reader: SectionReader, like: Mapping[str, Tensor]) -> dict[str, Part]:
        """Read as the compressor inside does."""
        return self.compressor.read_sections(reader, like)

    def __str__(self) -> str:
        return f"error_feedback({self.compressor})"

    def __repr__(self) -> str:
        return str(self)

    def _correct(self, name: str, x: Tensor, state: State) -> Tensor:
        if not x.is_floating_point():
            return x
        residual = state.get(_RESIDUAL + name)
        if residual is None or residual.shape != x.shape:
            found = "none" if residual is None else f"one of shape {tuple(residual.shape)}"
            raise LayoutError(
                f"error_feedback: array {name!r} of shape {tuple(x.shape)} needs a residual, "
                f"the state holds {found}; make the state with init() on the same arrays"
            )
        return x.to(residual.dtype) + residual.to(x.device)


def _all_inside(compressor: Compressor) -> Iterator[Compressor]:
    yield compressor
    for inner in compressor.inside():
        yield from _all_inside(inner)


def _residual_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
