"""How an object with settings is written in a spec string."""

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields


def literal_text(value: object) -> str:
    """Write a literal as the spec grammar reads it."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{literal_text(k)}: {v}" for k, v in value.items()) + "}"
    return str(value)


def call_text(obj: object) -> str:
    """Write a frozen dataclass as the call that makes it: ``quantize(step=0.4)``.

    Settings at their default are left out; leading ones are positional.
    """
    parts: list[str] = []
    positional = True
    for field in fields(obj):  # type: ignore[arg-type]
        value = getattr(obj, field.name)
        if field.default is not MISSING and value == field.default:
            positional = False
            continue
        if field.kw_only or not positional:
            parts.append(f"{field.name}={literal_text(value)}")
        else:
            parts.append(literal_text(value))
    return f"{getattr(obj, 'name')}({', '.join(parts)})"
