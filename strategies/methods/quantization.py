"""Methods that quantize the update: FedPAQ, entropy-coded uniform quantization, casts."""

from fedcompress.checks import check_choice, check_integer, check_positive
from strategies.methods.method import Recipe
from strategies.methods.registry import published


@published(
    "Reisizadeh et al., FedPAQ: a communication-efficient federated learning method with periodic "
    "averaging and quantization, 2020"
)
def fedpaq(*, bits: int = 4) -> Recipe:
    """Quantize the update without bias to a few bits over its range."""
    check_integer("fedpaq", "bits", bits, 2, 16)
    return Recipe(uplink=f"quantize({bits}) | entropy()")


@published(
    "Mitchell et al., Optimizing the communication-accuracy trade-off in federated learning with "
    "rate-distortion theory, 2022"
)
def uniform(*, step: float = 1.0, downlink_step: float | None = None) -> Recipe:
    """Round the update to multiples of a step in standard deviations, and entropy-code.

    With `downlink_step` the server's update is coded likewise, with error feedback.
    """
    check_positive("uniform", "step", step)
    downlink = None
    if downlink_step is not None:
        check_positive("uniform", "downlink_step", downlink_step)
        downlink = f"error_feedback({_rounded(downlink_step)})"
    return Recipe(uplink=_rounded(step), downlink=downlink)


@published("Micikevicius et al., Mixed precision training, 2018")
def fedavg_float16(*, dtype: str = "float16", both_ways: bool = False) -> Recipe:
    """Send updates as 16-bit floats."""
    check_choice("fedavg_float16", "dtype", dtype, ("float16", "bfloat16"))
    spec = f'cast("{dtype}") | raw()'
    return Recipe(uplink=spec, downlink=spec if both_ways else None)


def _rounded(step: float) -> str:
    return f'quantize(step={step}, rounding="nearest") | entropy()'
