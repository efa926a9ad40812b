"""The registry of published methods, filled by the `published` decorator."""

import inspect
from collections.abc import Callable
from typing import TypeVar

from fedcompress.checks import near
from fedcompress.errors import ConfigError
from strategies.methods.method import Builder, Entry, Method, Option

_ENTRIES: dict[str, Entry] = {}
_B = TypeVar("_B", bound=Builder)


def published(source: str) -> Callable[[_B], _B]:
    """Register the decorated builder as a method, under the function's name.

    The builder takes keyword arguments that all have defaults and returns a `Recipe`. The
    first line of its docstring is the summary.

    Parameters
    ----------
    source : str
        Authors, title, year.
    """

    def register(build: _B) -> _B:
        summary = inspect.cleandoc(build.__doc__ or "").partition("\n")[0]
        if build.__name__ in _ENTRIES:
            raise ConfigError(f"method: the name {build.__name__!r} is taken; choose another")
        _ENTRIES[build.__name__] = Entry(build.__name__, source, summary, build)
        return build

    return register


def method(name: str, **options: Option) -> Method:
    """Make a published method by its name.

    Parameters
    ----------
    name : str
        One of `methods()`.
    **options : int, float, str, bool or None
        The method's own parameters, such as ``fraction=0.01`` of ``stc``.

    Returns
    -------
    Method

    Raises
    ------
    ConfigError
        If there is no such method or parameter, or a value is out of range.

    Examples
    --------
    >>> method("fedpaq", bits=3).uplink
    'quantize(3) | entropy()'
    """
    entry = _ENTRIES.get(name)
    if entry is None:
        raise ConfigError(f"method: there is no {name!r}; {near(str(name), list(_ENTRIES))}")
    known = parameters(name)
    for option in options:
        if option not in known:
            mend = near(option, list(known)) if known else "it takes none"
            raise ConfigError(f"{name}: there is no parameter {option!r}; {mend}")
    recipe = entry.build(**options)
    return Method(
        name=entry.name,
        source=entry.source,
        summary=entry.summary,
        server=recipe.server,
        server_options=dict(recipe.server_options),
        uplink=recipe.uplink,
        downlink=recipe.downlink,
        distill=recipe.distill,
        exchange=recipe.exchange,
        options=dict(recipe.options),
    )


def methods() -> dict[str, Method]:
    """Map the name of every published method to the method with its default parameters."""
    return {name: method(name) for name in _ENTRIES}


def parameters(name: str) -> dict[str, Option]:
    """Map a method's parameters to their defaults.

    Raises
    ------
    ConfigError
        If there is no such method.
    """
    if name not in _ENTRIES:
        raise ConfigError(f"method: there is no {name!r}; {near(str(name), list(_ENTRIES))}")
    signature = inspect.signature(_ENTRIES[name].build)
    return {key: parameter.default for key, parameter in signature.parameters.items()}
