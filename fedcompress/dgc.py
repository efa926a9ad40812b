"""Deep gradient compression: momentum that survives sparsification."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedcompress.chain import Chain, as_compressor, narrow
from fedcompress.checks import check_fraction, check_integer, check_positive
from fedcompress.coders.entropy import Entropy
from fedcompress.compressor import Compressor, Encoded, Part, State
from fedcompress.errors import LayoutError, SpecError
from fedcompress.spec_text import literal_text
from fedcompress.stages.top_k import TopK
from fedcompress.wire import SectionReader

_VELOCITY, _UNSENT, _ROUNDS = "velocity/", "unsent/", "rounds"
_FIRST_FRACTION = 0.25
_MOST_ROUNDS = 1 << 20


@dataclass(frozen=True, repr=False)
class DGC(Compressor):
    """Send the largest entries of an accumulated velocity; others go on accumulating. Biased.

    Lin et al. (2018), "Deep gradient compression: reducing the communication bandwidth for
    distributed training", with a client's update x in the place of a gradient:

    ==================== =====================================================================
    local clipping       x is scaled down to the norm ``clip``
    momentum correction  u ← momentum · u + x, then v ← v + u; the largest entries of v are sent
    factor masking       u and v are set to zero where an entry was sent
    warm-up              the kept fraction falls from 1/4 to ``fraction`` in equal ratios
    ==================== =====================================================================

    State: u and v for each floating-point array and the rounds sent so far. Over a round,
    ``sent + v == old v + momentum * old u + x``; without momentum it is error feedback. With it,
    what arrives sums to 1 / (1 − momentum) times the updates: divide the server's learning
    rate by as much.

    Parameters
    ----------
    fraction : float
        Share of the entries of each array to keep after the warm-up, in (0, 1].
    momentum : float
        Weight of the old velocity, in [0, 1).
    warmup_rounds : int
        Rounds that send more; 0 for none.
    clip : float, optional
        Most that the L2 norm of a client's update may be; for K clients whose mean may have the
        norm c, the paper takes c / √K. Default: no bound.
    values : Stage, Coder or Chain
        What codes the kept entries, such as ``quantize(4)``. Default: ``entropy()``, exact.
    """

    name: ClassVar[str] = "dgc"
    corrects: ClassVar[bool] = True

    fraction: float
    momentum: float = 0.9
    warmup_rounds: int = 4
    clip: float | None = None
    values: Compressor = field(default_factory=lambda: Chain((), Entropy()))

    def __post_init__(self) -> None:
        object.__setattr__(self, "fraction", check_fraction(self.name, "fraction", self.fraction))
        if self.momentum != 0:
            momentum = check_fraction(self.name, "momentum", self.momentum)
            object.__setattr__(self, "momentum", momentum)
        if self.momentum == 1:
            raise SpecError("dgc: momentum must be below 1, got 1; did you mean 0.9?")
        object.__setattr__(self, "momentum", float(self.momentum))
        check_integer(self.name, "warmup_rounds", self.warmup_rounds, 0, _MOST_ROUNDS)
        if self.clip is not None:
            object.__setattr__(self, "clip", check_positive(self.name, "clip", self.clip))
        values = as_compressor(self.values, self.name)
        if not isinstance(values, Chain):
            raise SpecError(
                f"dgc: values must be a chain such as quantize(4) | entropy(), got {values}"
            )
        for stage in values.stages:
            if stage.expands:
                raise SpecError(f"dgc: {stage} magnifies what it keeps; v would grow without bound")
        object.__setattr__(self, "values", values)
        self.sender(0)

    @property
    def unbiased(self) -> bool:
        """Not in a single round; what was left out is made up for later."""
        return False

    def fraction_in(self, round_number: int) -> float:
        """Give the share of entries that are kept in a round, counted from 0."""
        if round_number >= self.warmup_rounds or self.fraction >= _FIRST_FRACTION:
            return self.fraction
        ratio = self.fraction / _FIRST_FRACTION
        return float(_FIRST_FRACTION * ratio ** (round_number / self.warmup_rounds))

    def sender(self, round_number: int) -> Chain:
        """Give the chain that sends in a round; what it sends is read alike in all rounds."""
        values = self.values
        if not isinstance(values, Chain):
            raise TypeError(f"dgc: values became {values!r}")
        return Chain((TopK(self.fraction_in(round_number)), *values.stages), values.coder)

    def init_state(self, like: Mapping[str, Tensor]) -> State:
        """Start at rest, with nothing unsent."""
        return {
            _ROUNDS: torch.zeros((), dtype=torch.int64),
            **{
                kind + name: torch.zeros_like(x, dtype=_state_dtype(x.dtype))
                for kind in (_VELOCITY, _UNSENT)
                for name, x in like.items()
                if x.is_floating_point()
            },
        }

    def encode_sections(
        self,
        update: Mapping[str, Tensor],
        state: State,
        rng: np.random.Generator,
        want_decoded: bool,
    ) -> Encoded:
        """Accumulate, send the largest, and forget what was sent."""
        floats = {name: x for name, x in update.items() if x.is_floating_point()}
        shrink = self._shrink(floats)
        velocity, unsent = {}, {}
        for name, x in floats.items():
            u, v = _find(state, _VELOCITY + name, x), _find(state, _UNSENT + name, x)
            velocity[name] = u * self.momentum + x.to(u.dtype) * shrink
            unsent[name] = v + velocity[name]
        sendable = {
            name: narrow(unsent[name], x.dtype) if name in unsent else x
            for name, x in update.items()
        }
        rounds = state[_ROUNDS]
        sender = self.sender(int(rounds))
        inner = sender.encode_sections(sendable, {}, rng, want_decoded=True)
        if inner.decoded is None:
            raise TypeError("dgc: the chain inside gave no decoded update when asked for it")
        new_state: dict[str, Tensor] = {_ROUNDS: rounds + 1}
        for name in floats:
            sent = inner.decoded[name].to(unsent[name].dtype)
            new_state[_VELOCITY + name] = velocity[name].masked_fill(sent != 0, 0)
            new_state[_UNSENT + name] = unsent[name] - sent
        return Encoded(inner.sections, new_state, inner.decoded if want_decoded else None)

    def read_sections(
        self, reader: SectionReader, like: Mapping[str, Tensor]
    ) -> Mapping[str, Part]:
        """Read what was kept."""
        return self.sender(0).read_sections(reader, like)

    def inside(self) -> Sequence[Compressor]:
        """Give the chain that sends after the warm-up."""
        return (self.sender(self.warmup_rounds),)

    def __str__(self) -> str:
        settings = [str(self.fraction)]
        if self.momentum != 0.9:
            settings.append(f"momentum={self.momentum}")
        if self.warmup_rounds != 4:
            settings.append(f"warmup_rounds={self.warmup_rounds}")
        if self.clip is not None:
            settings.append(f"clip={literal_text(self.clip)}")
        if self.values != Chain((), Entropy()):
            settings.append(f"values={self.values}")
        return f"dgc({', '.join(settings)})"

    def __repr__(self) -> str:
        return str(self)

    def _shrink(self, floats: Mapping[str, Tensor]) -> float:
        """Give the factor that brings the update's norm down to ``clip``."""
        if self.clip is None:
            return 1.0
        norms = [
            float(torch.linalg.vector_norm(x.to(_state_dtype(x.dtype)), dtype=torch.float64))
            for x in floats.values()
        ]
        norm = float(np.linalg.norm(norms)) if norms else 0.0
        return min(1.0, self.clip / norm) if norm > 0 else 1.0


def _find(state: State, name: str, x: Tensor) -> Tensor:
    found = state.get(name)
    if found is None or found.shape != x.shape:
        what = "none" if found is None else f"one of shape {tuple(found.shape)}"
        raise LayoutError(
            f"dgc: an array of shape {tuple(x.shape)} needs {name!r}, the state holds {what}; "
            "make the state with init() on the same arrays"
        )
    return found.to(x.device)


def _state_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
