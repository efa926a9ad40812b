"""Which model: as a section of a study, and several of them as one text."""

import ast
import json
from collections.abc import Iterable
from typing import Annotated, Literal, final

from pydantic import AfterValidator, ValidationError

from fedcompress.checks import near
from fedcompress.errors import ConfigError
from simulations.settings import Positive, Section, Widths, config_error


def _check_model(name: str) -> str:
    from simulations.models import MODELS

    if name not in MODELS:
        raise ValueError(
            f"must be one of {', '.join(MODELS)}, got {name!r}; {near(name, list(MODELS))}"
        )
    return name


ModelName = Annotated[str, AfterValidator(_check_model)]


@final
class ModelSettings(Section):
    """Which model; `hidden` is for the MLP, the LSTM and the transformer, `width` scales any.

    With static `norm_statistics` clients normalise by each batch's own statistics and keep none;
    the server estimates those of a model that it tests on proxy rows (HeteroFL; Diao et al., 2021).
    """

    name: ModelName = "mlp"
    hidden: Widths = (200, 200)
    width: Positive = 1.0
    norm_statistics: Literal["running", "static"] = "running"


def read_models(text: str) -> tuple[ModelSettings, ...]:
    """Read models from one text, such as ``"mlp(hidden=[200]); lenet(width=0.5)"``.

    Parameters
    ----------
    text : str
        Calls of models with settings by name, parted by semicolons. It is read from the syntax
        tree and never evaluated.

    Returns
    -------
    tuple of ModelSettings
        In the order of the text.

    Raises
    ------
    ConfigError
        If the text is no such list, or a model or a setting cannot work.
    """
    try:
        body = ast.parse(text.replace("\n", " ").strip(), mode="exec").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ConfigError(f"models: {text!r} cannot be read: {_like_this(error)}") from error
    if not body:
        raise ConfigError(f"models: {text!r} names no model; {_like_this()}")
    return tuple(_model_of(statement, text) for statement in body)


def write_models(models: Iterable[ModelSettings]) -> str:
    """Write models as `read_models` reads them: with every setting that is not the default."""
    return "; ".join(f"{model.name}({', '.join(_assignments(model))})" for model in models)


def _assignments(model: ModelSettings) -> list[str]:
    for_each = {n: v for n, v in model.model_dump(mode="json").items() if n != "name"}
    defaults = ModelSettings().model_dump(mode="json")
    return [f"{n}={json.dumps(v)}" for n, v in for_each.items() if v != defaults[n]]


def _model_of(statement: ast.stmt, text: str) -> ModelSettings:
    call = statement.value if isinstance(statement, ast.Expr) else None
    if isinstance(call, ast.Name):
        return _checked({"name": call.id}, text)
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        raise ConfigError(f"models: {ast.unparse(statement)!r} is no model; {_like_this()}")
    settings: dict[str, object] = {"name": call.func.id}
    for keyword in call.keywords:
        if keyword.arg is None or keyword.arg in settings:
            raise ConfigError(f"models: {ast.unparse(call)!r} cannot be read; {_like_this()}")
        try:
            settings[keyword.arg] = ast.literal_eval(keyword.value)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
            raise ConfigError(
                f"models: {keyword.arg}={ast.unparse(keyword.value)} is no number, list or text; "
                f"{_like_this()}"
            ) from error
    if call.args:
        raise ConfigError(
            f"models: {ast.unparse(call)!r} has settings without a name; {_like_this()}"
        )
    return _checked(settings, text)


def _checked(settings: dict[str, object], text: str) -> ModelSettings:
    try:
        return ModelSettings.model_validate(settings)
    except ValidationError as error:
        raise config_error(f"models {text!r}", error, ModelSettings) from error


def _like_this(error: Exception | None = None) -> str:
    # Python's own words of a syntax error name a file and a line that are not there.
    reason = error.msg if isinstance(error, SyntaxError) else error
    said = f"{reason}; " if reason is not None else ""
    return f'{said}write such as "mlp(hidden=[200]); lenet(width=0.5)"'
