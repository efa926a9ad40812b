"""A byte budget: the least error that a payload of so many bytes can have."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedcompress.chain import Chain, encode_together
from fedcompress.checks import check_choice, check_integer, check_positive
from fedcompress.coders.entropy import Entropy
from fedcompress.coders.exact import encode_exact
from fedcompress.compressor import Arrays, Compressor, Encoded, Part, State, as_tensors
from fedcompress.errors import BudgetError, LayoutError, SpecError
from fedcompress.joined import joined_names
from fedcompress.rate_search import FULL, Found, search_step
from fedcompress.spec_text import call_text
from fedcompress.stages.rdo import Rdo, root_mean_square
from fedcompress.streams import Layout
from fedcompress.wire import HEADER_BYTES, Section, SectionReader

_IMPORTANCE = "importance/"
_MEMORY = 0.9  # of the running mean of squared updates
_SPAN = 64.0  # no array's step is more than this times smaller or larger than another's
_LEAST_BYTES = 32
_OTHER_WEIGHTS = (0.9, 1.1, 0.8, 1.25, 0.7, 1.4)


@dataclass(frozen=True, repr=False)
class Budget(Compressor):
    """Send each update in a given number of bytes, at the least squared error. Biased.

    One search finds the step of `rdo` at which the payload, header and all, is within two per
    cent under the budget. One step for all arrays is where a further byte buys the same in each
    (equal slope: Shoham & Gersho, 1988, "Efficient bit allocation for an arbitrary set of
    quantizers"); which entries become zero, and what is predicted, follows from it.

    Parameters
    ----------
    bytes : int, optional
        Bytes of the whole payload, 32 or more.
    bits_per_parameter : float, optional
        The same for each entry of the update. Give one of the two.
    importance : {"equal", "squared_update"}
        What an array's squared error counts: alike in all arrays, or by the running mean of
        the array's squared updates, which stands for its squared gradient (the diagonal of the
        empirical Fisher information), so that what matters to the loss is kept. See also
        `with_importance`.

    Raises
    ------
    BudgetError
        When encoding, if the update cannot be sent in so few bytes.
    """

    name: ClassVar[str] = "budget"

    bytes: int | None = None
    bits_per_parameter: float | None = None
    importance: str = "equal"

    def __post_init__(self) -> None:
        if (self.bytes is None) == (self.bits_per_parameter is None):
            raise SpecError(
                "budget: give either bytes or bits_per_parameter, as in budget(bytes=20000) or "
                "budget(bits_per_parameter=0.1)"
            )
        if self.bytes is not None:
            check_integer(self.name, "bytes", self.bytes, _LEAST_BYTES, 1 << 40)
        else:
            bits = check_positive(self.name, "bits_per_parameter", self.bits_per_parameter)
            object.__setattr__(self, "bits_per_parameter", bits)
        check_choice(self.name, "importance", self.importance, ("equal", "squared_update"))

    @property
    def unbiased(self) -> bool:
        """Never: levels lean towards zero."""
        return False

    def init_state(self, like: Mapping[str, Tensor]) -> State:
        """Start with arrays of equal importance; none are kept where they always are."""
        if self.importance == "equal":
            return {}
        return {
            _IMPORTANCE + name: torch.zeros((), dtype=torch.float64)
            for name, x in like.items()
            if x.is_floating_point()
        }

    def encode_sections(
        self,
        update: Mapping[str, Tensor],
        state: State,
        rng: np.random.Generator,
        want_decoded: bool,
    ) -> Encoded:
        """Encode at the step that meets the budget."""
        del rng
        arrays = _CHAIN.working_arrays(update)
        new_state = self._remember(arrays, state)
        weights = _weights(arrays, new_state or state)
        budget_bytes = self._bytes_for(update)
        exact = {
            name: Section("lossless", encode_exact(x))
            for name, x in update.items()
            if x.numel() and not x.is_floating_point()
        }

        def search(first: float, rate_weight: float) -> Found[_Trial]:
            rdo = Rdo(1.0, rate_weight=rate_weight)

            def trial(step: float) -> _Trial:
                steps = {name: step / weight for name, weight in weights.items()}
                return _Trial.make(update, arrays, exact, rdo, steps)

            return search_step(trial, first, budget_bytes)

        found = search(4 * root_mean_square(arrays.values()) or 1.0, 1.0)
        if found.within is None:
            least = f"; it takes {found.beyond[1].size_bytes} at least" if found.beyond else ""
            raise BudgetError(
                f"budget: {budget_bytes} bytes cannot hold this update{least}; raise the budget"
            )
        step, chosen = found.within
        if found.beyond is not None and chosen.size_bytes < FULL * budget_bytes:
            # So few symbols that their bytes jump: other weights of the rate jump elsewhere.
            for rate_weight in _OTHER_WEIGHTS:
                other = search(step, rate_weight).within
                if other is not None and other[1].size_bytes > chosen.size_bytes:
                    chosen = other[1]
                if chosen.size_bytes >= FULL * budget_bytes:
                    break
        decoded = chosen.decoded() if want_decoded else None
        return Encoded(chosen.sections, new_state, decoded)

    def read_sections(
        self, reader: SectionReader, like: Mapping[str, Tensor]
    ) -> Mapping[str, Part]:
        """Read every array."""
        return _CHAIN.read_sections(reader, like)

    def _bytes_for(self, update: Mapping[str, Tensor]) -> int:
        if self.bytes is not None:
            return self.bytes
        entries = sum(x.numel() for x in update.values())
        return math.floor((self.bits_per_parameter or 0.0) * entries / 8)

    def _remember(self, arrays: Mapping[str, Tensor], state: State) -> State:
        if self.importance == "equal":
            return state
        new = dict(state)
        for name, x in arrays.items():
            old = state.get(_IMPORTANCE + name)
            if old is None:
                raise LayoutError(
                    f"budget: array {name!r} has no importance in the state; make the state with "
                    "init() on the same arrays"
                )
            now = torch.tensor(root_mean_square([x]) ** 2, dtype=torch.float64)
            new[_IMPORTANCE + name] = _MEMORY * old + (1 - _MEMORY) * now if float(old) else now
        return new

    def __str__(self) -> str:
        return call_text(self)

    def __repr__(self) -> str:
        return str(self)


def with_importance(state: State, squared_gradients: Arrays) -> State:
    """Give a state in which arrays count by these squared gradients (a Fisher diagonal).

    Parameters
    ----------
    state : Mapping[str, Tensor]
        Of `budget`, from `init` or the last `encode`.
    squared_gradients : Mapping[str, Tensor or ndarray]
        Non-negative, by name; an array counts by their mean. With
        ``importance="squared_update"`` they are mixed with what later updates show.
    """
    new = dict(state)
    for name, x in as_tensors(squared_gradients).items():
        new[_IMPORTANCE + name] = x.double().mean()
    return new


@dataclass(frozen=True, eq=False)
class _Trial:
    """An update encoded at certain steps."""

    sections: list[Section]
    parts: Mapping[str, Part]
    update: Mapping[str, Tensor]
    steps: Mapping[str, float]

    @property
    def size_bytes(self) -> int:
        return HEADER_BYTES + sum(len(s.framed) for s in self.sections)

    def decoded(self) -> dict[str, Tensor]:
        return {
            name: self.parts[name].dense() if name in self.parts else x
            for name, x in self.update.items()
        }

    @staticmethod
    def make(
        update: Mapping[str, Tensor],
        arrays: Mapping[str, Tensor],
        exact: Mapping[str, Section],
        rdo: Rdo,
        steps: Mapping[str, float],
    ) -> "_Trial":
        sections: list[Section] = []
        parts: dict[str, Part] = {}
        layouts = {name: Layout.of(x) for name, x in update.items()}
        for names in joined_names(layouts):
            if names[0] in exact:
                sections.append(exact[names[0]])
            elif names[0] in arrays:
                stages = (rdo.at(_mean_step([(steps[n], layouts[n].size) for n in names])),)
                own, of_names = encode_together(
                    stages, _CODER, names, arrays, layouts, np.random.default_rng(0)
                )
                sections += own
                parts |= of_names
        return _Trial(sections, parts, update, steps)


def _weights(arrays: Mapping[str, Tensor], state: State) -> dict[str, float]:
    """Give what each array's error counts, as a factor of its amplitude, 1 in the mean."""
    known = {
        name: float(state[_IMPORTANCE + name])
        for name in arrays
        if _IMPORTANCE + name in state and float(state[_IMPORTANCE + name]) > 0
    }
    if not known:
        return dict.fromkeys(arrays, 1.0)
    entries = sum(arrays[name].numel() for name in known)
    mean = sum(math.log(w) * arrays[name].numel() for name, w in known.items()) / entries
    most = math.log(_SPAN)
    return {
        name: math.exp(min(max((math.log(known[name]) - mean) / 2, -most), most))
        if name in known
        else 1.0
        for name in arrays
    }


def _mean_step(steps: Sequence[tuple[float, int]]) -> float:
    """Give the geometric mean of steps, each with how often it counts."""
    if len(steps) == 1:
        return steps[0][0]
    return math.exp(sum(math.log(s) * n for s, n in steps) / sum(n for _, n in steps))


_CODER = Entropy()
_CHAIN = Chain((Rdo(1.0),), _CODER)
