"""Distilled around every strategy of Flower that takes a network's arrays."""

import inspect
from collections.abc import Callable

import flwr.serverapp.strategy as flower
import numpy as np
import pytest
from flwr.serverapp.strategy import FedAvg, Strategy

from strategies import Distilled

CLIENTS = 7

STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "Bulyan": lambda: flower.Bulyan(num_malicious_nodes=1),
    "DifferentialPrivacyClientSideAdaptiveClipping": lambda: (
        flower.DifferentialPrivacyClientSideAdaptiveClipping(FedAvg(), 0.1, CLIENTS)
    ),
    "DifferentialPrivacyClientSideFixedClipping": lambda: (
        flower.DifferentialPrivacyClientSideFixedClipping(FedAvg(), 0.01, 1.0, CLIENTS)
    ),
    "DifferentialPrivacyServerSideAdaptiveClipping": lambda: (
        flower.DifferentialPrivacyServerSideAdaptiveClipping(FedAvg(), 0.1, CLIENTS)
    ),
    "DifferentialPrivacyServerSideFixedClipping": lambda: (
        flower.DifferentialPrivacyServerSideFixedClipping(FedAvg(), 0.01, 1.0, CLIENTS)
    ),
    "FedAdagrad": lambda: flower.FedAdagrad(eta=0.01),
    "FedAdam": lambda: flower.FedAdam(eta=0.01),
    "FedAvg": FedAvg,
    "FedAvgM": lambda: flower.FedAvgM(server_momentum=0.9),
    "FedMedian": flower.FedMedian,
    "FedProx": lambda: flower.FedProx(proximal_mu=0.1),
    "FedTrimmedAvg": lambda: flower.FedTrimmedAvg(beta=0.2),
    "FedYogi": lambda: flower.FedYogi(eta=0.01),
    "Krum": lambda: flower.Krum(num_malicious_nodes=1),
    "MultiKrum": lambda: flower.MultiKrum(num_malicious_nodes=1, num_nodes_to_select=3),
    "QFedAvg": lambda: flower.QFedAvg(client_learning_rate=0.1),
}
TREES = {"FedXgbBagging", "FedXgbCyclic"}


def test_no_strategy_of_flower_is_forgotten():
    shipped = {
        name
        for name, value in vars(flower).items()
        if inspect.isclass(value) and issubclass(value, Strategy) and value is not Strategy
    }
    assert shipped == set(STRATEGIES) | TREES


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_distilled_starts_from_what_the_strategy_gives(toys, digits, name: str):
    """No step is better than the start here, so the strategy's own result must come out."""
    start = toys.seeded(toys.mlp, 0)
    clients = [toys.seeded(toys.mlp, 1)] * CLIENTS
    with_noise = name.startswith("DifferentialPrivacy")
    bare, _ = toys.run_round(STRATEGIES[name](), start, clients)
    strategy = Distilled(
        STRATEGIES[name](),
        model=toys.mlp,
        proxy=digits["proxy"],
        steps=1,
        learning_rate=1e-30,
    )
    arrays, metrics = toys.run_round(strategy, start, clients)
    assert metrics["distill-teachers"] == CLIENTS
    assert list(arrays) == list(bare)
    for key, array in arrays.items():
        assert array.dtype == "float32"
        if not with_noise:
            np.testing.assert_allclose(array.numpy(), bare[key].numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_divergence_falls_around_every_strategy_for_two_rounds(toys, digits, name: str):
    model = toys.arrays_of(toys.seeded(toys.mlp, 0))
    clients = [toys.seeded(toys.mlp, seed) for seed in range(1, CLIENTS + 1)]
    strategy = Distilled(
        STRATEGIES[name](), model=toys.mlp, proxy=digits["proxy"], steps=40, learning_rate=1e-2
    )
    for server_round in (1, 2):
        model, metrics = toys.run_round(strategy, model, clients, server_round=server_round)
        assert metrics["distill-kl-after"] < metrics["distill-kl-before"]
        assert all(np.isfinite(array.numpy()).all() for array in model.values())
