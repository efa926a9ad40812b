"""The documentation is whole: a page for every stage, every key, every public name, live links."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from flwr.common.config import flatten_dict

import fedcompress
from fedcompress.registry import coders, compressors, stages
from simulations.cell import Cell
from simulations.settings import known_keys
from simulations.study import Study
from strategies.methods import methods

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
BUILT_IN = {
    name: kind
    for name, kind in {**stages(), **coders(), **compressors()}.items()
    if kind.__module__.startswith("fedcompress.")
}
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)")


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_every_stage_has_a_page(name: str) -> None:
    page = (DOCS / "stages" / f"{name}.md").read_text("utf-8")
    kind = BUILT_IN[name]
    assert page.startswith(f"# `{name}`\n")
    assert f"autoclass:: {kind.__module__}.{kind.__name__}" in page
    assert "```python" in page
    assert f"({name}.md)" in (DOCS / "stages" / "index.md").read_text("utf-8")


def test_every_method_is_named() -> None:
    page = (DOCS / "stages" / "methods.md").read_text("utf-8")
    assert [name for name in methods() if f"`{name}`" not in page] == []


def test_every_public_name_is_in_the_reference() -> None:
    page = (DOCS / "reference" / "api.md").read_text("utf-8")
    missing = [
        name
        for name in fedcompress.__all__
        if name not in BUILT_IN
        and not re.search(rf"\b{name}\b", page)
        # errors stand there by their module
        and not name.endswith("Error")
    ]
    assert missing == []


def test_every_key_of_a_study_is_in_the_reference() -> None:
    page = (DOCS / "reference" / "study.md").read_text("utf-8")
    keys = list(known_keys(Study))
    tables = {key for key in keys if any(other.startswith(f"{key}.") for other in keys)}
    names = [key.removeprefix("strategies.") for key in keys if key not in tables]
    assert [name for name in names if f"| `{name}` |" not in page] == []


def test_flower_run_can_change_every_setting() -> None:
    values = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    listed = flatten_dict(values["tool"]["flwr"]["app"]["config"])
    keys = list(known_keys(Cell))
    tables = {key for key in keys if any(other.startswith(f"{key}.") for other in keys)}
    # Tables of free keys have no place in a run configuration that knows its keys beforehand.
    free = {"strategy.method_options", "strategy.server_options"}
    assert listed.keys() - {"records"} == set(keys) - tables - free
    del listed["records"]
    assert Cell.from_run_config(listed).rounds == 3


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.relative_to(ROOT).as_posix())
        for page in sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
        if "_build" not in page.parts
    ],
)
def test_links_lead_somewhere(page: Path) -> None:
    dead = [
        target
        for target in LINK.findall(page.read_text("utf-8"))
        if not (page.parent / target).exists()
    ]
    assert dead == []


def test_every_page_is_in_the_table_of_contents() -> None:
    listed = {
        (index.parent / line).resolve()
        for index in (DOCS / "index.md", DOCS / "stages" / "index.md")
        for line in index.read_text("utf-8").splitlines()
    }
    pages = {page.with_suffix("") for page in DOCS.rglob("*.md") if "_build" not in page.parts}
    assert pages - listed == {DOCS / "index"}
