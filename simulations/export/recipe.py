"""How a model is made smaller: what is pruned, how it is quantized, how long it is tuned."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, final

from fedcompress import parse
from fedcompress.checks import near
from fedcompress.errors import ConfigError
from fedcompress.pruning.patterns import MOST_IN_GROUP, Pattern, by_layer, n_of_m
from simulations.export.importance import check_importance
from simulations.export.levels import BITS, CENTROIDS, check_kind, codebook_spec

FORMATS = {
    "onnx": ".onnx",
    "safetensors": ".safetensors",
    "torch-export": ".pt2",
    "archive": ".fca",
}
_PARTS = ("rows", "entries")


@final
@dataclass(frozen=True)
class Recipe:
    """What is done to a model before it is written.

    Attributes
    ----------
    rows : float
        Share of filters, dense rows, heads or units that are removed, in [0, 1).
    entries : float
        Share of single weights that become zero, in [0, 1).
    groups : (int, int) or None
        n and m where n of every m inputs of a row stay, in place of a share of each layer.
    importance : {"magnitude", "taylor", "fisher"}
        What decides which rows are removed.
    quantize : {"int8", "int4", "codebook"} or None
        How weights are rounded.
    centroids : int
        Values of a codebook, 2 to 256.
    tune : int
        Epochs of tuning after each of these steps; 0 for none.
    spec : str or None
        The compressor of an archive, in place of what `quantize` says.
    """

    rows: float = 0.0
    entries: float = 0.0
    groups: tuple[int, int] | None = None
    importance: str = "magnitude"
    quantize: str | None = None
    centroids: int = CENTROIDS
    tune: int = 0
    spec: str | None = None

    @property
    def archive_spec(self) -> str:
        """The compressor of an archive of such a model."""
        if self.spec is not None:
            return self.spec
        if self.quantize != "codebook":
            return str(parse("lossless()"))  # levels are whole numbers, and the rest stays exact
        # Statistics of normalisation layers are no weights; biases bear half precision.
        rules = '"*running_*": lossless(), "ndim<2": cast("float16") | entropy()'
        return str(parse(f"route({{{rules}}}, default={codebook_spec(self.centroids)})"))

    @property
    def pattern(self) -> Pattern:
        """Which single weights become zero."""
        return by_layer if self.groups is None else n_of_m(*self.groups)

    @property
    def _entries_name(self) -> str:
        if self.groups is not None:
            return "{}of{}".format(*self.groups)
        return f"entries{self.entries:g}" if self.entries else ""

    @property
    def _chosen_by(self) -> str:
        return "" if self.importance == Recipe.importance else f"-{self.importance}"

    @property
    def _quantize_name(self) -> str:
        is_other = self.quantize == "codebook" and self.centroids != CENTROIDS
        return f"codebook{self.centroids}" if is_other else self.quantize or ""

    @property
    def name(self) -> str:
        """What tells files of one model apart."""
        parts = [
            f"rows{self.rows:g}{self._chosen_by}" if self.rows else "",
            self._entries_name,
            self._quantize_name,
            "-".join(re.findall(r"[\w.]+", self.spec or "")),
            f"tuned{self.tune}" if self.tune else "",
        ]
        return "-".join(["", *filter(None, parts)])

    def told(self) -> dict[str, Any]:
        """Give what a recipe file says."""
        return {
            "prune": {
                "rows": self.rows,
                "entries": self.entries,
                "groups": self.groups,
                "importance": self.importance,
            },
            "quantize": self.quantize,
            "centroids": self.centroids if self.quantize == "codebook" else None,
            "tune": self.tune,
            "spec": self.spec,
        }


def read_recipe(
    prune: Sequence[str], quantize: str | None, tune: int, importance: str = "magnitude"
) -> Recipe:
    """Read what the command line says.

    Parameters
    ----------
    prune : sequence of str
        ``"0.9"`` or ``"entries:0.9"`` for single weights, ``"2:4"`` for those that leave two of
        every four inputs, ``"rows:0.5"`` for whole filters, rows, heads and units.
    quantize : str or None
        ``int8``, ``int4`` or ``codebook``.
    tune : int
        Epochs.
    importance : str
        See `Recipe`.

    Raises
    ------
    ConfigError
        Names the option, its value and the mend.
    """
    shares: dict[str, float] = {}
    groups: tuple[int, int] | None = None
    for text in prune:
        part, colon, number = text.rpartition(":")
        is_of_groups = bool(colon) and text[0].isdecimal()
        part = "entries" if is_of_groups or not colon else part
        if part not in _PARTS:
            raise ConfigError(
                f"export: --prune {text}: there is no {part!r}; {near(part, [*_PARTS])}"
            )
        if part in shares:
            raise ConfigError(f"export: --prune names {part} twice; give one share of each")
        if is_of_groups:
            groups = _groups(text)
            shares[part] = 1 - groups[0] / groups[1]
        else:
            shares[part] = _share(text, number)
    check_importance(importance)
    if importance != Recipe.importance and "rows" not in shares:
        raise ConfigError(
            f"export: --importance {importance} chooses rows, and none are removed; add --prune "
            "rows:0.5, or leave it out"
        )
    if tune < 0:
        raise ConfigError(f"export: --tune must be 0 or more epochs, got {tune}")
    return Recipe(
        rows=shares.get("rows", 0.0),
        entries=shares.get("entries", 0.0),
        groups=groups,
        importance=importance,
        quantize=None if quantize is None else check_kind(quantize),
        tune=tune,
    )


def _groups(text: str) -> tuple[int, int]:
    n, _, m = text.partition(":")
    if not m.isdecimal() or not 1 <= int(n) < int(m) <= MOST_IN_GROUP:
        raise ConfigError(
            f"export: --prune {text}: N:M keeps N of every M inputs, 1 to M - 1 of at most "
            f"{MOST_IN_GROUP}; write --prune 2:4"
        )
    return int(n), int(m)


def _share(text: str, number: str) -> float:
    try:
        share = float(number)
    except ValueError:
        raise ConfigError(
            f"export: --prune {text} holds no number; write --prune 0.9 or --prune rows:0.5"
        ) from None
    if not 0 < share < 1:
        mend = f"; did you mean {share / 100:g}?" if 1 < share < 100 else ""
        raise ConfigError(f"export: --prune {text}: the share must be in (0, 1){mend}")
    return share


def check_format(kind: str) -> str:
    """Refuse a format that there is not; raises `ConfigError`."""
    if kind not in FORMATS:
        raise ConfigError(f"export: there is no format {kind!r}; {near(kind, list(FORMATS))}")
    return kind


def rungs(recipe: Recipe, kind: str) -> list[Recipe]:
    """Give recipes from the mildest to the strongest, none milder than the one that is asked for.

    Archives prune single weights and shrink the codebook; other formats, in which a zero takes
    as much room as any number, remove rows.
    """
    if kind == "archive":
        ladder = [(0.0, 128), (0.0, 64), (0.0, 32), (0.0, 16), (0.5, 16), (0.7, 16), (0.8, 16)]
        ladder += [(0.85, 16), (0.9, 16), (0.93, 16), (0.95, 16), (0.97, 16), (0.98, 8), (0.99, 8)]
        most = recipe.centroids if recipe.quantize == "codebook" else ladder[0][1]
        found = [recipe] + [
            replace(recipe, entries=share, groups=None, quantize="codebook", centroids=count)
            for share, count in ladder
            if count <= most and share >= recipe.entries and recipe.quantize in (None, "codebook")
        ]
        if recipe.quantize in BITS:
            found += [
                replace(recipe, entries=share, groups=None)
                for share in sorted({share for share, _ in ladder})
                if share > recipe.entries
            ]
        return found
    kept = [recipe] if recipe.quantize else [recipe, replace(recipe, quantize="int8")]
    shares = [share for share in (0.25, 0.5, 0.625, 0.75, 0.875) if share > recipe.rows]
    return [*kept, *(replace(kept[-1], rows=share) for share in shares)]
