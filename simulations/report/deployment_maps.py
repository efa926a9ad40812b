"""Maps of deployed models: weights that are gone, weights that changed, what models look at."""

import math
import re
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from simulations.explain.explained import Blocks, Explanation, LayerFacts
from simulations.report.bars import shortened
from simulations.report.deployment import DeployedModel, Deployment
from simulations.report.figure import Figure
from simulations.report.mosaic import mosaic
from simulations.report.style import INK, SERIES

TextOf = Callable[[LayerFacts], str]
BlocksOf = Callable[[LayerFacts], Blocks | None]
Scale = Callable[[NDArray[np.float64]], NDArray[np.float64]]

SMALLEST_ERROR = 1e-6
LEAST_SPARSITY = 0.05
"""A model of which no matrix has more zeros is not drawn for them: rounding makes a few."""
MOST_MODELS = 6
MOST_LAYERS = 14
SHOWN_TEXTS = 3
_ZERO_COLOR, _ERROR_COLOR, _LOOK_COLOR = SERIES[1], SERIES[2], SERIES[3]


def map_figures(deployment: Deployment) -> list[Figure]:
    """Return the maps that have something to show, of the first seed of each strategy."""
    others = [model for model in deployment.models if not model.is_dense]
    figures = [
        figure for figure in (_sparsity_figure(others), _error_figure(others)) if figure is not None
    ]
    return [*figures, *_saliency_figures(deployment)]


def _layers(model: DeployedModel) -> dict[str, LayerFacts]:
    return {each.name: each for each in model.seeds[0].model.layers if len(each.shape) > 1}


def _sparsity_figure(models: Sequence[DeployedModel]) -> Figure | None:
    sparse = [
        m for m in models if any(each.sparsity > LEAST_SPARSITY for each in _layers(m).values())
    ]
    if not sparse:
        return None
    return _layer_figure(
        sparse,
        name="deployed_sparsity",
        title="Which weights are gone",
        caption="Each square is a matrix of weights, outputs downwards, cut into blocks: the "
        "stronger the colour, the more of a block is not zero. The number is the share of the "
        "dense model's weights that are zero or were taken out; of a matrix made smaller, what is "
        "left is drawn.",
        color=_ZERO_COLOR,
        text=lambda layer: f"{100 * layer.sparsity:.3g} %",
        blocks=lambda layer: layer.kept_blocks,
        scale=lambda kept: kept,
    )


def _error_figure(models: Sequence[DeployedModel]) -> Figure | None:
    changed = [m for m in models if any(each.error for each in _layers(m).values())]
    if not changed:
        return None
    return _layer_figure(
        changed,
        name="deployed_errors",
        title="Where weights changed",
        caption="Squared difference to the model it was made from, by blocks of each matrix of "
        "weights, outputs downwards, in shares of the matrix's mean square; logarithmic: blank is "
        "10⁻⁶ or less, full colour 1. The number is that of the whole matrix (NMSE).",
        color=_ERROR_COLOR,
        text=lambda layer: "–" if layer.error is None else f"{layer.error:.2g}",
        blocks=lambda layer: layer.error_blocks,
        scale=lambda error: (
            1 + np.log10(np.maximum(error, SMALLEST_ERROR)) / -math.log10(SMALLEST_ERROR)
        ),
    )


def _layer_figure(
    models: Sequence[DeployedModel],
    *,
    name: str,
    title: str,
    caption: str,
    color: str,
    text: TextOf,
    blocks: BlocksOf,
    scale: Scale,
) -> Figure:
    drawn = list(models[:MOST_MODELS])
    names = list(dict.fromkeys(layer for model in models for layer in _layers(model)))
    layers = names[:MOST_LAYERS]
    cut = (
        " First models and layers only."
        if (len(models), len(names)) != (len(drawn), len(layers))
        else ""
    )
    return Figure(
        name=name,
        title=title,
        caption=caption + cut,
        description="; ".join(
            f"{m.text}: " + ", ".join(f"{each} {text(facts)}" for each, facts in _layers(m).items())
            for m in models
        )
        + ".",
        draw=lambda axes: _draw_layers(axes, drawn, layers, color, text, blocks, scale),
        height_inches=1.1 + 0.55 * max(len(layers), 2),
        columns=("Weights", *(model.text for model in models)),
        rows=tuple(
            (each, *(text(facts) if (facts := _layers(m).get(each)) else "–" for m in models))
            for each in names
        ),
    )


def _draw_layers(
    axes: Axes,
    models: Sequence[DeployedModel],
    layers: Sequence[str],
    color: str,
    text: TextOf,
    blocks: BlocksOf,
    scale: Scale,
) -> None:
    for column, model in enumerate(models):
        facts = _layers(model)
        for row, layer in enumerate(layers):
            known = facts.get(layer)
            if known is None:
                continue
            cells = blocks(known)
            if cells is not None:
                values = scale(np.asarray(cells, dtype=np.float64))
                mosaic(axes, values, (column + 0.06, row + 0.08), (0.42, 0.84), color)
            axes.text(column + 0.53, row + 0.5, text(known), va="center", ha="left", fontsize=8)
    axes.set_xlim(0, max(len(models), 2))
    axes.set_ylim(len(layers), 0)
    axes.xaxis.tick_top()
    longest = max(9, 52 // max(len(models), 2))
    axes.set_xticks(
        [column + 0.06 for column in range(len(models))],
        [wrapped(model.name, longest) for model in models],
        ha="left",
    )
    axes.set_yticks(
        [row + 0.5 for row in range(len(layers))],
        [shortened(n.removesuffix(".weight"), 26) for n in layers],
    )
    _bare(axes)


def wrapped(name: str, longest: int) -> str:
    """Break a name behind hyphens and spaces, so that columns can be narrow."""
    lines = [""]
    for part in re.findall(r"[^- ]*[- ]?", name.removeprefix("model-")):
        if lines[-1] and len(lines[-1]) + len(part) > longest:
            lines.append("")
        lines[-1] += part
    return "\n".join(shortened(line, longest + 2) for line in lines)


def _saliency_figures(deployment: Deployment) -> list[Figure]:
    """One figure for the first cell: its samples, and each model's maps of them."""
    explanation = deployment.explanations[0]
    models = [
        model
        for model in deployment.models
        if model.label == explanation.label and model.seeds[0].explanation is explanation
    ][: MOST_MODELS + 1]
    if len(models) < 2 or not explanation.samples:
        return []
    similar = "; ".join(
        f"{m.text} {m.seeds[0].model.saliency_similarity:.2f}"
        for m in models
        if m.seeds[0].model.saliency_similarity is not None
    )
    is_image = explanation.samples[0].pixels is not None
    samples = len(explanation.samples) if is_image else min(len(explanation.samples), SHOWN_TEXTS)
    height = 0.4 + 0.72 * (1 + len(models)) if is_image else 0.4 + 0.2 * samples * (2 + len(models))
    return [
        Figure(
            name="deployed_saliency",
            title="What the models look at",
            caption="Test rows, and by how much the logit of the dense model's answer falls when a "
            "place is covered (Zeiler & Fergus, 2014): the stronger the colour, the more the "
            "answer hangs on it, each map to its own largest fall. "
            + (
                "Below each picture, its class and the dense model's answer. At the right, mean "
                "rank correlation with the dense model's maps."
                if is_image
                else "Beside each text, its class and the dense model's answer."
            ),
            description=f"Mean rank correlation with the dense model's maps: {similar}.",
            draw=lambda axes: (
                _draw_pictures(axes, explanation, models)
                if is_image
                else _draw_texts(axes, explanation, models)
            ),
            height_inches=height,
        )
    ]


def _map(model: DeployedModel, sample: int, shape: Sequence[int]) -> NDArray[np.float64]:
    falls = np.maximum(np.asarray(model.seeds[0].model.saliency_maps[sample]), 0).reshape(shape)
    return np.asarray(falls / max(float(falls.max()), 1e-12))


def _draw_pictures(axes: Axes, explanation: Explanation, models: Sequence[DeployedModel]) -> None:
    names = explanation.class_names
    for column, sample in enumerate(explanation.samples):
        mosaic(axes, np.asarray(sample.pixels), (column + 0.08, 0.04), (0.84, 0.78), INK)
        told = f"{names[sample.label]} → {names[sample.answer]}"
        axes.text(column + 0.5, 0.93, told, ha="center", va="center", fontsize=7.5)
        for row, model in enumerate(models, 1):
            values = _map(model, column, sample.shape)
            mosaic(axes, values, (column + 0.08, row + 0.08), (0.84, 0.84), _LOOK_COLOR)
    for row, model in enumerate(models, 1):
        similar = model.seeds[0].model.saliency_similarity
        told = "–" if similar is None else f"{similar:.2f}"
        axes.text(len(explanation.samples) + 0.05, row + 0.5, told, va="center", fontsize=8)
    axes.set_xlim(0, len(explanation.samples) + 0.4)
    axes.set_ylim(len(models) + 1, 0)
    rows = ["test row", *(wrapped(model.name, 14) for model in models)]
    axes.set_yticks([row + 0.5 for row in range(len(rows))], rows)
    axes.set_xticks([])
    _bare(axes)


def _draw_texts(axes: Axes, explanation: Explanation, models: Sequence[DeployedModel]) -> None:
    names = explanation.class_names
    block = len(models) + 2
    ticks: list[tuple[float, str]] = []
    for place, sample in enumerate(explanation.samples[:SHOWN_TEXTS]):
        top = place * block
        text = sample.text.replace("\n", "↵")
        for at, character in enumerate(text):
            x = (at + 0.5) / len(text)
            axes.text(x, top + 0.5, character, ha="center", va="center", fontsize=5.5)
        ticks.append((top + 0.5, f"{names[sample.label]} → {names[sample.answer]}"))
        for row, model in enumerate(models, 1):
            values = _map(model, place, sample.shape)
            mosaic(axes, values, (0.0, top + row + 0.1), (1.0, 0.8), _LOOK_COLOR)
            ticks.append((top + row + 0.5, shortened(model.name, 20)))
    axes.set_xlim(0, 1)
    axes.set_ylim(block * min(len(explanation.samples), SHOWN_TEXTS), 0)
    axes.set_yticks([at for at, _ in ticks], [text for _, text in ticks])
    axes.set_xticks([])
    _bare(axes)


def _bare(axes: Axes) -> None:
    """Leave names and maps, and take the frame away."""
    axes.grid(visible=False)
    axes.tick_params(length=0, labelsize=8)
    for spine in axes.spines.values():
        spine.set_visible(False)
