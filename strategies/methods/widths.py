"""Methods whose clients hold models of several widths, slices of one global model."""

from strategies.methods.method import Recipe
from strategies.methods.registry import published


@published(
    "Diao et al., HeteroFL: computation and communication efficient federated learning for "
    "heterogeneous clients, 2021"
)
def heterofl(*, drawn: bool = False) -> Recipe:
    """Average each entry over the clients whose width has it; widths fixed, or drawn anew."""
    return Recipe(exchange="slices", options={"widths.drawn": drawn})


@published(
    "Horvath et al., FjORD: fair and accurate federated learning under heterogeneous targets with "
    "ordered dropout, 2021"
)
def fjord(*, self_distil: bool = False) -> Recipe:
    """Train a width up to one's own in each batch, so that the first units learn most."""
    return Recipe(
        exchange="slices",
        options={
            "widths.ordered_dropout": True,
            "widths.self_distil": self_distil,
            "widths.scale": False,
            "widths.mask_loss": False,
        },
    )
