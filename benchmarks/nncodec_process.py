"""NNCodec with its trellis, in a process of its own."""

import json
import math
import os
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import final

import numpy as np

from benchmarks.codec import Codec, Sent
from benchmarks.updates import Update

# Quantization steps in units of σ: an NMSE of .0015 to .25 on updates of local training.
STEPS = tuple(np.geomspace(0.09, 2.0, 8))


@final
class NNCodecProcess:
    """The worker that holds one update; a context manager.

    Parameters
    ----------
    python : str
        An interpreter that has nncodec installed.
    update : Update
        What every `send` sends.
    """

    def __init__(self, python: str, update: Update) -> None:
        self._folder = tempfile.TemporaryDirectory()
        stored = Path(self._folder.name) / "update.npz"
        np.savez(stored, allow_pickle=False, **update)
        # A file: a pipe that nobody empties would stop the worker once it is full.
        self._words = (Path(self._folder.name) / "stderr").open("w+", encoding="utf-8")
        self._process = subprocess.Popen(
            [python, str(Path(__file__).with_name("nncodec_worker.py")), str(stored)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def __enter__(self) -> "NNCodecProcess":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.communicate()
        self._words.close()
        self._folder.cleanup()

    def send(self, qp: int, *, want_decoded: bool) -> Sent:
        """Encode and decode once; raises RuntimeError with the worker's last words if it died."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        target = Path(self._folder.name) / "decoded.npz"
        try:
            self._process.stdin.write(f"{qp}\t{target if want_decoded else ''}\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self._process.wait()
            self._words.seek(0)
            words = self._words.read().strip().splitlines()
            raise RuntimeError(f"nncodec: its worker ended: {words[-1] if words else 'no word'}")
        sent = json.loads(answer)
        decoded = None
        if want_decoded:
            with np.load(target, allow_pickle=False) as stored:
                decoded = {name: stored[name] for name in stored.files}
        return Sent(sent["payload_bytes"], sent["encode_seconds"], sent["decode_seconds"], decoded)


@final
class NNCodec(Codec):
    """NNCodec 2 (Becking et al., 2023) with dependent quantization, at one QP for all arrays.

    Biases get the QP of the weights: that serves it better than its default of −75.
    """

    curve = "NNCodec, trellis"

    def __init__(self, process: NNCodecProcess, qp: int) -> None:
        self._process = process
        self._qp = qp
        self.name = f"NNCodec, qp {qp}, trellis"

    def send(self, update: Update, *, want_decoded: bool) -> Sent:
        del update  # the process holds it
        return self._process.send(self._qp, want_decoded=want_decoded)


def quantization_parameters(update: Update) -> list[int]:
    """Give the QPs whose steps, 2**(qp / 4), come nearest to `STEPS` times σ of the update."""
    squares = sum(float(np.vdot(x, x)) for x in update.values())
    sigma = math.sqrt(squares / sum(x.size for x in update.values()))
    return sorted({round(4 * math.log2(step * sigma)) for step in STEPS})
