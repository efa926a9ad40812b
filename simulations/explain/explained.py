"""What is known of a deployed model, as it stands in `explain.json`."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, final

from fedcompress.errors import ConfigError

VERSION = 1
"""Of the layout of `explain.json`."""
BATCHES = (1, 64)
"""Rows per call for which latency is measured."""

Blocks = Sequence[Sequence[float]]
"""A matrix cut into blocks: one number for each, by rows."""


@final
@dataclass(frozen=True)
class Latency:
    """Time of one call on one thread, measured in turn with the dense model.

    Attributes
    ----------
    cpu_us
        Microseconds of the thread's own time, median over turns: what a core that does nothing
        else would take.
    cpu_us_low, cpu_us_high
        Its quartiles.
    wall_us
        Microseconds by the clock, median over turns; more where other processes ran.
    speedup
        The dense model's time ÷ this one's, median over turns.
    """

    cpu_us: float
    cpu_us_low: float
    cpu_us_high: float
    wall_us: float
    speedup: float


@final
@dataclass(frozen=True)
class LayerFacts:
    """One array of weights, beside the dense model's array of the same name.

    Attributes
    ----------
    name
        Name of the array.
    shape, dense_shape
        Its shape, and that of the dense model's; None where that model has no such array.
    nonzero
        Entries that are not 0.
    sparsity
        Share, 0 to 1, of the dense model's entries that are 0 or gone; of its own where there is
        no array to compare with.
    error
        ‖dense − own‖² ÷ ‖dense‖²; None where shapes differ.
    kept_blocks
        Share of non-zero entries in each block of the matrix (outputs, all else); None for
        vectors.
    error_blocks
        Mean squared error of each block ÷ mean square of the dense array; None where `error` is.
    """

    name: str
    shape: tuple[int, ...]
    dense_shape: tuple[int, ...] | None
    nonzero: int
    sparsity: float
    error: float | None
    kept_blocks: Blocks | None
    error_blocks: Blocks | None


@final
@dataclass(frozen=True)
class Explained:
    """One deployed model.

    Attributes
    ----------
    name
        The file's name without its ending; `dense` for the global model as it was trained, the
        ensemble where groups of clients have models of their own.
    kind
        `dense`, `group`, `student`, `onnx`, `safetensors`, `torch-export` or `archive`.
    file
        Path of the file below the cell's folder.
    recipe
        How it was made, as its exporter wrote it down; empty where nothing is known.
    verified
        Whether its exporter ran it in a fresh process; None where it does not say.
    file_bytes
        Length of the file; of a group's model, of a file that would hold it alone.
    parameters, nonzero
        Weights in the model, and those that are not 0.
    multiply_adds
        Multiplications of weights or activations for one row; zeros count like other numbers.
    latency
        By rows per call.
    kernels
        Operations of the graph as onnxruntime runs it, and how often each stands there.
    accuracy
        Share of right answers, 0 to 1.
    per_class_accuracy
        The same for the rows of each class; None for a class without rows.
    gained, lost
        Rows that this model has right and the dense one wrong, and the other way round.
    agreement
        Share of rows where it answers as the dense model does.
    nll
        Mean cross-entropy, nats.
    ece
        Expected calibration error, 0 to 1.
    reliability
        For each interval of confidence: mean confidence, share of right answers, rows.
    saliency_similarity
        Mean rank correlation, −1 to 1, of its saliency maps with the dense model's; None where no
        map has a rank.
    saliency_maps
        Maps of the first rows, shape (rows, places).
    layers
        Arrays of weights.
    """

    name: str
    kind: str
    file: str
    recipe: Mapping[str, Any]
    verified: bool | None
    file_bytes: int
    parameters: int
    nonzero: int
    multiply_adds: int
    latency: Mapping[str, Latency]
    kernels: Mapping[str, int]
    accuracy: float
    per_class_accuracy: Sequence[float | None]
    gained: int
    lost: int
    agreement: float
    nll: float
    ece: float
    reliability: Sequence[tuple[float, float, int]]
    saliency_similarity: float | None
    saliency_maps: Blocks
    layers: Sequence[LayerFacts]


@final
@dataclass(frozen=True)
class Sample:
    """A test row whose saliency maps are kept.

    Attributes
    ----------
    label, answer
        Its class, and what the dense model answers.
    shape
        Places of a saliency map: (rows, columns) of an image, (1, pieces) of a text.
    pixels
        The image, dark to light as 0 to 1, coarse; None for a text.
    text
        The characters; empty for an image.
    """

    label: int
    answer: int
    shape: tuple[int, int]
    pixels: Blocks | None
    text: str


@final
@dataclass(frozen=True)
class Problem:
    """A file that could not be explained, and why."""

    file: str
    reason: str


@final
@dataclass(frozen=True)
class Explanation:
    """All deployed models of a cell, the dense one first.

    Attributes
    ----------
    label, seed
        Which cell.
    rows
        Test rows that accuracy is of.
    class_rows
        Test rows of each class.
    class_names
        How a person calls each class.
    turns, calls
        By rows per call: how often each model had its turn, and how often it was called in one.
    order
        The models in the order of the first turn; each turn begins one later.
    machine, versions
        Where latency was measured, and with which packages.
    """

    label: str
    seed: int
    rows: int
    class_rows: Sequence[int]
    class_names: Sequence[str]
    turns: Mapping[str, int]
    calls: Mapping[str, Mapping[str, int]]
    order: Sequence[str]
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    samples: Sequence[Sample]
    models: Sequence[Explained]
    problems: Sequence[Problem]

    def to_json(self) -> dict[str, Any]:
        """Give the contents of `explain.json`."""
        return {"version": VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> "Explanation":
        """Read the contents of `explain.json` back.

        Raises
        ------
        ConfigError
            If they were written in another layout.
        """
        if told.get("version") != VERSION:
            raise ConfigError(
                f"explain.json is of version {told.get('version')}, not {VERSION}; "
                "run `fedcompress explain` again"
            )
        try:
            return cls(
                **{key: value for key, value in told.items() if key not in ("version", *_NESTED)},
                samples=[Sample(**each) for each in told["samples"]],
                models=[_model(each) for each in told["models"]],
                problems=[Problem(**each) for each in told["problems"]],
            )
        except (KeyError, TypeError) as error:
            raise ConfigError(
                f"explain.json is damaged ({error}); run `fedcompress explain` again"
            ) from error


_NESTED = ("samples", "models", "problems")


def _model(told: Mapping[str, Any]) -> Explained:
    latency = {batch: Latency(**each) for batch, each in told["latency"].items()}
    layers = [LayerFacts(**each) for each in told["layers"]]
    return Explained(**{**told, "latency": latency, "layers": layers})
