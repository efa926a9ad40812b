"""The section of the page on deployed models: its table and its sentences."""

from collections.abc import Mapping
from typing import Any

from simulations.report.deployment import (
    HEADINGS,
    DeployedModel,
    Deployment,
    caption,
    findings,
    in_words,
    text_rows,
)


def deployment_parts(deployment: Deployment) -> dict[str, Any]:
    """Return what the section's template shows, but for the figures."""
    return {
        "findings": findings(deployment),
        "headings": HEADINGS,
        "rows": text_rows(deployment),
        "caption": caption(deployment),
        "problems": deployment.problems,
        "words": [
            (model.text, _made(model), in_words(model))
            for model in deployment.models
            if not model.is_dense
        ],
        "measured": _measured(deployment),
    }


def _made(model: DeployedModel) -> str:
    """Say how a model was made, whether it was verified, and what it runs on."""
    explained = model.seeds[0].model
    parts = _recipe_texts(explained.recipe)
    if explained.verified is not None:
        parts.append("verified in a fresh process" if explained.verified else "NOT verified")
    integer = {
        name: count
        for name, count in explained.kernels.items()
        if any(sign in name for sign in ("Integer", "QLinear", "QGemm", "DynamicQuantize"))
    }
    if integer:
        kernels = ", ".join(f"{name} × {count}" for name, count in integer.items())
        parts.append(f"integer kernels: {kernels}")
    return " · ".join(parts)


def _recipe_texts(recipe: Mapping[str, Any]) -> list[str]:
    """Write what an exporter noted of its steps, in their order."""
    prune = recipe.get("prune")
    shares = prune if isinstance(prune, Mapping) else {}
    texts = [
        f"{100 * shares[part]:g} % of {what}"
        for part, what in (("rows", "rows taken out"), ("entries", "weights set to zero"))
        if shares.get(part)
    ]
    if shares.get("groups"):
        texts[-1] = "{} of every {} inputs kept".format(*shares["groups"])
    if recipe.get("quantize"):
        values = recipe.get("centroids")
        texts.append(f"{recipe['quantize']}{f' of {values} values' if values else ''}")
    if recipe.get("spec"):
        texts.append(str(recipe["spec"]))
    if recipe.get("tune"):
        rows = recipe.get("unlabelled", "some rows")
        texts.append(f"tuned for {_epochs(recipe['tune'])} on {rows}")
    return texts


def _epochs(count: object) -> str:
    return "1 epoch" if count == 1 else f"{count} epochs"


def _measured(deployment: Deployment) -> str:
    """Say where and on how many rows."""
    if not deployment.explanations:
        return ""
    first = deployment.explanations[0]
    turns, processor = first.turns, first.machine.get("processor", "an unknown processor")
    return (
        f"On {first.rows:,} test rows; latency on {processor} "
        f"with onnxruntime {first.versions.get('onnxruntime', '?')}, medians of {turns['1']} turns "
        f"at batch 1 and {turns['64']} at batch 64, no model's turns together."
    )
