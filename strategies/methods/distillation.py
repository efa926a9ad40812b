"""Methods that distil the clients' models into the global model."""

from fedcompress.checks import check_integer, check_positive
from strategies.methods.method import Recipe
from strategies.methods.registry import published

_LIN = "Lin et al., Ensemble distillation for robust model fusion in federated learning, 2020"


@published(_LIN)
def feddf() -> Recipe:
    """Average the clients' models, then distil all of them into the average."""
    return Recipe(distill=True)


@published(_LIN + "; Reisizadeh et al., FedPAQ, 2020")
def feddf_quantized(*, bits: int = 4) -> Recipe:
    """Distil from clients that sent updates quantized without bias to a few bits."""
    check_integer("feddf_quantized", "bits", bits, 2, 16)
    return Recipe(uplink=f"quantize({bits}) | entropy()", distill=True)


@published(_LIN + "; Mitchell et al., 2022")
def feddf_uniform(*, step: float = 1.0) -> Recipe:
    """Distil from clients that sent updates rounded to a step and entropy-coded."""
    check_positive("feddf_uniform", "step", step)
    return Recipe(uplink=f'quantize(step={step}, rounding="nearest") | entropy()', distill=True)
