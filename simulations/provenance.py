"""Where a result came from: versions, commit, machine, data."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from simulations.data import FederatedData

_PACKAGES = (
    "fedcompress",
    "torch",
    "flwr",
    "flwr-datasets",
    "ray",
    "numpy",
    "constriction",
    "pcodec",
    "zstandard",
)


def provenance(data: FederatedData) -> dict[str, Any]:
    """Collect what somebody needs to make a result again.

    Returns
    -------
    dict
        `versions`, `commit` (None outside a clone; ends with ``-dirty`` where files differ),
        `machine`, `data` with its fingerprint, and `created` as an ISO time in UTC.
    """
    return {
        "versions": {"python": platform.python_version(), **versions()},
        "commit": commit(),
        "machine": machine(),
        "data": {
            "name": data.name,
            "fingerprint": data.fingerprint,
            "train_samples": len(data.train_y),
            "test_samples": len(data.test_y),
        },
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def versions() -> dict[str, str]:
    """Versions of the packages that results hang on, of those installed."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@cache
def commit() -> str | None:
    """Commit of the clone that this package runs from, None where it runs from no clone."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    head = _git(root, "rev-parse", "HEAD")
    if not head:
        return None
    return f"{head}-dirty" if _git(root, "status", "--porcelain", "--untracked-files=no") else head


def machine() -> dict[str, Any]:
    """Processor, cores, memory and system."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "memory_gb": _memory_gb(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line]
    return names[0] if names else platform.machine()


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (ValueError, OSError, AttributeError):
        return None
