"""`fedcompress init`."""

import shutil
from pathlib import Path

from rich.console import Console

from fedcompress.errors import ConfigError

TEMPLATE = Path(__file__).parent / "template"


def write_start(folder: Path) -> None:
    """Copy the study file and the Flower app to begin with.

    Raises
    ------
    ConfigError
        If a file of that name is there already; then nothing is written.
    """
    # Their ending keeps tools from taking them for a project and modules of this package.
    sources = {
        folder / str(file.relative_to(TEMPLATE)).removesuffix(".template"): file
        for file in sorted(TEMPLATE.rglob("*.template"))
    }
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"init: {folder} is a file; name a folder")
    for target in sources:
        if target.exists():
            raise ConfigError(f"init: {target} exists already; name another folder")
    for target, source in sources.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    console = Console(soft_wrap=True)
    for target in sources:
        console.print(f"wrote {target}", highlight=False, markup=False)
    for line in (
        f"next: fedcompress run {folder / 'study.toml'}",
        f"or the Flower app: flwr run {folder / 'app'} --stream",
    ):
        console.print(line, highlight=False, markup=False)
