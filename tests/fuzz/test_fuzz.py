"""Hostile payloads, a short fixed run of what `make fuzz` does for long."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

_SCRIPT = Path(__file__).parent / "fuzz.py"
_PARTS = 2
_CASES = 15_000  # a part

_PLANTED = """
import argparse, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import fedcompress.coders.raw as raw
from fedcompress.streams import IndexSet
from torch import from_numpy
raw.checked_index_set = lambda indices, n: IndexSet(from_numpy(indices), n)  # looks at nothing
import campaign
out = Path(sys.argv[2])
(out / "progress").write_bytes(bytes(1 << 20))
campaign.run(argparse.Namespace(
    spec="top_k(0.05) | raw()", cases=300, seed=0, first=0, seconds=None, part="0/1",
    progress=out / "progress", out=out,
))
"""


@pytest.mark.slow
@pytest.mark.parametrize("part", range(_PARTS))
def test_hostile_payloads_decode_or_are_refused(part: int, root: Path, tmp_path: Path) -> None:
    arguments = ["--cases", str(_CASES), "--part", f"{part}/{_PARTS}", "--out", str(tmp_path)]
    end = subprocess.run(
        [sys.executable, str(_SCRIPT), *arguments],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert end.returncode == 0, end.stdout + end.stderr
    assert f"{_CASES} payloads" in end.stdout


def test_a_planted_fault_is_found(root: Path, tmp_path: Path) -> None:
    """A decoder that does not check positions is caught, and the payload is kept."""
    end = subprocess.run(
        [sys.executable, "-c", _PLANTED, str(_SCRIPT.parent), str(tmp_path)],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert end.returncode == 0, end.stderr
    findings = [json.loads(path.read_text()) for path in tmp_path.glob("finding_*.json")]
    assert any("IndexError" in finding["fault"] for finding in findings), end.stdout
    assert all(finding["spec"] == "top_k(0.05) | raw()" for finding in findings)
