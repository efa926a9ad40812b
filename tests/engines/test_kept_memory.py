"""What a worker has freed is not asked of the system again."""

from __future__ import annotations

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import numpy as np
from simulations.engines.kept_memory import keep_freed_memory
if sys.argv[1] == "kept" and not keep_freed_memory():
    sys.exit("not kept")
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for turn in range(60):
    if turn == 10:
        before = faults()
    pieces = [np.ones(size << 20, np.uint8) for size in (3, 9, 5, 12)]
    del pieces
print(faults() - before)
"""


def test_large_pieces_are_used_again() -> None:
    found = []
    for how in ("kept", "as ever"):
        command = [sys.executable, "-c", FAULTS, how]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.stderr.strip() == "not kept":
            pytest.skip("this C library has no mallopt, or refuses the settings")
        assert ended.returncode == 0, ended.stderr
        found.append(int(ended.stdout))
    assert found[0] < 5000
    assert found[0] < found[1] / 10
