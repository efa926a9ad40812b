"""Which codecs stand side by side."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec

from benchmarks import fixed_step
from benchmarks.bitsandbytes_blocks import Blocks8, NormalFloat4
from benchmarks.codec import Codec, SpecCodec
from benchmarks.lossless import Pcodec, Raw, Zstd
from benchmarks.sz3 import SZ3
from fedcompress.errors import SpecError

STEPS = (0.1, 0.2, 0.4, 0.8, 1.2, 1.6, 2.4, 3.2, 4.8, 6.4)
"""What ``{}`` stands for in a spec, one codec each; together they make one curve."""

SPECS = (
    "rdo(step={}) | entropy()",
    "rdo(step={}, states=0) | entropy()",
    'quantize(step={}, rounding="nearest") | entropy()',
    "dither(step={}) | entropy()",
    "quantize(step=1) | entropy()",
    "quantize(4) | entropy()",
    "quantize(8) | pack()",
    "qsgd(4, bucket=512) | entropy()",
    "codebook(16) | entropy()",
    "product_quantize(256, 4) | entropy()",
    "nf4() | pack()",
    "eden(1) | pack()",
    "eden(2) | pack()",
    "eden(4) | pack()",
    "sign() | pack()",
    "ternary() | entropy()",
    "top_k(0.01) | raw()",
    "top_k(0.01) | quantize(4) | entropy()",
    "top_k(0.01) | sign() | entropy()",
    "random_k(0.01) | quantize(4) | entropy()",
    "threshold(0.01) | quantize(4) | entropy()",
    'cast("bfloat16") | entropy()',
    'cast("float8_e4m3fn") | entropy()',
    "lossless()",
)

_SZ3_BOUNDS = (1e-3, 3e-3, 1e-2, 3e-2)


def spec_codecs(specs: Sequence[str], tell: Callable[[str], None]) -> list[Codec]:
    """Make the codecs of specs, ``{}`` in a spec replaced by each of `STEPS`.

    A spec that this version cannot read is named through ``tell`` and left out; of specs that
    say the same, the first is taken.
    """
    made: list[Codec] = []
    for spec in specs:
        try:
            if "{}" in spec:
                made += [SpecCodec(spec.replace("{}", f"{s:g}"), spec) for s in STEPS]
            else:
                made.append(SpecCodec(spec))
        except SpecError as error:
            tell(f"{spec}: left out: {error}")
    first = {codec.name: codec for codec in reversed(made)}
    return [codec for codec in made if first[codec.name] is codec]


def peer_codecs(tell: Callable[[str], None]) -> list[Codec]:
    """Make the peers that are installed; of the others ``tell`` hears how to get them."""
    made: list[Codec] = [Raw(), Zstd()]
    made += [fixed_step.FixedStepZstd(step) for step in fixed_step.STEPS]
    made += [fixed_step.FixedStepAns(step) for step in fixed_step.STEPS]
    for module, package, peers in (
        (
            "pcodec",
            "pcodec",
            lambda: [Pcodec(), *map(fixed_step.FixedStepPcodec, fixed_step.STEPS)],
        ),
        ("bitsandbytes", "bitsandbytes", lambda: [Blocks8(), NormalFloat4()]),
        ("pysz", "pysz", lambda: [SZ3(bound) for bound in _SZ3_BOUNDS]),
    ):
        if find_spec(module) is None:
            tell(f"{module}: not installed; pip install {package}")
        else:
            made += peers()
    return made
