"""`fedcompress list`."""

import inspect
from collections.abc import Callable

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

Rows = list[tuple[str, str]]


def show_listing(what: str) -> None:
    """Print the names of one kind, each with what it is."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title_justify="left", title=what)
    table.add_column("name", no_wrap=True)
    table.add_column("what it is")
    for name, text in _LISTINGS[what]():
        table.add_row(escape(name), escape(text))
    Console().print(table)


def _stages() -> Rows:
    from fedcompress.registry import stages

    return [(_call(name, kind), _summary(kind)) for name, kind in sorted(stages().items())]


def _coders() -> Rows:
    from fedcompress.registry import coders, compressors

    both = {**coders(), **compressors()}
    return [(_call(name, kind), _summary(kind)) for name, kind in both.items()]


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
    parameters = list(inspect.signature(kind).parameters.values())
    return f"{name}({', '.join(parameter.name for parameter in parameters)})"


def _summary(thing: object) -> str:
    return inspect.cleandoc(getattr(thing, "__doc__", None) or "").partition("\n")[0]


_LISTINGS: dict[str, Callable[[], Rows]] = {
    "stages": _stages,
    "coders": _coders,
    "methods": _methods,
    "models": _models,
    "data": _data,
    "studies": _studies,
}
