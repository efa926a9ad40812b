"""What is mutated: payloads of every registered stage, coder and compressor on small updates.

Updates are small so that a decode takes some hundred microseconds, and shaped so that every
coding occurs: symbols that are learnt and such that have tables, in one lane and in four, from
neighbours, of a trellis, in rows of a vector with a ragged last one, beyond the tables; positions
in each of their methods; planes of floats.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from masks import Masks, check_valid, masks
from torch import Tensor

from fedcompress import parse, rng_for
from fedcompress.compressor import Compressor, memory_of
from fedcompress.errors import FedcompressError
from fedcompress.registry import coders, compressors, stages

# Settings for each stage; a stage that is not here is tried with those of `_GUESSES`.
STAGES = {
    "bernoulli_mask": [""],
    "cast": ['"float16"', '"bfloat16"', '"float8_e4m3fn"', '"float8_e5m2"'],
    "codebook": ["16", '5, zero="yes"'],
    "dither": ["0.4"],
    "eden": ["1", "3", '4, scale="least_squares"'],
    "global_top_k": ["0.05"],
    "n_of_m": ["2, 4", "3, 16"],
    "nf4": ["", "7"],
    "product_quantize": ["16, 4", "300, 3"],
    "qsgd": ["16", "7, bucket=10"],
    "quantize": ["2", "4", "16", "step=0.05", "step=0.4", 'step=2.0, rounding="nearest"'],
    "random_k": ["0.1", "0.9"],
    "rdo": ["0.3", "1.0", "1.0, states=0", "1.0, states=4", "0.3, states=16"],
    "sign": ["", '"none"'],
    "ternary": [""],
    "threshold": ["0.5"],
    "top_k": ["0.005", "0.05", "0.3", "0.1, block=7"],
    "top_rows": ["0.3"],
}
COMPOSED = [
    "top_k(0.05) | quantize(4) | entropy()",
    "top_k(0.05) | sign() | pack()",
    'top_k(0.1) | cast("float16") | lossless()',
    "random_k(0.2) | quantize(4) | entropy()",
    "threshold(1.0) | ternary() | lossless()",
    "top_rows(0.3) | top_k(0.3) | quantize(4) | entropy()",
    "n_of_m(2, 4) | quantize(4) | entropy()",
    "error_feedback(top_k(0.05) | quantize(4) | entropy())",
    "error_feedback(top_k(0.1) | sign(), decay=0.9, clip=2.0)",
    'route({"b": raw(), "size<50": lossless()}, default=quantize(4))',
    "ef21(top_k(0.1) | quantize(4))",
    "delta(quantize(4))",
    'delta(quantize(4, rounding="nearest"), factor=0.8, rate=0.25)',
    "momentum(ef21(top_k(0.05)))",
    "budget(bits_per_parameter=2.0)",
    "count_sketch(3, 40, 30)",
    "count_sketch(2, 50, 20, table=quantize(4))",
    "dgc(0.05)",
    "dgc(0.05, values=quantize(4))",
    'power_sgd(2, warm_start="no")',
    "power_sgd(1, factors=quantize(4), rest=sign())",
]
_GUESSES = ("", "0.1", "1.0", "2", "4", "16, 4", "0.1, 0.1")
_WRAPPED = ("top_k(0.1) | quantize(4)", "quantize(4)", *_GUESSES, "0.1, quantize(4)")
_FLOATS = ("entropy()", 'cast("float16") | entropy()')
_EMPTYING = "threshold(2.0)"  # keeps no entry of many arrays: what follows meets empty ones


@dataclass(eq=False)
class Seed:
    """A payload to mutate, all that decodes it, and the mutants of it that reached new places."""

    compressor: Compressor
    update: str
    like: Mapping[str, Tensor]
    memory: Mapping[str, Tensor]
    payload: bytes
    kept: list[bytes] = field(default_factory=list)

    @cached_property
    def spec(self) -> str:
        """The compressor, written out."""
        return str(self.compressor)


def updates() -> dict[str, dict[str, Tensor]]:
    """Give updates by name; those that begin with "small" have some hundred entries."""
    draw = rng_for(0, purpose="fuzz")

    def heavy(*shape: int) -> Tensor:
        return torch.from_numpy((draw.standard_normal(shape) ** 3).astype(np.float32))

    def layer(rows: int, columns: int) -> Tensor:
        x = heavy(rows, columns) * torch.exp(heavy(rows, 1).clamp(-3, 3))
        x *= torch.exp(heavy(1, columns).clamp(-3, 3))
        x[rows // 3] = 0
        x[:, columns // 2] = 0
        return x

    def smooth(rows: int, *places: int) -> Tensor:
        x = draw.standard_normal((rows, *places))
        for axis in range(1, x.ndim):
            x = x + np.roll(x, 1, axis) + np.roll(x, -1, axis)
        return torch.from_numpy(x.astype(np.float32))

    return {
        "small layer": {"w": layer(30, 20), "b": heavy(20), "steps": torch.tensor(3)},
        "small cube": {"x": heavy(7, 3, 5), "s": torch.tensor(0.7), "e": torch.zeros(0, 3)},
        "small types": {
            "d": heavy(40).double(),
            "h": heavy(33).half(),
            "bf": heavy(5, 9).bfloat16(),
            "mask": torch.arange(9) % 2 == 0,
        },
        "small zeros": {"w": torch.zeros(20, 20), "c": torch.full((65,), -0.7)},
        "small kernels": {"k": smooth(8, 4, 3, 3), "b": heavy(8)},
        "small vector": {"x": heavy(700)},
        "small shares": {"p": torch.rand(15, 20, generator=torch.Generator().manual_seed(1))},
        "learnt": {"w": layer(50, 90)},
        "tables": {"w": layer(64, 130)},
        "lanes": {"w": layer(131, 256)},
        "kernels": {"k": smooth(24, 14, 5, 5)},
        "images": {"w": smooth(36, 16, 16).reshape(36, 256)},
        "vector": {"x": heavy(9 * 1024 + 300)},
        "large": {"x": heavy(260, 256)},
    }


def specs() -> list[str]:
    """Give specs in which every registered stage, coder and compressor occurs."""
    found = ["raw()", "lossless()", "entropy()"]
    for name, kind in stages().items():
        settings = STAGES.get(name, _GUESSES)
        texts = [f"{name}({given})" for given in settings if _parses(f"{name}({given})")]
        for text in texts:
            found += [f"{text} | entropy()", f"{_EMPTYING} | {text} | entropy()"]
        found += [f"{texts[0]} | {coder}()" for coder in coders()]
        if kind.gives == "narrow floats":
            found += [f"{text} | lossless()" for text in texts]
    found += COMPOSED
    for name in compressors():
        if not any(text.startswith(f"{name}(") for text in COMPOSED):
            found += [f"{name}({given})" for given in _WRAPPED][:6]
    return list(dict.fromkeys(text for text in found if _parses(text)))


def seeds(only: str | None = None, part: str = "0/1") -> tuple[list[Seed], list[str]]:
    """Encode every spec on updates; give the payloads, and what went wrong with others."""
    every = updates()
    found = [*_golden()] if only is None else []
    found += [seed for seed in _masks() if only in (None, seed.spec)]
    faults: list[str] = []
    first, step = (int(number) for number in part.split("/"))
    for i, spec in enumerate(specs()[first::step] if only is None else [only]):
        for j, (name, update) in enumerate(every.items()):
            if only is None and not _worth(spec, name, i + j):
                continue
            try:
                found += _encode(spec, name, update)
            except FedcompressError:
                continue  # a stage may refuse an update
            except Exception as error:  # noqa: BLE001  every other error is a fault of the encoder
                faults.append(f"{spec} on {name}: encoding raised {place_of(error)}: {error}")
    return found, faults


def place_of(error: BaseException) -> str:
    """Name an error and the way to where it was raised: functions and lines of the package."""
    way: list[str] = []
    step = error.__traceback__
    while step is not None:
        code = step.tb_frame.f_code
        if "/fedcompress/" in code.co_filename:
            way.append(f"{code.co_name}:{step.tb_lineno}")
        step = step.tb_next
    return f"{type(error).__name__} at {' > '.join(way[-6:])}"


def _worth(spec: str, name: str, number: int) -> bool:
    """Choose some of all pairs: every spec on small updates, half of the chains on larger ones."""
    if name == "large":
        return spec in _FLOATS  # whose values are coded otherwise beyond 2**16
    if spec.startswith(_EMPTYING):
        return name in ("small layer", "small zeros", "small shares")
    return name.startswith("small") or (spec.endswith("entropy()") and number % 2 == 0)


def _encode(spec: str, name: str, update: Mapping[str, Tensor]) -> Iterator[Seed]:
    compressor = parse(spec)
    state = compressor.init(update)
    payload, state = compressor.encode(update, state, rng_for(1))
    yield Seed(compressor, name, update, {}, payload)
    if compressor.recalls:
        memory = memory_of(compressor.read(payload, update)[0])
        second = compressor.encode(update, state, rng_for(2))[0]
        yield Seed(compressor, name, update, memory, second)


def _masks() -> Iterator[Seed]:
    check_valid()
    for name, mask in masks().items():
        yield Seed(Masks(), name, mask, {}, Masks().encode(mask, {}, rng_for(1))[0])


def _golden() -> Iterator[Seed]:
    path = Path(__file__).parent.parent / "core" / "golden.py"
    found = importlib.util.spec_from_file_location("golden", path)
    if found is None or found.loader is None:
        raise FileNotFoundError(path)
    golden = importlib.util.module_from_spec(found)
    found.loader.exec_module(golden)
    update = golden.update()
    for file in sorted(path.parent.glob("golden_v*/*.bin")):
        if file.stem in golden.SPECS:
            yield Seed(parse(golden.SPECS[file.stem]), "golden", update, {}, file.read_bytes())


def _parses(spec: str) -> bool:
    try:
        parse(spec)
    except FedcompressError:
        return False
    return True
