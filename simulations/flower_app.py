"""Somebody's Flower app: its folder, as `flwr run` reads it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import click
from flwr.app import UserConfig
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedcompress import compress
from fedcompress.checks import near
from fedcompress.errors import ConfigError
from simulations.engines.flower_internals import (
    DEFAULT_CLIENTS,
    app_settings,
    load_component,
    merge_run_config,
)


@final
@dataclass(frozen=True)
class FlowerApp:
    """What an app's ``pyproject.toml`` says.

    Attributes
    ----------
    folder : Path
        Absolute.
    name : str
        Of the project.
    serverapp, clientapp : str
        ``"module:attribute"``, importable from the folder.
    run_config : UserConfig
        Dotted keys to scalars, overrides included.
    clients : int
        ``options.num-supernodes`` of its default federation, else Flower's own default.
    """

    folder: Path
    name: str
    serverapp: str
    clientapp: str
    run_config: UserConfig
    clients: int

    def load_server(self) -> ServerApp:
        """Import the ServerApp.

        Raises
        ------
        ConfigError
            If that fails, or it is something else.
        """
        app = _load("serverapp", self.serverapp, self.folder)
        if not isinstance(app, ServerApp):
            raise ConfigError(
                f"serverapp: {self.serverapp!r} is a {type(app).__name__}, expected a ServerApp; "
                "mend [tool.flwr.app.components]"
            )
        return app


@final
@dataclass(frozen=True)
class ClientLoader:
    """Builds the ClientApp where clients run, with `compression_mod` around it if asked for."""

    folder: Path
    clientapp: str
    compressed: bool

    def __call__(self) -> ClientApp:
        """Import the ClientApp.

        Raises
        ------
        ConfigError
            If that fails, or it is something else.
        """
        app = _load("clientapp", self.clientapp, self.folder)
        if not isinstance(app, ClientApp):
            raise ConfigError(
                f"clientapp: {self.clientapp!r} is a {type(app).__name__}, expected a ClientApp; "
                "mend [tool.flwr.app.components]"
            )
        # An app that has the mod already keeps it: only the outer one finds settings.
        return compress(app) if self.compressed else app


def read_flower_app(folder: Path, overrides: Sequence[str] = ()) -> FlowerApp:
    """Read an app's folder; nothing of it is imported.

    Parameters
    ----------
    folder : Path
        Holds ``pyproject.toml``.
    overrides : sequence of str
        Each ``"key=value …"``, or one path of a TOML file, as ``flwr run --run-config`` takes
        them.

    Raises
    ------
    ConfigError
        If there is no app, or a setting of it cannot work.
    """
    folder = folder.expanduser().absolute()
    file = folder / "pyproject.toml"
    if not file.is_file():
        raise ConfigError(
            f"simulate: {folder} holds no pyproject.toml; name the folder of a Flower app"
        )
    try:
        settings = app_settings(folder)
    except ValueError as error:
        text = " ".join(str(error).replace("\n  - ", "; ").split())
        text = text.removeprefix("Invalid pyproject.toml:;").removeprefix("Invalid pyproject.toml:")
        raise ConfigError(
            f"simulate: {file} describes no Flower app ({text.strip()}); "
            "`flwr build` says what it needs"
        ) from error
    app = settings["tool"]["flwr"]["app"]
    parts: dict[str, str] = {}
    for part in ("serverapp", "clientapp"):
        reference = app["components"].get(part)
        if not isinstance(reference, str) or not all(reference.partition(":")):
            raise ConfigError(
                f"simulate: {part} in [tool.flwr.app.components] of {file} is {reference!r}; "
                'write "package.module:app"'
            )
        parts[part] = reference
    return FlowerApp(
        folder=folder,
        name=str(settings["project"]["name"]),
        run_config=_run_config(app.get("config", {}), overrides),
        clients=_num_supernodes(settings["tool"]["flwr"]),
        **parts,
    )


def _run_config(defaults: Mapping[str, Any], overrides: Sequence[str]) -> UserConfig:
    keys: UserConfig = merge_run_config(defaults, [])
    for text in overrides:
        _check_assignments(text, keys)
    try:
        return merge_run_config(defaults, overrides)
    except click.ClickException as error:
        raise ConfigError(
            f"--run-config {' '.join(overrides)!r}: a value cannot be read; write numbers, true, "
            "false, or text in quotes inside the quotes: --run-config \"name='text'\""
        ) from error
    except (ValueError, OSError) as error:
        raise ConfigError(f"--run-config {' '.join(overrides)!r}: {error}") from error


def _check_assignments(text: str, known: UserConfig) -> None:
    """Refuse what Flower would pass over in silence, and keys that the app does not have."""
    if text.endswith(".toml"):
        return
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"--run-config {text!r}: {error}; close the quotes") from error
    for word in words:
        key, equals, _ = word.partition("=")
        if not equals or not key:
            raise ConfigError(f"--run-config {text!r}: {word!r} sets nothing; write key=value")
        if key not in known:
            have = near(key, sorted(known)) if known else "it has none"
            raise ConfigError(f"--run-config: the app has no setting {key!r}; {have}")


def _num_supernodes(flower: Mapping[str, Any]) -> int:
    """Read the size of the default federation, which older apps keep in their pyproject.toml."""
    federations = flower.get("federations")
    if not isinstance(federations, Mapping):
        return DEFAULT_CLIENTS
    name = federations.get("default")
    candidates = [federations.get(name)] if name else list(federations.values())
    for federation in candidates:
        options = federation.get("options", {}) if isinstance(federation, Mapping) else {}
        number = options.get("num-supernodes") if isinstance(options, Mapping) else None
        if isinstance(number, int) and not isinstance(number, bool) and number > 0:
            return number
    return DEFAULT_CLIENTS


def _load(part: str, reference: str, folder: Path) -> object:
    try:
        return load_component(reference, folder)
    except Exception as error:
        said = str(error).split("\n\n", 1)[0]  # Flower explains itself at length behind it
        what = " ".join(f"{type(error).__name__}: {said}".split())
        mend = "mend [tool.flwr.app.components]"
        if isinstance(error, ModuleNotFoundError) and not _is_of(reference, str(error.name)):
            mend = f"install what the app needs: pip install {folder}"
        elif not isinstance(error, ImportError):
            mend = "mend the module"
        raise ConfigError(
            f"{part}: cannot load {reference!r} of {folder} ({what}); {mend}"
        ) from error


def _is_of(reference: str, module: str) -> bool:
    """Whether a missing module is the component's own, or one of its packages."""
    own = reference.partition(":")[0]
    return own == module or own.startswith(f"{module}.")
