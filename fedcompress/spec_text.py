"""How an object with settings is written in a spec string."""

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedcompress.coder import Coder
    from fedcompress.compressor import Compressor
    from fedcompress.stage import Stage


def literal_text(value: object) -> str:
    """Write a literal as the spec grammar reads it."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{literal_text(k)}: {v}" for k, v in value.items()) + "}"
    return str(value)


def call_text(obj: "Stage | Coder | Compressor") -> str:
    """Write a frozen dataclass as the call that makes it: ``quantize(step=0.4)``.

    Settings at their default are left out; the first one is positional.
    """
    parts: list[str] = []
    for i, field in enumerate(fields(obj)):  # type: ignore[arg-type]  # final subclasses are dataclasses
        value = getattr(obj, field.name)
        if field.default is not MISSING and value == field.default:
            continue
        prefix = "" if i == 0 and not field.kw_only else f"{field.name}="
        parts.append(prefix + literal_text(value))
    return f"{obj.name}({', '.join(parts)})"
