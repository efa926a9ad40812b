"""The section of the page on deployed models: its table and its sentences."""

from collections.abc import Mapping
from typing import Any

from simulations.report.deployment import (
    HEADINGS,
    DeployedModel,
    Deployment,
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
        "many_seeds": any(len(model.seeds) > 1 for model in deployment.models),
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
    parts = [f"{key} {_value(value)}" for key, value in explained.recipe.items() if value]
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


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_value(each)}" for key, each in value.items() if each)
    return str(value)


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
