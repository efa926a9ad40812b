"""Methods that send few entries of the update: top-k, random-k, sparse ternary, threshold."""

from fedcompress.checks import check_fraction, check_integer
from strategies.methods.method import Recipe
from strategies.methods.registry import published


@published(
    "Aji and Heafield, Sparse communication for distributed gradient descent, 2017; "
    "Stich et al., Sparsified SGD with memory, 2018"
)
def top_k(*, fraction: float = 0.01, error_feedback: bool = True) -> Recipe:
    """Send the largest entries and keep the rest as a residual for later rounds."""
    check_fraction("top_k", "fraction", fraction)
    return Recipe(uplink=_fed_back(f"top_k({fraction}) | entropy()", error_feedback))


@published(
    "Basu et al., Qsparse-local-SGD: distributed SGD with quantization, sparsification and local "
    "computations, 2019"
)
def qsparse(*, fraction: float = 0.01, bits: int = 4) -> Recipe:
    """Send the largest entries, quantized, and keep the rest as a residual."""
    check_fraction("qsparse", "fraction", fraction)
    check_integer("qsparse", "bits", bits, 2, 16)
    return Recipe(uplink=_fed_back(f"top_k({fraction}) | quantize({bits}) | entropy()"))


@published(
    "Konečný et al., Federated learning: strategies for improving communication efficiency, 2016"
)
def random_k(*, fraction: float = 0.05) -> Recipe:
    """Send entries drawn at random, scaled so that the update stays unbiased."""
    check_fraction("random_k", "fraction", fraction)
    return Recipe(uplink=f"random_k({fraction}) | entropy()")


@published(
    "Sattler et al., Robust and communication-efficient federated learning from non-IID data, 2019"
)
def stc(*, fraction: float = 0.01, downlink_fraction: float | None = None) -> Recipe:
    """Sparse ternary compression, both ways: the largest entries as a sign and one magnitude.

    The paper's strongest setting is ``fraction=0.0025``. The downlink takes the same fraction
    unless `downlink_fraction` is given.
    """
    down = fraction if downlink_fraction is None else downlink_fraction
    check_fraction("stc", "fraction", fraction)
    check_fraction("stc", "downlink_fraction", down)
    return Recipe(
        uplink=_fed_back(f"top_k({fraction}) | sign() | entropy()"),
        downlink=_fed_back(f"top_k({down}) | sign() | entropy()"),
    )


def _fed_back(spec: str, error_feedback: bool = True) -> str:
    return f"error_feedback({spec})" if error_feedback else spec
