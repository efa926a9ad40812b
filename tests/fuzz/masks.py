"""Coded masks of pruned models, mutated as payloads are: frame and coder are the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedcompress import rng_for
from fedcompress.compressor import Compressor, Encoded, Part, State
from fedcompress.pruning import decode_mask, encode_mask
from fedcompress.pruning.mask_code import MASK_SPEC, read_masks
from fedcompress.wire import Section, SectionReader


@dataclass(frozen=True)
class MaskPart(Part):
    """One array of a mask."""

    mask: Tensor

    def dense(self) -> Tensor:
        return self.mask

    def add_to(self, total: Tensor, weight: float) -> None:
        total += weight * self.mask

    def is_finite(self) -> bool:
        return True


@dataclass(frozen=True)
class Masks(Compressor):
    """`encode_mask` and `decode_mask` as the campaign knows compressors."""

    name: ClassVar[str] = MASK_SPEC

    @property
    def unbiased(self) -> bool:
        return True

    def init_state(self, like: Mapping[str, Tensor]) -> State:
        return {}

    def encode_sections(
        self,
        update: Mapping[str, Tensor],
        state: State,
        rng: np.random.Generator,
        want_decoded: bool,
    ) -> Encoded:
        from mutate import split

        coded = split(encode_mask(update))[1]
        return Encoded([Section("index", data) for data in coded], state, None)

    def read_sections(self, reader: SectionReader, like: Mapping[str, Tensor]) -> dict[str, Part]:
        return {name: MaskPart(mask) for name, mask in read_masks(reader, like).items()}

    def __str__(self) -> str:
        return MASK_SPEC


def masks() -> dict[str, dict[str, Tensor]]:
    """Give masks by name, of which every coding of positions is for one."""
    draw = rng_for(0, purpose="fuzz masks")

    def kept(share: float, *shape: int) -> Tensor:
        return torch.from_numpy(draw.random(shape) < share)

    by_row = kept(0.05, 60, 50)
    by_row[::4] |= kept(0.4, 15, 50)
    kernels = kept(0.05, 12, 8, 1, 1).expand(12, 8, 5, 5) & kept(0.5, 12, 8, 5, 5)
    few = {"w": kept(0.02, 20, 30), "none": kept(0, 9), "all": kept(2, 9), "e": kept(1, 0, 3)}
    return {
        "small mask": few,
        "small dense mask": {"w": kept(0.5, 30, 20), "v": kept(0.9, 40)},
        "mask by row": {"w": by_row, "k": kernels},
        "long mask": {"v": kept(0.03, 4000)},
    }


def check_valid() -> None:
    """See that what the campaign reads is what `decode_mask` reads."""
    for mask in masks().values():
        read = decode_mask(encode_mask(mask), mask)
        if any(not torch.equal(read[name], x) for name, x in mask.items()):
            raise AssertionError("a mask does not come back as it was")
