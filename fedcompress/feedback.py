"""Error feedback: what was not sent is remembered and added to the next update."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedcompress.block import Block, renamed
from fedcompress.chain import Chain, as_compressor, narrow
from fedcompress.checks import check_fraction, check_positive
from fedcompress.closed_loop import check_loop
from fedcompress.compressor import Compressor, Encoded, Part, SentParts, State, under
from fedcompress.errors import LayoutError
from fedcompress.kept_levels import KeptLevels, Plan
from fedcompress.wire import SectionReader

_RESIDUAL = "residual/"
_INNER = "inner/"


@dataclass(frozen=True, repr=False)
class ErrorFeedback(Compressor):
    """Add the residual of earlier rounds to the update, and keep what is left unsent.

    Seide et al. (2014); Karimireddy et al. (2019), "Error feedback fixes SignSGD and other
    gradient compression schemes" (EF14). State: one residual for each floating-point array,
    ``sent + residual == update + old residual``; with settings,
    ``sent + residual / c == update + decay**rounds * old residual``, where c ≤ 1 is what clipping
    multiplies a residual by.

    Parameters
    ----------
    compressor : Compressor
        What sends the corrected update.
    decay : float
        What a residual is multiplied by for each round that has passed since it was left, in
        (0, 1]: an old one was left at another model (Wu et al., 2018, ECQ-SGD; the β of Xu et
        al., 2021, GRACE; on staleness Li and Li, 2023). On a client that takes part rarely,
        rounds that it missed count too. 1 forgets nothing.
    clip : float, optional
        Most that the norm of an array's residual may be, in norms of this round's update of the
        array; a larger residual is scaled down, as gradients are by Pascanu, Mikolov and Bengio
        (2013). Default: no bound.
    """

    name: ClassVar[str] = "error_feedback"
    corrects: ClassVar[bool] = True

    compressor: Compressor
    decay: float = 1.0
    clip: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "compressor", as_compressor(self.compressor, self.name))
        object.__setattr__(self, "decay", check_fraction(self.name, "decay", self.decay))
        if self.clip is not None:
            object.__setattr__(self, "clip", check_positive(self.name, "clip", self.clip))
        check_loop(self.name, self.compressor)

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

    def after_absence(self, state: State, rounds: int) -> State:
        """Let the residuals decay once for each round."""
        inner = self.compressor.after_absence(under(state, _INNER), rounds)
        fade = self.decay**rounds
        if fade == 1 and not inner:
            return state
        return {
            **{
                name: x * fade if fade != 1 and name.startswith(_RESIDUAL) else x
                for name, x in state.items()
            },
            **{_INNER + name: x for name, x in inner.items()},
        }

    def encode_sections(
        self,
        update: Mapping[str, Tensor],
        state: State,
        rng: np.random.Generator,
        want_decoded: bool,
    ) -> Encoded:
        """Send update + residual, keep the difference."""
        at_once = self._encode_at_once(update, state, rng, want_decoded)
        if at_once is not None:
            return at_once
        corrected = {name: self._correct(name, x, state) for name, x in update.items()}
        sendable = {name: narrow(corrected[name], x.dtype) for name, x in update.items()}
        inner_state = under(state, _INNER)
        inner = self.compressor.encode_sections(sendable, inner_state, rng, want_decoded=True)
        if inner.decoded is None:
            raise TypeError(f"{self.compressor.name}: gave no decoded update when asked for it")
        residuals = {
            _RESIDUAL + name: self._clipped(
                _left(corrected[name], name, inner.decoded, want_decoded), x
            )
            for name, x in update.items()
            if x.is_floating_point()
        }
        new_state = {**residuals, **{_INNER + name: x for name, x in inner.state.items()}}
        return Encoded(inner.sections, new_state, inner.decoded if want_decoded else None)

    def _encode_at_once(
        self,
        update: Mapping[str, Tensor],
        state: State,
        rng: np.random.Generator,
        want_decoded: bool,
    ) -> Encoded | None:
        """Do the same where the chain inside can take all arrays at once, else give None."""
        if self.decay != 1 or self.clip is not None or not isinstance(self.compressor, Chain):
            return None
        plan = self.compressor.plan_of(update)
        if plan is None:
            return None
        found = _keep_of_terms(plan, update, state, rng)
        if found is None:
            left = _sum(plan, update, state)
            if left is None:
                return None
            found = left, plan.keep(left, rng)
        left = found[0]
        kept = self.compressor.checked(found[1])
        parts = kept.parts()
        return Encoded(
            kept.sections(),
            Block(renamed(plan.layout, _RESIDUAL), left),
            SentParts(parts) if want_decoded else None,
            parts,
        )

    def read_sections(
        self, reader: SectionReader, like: Mapping[str, Tensor]
    ) -> Mapping[str, Part]:
        """Read as the compressor inside does."""
        return self.compressor.read_sections(reader, like)

    def __str__(self) -> str:
        decay = "" if self.decay == 1 else f", decay={self.decay}"
        clip = "" if self.clip is None else f", clip={self.clip}"
        return f"error_feedback({self.compressor}{decay}{clip})"

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
        faded = residual if self.decay == 1 else residual * self.decay
        return x.to(residual.dtype) + faded.to(x.device)

    def _clipped(self, residual: Tensor, x: Tensor) -> Tensor:
        if self.clip is None:
            return residual
        limit = self.clip * float(torch.linalg.vector_norm(x, dtype=torch.float64))
        norm = float(torch.linalg.vector_norm(residual, dtype=torch.float64))
        return residual * (limit / norm) if norm > limit else residual


def _keep_of_terms(
    plan: Plan, update: Mapping[str, Tensor], state: State, rng: np.random.Generator
) -> tuple[np.ndarray, KeptLevels | str] | None:
    """Reckon update + residuals and select in one go; None where that cannot be.

    Gives what is left, and what `Plan.keep` gives.
    """
    if not isinstance(update, Block) or not isinstance(state, Block) or update.terms is None:
        return None
    terms = *update.terms, state.flat
    # Kernels are compiled anew for arrays that must not be written to.
    writeable = all(x.flags.writeable and x.dtype == np.float32 for x in terms)
    if not writeable or not state.layout.equals(renamed(plan.layout, _RESIDUAL)):
        return None
    left = np.empty(plan.size, np.float32)
    kept = plan.keep(left, rng, terms)
    if isinstance(kept, str):
        _ = update.flat  # which says so if it is the update that is not finite
    return left, kept


def _sum(plan: Plan, update: Mapping[str, Tensor], state: State) -> np.ndarray | None:
    """Give update + residuals, one array behind another; None where they cannot be added."""
    if isinstance(update, Block) and isinstance(state, Block):
        if not state.layout.equals(renamed(plan.layout, _RESIDUAL)):
            return None
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is found later
            total: np.ndarray = update.flat + state.flat
        return total
    if not all(_fits(x, state.get(_RESIDUAL + name)) for name, x in update.items()):
        return None
    return plan.add(update, lambda name: state[_RESIDUAL + name])


def _fits(x: Tensor, residual: Tensor | None) -> bool:
    """Whether there is a residual that can be added to an array where both lie."""
    return (
        residual is not None
        and residual.shape == x.shape
        and residual.dtype == x.dtype
        and residual.device == x.device
    )


def _left(corrected: Tensor, name: str, sent: Mapping[str, Tensor], want_sent: bool) -> Tensor:
    """Give what was not sent; ``corrected``, which nothing else needs, may become it."""
    if want_sent or not isinstance(sent, SentParts) or not corrected.is_contiguous():
        return corrected - sent[name].to(corrected.dtype)
    sent.parts[name].add_to(corrected, -1.0)
    return corrected


def _residual_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
