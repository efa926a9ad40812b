"""Run NNCodec in an interpreter of its own.

`benchmarks.nncodec_process` starts it as ``python nncodec_worker.py UPDATE.npz``. A line on
standard input is ``qp<tab>file``, where ``file`` is a ``.npz`` for the decoded arrays or empty; the
answer on standard output is a line of JSON. The interpreter needs numpy, h5py and nncodec.

NNCodec: Becking et al. (2023), "NNCodec: an open source software implementation of the neural
network coding ISO/IEC standard".
"""

import contextlib
import importlib
import json
import sys
import time
import types

import numpy as np


def _load_nnc() -> types.ModuleType:
    # `nncodec.framework` holds models, data sets and training: importing it takes torchvision,
    # opencv and more, none of which the codec itself uses.
    framework = types.ModuleType("nncodec.framework")
    for name in ("tensorflow_model", "pytorch_model", "use_case_init"):
        setattr(framework, name, types.ModuleType(f"nncodec.framework.{name}"))
    sys.modules["nncodec.framework"] = framework
    return importlib.import_module("nncodec.nnc")


def _send(
    nnc: types.ModuleType, update: "dict[str, np.ndarray]", qp: int, file: str
) -> "dict[str, float]":
    start = time.process_time()
    bitstream = nnc.compress(
        update,
        bitstream_path=None,
        qp=qp,
        nonweight_qp=qp,
        use_dq=True,
        param_opt=True,
        row_skipping=True,
        return_bitstream=True,
    )
    middle = time.process_time()
    decoded = nnc.decompress(bitstream)
    stop = time.process_time()
    if file:
        arrays = {name: np.asarray(decoded[name], np.float32) for name in update}
        np.savez(file, allow_pickle=False, **arrays)
    return {
        "payload_bytes": len(bitstream),
        "encode_seconds": middle - start,
        "decode_seconds": stop - middle,
    }


def main() -> None:
    """Answer the lines of standard input until it ends."""
    with np.load(sys.argv[1], allow_pickle=False) as stored:
        update = {name: np.ascontiguousarray(stored[name], np.float32) for name in stored.files}
    # NNCodec prints as it works; what it says must not mix with the answers.
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        nnc = _load_nnc()
        for line in sys.stdin:
            qp, _, file = line.rstrip("\n").partition("\t")
            print(json.dumps(_send(nnc, update, int(qp), file)), file=answers, flush=True)


if __name__ == "__main__":
    main()
