"""Models for deployment: what `fedcompress explain` measured, as rows over seeds."""

from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass
from typing import final

import numpy as np

from fedcompress.errors import ConfigError
from simulations.explain.explained import Explained, Explanation, Latency
from simulations.report.intervals import mean_and_interval
from simulations.report.records import read_object
from simulations.report.run import Run
from simulations.report.style import Look
from simulations.report.text import (
    NOT_AVAILABLE,
    bytes_text,
    change_text,
    count_text,
    number_text,
    ratio_text,
)

HEADINGS = (
    "Model",
    "Accuracy %",
    "Change",
    "File",
    "Smaller",
    "Batch 1 µs",
    "Faster",
    "Batch 64 µs",
    "Faster at 64",
    "Multiply-adds",
    "Parameters",
    "Not zero %",
    "Agreement %",
    "ECE %",
    "Saliency",
    "Seeds",
)
ACCEPTED_LOSS_POINTS = 1.0
"""A saving is a headline only where accuracy stays within this of the dense model."""


@final
@dataclass(frozen=True)
class Compared:
    """A model and the dense model of the same cell."""

    explanation: Explanation
    model: Explained
    dense: Explained

    @property
    def change_points(self) -> float:
        """Accuracy less the dense model's, points."""
        return 100 * (self.model.accuracy - self.dense.accuracy)

    @property
    def change_interval_points(self) -> float:
        """Half the 95 % interval of the change, for other rows like these (McNemar, 1947)."""
        gained, lost, rows = self.model.gained, self.model.lost, self.explanation.rows
        variance = (gained + lost) - (gained - lost) ** 2 / rows
        return 100 * 1.96 * float(np.sqrt(variance)) / rows


@final
@dataclass(frozen=True)
class DeployedModel:
    """One deployed model of one strategy, over the seeds that it was measured for.

    Attributes
    ----------
    label, name
        The strategy, and the model's file or `dense` or `student`.
    text
        What it is called where it stands among others.
    look
        Its colour and marker.
    seeds
        What was measured.
    """

    label: str
    name: str
    text: str
    look: Look
    seeds: tuple[Compared, ...]

    def mean(self, value: Callable[[Compared], float]) -> float:
        """Mean over seeds."""
        return float(np.mean([value(each) for each in self.seeds]))

    @property
    def is_dense(self) -> bool:
        """Whether it is what others are compared with."""
        return self.seeds[0].model.kind == "dense"

    @property
    def smaller(self) -> float:
        """Bytes of the dense model's file ÷ its own."""
        return self.mean(lambda s: s.dense.file_bytes) / self.mean(lambda s: s.model.file_bytes)

    def latency(self, batch: str) -> Latency:
        """Return the means over seeds for calls of so many rows."""
        each = [astuple(compared.model.latency[batch]) for compared in self.seeds]
        return Latency(*(float(mean) for mean in np.mean(each, axis=0)))

    @property
    def change(self) -> tuple[float, float]:
        """Points against the dense model, and half the 95 % interval.

        Over seeds; of a single seed, over test rows.
        """
        if len(self.seeds) == 1:
            return self.seeds[0].change_points, self.seeds[0].change_interval_points
        return mean_and_interval([each.change_points for each in self.seeds])


@final
@dataclass(frozen=True)
class Deployment:
    """All deployed models of a run, and what could not be measured."""

    models: tuple[DeployedModel, ...]
    explanations: tuple[Explanation, ...]
    problems: tuple[tuple[str, str], ...]


def load_deployment(run: Run) -> Deployment | None:
    """Read `explain.json` of the finished cells; None where there is none.

    One that cannot be read is among the problems, and its cell counts nowhere.
    """
    explanations: list[Explanation] = []
    problems: list[tuple[str, str]] = []
    for path in sorted(run.folder.glob("cells/*/explain.json")):
        try:
            explanation = Explanation.from_json(
                read_object(path, "run `fedcompress explain` again")
            )
        except ConfigError as error:
            problems.append((path.parent.name, str(error).removeprefix("report: ")))
            continue
        if (explanation.label, explanation.seed) in run.finished:
            explanations.append(explanation)
            problems += [(f"{path.parent.name}/{p.file}", p.reason) for p in explanation.problems]
    if not explanations and not problems:
        return None
    explanations.sort(key=lambda each: (run.labels.index(each.label), each.seed))
    return Deployment(tuple(_models(explanations)), tuple(explanations), tuple(problems))


def _models(explanations: list[Explanation]) -> list[DeployedModel]:
    found: dict[tuple[str, str], list[Compared]] = {}
    for explanation in explanations:
        dense = next(each for each in explanation.models if each.kind == "dense")
        for model in explanation.models:
            compared = Compared(explanation, model, dense)
            found.setdefault((explanation.label, model.name), []).append(compared)
    many = len({label for label, _ in found}) > 1
    return [
        DeployedModel(
            label, name, f"{label} · {name}" if many else name, Look(index), tuple(compared)
        )
        for index, ((label, name), compared) in enumerate(found.items())
    ]


def caption(deployment: Deployment) -> str:
    """Say what stands in the columns."""
    many = any(len(model.seeds) > 1 for model in deployment.models)
    return (
        f"One row per model{', mean over seeds' if many else ''}. Smaller and faster: the dense "
        "model’s ÷ this one’s. µs: time of one core for a call of 1 or 64 rows in onnxruntime on "
        "one thread, median, all models in turn. Change: points of accuracy against the dense "
        f"model, ± half its 95 % interval over {'seeds' if many else 'test rows'}. Agreement: "
        "rows answered as the dense model does. ECE: expected calibration error, how far "
        "confidence is from the share of right answers. Saliency: mean rank correlation of what "
        "the model looks at with what the dense model looks at, 1 at most."
    )


def text_rows(deployment: Deployment) -> list[tuple[str, ...]]:
    """Return one tuple of texts for each model, in the order of `HEADINGS`."""
    return [_texts(model) for model in deployment.models]


def _texts(model: DeployedModel) -> tuple[str, ...]:
    similarity = [
        each.model.saliency_similarity
        for each in model.seeds
        if each.model.saliency_similarity is not None
    ]
    parameters = model.mean(lambda s: s.model.parameters)
    return (
        model.text,
        f"{100 * model.mean(lambda s: s.model.accuracy):.2f}",
        _change_text(model),
        bytes_text(model.mean(lambda s: s.model.file_bytes)),
        ratio_text(model.smaller),
        number_text(model.latency("1").cpu_us),
        ratio_text(model.latency("1").speedup),
        number_text(model.latency("64").cpu_us),
        ratio_text(model.latency("64").speedup),
        count_text(model.mean(lambda s: s.model.multiply_adds)),
        count_text(parameters),
        f"{100 * model.mean(lambda s: s.model.nonzero) / max(parameters, 1):.1f}",
        f"{100 * model.mean(lambda s: s.model.agreement):.2f}",
        f"{100 * model.mean(lambda s: s.model.ece):.2f}",
        f"{np.mean(similarity):.3f}" if similarity else NOT_AVAILABLE,
        str(len(model.seeds)),
    )


def _change_text(model: DeployedModel) -> str:
    points, interval = model.change
    if model.is_dense:
        return "–"
    return change_text(points) + ("" if np.isnan(interval) else f" ± {interval:.2f}")


def findings(deployment: Deployment) -> list[dict[str, str]]:
    """Return the figures that a reader looks for first."""
    close = [
        model
        for model in deployment.models
        if not model.is_dense and model.change[0] >= -ACCEPTED_LOSS_POINTS
    ]
    if not close:
        return []
    smallest = max(close, key=lambda model: model.smaller)
    fastest = max(close, key=lambda model: model.latency("1").speedup)
    lost = f"at most {ACCEPTED_LOSS_POINTS:g} point lost"
    return [
        {
            "title": f"{what}, {lost}",
            "value": ratio_text(value),
            "label": model.text,
            "note": f"{note}; {_change_text(model)} points",
        }
        for what, model, value, note in (
            ("Smallest file", smallest, smallest.smaller, "fewer bytes than the dense model"),
            (
                "Fastest at batch 1",
                fastest,
                fastest.latency("1").speedup,
                "less time than the dense model",
            ),
        )
        if value > 1
    ]


def in_words(model: DeployedModel) -> list[str]:
    """Say what a model saves, what it loses, and where it loses it."""
    differs = 100 * (1 - model.mean(lambda s: s.model.agreement))
    gained, lost = (model.mean(get) for get in (lambda s: s.model.gained, lambda s: s.model.lost))
    if differs == 0:
        return ["answers every row as the dense model does"]
    said = [
        f"answers {differs:.2g} % of the rows otherwise than the dense model: {lost:,.0f} that it "
        f"had right are wrong now, {gained:,.0f} the other way round"
    ]
    changes = class_changes(model)
    if changes:
        worst = min(changes, key=lambda name: changes[name])
        if changes[worst] < 0:
            said.append(f"class {worst} suffers most ({change_text(changes[worst])} points)")
    ece, dense_ece = (
        100 * model.mean(get) for get in (lambda s: s.model.ece, lambda s: s.dense.ece)
    )
    said.append(f"its confidence is off by {ece:.2g} points (dense {dense_ece:.2g})")
    layers = [
        each
        for each in model.seeds[0].model.layers
        if each.error is not None and len(each.shape) > 1
    ]
    if layers:
        changed = max(layers, key=lambda layer: layer.error or 0.0)
        if changed.error:
            said.append(f"weights change most in {changed.name} (NMSE {changed.error:.2g})")
    return said


def class_changes(model: DeployedModel) -> Mapping[str, float]:
    """Return the change of accuracy in points for each class, mean over seeds."""
    changes: dict[str, list[float]] = {}
    for each in model.seeds:
        names = each.explanation.class_names
        pairs = zip(each.model.per_class_accuracy, each.dense.per_class_accuracy, strict=True)
        for name, (now, before) in zip(names, pairs, strict=True):
            if now is not None and before is not None:
                changes.setdefault(name, []).append(100 * (now - before))
    return {name: float(np.mean(values)) for name, values in changes.items()}
