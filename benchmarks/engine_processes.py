"""CPU time and memory of this process and all below it, read from /proc."""

import os
import resource
from collections.abc import Iterator
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")
# Ray renames its workers: those that hold an actor carry the actor's class.
_RAY_ACTOR = "ray::"
_RAY_IDLE = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")


def descendants(root: int) -> Iterator[int]:
    """Give the ids of all processes below one, whose parents may have changed session."""
    parents: dict[int, list[int]] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            try:
                parent = int(_after_name(entry)[1])
            except (OSError, IndexError, ValueError):
                continue  # ended meanwhile
            parents.setdefault(parent, []).append(int(entry.name))
    waiting = [root]
    while waiting:
        below = parents.get(waiting.pop(), [])
        yield from below
        waiting += below


def tree_cpu_seconds() -> float:
    """Give the CPU time of this process, of all below it and of those it has waited for."""
    total = sum(os.times()[:4])
    for process in descendants(os.getpid()):
        try:
            fields = _after_name(_PROC / str(process))
        except OSError:
            continue
        total += sum(map(int, fields[11:15])) / _TICKS
    return total


def worker_pss_mb(named: list[int] | None = None) -> list[float]:
    """Give the proportional set size of each worker process, in MB of 10⁶ bytes.

    Parameters
    ----------
    named : list of int, optional
        Ids of the workers; without it all processes below this one that train clients: Ray's
        actors, else those that `multiprocessing` or a server of forks made.
    """
    workers = named if named is not None else _workers()
    return sorted(size for size in map(_pss_mb, workers) if size is not None)


def peak_mb() -> float:
    """Give the largest resident size that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def _workers() -> list[int]:
    below = {process: _command(process) for process in descendants(os.getpid())}
    actors = [
        process
        for process, command in below.items()
        if command.startswith(_RAY_ACTOR) and not command.startswith(_RAY_IDLE)
    ]
    if actors:
        return actors
    forked = ("spawn_main", "forkserver", "fork_server")
    return [
        process
        for process, command in below.items()
        if any(word in command for word in forked)
        and "resource_tracker" not in command
        and not list(descendants(process))  # what others are forked from trains nobody
    ]


def _command(process: int) -> str:
    try:
        content = (_PROC / str(process) / "cmdline").read_bytes()
    except OSError:
        return ""
    return content.replace(b"\0", b" ").decode(errors="replace").strip()


def _pss_mb(process: int) -> float | None:
    try:
        lines = (_PROC / str(process) / "smaps_rollup").read_text().splitlines()
    except OSError:
        return None
    sizes = [int(line.split()[1]) for line in lines if line.startswith("Pss:")]
    return sizes[0] * 1024 / 1e6 if sizes else None


def _after_name(entry: Path) -> list[str]:
    """Fields of /proc/PID/stat after the name, which may hold spaces: state, parent, …."""
    return (entry / "stat").read_text().rpartition(")")[2].split()
