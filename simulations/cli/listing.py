"""`fedcompress list`."""

import inspect
import json
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

Rows = list[tuple[str, str]]


def show_listing(what: str) -> None:
    """Print the names of one kind, each with what it is."""
    # What it is stands below its name: a call with many settings takes a whole line.
    console = Console()
    for name, text in _LISTINGS[what]():
        console.print(Text(name, style="bold"))
        console.print(Padding(Text(text), (0, 0, 0, 4)))


def _stages() -> Rows:
    from fedcompress.registry import stages

    return [(_call(name, kind), _summary(kind)) for name, kind in sorted(stages().items())]


def _coders() -> Rows:
    from fedcompress.registry import coders

    return [(_call(name, kind), _summary(kind)) for name, kind in sorted(coders().items())]


def _wrappers() -> Rows:
    from fedcompress.registry import compressors

    return [(_call(name, kind), _summary(kind)) for name, kind in sorted(compressors().items())]


def _methods() -> Rows:
    from strategies.methods import methods, parameters

    return [
        (
            name,
            f"{method.summary} ({method.source})"
            + "".join(f" {key}={value}" for key, value in parameters(name).items()),
        )
        for name, method in methods().items()
    ]


def _models() -> Rows:
    from simulations.models import MODELS

    return [(name, _summary(kind)) for name, kind in MODELS.items()]


def _data() -> Rows:
    return [
        ("digits", "8 × 8 handwritten digits, 1,797 of them; comes with scikit-learn"),
        ("NAME", "the folder NAME of parquet files below --data-dir, as on the Hugging Face hub"),
        ("./FOLDER", "a folder of parquet files by its path"),
        ("OWNER/NAME", "a data set of the Hugging Face hub, such as ylecun/mnist"),
    ]


def _studies() -> Rows:
    from simulations.study import studies

    return [
        (name, file.read_text("utf-8").partition("\n")[0].lstrip("# "))
        for name, file in studies().items()
    ]


def _call(name: str, kind: type) -> str:
    parameters = inspect.signature(kind).parameters.values()
    return f"{name}({', '.join(_with_default(kind, each) for each in parameters)})"


def _with_default(kind: type, parameter: inspect.Parameter) -> str:
    if parameter.default is inspect.Parameter.empty:
        return parameter.name
    default = parameter.default
    if is_dataclass(kind):
        made = {field.name: field.default_factory for field in fields(kind)}[parameter.name]
        default = default if made is MISSING else made()
    text = json.dumps(default) if isinstance(default, str) else str(default)
    return f"{parameter.name}={text}"


def _summary(thing: object) -> str:
    # Docstrings mark code as reStructuredText does, a terminal has no use for it.
    text = inspect.cleandoc(getattr(thing, "__doc__", None) or "")
    return text.partition("\n")[0].replace("`", "")


_LISTINGS: dict[str, Callable[[], Rows]] = {
    "stages": _stages,
    "coders": _coders,
    "wrappers": _wrappers,
    "methods": _methods,
    "models": _models,
    "data": _data,
    "studies": _studies,
}
