"""What the engines are compared on: workloads, who runs each, and the bars that are judged."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, final, get_args

from fedcompress.errors import ConfigError
from simulations.settings import Scalar

Engine = Literal["raygrid", "study", "flower", "pfl", "bare"]
ENGINES: tuple[Engine, ...] = get_args(Engine)
OURS: tuple[Engine, ...] = ("raygrid", "study", "bare")
"""Those that train by our own programs."""
PEERS: tuple[Engine, ...] = ("flower", "pfl")

FEEDBACK = "error_feedback(top_k(0.01) | quantize(4) | entropy())"
SKIPPED_ROUNDS = 2


@final
@dataclass(frozen=True)
class Workload:
    """What is trained: one local epoch of SGD in batches of 32.

    Attributes
    ----------
    clients : int
        Nodes that are registered, whether they ever train or not.
    samples : int
        Rows that each client draws of its own, so that there may be any number of clients; 0
        divides the rows among them by Dirichlet(0.5).
    per_round : int
        Clients that train in each round.
    rounds : int
        Rounds that are measured, after `SKIPPED_ROUNDS` that are not.
    spec : str
        Compressor of both directions; empty for dense arrays.
    eager : bool
        Whether clients train by PyTorch's own operations, as those of Flower's examples do.
    """

    data: str
    model: str
    per_round: int
    rounds: int
    hidden: tuple[int, ...] = ()
    width: float = 1.0
    clients: int = 100
    samples: int = 0
    spec: str = ""
    eager: bool = False

    def run_config(self, data_dir: str | None) -> dict[str, Scalar]:
        """Give the settings as our client's app reads them."""
        settings: dict[str, Scalar] = {
            "rounds": SKIPPED_ROUNDS + self.rounds,
            "data.name": self.data,
            "partition.kind": "drawn" if self.samples else "dirichlet",
            "partition.alpha": 0.5,
            "partition.clients": self.clients,
            "partition.min_samples": 1,
            "model.name": self.model,
            "model.width": self.width,
            "training.batch_size": 32,
            "training.learning_rate": 0.05,
            "federation.fraction": self.per_round / self.clients,
            # Never but in the last round, whose test is not counted.
            "federation.evaluate_every": SKIPPED_ROUNDS + self.rounds,
            "strategy.label": "measured",
        }
        if self.eager:
            settings["training.path"] = "eager"
        if self.samples:
            settings["partition.samples_per_client"] = self.samples
        if self.hidden:
            settings["model.hidden"] = ",".join(map(str, self.hidden))
        if data_dir is not None and self.data != "digits":
            settings["data.data_dir"] = data_dir
        if self.spec:
            settings |= {"strategy.uplink": self.spec, "strategy.downlink": self.spec}
        return settings


@final
@dataclass(frozen=True)
class Job:
    """One engine on one workload."""

    engine: Engine
    workload: Workload

    def to_json(self) -> dict[str, Any]:
        """Give plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Job":
        """Undo `to_json`."""
        workload = dict(values["workload"])
        workload["hidden"] = tuple(workload["hidden"])
        return cls(values["engine"], Workload(**workload))


@final
@dataclass(frozen=True)
class Bar:
    """What a row must show: `measure` of one job against another's, or against 1.

    `over` and `under` name jobs of the row; the quotient over ÷ under must reach
    `at_least`, or stay within `at_most`. Without `under` the figure itself is judged.
    """

    over: str
    under: str | None
    measure: str = "round_seconds"
    under_measure: str | None = None
    at_least: float | None = None
    at_most: float | None = None

    def holds(self, value: float) -> bool:
        """Whether a quotient or figure is on the right side."""
        return (self.at_least is None or value >= self.at_least) and (
            self.at_most is None or value <= self.at_most
        )


@final
@dataclass(frozen=True)
class Row:
    """One line of the comparison: jobs by label, turn by turn, and the bars between them."""

    title: str
    jobs: Mapping[str, Job]
    bars: tuple[Bar, ...]


def _jobs(workload: Workload, *engines: Engine) -> dict[str, Job]:
    return {engine: Job(engine, workload) for engine in engines}


def _faster(peer: str, times: float) -> Bar:
    return Bar(peer, "raygrid", at_least=times)


_MLP = ("fashion_mnist", "mlp")
_HIDDEN = (120, 64)
_MLP_10 = Workload(*_MLP, per_round=10, rounds=20, hidden=_HIDDEN)
_MLP_100 = Workload(*_MLP, per_round=100, rounds=8, hidden=_HIDDEN)
_CNN_10 = Workload("fashion_mnist", "lenet", per_round=10, rounds=8)
_CNN_100 = Workload("fashion_mnist", "lenet", per_round=100, rounds=3)
_RESNET = Workload("fashion_mnist", "resnet", per_round=10, rounds=2, width=3.6)
_DIGITS = Workload("digits", "mlp", per_round=100, rounds=15, hidden=(128, 64))


# As many samples as the 100 clients of the other rows have on average.
_REGISTERED = Workload(*_MLP, per_round=100, rounds=8, hidden=_HIDDEN, samples=600)
_WITH_STATE = replace(_REGISTERED, rounds=18, spec=FEEDBACK)  # 20 rounds with those left out


def rows() -> dict[str, Row]:
    """Give all rows by name."""
    mlp_ef_10 = replace(_MLP_10, spec=FEEDBACK)
    mlp_ef_100 = replace(_MLP_100, spec=FEEDBACK)
    return {
        "mlp-10": Row(
            "MLP, 10 a round",
            _jobs(_MLP_10, "raygrid", "study", *PEERS, "bare"),
            (_faster("flower", 7), _faster("pfl", 1.2)),
        ),
        "mlp-100": Row(
            "MLP, 100 a round",
            _jobs(_MLP_100, "raygrid", "study", *PEERS, "bare"),
            (
                _faster("flower", 5),
                _faster("pfl", 1.6),
                Bar("raygrid", "bare", at_most=1.1),
            ),
        ),
        "cnn-10": Row(
            "LeNet-like CNN, 10 a round",
            # Flower's clients are ours, so that they train by our compiled loop as well.
            _jobs(_CNN_10, "raygrid", "study", *PEERS, "bare")
            | {"flower, eager": Job("flower", replace(_CNN_10, eager=True))},
            (_faster("flower", 2), _faster("flower, eager", 2), _faster("pfl", 1.25)),
        ),
        "cnn-100": Row(
            "LeNet-like CNN, 100 a round",
            _jobs(_CNN_100, "raygrid", "bare"),
            (Bar("raygrid", "bare", at_most=1.1),),
        ),
        "resnet-10": Row(
            "small ResNet, 10 a round",
            _jobs(_RESNET, "raygrid", *PEERS, "bare"),
            (_faster("flower", 1.05), _faster("pfl", 1.0)),
        ),
        "digits-100": Row(
            "digits MLP, 100 a round",
            _jobs(_DIGITS, "raygrid", "study", *PEERS, "bare"),
            (_faster("flower", 10),),
        ),
        "compressed": Row(
            "MLP, compressed both ways",
            {
                "dense, 10": Job("raygrid", _MLP_10),
                "compressed, 10": Job("raygrid", mlp_ef_10),
                "flower, compressed, 10": Job("flower", mlp_ef_10),
                "dense, 100": Job("raygrid", _MLP_100),
                "compressed, 100": Job("raygrid", mlp_ef_100),
            },
            (
                Bar("compressed, 10", "dense, 10", at_most=1.25),
                Bar("compressed, 100", "dense, 100", at_most=1.25),
            ),
        ),
        # What compression costs clients whose training is not compiled, as that of most apps.
        "compressed-eager": Row(
            "MLP in plain PyTorch, compressed both ways",
            {
                f"{name}, {count}": Job("raygrid", replace(workload, eager=True))
                for name, count, workload in (
                    ("dense", 10, _MLP_10),
                    ("compressed", 10, mlp_ef_10),
                    ("dense", 100, _MLP_100),
                    ("compressed", 100, mlp_ef_100),
                )
            },
            tuple(
                Bar(f"compressed, {count}", f"dense, {count}", at_most=1.25) for count in (10, 100)
            ),
        ),
        "registered-100k": Row(
            "MLP, 100,000 registered, 100 a round",
            {
                "raygrid": Job("raygrid", replace(_REGISTERED, clients=100_000)),
                "raygrid, 100 registered": Job("raygrid", _REGISTERED),
                "flower": Job("flower", replace(_REGISTERED, clients=100_000, rounds=2)),
            },
            (_faster("flower", 40), Bar("raygrid", "raygrid, 100 registered", at_most=1.1)),
        ),
        "registered-1m": Row(
            "MLP, 1,000,000 registered, 100 a round, error feedback",
            {
                "raygrid": Job("raygrid", replace(_WITH_STATE, clients=1_000_000)),
                "raygrid, 1,000 registered": Job("raygrid", replace(_WITH_STATE, clients=1_000)),
            },
            (
                Bar("raygrid", "raygrid, 1,000 registered", at_most=1.5),
                Bar("raygrid", None, measure="driver_peak_mb", at_most=2000),
                Bar("raygrid", None, measure="start_seconds", at_most=15),
            ),
        ),
        "start": Row(
            "digits, from command to the first round's end",
            _jobs(Workload("digits", "mlp", 10, 1, (128, 64)), "raygrid", "study", "flower"),
            (
                Bar("raygrid", "flower", measure="first_round_seconds", at_most=0.6),
                Bar("study", "flower", measure="first_round_seconds", at_most=0.6),
            ),
        ),
        "memory": Row(
            "MLP, memory over 200 rounds",
            _jobs(Workload(*_MLP, 10, 200, _HIDDEN), "raygrid", "bare"),
            (
                Bar("raygrid", "bare", measure="worker_pss_mb", at_most=1.5),
                # By half of the rounds every client's rows, mapped from a file, have been read.
                Bar("raygrid", "raygrid", "worker_pss_end_mb", "worker_pss_half_mb", at_most=1.02),
            ),
        ),
    }


def chosen_rows(names: list[str]) -> dict[str, Row]:
    """Give the rows of these names, all of them where there is none.

    Raises
    ------
    ConfigError
        If a name is unknown.
    """
    known = rows()
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(f"--rows: there is no row {unknown[0]!r}; known: {', '.join(known)}")
    return {name: known[name] for name in names} if names else known
