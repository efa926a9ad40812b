"""Where a data set's name leads: to the embedded digits, a folder, or the Hugging Face hub."""

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

import xxhash

from fedcompress.errors import ConfigError

EMBEDDED = "digits"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")


@dataclass(frozen=True)
class Source:
    """A place that data come from, and the key under which their arrays are cached."""

    name: str
    location: str
    revision: str | None
    key: str


def find_source(name: str, data_dir: str | None) -> Source:
    """Resolve a data set's name.

    Parameters
    ----------
    name : str
        ``"digits"``; a folder below ``data_dir``; a path; or a hub id such as
        ``"ylecun/mnist"``, with a revision as ``"ylecun/mnist@main"``.
    data_dir : str or None
        Folder that holds data sets as folders of parquet files.

    Raises
    ------
    ConfigError
        If there is no such folder, it holds no parquet file, or the name leads nowhere.
    """
    if name == EMBEDDED:
        return Source(name, EMBEDDED, None, "digits-1")
    if data_dir and not Path(data_dir).expanduser().is_dir():
        raise ConfigError(f"data_dir: there is no folder {data_dir!r}; name an existing one")
    looks_like_path = name.startswith(("/", ".", "~"))
    candidates = [Path(data_dir).expanduser() / name] if data_dir and not looks_like_path else []
    candidates.append(Path(name).expanduser())
    for folder in candidates:
        if name and folder.is_dir():
            return _folder_source(folder)
    if looks_like_path:
        raise ConfigError(f"data: there is no folder {name!r}; name one that holds parquet files")
    if _HUB_ID.fullmatch(name):
        location, _, revision = name.partition("@")
        key = xxhash.xxh3_128_hexdigest(f"hub {name}".encode())
        return Source(name, location, revision or None, key)
    raise ConfigError(_lost(name, data_dir))


def _folder_source(folder: Path) -> Source:
    files = sorted(folder.rglob("*.parquet"))
    if not files:
        raise ConfigError(
            f"data: the folder {str(folder)!r} holds no parquet file; "
            "put train.parquet and test.parquet there"
        )
    digest = xxhash.xxh3_128()
    for path in files:
        digest.update(f"{path.relative_to(folder).as_posix()} {path.stat().st_size} ".encode())
        with path.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return Source(folder.resolve().name, str(folder), None, digest.hexdigest())


def _lost(name: str, data_dir: str | None) -> str:
    here: list[str] = []
    where = "a folder's name needs data_dir (--data-dir)"
    if data_dir:
        here = sorted(p.name for p in Path(data_dir).expanduser().iterdir() if p.is_dir())
        where = f"in {data_dir!r} are {', '.join(here) or 'no folders'}"
    close = difflib.get_close_matches(name, [EMBEDDED, *here], n=1)
    if close:
        return f"data: there is no data set {name!r}; did you mean {close[0]!r}?"
    return (
        f"data: there is no data set {name!r}; use {EMBEDDED!r}, a folder, or a hub id such as "
        f"'ylecun/mnist'; {where}"
    )
