"""Compiled code on disk is out of date as soon as any kernel's source is another."""

import subprocess
import sys
from pathlib import Path

import fedcompress.kernels

_OUTER = """
from kernels.inner import value
from kernels.jit import kernel

@kernel
def outer():
    return value() + 1
"""
_INNER = """
from kernels.jit import kernel

@kernel
def value():
    return {value}
"""
_ASK = "import sys; from kernels.outer import outer; sys.stdout.write(str(outer()))"


def _run(folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", _ASK], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout


def test_a_change_of_one_kernel_is_seen_by_those_that_call_it(tmp_path: Path) -> None:
    package = tmp_path / "kernels"
    package.mkdir()
    (package / "__init__.py").touch()
    source = Path(fedcompress.kernels.__file__).parent / "jit.py"
    text = source.read_text().replace("fedcompress.kernels", "kernels")
    (package / "jit.py").write_text(text)
    (package / "outer.py").write_text(_OUTER)
    (package / "inner.py").write_text(_INNER.format(value=1))
    assert _run(tmp_path) == "2"
    cached = list((package / "__pycache__").glob("outer.*.nbi"))
    assert cached
    (package / "inner.py").write_text(_INNER.format(value=41))
    assert _run(tmp_path) == "42"


def test_numba_is_loaded_only_where_something_is_coded() -> None:
    ask = "import sys, fedcompress; sys.stdout.write(str('numba' in sys.modules))"
    done = subprocess.run([sys.executable, "-c", ask], check=True, capture_output=True, text=True)
    assert done.stdout == "False"
