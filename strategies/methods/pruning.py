"""Methods that prune the model while it is trained, or train nothing but masks."""

from fedcompress.checks import check_choice, check_fraction, check_integer
from fedcompress.pruning import Schedule
from strategies.methods.method import Recipe
from strategies.methods.registry import published


@published("Zhu & Gupta, To prune, or not to prune, 2017; Han et al., Learning both weights, 2015")
def gradual_pruning(
    *,
    sparsity: float = 0.9,
    first: int = 5,
    last: int = 20,
    every: int = 5,
    importance: str = "magnitude",
) -> Recipe:
    """Prune the global model by a schedule of rounds; both directions carry what is left."""
    check_choice("gradual_pruning", "importance", importance, ("magnitude", "taylor", "fisher"))
    Schedule(sparsity, first, last, every)
    return Recipe(
        exchange="packed",
        options={
            "prune.sparsity": sparsity,
            "prune.first": first,
            "prune.last": last,
            "prune.every": every,
            "prune.importance": importance,
        },
    )


@published("Jiang et al., Model pruning enables efficient federated learning on edge devices, 2022")
def prunefl(
    *,
    sparsity: float = 0.8,
    first: int = 5,
    last: int = 20,
    every: int = 5,
    regrow: float = 0.1,
) -> Recipe:
    """Prune as `gradual_pruning`, and let entries whose gradient is large come back."""
    check_fraction("prunefl", "regrow", regrow)
    Schedule(sparsity, first, last, every, regrow)
    return Recipe(
        exchange="packed",
        options={
            "prune.sparsity": sparsity,
            "prune.first": first,
            "prune.last": last,
            "prune.every": every,
            "prune.regrow": regrow,
            "prune.pattern": "across",
        },
    )


@published(
    "Isik et al., Sparse random networks for communication-efficient federated learning, 2023"
)
def fedpm(*, reset_every: int = 1) -> Recipe:
    """Train which weights of a random network to keep, and send masks, below a bit a weight."""
    check_integer("fedpm", "reset_every", reset_every, 0, 1 << 40)
    return Recipe(
        exchange="masks",
        uplink="bernoulli_mask() | entropy()",
        options={"masks.reset_every": reset_every},
    )
