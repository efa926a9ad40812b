"""A chain: stages one after another, then a coder, applied to each array of an update."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedcompress.coder import Coder
from fedcompress.coders.entropy import Entropy
from fedcompress.coders.exact import decode_exact, encode_exact
from fedcompress.compressor import Compressor, Encoded, Part, SentParts, State
from fedcompress.errors import NotFiniteError, PayloadError, SpecError
from fedcompress.joined import join, joined_layout, joined_names, split
from fedcompress.kept_levels import KeptLevels, Plan, plan_of
from fedcompress.stage import Stage
from fedcompress.streams import FloatForm, Floats, Form, Layout, Stream, Symbols
from fedcompress.wire import Section, SectionReader

_MOST_COPIED = 1 << 20  # entries of an update that are copied to lie one behind another


@dataclass(frozen=True, repr=False)
class Chain(Compressor):
    """Stages and a coder, applied to every floating-point array by itself.

    Short vectors are coded as one where the first stage says so.
    Arrays of integers and booleans are sent exactly, whatever the stages.
    """

    name: ClassVar[str] = "chain"

    stages: tuple[Stage, ...]
    coder: Coder

    def __post_init__(self) -> None:
        numbers, last = "floats", "the update"
        for stage in self.stages:
            if stage.takes != numbers:
                raise SpecError(
                    f"{stage.name}: takes {stage.takes}, but {last} gives {numbers}; "
                    f"put {stage.name} before {last}"
                )
            numbers, last = stage.gives, stage.name
        if numbers == "symbols" and not self.coder.takes_symbols:
            raise SpecError(
                f"{self.coder.name}: would send the integers of {last} unpacked; "
                "end the chain with entropy() or pack()"
            )

    @property
    def unbiased(self) -> bool:
        """Whether every stage is unbiased."""
        return all(stage.unbiased for stage in self.stages)

    def init_state(self, like: Mapping[str, Tensor]) -> State:
        """Give the empty state: a chain remembers nothing."""
        del like
        return {}

    def encode_sections(
        self,
        update: Mapping[str, Tensor],
        state: State,
        rng: np.random.Generator,
        want_decoded: bool,
    ) -> Encoded:
        """Encode every array."""
        plan = self.plan_of(update)
        if plan is not None and plan.size <= _MOST_COPIED:
            kept = self.keep(plan, plan.gather(update), rng)
            at_once = kept.parts()
            decoded = SentParts(at_once) if want_decoded else None
            return Encoded(kept.sections(), state, decoded, at_once)
        sections: list[Section] = []
        parts: dict[str, Part] = {}
        arrays = self.working_arrays(update)
        layouts = {name: Layout.of(x) for name, x in update.items()}
        stages = self.stages
        if stages:
            stages = (stages[0].for_update(arrays), *stages[1:])
        for names in self._coded_together(layouts):
            x = update[names[0]]
            if x.numel() == 0 or not x.is_floating_point():
                if x.numel():
                    sections.append(Section("lossless", encode_exact(x)))
                parts[names[0]] = _Exact(x)
                continue
            own, of_names = encode_together(stages, self.coder, names, arrays, layouts, rng)
            sections += own
            parts |= of_names
        sent = SentParts({n: parts[n] for n in update}) if want_decoded else None
        return Encoded(sections, state, sent)

    def read_sections(
        self, reader: SectionReader, like: Mapping[str, Tensor]
    ) -> Mapping[str, Part]:
        """Read every array."""
        plan = self.plan_of(like)
        at_once = None if plan is None else plan.read(reader)
        if at_once is not None:
            return at_once
        parts: dict[str, Part] = {}
        layouts = {name: Layout.of(x) for name, x in like.items()}
        for names in self._coded_together(layouts):
            x = like[names[0]]
            if x.numel() == 0:
                parts[names[0]] = _Exact(torch.empty_like(x))
            elif not x.is_floating_point():
                parts[names[0]] = _Exact(decode_exact(reader.take("lossless"), layouts[names[0]]))
            else:
                whole = joined_layout([layouts[n] for n in names])
                steps, last = self._read_array(reader, whole)
                parts |= split(Steps(self.stages, steps, last, whole), names, layouts)
        return {name: parts[name] for name in like}

    def plan_of(self, update: Mapping[str, Tensor]) -> Plan | None:
        """Plan to encode all arrays at once; None where they must go through stage by stage."""
        return plan_of(self.stages, self.coder, update)

    def keep(self, plan: Plan, flat: np.ndarray, rng: np.random.Generator) -> KeptLevels:
        """Encode arrays that lie in ``flat``, in which what is not sent is left."""
        return self.checked(plan.keep(flat, rng))

    def checked(self, kept: KeptLevels | str) -> KeptLevels:
        """Give what `Plan.keep` gives, or raise the error where it names an array instead."""
        if isinstance(kept, str):
            raise self._not_finite(kept)
        return kept

    def _not_finite(self, name: str) -> NotFiniteError:
        return NotFiniteError(
            f"array {name!r}: holds NaN or infinity, which {self.stages[0].name} cannot "
            "code; leave this client out, or lower its learning rate"
        )

    def _coded_together(self, layouts: Mapping[str, Layout]) -> list[tuple[str, ...]]:
        if self.stages and self.stages[0].joins_vectors:
            return joined_names(layouts)
        return [(name,) for name in layouts]

    def working_arrays(self, update: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Give the arrays that stages are to code, in their working dtype, all of them finite."""
        arrays: dict[str, Tensor] = {}
        for name, x in update.items():
            if x.numel() == 0 or not x.is_floating_point():
                continue
            arrays[name] = x.to(_working_dtype(x.dtype)) if self.stages else x
            if self.stages and not _is_finite(arrays[name]):
                raise self._not_finite(name)
        return arrays

    def _read_array(self, reader: SectionReader, like: Layout) -> tuple[list["Step"], Tensor]:
        layout = like
        if self.stages:
            layout = Layout(like.shape, _working_dtype(like.dtype), like.device)
        steps: list[Step] = []
        for stage in self.stages:
            side: list[Stream] = []
            while (form := stage.next_form(layout, side)) is not None:
                side.append(self._read(reader, form, layout))
            steps.append((side, layout))
            layout = stage.layout_after(layout, side)
        last_form = self.stages[-1].last_form(layout) if self.stages else _float_form(layout)
        last = self._read(reader, last_form, layout)
        if not isinstance(last, Floats | Symbols):
            raise PayloadError(f"{self.coder.name}: gave a stream of {last.kind}")
        return steps, last.values

    def _read(self, reader: SectionReader, form: Form, layout: Layout) -> Stream:
        stream = self.coder.decode(reader.take(form.kind), form)
        return _to_device(stream, layout.device)

    def __str__(self) -> str:
        return " | ".join(repr(part) for part in (*self.stages, self.coder))

    def __repr__(self) -> str:
        return str(self)


@dataclass(frozen=True, eq=False)
class _Exact(Part):
    """An array that was sent bit for bit."""

    x: Tensor

    def dense(self) -> Tensor:
        return self.x

    def add_to(self, total: Tensor, weight: float) -> None:
        total.add_(self.x.to(total.dtype), alpha=weight)

    def is_finite(self) -> bool:
        return True  # integers and booleans only


@dataclass(frozen=True, eq=False)
class Steps(Part):
    """An array as the last stage left it, with what undoing each stage needs."""

    stages: Sequence[Stage]
    steps: Sequence["Step"]
    last: Tensor
    like: Layout

    def dense(self) -> Tensor:
        if not self._is_sparse:
            return self._values
        side, before = self.steps[0]
        x = self.stages[0].decode(self._values, side, before)
        return narrow(x, self.like.dtype).reshape(self.like.shape)

    def add_to(self, total: Tensor, weight: float) -> None:
        if not self._is_sparse or self.like.dtype != _working_dtype(self.like.dtype):
            total.add_(self.dense(), alpha=weight)
            return
        side, before = self.steps[0]
        self.stages[0].add_to(total, self._values, side, before, weight)

    def is_finite(self) -> bool:
        # A finite scale times a finite symbol may still overflow, so we look at the product.
        return _is_finite(self._values)

    @property
    def _is_sparse(self) -> bool:
        return bool(self.stages) and self.stages[0].sparsifies

    @cached_property
    def _values(self) -> Tensor:
        """Give the kept entries behind a stage that sparsifies, else the whole array."""
        x = self.last
        undone = list(zip(self.stages, self.steps, strict=True))[int(self._is_sparse) :]
        for stage, (side, before) in reversed(undone):
            x = stage.decode(x, side, before)
        return x if self._is_sparse else narrow(x, self.like.dtype).reshape(self.like.shape)


Step = tuple[Sequence[Stream], Layout]


def encode_array(
    stages: Sequence[Stage], x: Tensor, rng: np.random.Generator
) -> tuple[list[Stream], list[Step], Tensor]:
    """Give the streams of one array, and each stage's side streams with the layout before it."""
    streams: list[Stream] = []
    steps: list[Step] = []
    through = stages[0].encode_through(stages[1:], x, rng) if stages else None
    if through is not None:
        before = Layout.of(x)
        x, sides = through
        for stage, side in zip(stages, sides, strict=True):
            streams += side
            steps.append((side, before))
            before = stage.layout_after(before, side)
        streams.append(stages[-1].last_stream(x))
        return streams, steps, x
    for stage in stages:
        before = Layout.of(x)
        x, side = stage.encode(x, rng)
        streams += side
        steps.append((side, before))
    streams.append(stages[-1].last_stream(x) if stages else Floats(x))
    return streams, steps, x


def encode_together(
    stages: Sequence[Stage],
    coder: Coder,
    names: Sequence[str],
    arrays: Mapping[str, Tensor],
    layouts: Mapping[str, Layout],
    rng: np.random.Generator,
) -> tuple[list[Section], dict[str, Part]]:
    """Give the sections of arrays that are coded as one, and what each of them decodes to."""
    streams, steps, last = encode_array(stages, join([arrays[n] for n in names]), rng)
    sections = [Section(s.kind, coder.encode(s)) for s in streams]
    whole = joined_layout([layouts[n] for n in names])
    return sections, split(Steps(stages, steps, last, whole), names, layouts)


def _float_form(layout: Layout) -> FloatForm:
    return FloatForm(layout.shape, layout.dtype)


def _is_finite(x: Tensor) -> bool:
    # A finite sum needs no second look; a sum may also overflow though every entry is finite.
    return math.isfinite(x.sum().item()) or bool(torch.isfinite(x).all())


def chain(*parts: Stage | Coder) -> Chain:
    """Compose stages and a coder.

    Parameters
    ----------
    *parts : Stage or Coder
        Stages in the order in which they are applied, then one coder; without a coder the
        chain ends with `entropy`.

    Raises
    ------
    SpecError
        If the parts do not fit together in this order.

    Examples
    --------
    >>> from fedcompress import chain, entropy, quantize, top_k
    >>> chain(top_k(0.01), quantize(4), entropy())
    top_k(0.01) | quantize(4) | entropy()
    """
    return Chain(*_split(parts))


def as_compressor(part: object, owner: str) -> Compressor:
    """Take a compressor as it is, and make a chain of a lone stage or coder."""
    if isinstance(part, Compressor):
        return part
    if isinstance(part, Stage | Coder):
        return chain(part)
    raise SpecError(
        f"{owner}: takes a chain or compressor, got {part!r}; write for example "
        "top_k(0.01) | entropy()"
    )


def _split(parts: Sequence[Stage | Coder]) -> tuple[tuple[Stage, ...], Coder]:
    for i, part in enumerate(parts):
        if isinstance(part, Coder) and i != len(parts) - 1:
            raise SpecError(
                f"{part.name}: a coder ends a chain, but {parts[i + 1].name} comes after it; "
                f"move {part.name} to the end"
            )
        if not isinstance(part, Stage | Coder):
            raise SpecError(
                f"chain: {part!r} is neither a stage nor a coder; a compressor such as "
                "error_feedback(...) or route(...) stands around a chain, not in it"
            )
    *head, last = parts if parts and isinstance(parts[-1], Coder) else (*parts, Entropy())
    return tuple(_stages(head)), last  # type: ignore[return-value]


def _stages(parts: Sequence[Stage | Coder]) -> Iterator[Stage]:
    for part in parts:
        if isinstance(part, Stage):
            yield part


def _working_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def narrow(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert to a dtype, staying finite where a floating-point value would overflow."""
    if x.dtype == dtype or not dtype.is_floating_point:
        return x
    limit = torch.finfo(dtype).max
    return x.clamp(-limit, limit).to(dtype)


def _to_device(stream: Stream, device: torch.device) -> Stream:
    if device.type == "cpu":
        return stream
    moved = {
        name: value.to(device) for name, value in vars(stream).items() if isinstance(value, Tensor)
    }
    return type(stream)(**{**vars(stream), **moved})
