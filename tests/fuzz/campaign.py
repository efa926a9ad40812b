"""The process that decodes: it draws payloads, checks the laws, keeps what reached new places."""

from __future__ import annotations

import argparse
import collections
import faulthandler
import json
import resource
import signal
import sys
import time
import tracemalloc
import warnings
import zlib
from pathlib import Path

import corpus
import forge
import numpy as np
import torch
import weave
from corpus import Seed
from laws import BrokenLawError, check, check_memory, model_bytes
from mutate import mutate, with_checksum
from progress import Progress, write_finding

_ROOM_BYTES = 3 << 30  # of address space beyond what is in use: more is a bomb
_COMPILING_SECONDS = 300.0
_MOST_KEPT = 40  # mutants of a seed
_MEASURED = 0.02  # share of payloads whose memory is measured
_BLOCK = 100  # payloads from one draw of where to look
_MOST_FINDINGS = 30


def run(options: argparse.Namespace) -> int:
    """Decode payloads until there are as many as asked for, or the time is over."""
    _prepare()
    started = time.monotonic()
    faults: set[str] = set()
    seeds, unmade = corpus.seeds(options.spec, options.part)
    for text in unmade:
        faults.add(text)
        sys.stdout.write(f"{text}\n")
    for seed in seeds:
        _check_valid(seed, options.out, faults)
    # Chosen by size, not by how long they take: a run must come out alike on any machine.
    odds = np.array([(500 + model_bytes(seed) / 4) ** -0.7 for seed in seeds])
    odds /= odds.sum()
    _limit_memory()
    progress = Progress(options.progress)
    places: set[tuple[str, str]] = set()
    counts: collections.Counter[str] = collections.Counter()
    sys.stdout.write(f"{len(seeds)} seeds in {time.monotonic() - started:.0f} s\n")
    number = options.first
    while number < options.cases:
        if options.seconds is not None and time.monotonic() - started > options.seconds:
            break
        draw = np.random.Generator(np.random.PCG64([options.seed, number]))
        measured = bool(draw.random() < _MEASURED)
        chosen = draw.choice(len(seeds), 4, p=odds)
        peaks: dict[int, int] = {}
        if measured:
            tracemalloc.start()
            peaks = {int(i): _peak(seeds[i]) for i in chosen}
        for _ in range(min(_BLOCK, options.cases - number)):
            at = int(chosen[int(draw.integers(4))])
            seed = seeds[at]
            progress.note(number, len(faults), f"{seed.spec}\n{seed.update}\nmade", b"")
            payload = _payload(seed, seeds, draw)
            progress.note(number, len(faults), f"{seed.spec}\n{seed.update}", payload)
            number += 1
            try:
                outcome = _outcome(seed, payload, peaks.get(at))
            except BrokenLawError as fault:
                _note(options.out, faults, seed, payload, str(fault))
                counts["broken"] += 1
                continue
            counts["decoded" if outcome.startswith("decoded") else "refused"] += 1
            place = (seed.spec, outcome)
            if place not in places:
                places.add(place)
                if len(seed.kept) < _MOST_KEPT:
                    seed.kept.append(payload)
        if measured:
            tracemalloc.stop()
        if len(faults) >= _MOST_FINDINGS:
            break
    progress.note(number, len(faults), "", b"")
    seconds = time.monotonic() - started
    sys.stdout.write(
        f"{number - options.first} payloads in {seconds:.0f} s of {time.process_time():.0f} s "
        f"processor time: {counts['decoded']} decoded, {counts['refused']} refused, "
        f"{counts['broken']} broke a law; {len(places)} places\n"
    )
    return 0


def replay(path: Path) -> int:
    """Decode a finding again, in this process."""
    _prepare()
    finding = json.loads(path.read_text())
    payload = bytes.fromhex(finding["payload"])
    for seed in corpus.seeds(finding["spec"])[0]:
        if seed.update == finding["update"].partition("\n")[0]:
            check(seed, payload)
            tracemalloc.start()
            sys.stdout.write(f"{check_memory(seed, payload, _peak(seed))}\n")
    return 0


def _prepare() -> None:
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message=".*given NumPy array is not writable.*")
    torch.set_num_threads(1)
    weave.listen()
    forge.load()


def _limit_memory() -> None:
    """Let what wants gigabytes fail at once, whichever library asks for them."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _ROOM_BYTES, resource.RLIM_INFINITY))


def _check_valid(seed: Seed, out: Path, faults: set[str]) -> None:
    if with_checksum(seed.payload) != seed.payload:
        raise AssertionError("the checksum of a payload is not where it was")
    try:
        check(seed, seed.payload, _COMPILING_SECONDS)
    except BrokenLawError as fault:
        _note(out, faults, seed, seed.payload, str(fault))


def _outcome(seed: Seed, payload: bytes, peak_of_valid: int | None) -> str:
    if peak_of_valid is None:
        return check(seed, payload)
    return check_memory(seed, payload, peak_of_valid)


def _peak(seed: Seed) -> int:
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    check(seed, seed.payload)
    return tracemalloc.get_traced_memory()[1] - before


def _payload(seed: Seed, seeds: list[Seed], draw: np.random.Generator) -> bytes:
    kind = draw.random()
    if kind < 0.25:
        return weave.weave(seed, draw)
    if kind < 0.3:
        return weave.tamper(seed, draw)
    base, other = seed.payload, seeds[int(draw.integers(len(seeds)))].payload
    if seed.kept and draw.random() < 0.7:
        base = seed.kept[int(draw.integers(len(seed.kept)))]
    if seed.kept and draw.random() < 0.5:
        other = seed.kept[int(draw.integers(len(seed.kept)))]
    return mutate(base, other, draw)


def _note(out: Path, faults: set[str], seed: Seed, payload: bytes, fault: str) -> None:
    signature = "".join(c for c in fault if not c.isdigit())
    if signature in faults:
        return
    faults.add(signature)
    path = out / f"finding_{zlib.crc32(signature.encode()):08x}.json"
    write_finding(path, f"{seed.spec}\n{seed.update}", payload, fault)
    sys.stdout.write(f"{seed.spec} on {seed.update}: {fault}; {path}\n")
    sys.stdout.flush()
