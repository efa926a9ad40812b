"""Plain server rules, as Flower ships them, with dense float32 both ways."""

from fedcompress.checks import check_integer, check_positive
from strategies.methods.method import Recipe
from strategies.methods.ranges import check_range
from strategies.methods.registry import published

_REDDI = "Reddi et al., Adaptive federated optimization, 2021"
_YIN = "Yin et al., Byzantine-robust distributed learning: towards optimal statistical rates, 2018"
_BLANCHARD = (
    "Blanchard et al., Machine learning with adversaries: Byzantine tolerant gradient descent, 2017"
)


@published(
    "McMahan et al., Communication-efficient learning of deep networks from decentralized data, "
    "2017"
)
def fedavg() -> Recipe:
    """Average the clients' models by their number of examples."""
    return Recipe(server="fedavg")


@published("Li et al., Federated optimization in heterogeneous networks, 2020")
def fedprox(*, proximal_mu: float = 0.01) -> Recipe:
    """FedAvg whose clients pay for moving away from the global model."""
    check_range("fedprox", "proximal_mu", proximal_mu, 0)
    return Recipe(server="fedprox", server_options={"proximal_mu": proximal_mu})


@published("Hsu et al., Measuring the effects of non-identical data distribution, 2019")
def fedavgm(*, server_learning_rate: float = 1.0, server_momentum: float = 0.9) -> Recipe:
    """FedAvg with momentum on the server."""
    check_positive("fedavgm", "server_learning_rate", server_learning_rate)
    check_range("fedavgm", "server_momentum", server_momentum, 0, 1)
    return Recipe(
        server="fedavgm",
        server_options={
            "server_learning_rate": server_learning_rate,
            "server_momentum": server_momentum,
        },
    )


@published(_REDDI)
def fedadagrad(*, eta: float = 0.01, tau: float = 1e-3) -> Recipe:
    """Adagrad on the server, the average update as its gradient."""
    return _adaptive("fedadagrad", {"eta": eta, "tau": tau})


@published(_REDDI)
def fedadam(
    *, eta: float = 0.01, beta_1: float = 0.9, beta_2: float = 0.99, tau: float = 1e-3
) -> Recipe:
    """Adam on the server, the average update as its gradient."""
    return _adaptive("fedadam", {"eta": eta, "beta_1": beta_1, "beta_2": beta_2, "tau": tau})


@published(_REDDI)
def fedyogi(
    *, eta: float = 0.01, beta_1: float = 0.9, beta_2: float = 0.99, tau: float = 1e-3
) -> Recipe:
    """Yogi on the server, the average update as its gradient."""
    return _adaptive("fedyogi", {"eta": eta, "beta_1": beta_1, "beta_2": beta_2, "tau": tau})


@published(_YIN)
def fedmedian() -> Recipe:
    """Take the median of each coordinate over the clients."""
    return Recipe(server="fedmedian")


@published(_YIN)
def fedtrimmedavg(*, beta: float = 0.2) -> Recipe:
    """Average each coordinate without its extremes on both sides."""
    check_range("fedtrimmedavg", "beta", beta, 0, 0.5)
    return Recipe(server="fedtrimmedavg", server_options={"beta": beta})


@published(_BLANCHARD)
def krum(*, num_malicious_nodes: int = 0) -> Recipe:
    """Take the one client model that lies closest to its neighbours."""
    _check_count("krum", "num_malicious_nodes", num_malicious_nodes, 0)
    return Recipe(server="krum", server_options={"num_malicious_nodes": num_malicious_nodes})


@published(_BLANCHARD)
def multikrum(*, num_malicious_nodes: int = 0, num_nodes_to_select: int = 5) -> Recipe:
    """Average the client models that lie closest to their neighbours."""
    _check_count("multikrum", "num_malicious_nodes", num_malicious_nodes, 0)
    _check_count("multikrum", "num_nodes_to_select", num_nodes_to_select, 1)
    return Recipe(
        server="multikrum",
        server_options={
            "num_malicious_nodes": num_malicious_nodes,
            "num_nodes_to_select": num_nodes_to_select,
        },
    )


@published("El Mhamdi et al., The hidden vulnerability of distributed learning in Byzantium, 2018")
def bulyan(*, num_malicious_nodes: int = 0) -> Recipe:
    """Choose clients by Multi-Krum, then average each coordinate around its median."""
    _check_count("bulyan", "num_malicious_nodes", num_malicious_nodes, 0)
    return Recipe(server="bulyan", server_options={"num_malicious_nodes": num_malicious_nodes})


@published("Li et al., Fair resource allocation in federated learning, 2020")
def qfedavg(*, q: float = 0.1, client_learning_rate: float = 0.05) -> Recipe:
    """Weigh clients by their loss to the power q, so that bad ones catch up."""
    check_range("qfedavg", "q", q, 0)
    check_positive("qfedavg", "client_learning_rate", client_learning_rate)
    return Recipe(
        server="qfedavg",
        server_options={"q": q, "client_learning_rate": client_learning_rate},
    )


def _adaptive(name: str, options: dict[str, int | float | str]) -> Recipe:
    for key, value in options.items():
        if key.startswith("beta"):
            check_range(name, key, value, 0, 1)
        else:
            check_positive(name, key, value)
    return Recipe(server=name, server_options=options)


def _check_count(owner: str, parameter: str, value: int, low: int) -> None:
    check_integer(owner, parameter, value, low, 1_000_000)
