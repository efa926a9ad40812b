"""The golden payloads of every wire version: made once, never changed.

``python tests/core/golden.py`` writes payloads for specs that have none yet; it never
overwrites one. A change of bytes within a wire version is a fault, not a reason to remake them.
"""

import sys
from pathlib import Path

import numpy as np
import torch

from fedcompress import parse, rng_for
from fedcompress.wire import VERSION

FOLDERS = {version: Path(__file__).parent / f"golden_v{version}" for version in (1, 2)}
FOLDER = FOLDERS[VERSION]
SPECS_V1 = {
    "raw": "raw()",
    "lossless": "lossless()",
    "entropy": "entropy()",
    "quantize_bits": "quantize(4) | entropy()",
    "quantize_step": 'quantize(step=0.4, rounding="nearest") | entropy()',
    "quantize_pack": "quantize(4) | pack()",
    "top_k": "top_k(0.05) | quantize(4) | entropy()",
    "top_k_float16": 'top_k(0.05) | cast("float16") | entropy()',
    "top_k_raw": "top_k(0.05) | raw()",
    "stc": "error_feedback(top_k(0.05) | sign() | entropy())",
    "sign": "sign() | pack()",
    "ternary": "ternary() | entropy()",
    "threshold": "threshold(1.5) | ternary() | lossless()",
    "random_k": "random_k(0.1) | quantize(4) | entropy()",
    "bfloat16": 'cast("bfloat16") | raw()',
    "route": 'route({"*bias": raw()}, default=top_k(0.1) | sign() | pack())',
}
SPECS = {
    **SPECS_V1,
    "rdo": "rdo(step=0.4) | entropy()",
    "budget": "budget(bytes=400)",
    "top_k_global": 'global_top_k(0.05) | cast("float16") | entropy()',
    "n_of_m": "n_of_m(2, 4) | quantize(4) | entropy()",
    "top_rows": "top_rows(0.2) | quantize(4) | entropy()",
    "nf4": "nf4(64) | entropy()",
    "qsgd": "qsgd(4) | entropy()",
    "dither": "dither(step=0.4) | entropy()",
    "codebook": "codebook(8) | entropy()",
    "eden": "eden(1) | pack()",
    "float8": 'cast("float8_e4m3fn") | entropy()',
}


def update() -> dict[str, torch.Tensor]:
    """Give an update whose values are exact in binary, whatever the platform."""
    i = torch.arange(600, dtype=torch.float64)
    weight = (((i * 7919) % 1021) - 510) * ((i % 30) ** 2 + 1) / 2**14
    return {
        "weight": weight.reshape(20, 30).float(),
        "bias": weight[:20].float() / 64,
        "steps": torch.tensor(41, dtype=torch.int64),
    }


def payload_of(spec: str) -> bytes:
    """Encode the update."""
    compressor = parse(spec)
    return compressor.encode(
        update(), compressor.init(update()), rng_for(1, round=2, client=3, purpose="golden")
    )[0]


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, spec in SPECS.items():
        path = FOLDER / f"{name}.bin"
        if not path.exists():
            path.write_bytes(payload_of(spec))
            decoded = parse(spec).decode(path.read_bytes(), update())
            np.savez_compressed(
                FOLDER / f"{name}.npz", **{k: x.numpy() for k, x in decoded.items()}
            )
            sys.stdout.write(f"{path.name}: {path.stat().st_size} bytes\n")
