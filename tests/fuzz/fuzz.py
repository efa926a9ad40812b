"""Hostile payloads: ``python tests/fuzz/fuzz.py --cases 20000`` or ``--seconds 60``.

A second process decodes them one by one, so that a crash or an endless loop is a finding too,
with the payload that did it. Findings are written to ``--out``, and ``--replay FILE`` decodes one
again. ``--bounds`` has numba check every index of every kernel (NUMBA_BOUNDSCHECK). Exits with 1
if anything was found.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
_HANG_SECONDS = 120.0  # without a payload decoded, in a process that may share its core
_STARTING_SECONDS = 1800.0  # before the first: kernels may have to be compiled
_MOST_FINDINGS = 30


def main() -> int:
    """Run the campaign in a process apart, and start it again behind a payload that ended it."""
    options = _options()
    sys.path[:0] = [str(HERE), str(HERE.parent.parent)]
    if options.replay is not None:
        import campaign

        return campaign.replay(options.replay)
    if options.child:
        import campaign

        return campaign.run(options)
    options.out.mkdir(parents=True, exist_ok=True)
    started, first, deaths = time.monotonic(), 0, 0
    found = 0
    while deaths < _MOST_FINDINGS:
        left = None if options.seconds is None else options.seconds - time.monotonic() + started
        status, reached, new = _campaign(options, first, left)
        found += new
        if status == 0:
            break
        deaths += 1
        found += 1
        first = reached + 1
        if first >= options.cases or (left is not None and left <= 0):
            break
    seconds = time.monotonic() - started
    sys.stdout.write(
        f"{found} findings in {seconds:.0f} s; see {options.out}\n"
        if found
        else f"nothing found in {seconds:.0f} s\n"
    )
    return 1 if found else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=1_000_000, help="payloads to decode")
    parser.add_argument("--seconds", type=float, default=None, help="stop after so long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--spec", default=None, help="this one only, on every update")
    parser.add_argument("--part", default="0/1", help="of the specs, such as 1/4: every fourth")
    parser.add_argument("--bounds", action="store_true", help="check all indexes of kernels")
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"), help="for findings")
    parser.add_argument("--replay", type=Path, default=None, help="decode a finding again")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--progress", type=Path, default=None, help=argparse.SUPPRESS)
    return parser.parse_args()


def _campaign(
    options: argparse.Namespace, first: int, seconds: float | None
) -> tuple[int, int, int]:
    """Give how the process ended, the number of its last payload, and how much it found."""
    with tempfile.TemporaryDirectory() as folder:
        progress = Path(folder) / "progress"
        progress.write_bytes(bytes(1 << 22))
        command = [sys.executable, "-X", "faulthandler", str(HERE / "fuzz.py"), "--child"]
        command += ["--cases", str(options.cases), "--seed", str(options.seed)]
        command += ["--first", str(first), "--progress", str(progress)]
        command += ["--out", str(options.out), "--part", options.part]
        command += [] if options.spec is None else ["--spec", options.spec]
        command += [] if seconds is None else ["--seconds", str(seconds)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        if options.bounds:
            # Kernels with checks are compiled apart: the cache does not tell them from others.
            kept = options.out / "checked_kernels"
            environment |= {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(kept.resolve())}
        with subprocess.Popen(command, env=environment) as process:
            end = _watch(process, progress)
        from progress import Progress

        number, findings, spec, payload = Progress(progress).read()
        if end != 0:
            path = options.out / f"ended_{options.seed}_{number}.json"
            from progress import write_finding

            how = "hung" if end is None else f"ended with {end}"
            write_finding(path, spec, payload, f"the process {how}")
            sys.stdout.write(f"{spec}: the process {how}; {path}\n")
        return (0 if end == 0 else 1), number, findings


def _watch(process: subprocess.Popen[bytes], progress: Path) -> int | None:
    """Wait for the process; give its exit status, None if it had to be killed."""
    from progress import Progress

    last = Progress(progress).stamp()
    since, most = time.monotonic(), _STARTING_SECONDS
    while True:
        try:
            return process.wait(1.0)
        except subprocess.TimeoutExpired:
            now = Progress(progress).stamp()
        if now != last:
            last, since, most = now, time.monotonic(), _HANG_SECONDS
        elif time.monotonic() - since > most:
            process.send_signal(signal.SIGUSR1)  # faulthandler writes where it stands
            time.sleep(2)
            process.kill()
            process.wait()
            return None


if __name__ == "__main__":
    sys.exit(main())
