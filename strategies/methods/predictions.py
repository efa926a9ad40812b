"""Methods that send predictions of proxy rows in place of models."""

from fedcompress.checks import check_fraction
from strategies.methods.method import Recipe
from strategies.methods.registry import published


@published("Li & Wang, FedMD: heterogenous federated learning via model distillation, 2019")
def fedmd() -> Recipe:
    """Average the clients' logits on fixed proxy rows, which every model then follows."""
    return Recipe(exchange="logits")


@published(
    "Itahara et al., Distillation-based semi-supervised federated learning for "
    "communication-efficient collaborative training with non-IID private data, 2021"
)
def dsfl(*, sharpen: float = 0.1) -> Recipe:
    """Average the clients' probabilities on new proxy rows, and follow the mean, sharpened."""
    check_fraction("dsfl", "sharpen", sharpen)
    return Recipe(
        exchange="logits",
        options={
            "logits.scores": "probabilities",
            "logits.sharpen": sharpen,
            "logits.redraw": True,
        },
    )
