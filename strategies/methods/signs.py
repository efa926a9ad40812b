"""Methods that send signs."""

from strategies.methods.method import Recipe
from strategies.methods.registry import published


@published(
    "Karimireddy et al., Error feedback fixes SignSGD and other gradient compression schemes, 2019"
)
def ef_sign() -> Recipe:
    """Send signs and one magnitude a tensor, the rest fed back as a residual."""
    return Recipe(uplink="error_feedback(sign() | entropy())")


@published("Bernstein et al., signSGD: compressed optimisation for non-convex problems, 2018")
def sign() -> Recipe:
    """Send signs and one magnitude a tensor, without error feedback."""
    return Recipe(uplink="sign() | entropy()")


@published(
    "Wen et al., TernGrad: ternary gradients to reduce communication in distributed deep learning, "
    "2017"
)
def terngrad() -> Recipe:
    """Send each entry as -1, 0 or 1 times one magnitude a tensor, without bias."""
    # Three levels over the range of the tensor, rounded at random: just what the paper sends.
    return Recipe(uplink="quantize(2) | entropy()")
