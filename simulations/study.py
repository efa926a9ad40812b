"""The study file: data, model and training, the strategies compared, the seeds, the engine."""

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, final

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from fedcompress.checks import near
from fedcompress.errors import ConfigError
from simulations.cell import (
    Cell,
    DataSettings,
    FederationSettings,
    PartitionSettings,
    ProxySettings,
    TrainingSettings,
)
from simulations.model_settings import ModelSettings
from simulations.overrides import apply_overrides
from simulations.settings import Count, Section, Seed, TextOrUnset, config_error
from simulations.strategy_settings import StrategySettings

STUDIES = Path(__file__).parent / "studies"


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str | int) else value


def _check_seeds(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool):
        raise ValueError(
            f"must be a list, got {value}; write seeds = [{value}] for that one seed, or "
            "[0, 1, 2] for three"
        )
    return value


def _check_workers(value: object) -> object:
    if isinstance(value, str) and value.isdigit():
        value = int(value)
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ValueError(f'must be a number from 1 or "auto", got {value!r}')


@final
class EngineSettings(Section):
    """Where clients run; it never changes a result, but for clients that are ended as too slow.

    `state_bytes` is how much of the clients' states may lie in memory; unset, the engine decides.
    """

    kind: Literal["local", "ray"] = "ray"
    workers: Annotated[int | str, BeforeValidator(_check_workers)] = "auto"
    address: TextOrUnset = None
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1.0
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0.0
    client_timeout_seconds: Annotated[float, Field(gt=0)] | None = None
    state_bytes: Annotated[int, Field(ge=0)] | None = None


@final
class Study(Section):
    """A grid of cells, every strategy with every seed, and how they run."""

    name: str = ""
    seeds: Annotated[tuple[Seed, ...], BeforeValidator(_check_seeds)] = (0, 1, 2)
    rounds: Count = 10
    device: str = "cpu"
    network: Annotated[tuple[str, ...], BeforeValidator(_as_list)] = ()
    data: DataSettings = DataSettings()
    partition: PartitionSettings = PartitionSettings()
    model: ModelSettings = ModelSettings()
    training: TrainingSettings = TrainingSettings()
    federation: FederationSettings = FederationSettings()
    proxy: ProxySettings = ProxySettings()
    engine: EngineSettings = EngineSettings()
    checkpoint_seconds: Annotated[float, Field(ge=0)] = 10.0
    strategies: tuple[StrategySettings, ...]

    @field_validator("network")
    @classmethod
    def _check_network(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        from simulations.network import network_profile

        for name in names:
            network_profile(name)
        return names

    @model_validator(mode="after")
    def _check_grid(self) -> Self:
        for key, values in (("seeds", self.seeds), ("strategies", self.strategies)):
            if not values:
                raise ValueError(f"{key} must hold at least one entry, got none")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must differ, got {list(self.seeds)}")
        slugs: dict[str, str] = {}
        for entry in self.strategies:
            label = entry.name
            if label in slugs.values():
                mend = (
                    "give each its own" if entry.label else "set label in each to tell them apart"
                )
                raise ValueError(f"strategies: the label {label!r} stands there twice; {mend}")
            if slug(label) in slugs:
                raise ValueError(
                    f"strategies: the label {label!r} is too close to {slugs[slug(label)]!r}; "
                    "labels name folders, so give each its own letters or digits"
                )
            slugs[slug(label)] = label
        return self

    def cells(self, source: str = "study") -> list[Cell]:
        """Every strategy with every seed, seed by seed.

        Raises
        ------
        ConfigError
            If settings of a strategy and of the study do not go together.
        """
        shared = {name: getattr(self, name) for name in Cell.model_fields if hasattr(self, name)}
        return [
            Cell.checked({**shared, "seed": seed, "strategy": strategy}, source)
            for seed in self.seeds
            for strategy in self.strategies
        ]


def study_of(cell: Cell) -> Study:
    """Give the study that consists of one cell."""
    shared = {name: getattr(cell, name) for name in Study.model_fields if hasattr(cell, name)}
    own = {"name": cell.label, "seeds": (cell.seed,), "strategies": (cell.strategy,)}
    return Study(**shared | own)


def slug(label: str) -> str:
    """Write a label in letters and digits that a folder can be named by."""
    return re.sub(r"[^a-z0-9.%]+", "-", label.lower()).strip("-.") or "strategy"


def load_study(path: str | Path, assignments: Sequence[str] = ()) -> Study:
    """Read a study file and put overrides into it.

    Parameters
    ----------
    path : str or Path
        A TOML file, or the name of one that comes with the package (`studies()`).
    assignments : sequence of str
        See `apply_overrides`.

    Raises
    ------
    ConfigError
        If there is no such file, it is no TOML, or a key or value cannot work.
    """
    file = find_study(path)
    try:
        values = tomllib.loads(file.read_text("utf-8-sig"))  # some editors put a mark first
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not valid TOML: {error}") from error
    values.setdefault("name", file.stem)
    return checked_study(apply_overrides(values, assignments), str(file))


def checked_study(values: dict[str, Any], source: str) -> Study:
    """Validate the tables of a study; a fault becomes one `ConfigError` line."""
    try:
        study = Study.model_validate(values)
    except ValidationError as error:
        raise config_error(source, error, Study, _labels(values)) from error
    study.cells(source)
    return study


def _labels(values: Mapping[str, Any]) -> dict[int, str]:
    """Give the labels by which `--set` finds strategies, where one strategy alone has it."""
    entries = values.get("strategies")
    tables = list(entries) if isinstance(entries, list | tuple) else []
    labels = [
        str(table.get("label") or table.get("method") or "fedavg")
        if isinstance(table, Mapping)
        else ""
        for table in tables
    ]
    return {i: label for i, label in enumerate(labels) if label and labels.count(label) == 1}


def studies() -> dict[str, Path]:
    """Map the names of the studies that come with the package to their files."""
    return {file.stem: file for file in sorted(STUDIES.glob("*.toml"))}


def find_study(path: str | Path) -> Path:
    """Find a study file by its path, or one of the package's by its name.

    Raises
    ------
    ConfigError
        If there is none.
    """
    file = Path(path)
    if file.is_file():
        return file
    known = studies()
    if str(path) in known:
        return known[str(path)]
    mend = near(str(path), list(known))
    if not mend.startswith("did you mean"):
        mend = f"give the path of a TOML file, or one of: {', '.join(known)}"
    raise ConfigError(f"study: there is no file {str(path)!r}; {mend}")
