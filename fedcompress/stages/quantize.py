"""Uniform quantization."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedcompress.checks import check_choice, check_integer, check_positive
from fedcompress.errors import SpecError
from fedcompress.noise import draw_seed
from fedcompress.stage import Numbers, Stage
from fedcompress.stages.rounding import few_digits, round_to_multiples, spread_of
from fedcompress.stages.scale import read_scale, times_scale
from fedcompress.streams import Forms, IndexSet, Layout, Scale, ScaleForm, Streams

# A symbol beyond these carries nothing that the working dtype does not round away.
_MOST_SYMBOLS = {torch.float32: float(1 << 24), torch.float64: float(1 << 30)}
_WORKING: dict[torch.dtype, type[np.float32 | np.float64]] = {
    torch.float32: np.float32,
    torch.float64: np.float64,
}
_MOST_ROUNDED = float((1 << 31) - 1)


@dataclass(frozen=True, repr=False)
class Quantize(Stage):
    """Round to multiples of one step for each array. Unbiased with stochastic rounding.

    Alistarh et al. (2017), "QSGD"; Reisizadeh et al. (2020), "FedPAQ" (stochastic); Mitchell
    et al. (2022), "Optimizing the communication-accuracy trade-off in federated learning with
    rate-distortion theory" (a step in units of the standard deviation, then entropy coding).
    Nothing is clipped: the alphabet is as large as the array needs, and zero stays zero.

    Parameters
    ----------
    bits : int, optional
        Bits of a symbol, 2 to 16: ``2**bits − 1`` levels over [−max|x|, max|x|].
    step : float, optional
        Step in units of the array's standard deviation. Give either ``bits`` or ``step``.
    rounding : {"stochastic", "nearest"}
        ``"stochastic"`` is unbiased; ``"nearest"`` is biased and has half its mean squared
        error or less, at fewer bits.
    """

    name: ClassVar[str] = "quantize"
    gives: ClassVar[Numbers] = "symbols"

    bits: int | None = None
    step: float | None = None
    rounding: str = "stochastic"

    def __post_init__(self) -> None:
        if (self.bits is None) == (self.step is None):
            raise SpecError(
                "quantize: give either bits or step, as in quantize(4) or quantize(step=0.4)"
            )
        if self.bits is not None:
            check_integer(self.name, "bits", self.bits, 2, 16)
        if self.step is not None:
            step = check_positive(self.name, "step", self.step)
            object.__setattr__(self, "step", step)  # 1 and 1.0 are one spec
        check_choice(self.name, "rounding", self.rounding, ("stochastic", "nearest"))

    @property
    def unbiased(self) -> bool:
        """With stochastic rounding."""
        return self.rounding == "stochastic"

    def encode(self, x: Tensor, rng: np.random.Generator) -> tuple[Tensor, Streams]:
        """Round ``x / step``; the side stream is the step."""
        largest, deviation = spread_of(x)
        step = self._step_of(x.dtype, largest, deviation)
        side = (Scale(torch.tensor([step], dtype=x.dtype, device=x.device)),)
        most = float(2 ** (self.bits - 1) - 1) if self.bits is not None else 2 * largest / step + 2
        seed = None if self.rounding == "nearest" else draw_seed(rng)
        return round_to_multiples(x, step, seed, min(most, _MOST_ROUNDED)), side

    def encode_largest(
        self, x: Tensor, k: int, rng: np.random.Generator
    ) -> tuple[Tensor, list[Streams]] | None:
        """Select the k largest magnitudes and quantize them; None where there is no kernel."""
        if x.device.type != "cpu" or x.dtype != torch.float32 or self.bits is None:
            return None
        from fedcompress.kernels.kept_levels import keep

        is_stochastic = self.rounding == "stochastic"
        seed = np.uint64(draw_seed(rng) if is_stochastic else 0)
        kept, symbols = np.empty(k, np.int64), np.empty(k, np.int16)
        flat = x.contiguous().reshape(-1).numpy()
        scale = np.array([keep(flat, self.bits, is_stochastic, seed, kept, symbols)], np.float32)
        positions = IndexSet(torch.from_numpy(kept), flat.size, tuple(x.shape))
        return torch.from_numpy(symbols), [(positions,), (Scale(torch.from_numpy(scale)),)]

    def decode(self, x: Tensor, side: Streams, like: Layout) -> Tensor:
        """Multiply the symbols by the step."""
        return times_scale(x, read_scale(side), like)

    def side_forms(self, like: Layout) -> Forms:
        """Expect the step."""
        return (ScaleForm(1, like.dtype),)

    def _step_of(self, dtype: torch.dtype, largest: float, deviation: float) -> float:
        if largest == 0:
            return 1.0
        if self.bits is not None:
            step = largest / (2 ** (self.bits - 1) - 1)
        else:
            step = few_digits((self.step or 0.0) * deviation) or largest
        step = max(step, largest / _MOST_SYMBOLS[dtype], torch.finfo(dtype).tiny)
        return float(_WORKING[dtype](min(step, torch.finfo(dtype).max)))
