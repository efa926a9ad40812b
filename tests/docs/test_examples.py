"""Every example in the documentation runs: Python, commands, study files, docstrings."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import typer

import fedcompress
import simulations
import strategies
from fedcompress.registry import coders, compressors, stages
from simulations.cli.app import app, main, with_profile
from simulations.study import checked_study, load_study, studies

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path.relative_to(ROOT)
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    if "_build" not in path.parts
)
FENCE = re.compile(r"^(?P<fence>```+)(?P<language>\w+)\n(?P<text>.*?)^(?P=fence)$", re.M | re.S)
# A study of a page is run for real if it is small and needs no engine of its own; of larger ones
# the file and the options are checked.
MOST_ROUNDS = 60
# Programs whose commands need the reader's machines: their options are looked up in their help.
OTHERS = ("flwr", "flower-superlink", "flower-supernode", "ray")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, the line on which its text begins."""

    language: str
    text: str
    line: int


def read_blocks(page: Path) -> list[Block]:
    """Take the fenced blocks of a page, in order."""
    text = (ROOT / page).read_text("utf-8")
    return [
        Block(found["language"], found["text"], text.count("\n", 0, found.start()) + 2)
        for found in FENCE.finditer(text)
    ]


def marks(page: Path) -> list[pytest.MarkDecorator]:
    return [pytest.mark.ray] if "RayGrid(" in (ROOT / page).read_text("utf-8") else []


@pytest.fixture(autouse=True)
def _leave_no_package() -> Iterator[None]:
    """What a page installed is gone after it."""
    yield
    readers = ("my_package", "client_app", "server_app")
    for name in [name for name in sys.modules if name.split(".")[0] in readers]:
        del sys.modules[name]
    forget_registry()


@pytest.mark.parametrize(
    "page", [pytest.param(page, id=page.as_posix(), marks=marks(page)) for page in PAGES]
)
def test_page(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "simulations").symlink_to(ROOT / "simulations")  # as in a clone
    namespace: dict[str, object] = {"__name__": "page"}
    for block in read_blocks(page):
        if block.language == "python":
            # Blank lines before it, so that a traceback names the line of the page.
            text = "\n" * (block.line - 1) + block.text
            exec(compile(text, str(ROOT / page), "exec", dont_inherit=True), namespace)
            save_module(block.text)
        elif block.language == "toml":
            check_toml(block.text)
        elif block.language == "console":
            for command in read_commands(block.text):
                check_command(command, monkeypatch)


def read_commands(text: str) -> list[list[str]]:
    """Split a console block into commands: the lines that begin with a prompt."""
    lines = text.replace("\\\n", " ").splitlines()
    return [shlex.split(line[2:], comments=True) for line in lines if line.startswith("$ ")]


def check_toml(text: str) -> None:
    """Validate a study, whole (its first line names its file) or in part; save an app's project."""
    values = tomllib.loads(text)
    if "flwr" in values.get("tool", {}):
        save_module(text)
    elif named := re.match(r"# (\S+\.toml)\n", text):
        Path(named[1]).write_text(text, "utf-8")
        load_study(named[1])
    elif "project" in values:
        install(values["project"]["entry-points"])
    elif "superlink" not in values:
        checked_study({"strategies": [{"label": "dense"}], **values}, "page")


def save_module(text: str) -> None:
    """Save a block whose first line names a file of the reader's package, or of an app."""
    if named := re.match(r"# (\S+\.(?:py|toml))\n", text):
        Path(named[1]).parent.mkdir(exist_ok=True)
        Path(named[1]).write_text(text, "utf-8")


def install(groups: dict[str, dict[str, str]]) -> None:
    """Make the reader's package look installed: its entry points lie on the path."""
    lines = []
    for group, points in groups.items():
        lines += [f"[{group}]", *(f"{name} = {target}" for name, target in points.items())]
    folder = Path("my_package-1.0.dist-info")
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("\n".join(lines) + "\n")
    forget_registry()


def forget_registry() -> None:
    for cached in (stages, coders, compressors):
        cached.cache_clear()


def check_command(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command where that is quick, else check that it could be run."""
    program, *arguments = command
    if program == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.M)
        words = [word for word in arguments if "=" not in word]
        assert words
        assert set(words) <= set(targets), command
    elif program in OTHERS:
        check_options(command)
    elif program == "fedcompress":
        if is_quick(arguments):
            monkeypatch.setattr(sys, "argv", command)
            assert exit_status() == 0, command
    else:
        assert program == "pip", f"{shlex.join(command)}: nothing is known of this program"


def is_quick(arguments: list[str]) -> bool:
    """Tell whether to run a command of ours; if not, its study and options were checked."""
    if arguments[0] != "run" or "--help" in arguments:
        return True
    group = typer.main.get_command(app)
    run = group.commands["run"]  # type: ignore[attr-defined]
    given = run.make_context("run", with_profile(arguments[1:])).params
    name = str(given["study"])
    if name == "study.toml" and not Path(name).exists():
        return False  # stands for a file of the reader's
    study = load_study(name, list(given["assignments"] or ()))
    rounds = len(study.seeds) * len(study.strategies) * study.rounds
    return study.engine.kind == "local" and rounds <= MOST_ROUNDS


def exit_status() -> int:
    try:
        main()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


def check_options(command: list[str]) -> None:
    """Look up the options of another program's command in its help."""
    program, *words = command
    subcommand = words[0] if re.fullmatch(r"[a-z]+", words[0]) else ""
    for option in (word for word in words if word.startswith("--")):
        assert option in shown_help(program, subcommand), f"{program} does not know {option}"


@cache
def shown_help(program: str, subcommand: str) -> str:
    path = shutil.which(program, path=str(Path(sys.executable).parent))
    assert path is not None, f"{program} is not installed"
    return subprocess.run(
        [path, *filter(None, [subcommand]), "--help"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={"COLUMNS": "200", "NO_COLOR": "1", "FLWR_DISABLE_UPDATE_CHECK": "1"},
    ).stdout


def modules() -> list[str]:
    """Name every module of the three packages."""
    return [
        module.name
        for package in (fedcompress, strategies, simulations)
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        if not module.name.endswith("__main__")
    ]


@pytest.mark.parametrize("name", modules())
def test_docstrings(name: str) -> None:
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0


@pytest.mark.parametrize("name", sorted(studies()))
def test_packaged_study(name: str) -> None:
    assert load_study(name).cells()
