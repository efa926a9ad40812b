"""Routing by name, size, dimensions and dtype: the first rule that an array meets."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedcompress import SpecError, parse, rng_for
from fedcompress.route import Route

ARRAYS = {
    "conv.weight": torch.zeros(8, 4, 3, 3),
    "conv.bias": torch.zeros(8),
    "fc.weight": torch.zeros(100, 20),
    "fc.bias": torch.zeros(100),
    "half.weight": torch.zeros(4, 4).half(),
    "steps": torch.tensor(3),
}


def met(*rules: str) -> list[list[str]]:
    """Name the arrays that each rule gets, and last those that none gets."""
    text = ", ".join(f'"{rule}": raw()' for rule in rules)
    routed = parse(f"route({{{text}}}, default=lossless())")
    assert isinstance(routed, Route)
    return [list(arrays) for _, arrays in routed._groups(ARRAYS)]


@pytest.mark.parametrize(
    ("rule", "names"),
    [
        ("size>=288", ["conv.weight", "fc.weight"]),
        ("size>288", ["fc.weight"]),
        ("size < 16", ["conv.bias", "steps"]),
        ("size<=16", ["conv.bias", "half.weight", "steps"]),
        ("size=100", ["fc.bias"]),
        ("size==2_000", ["fc.weight"]),
        ("ndim=2", ["fc.weight", "half.weight"]),
        ("ndim>=3", ["conv.weight"]),
        ("ndim=0", ["steps"]),
        ("dtype=float16", ["half.weight"]),
        ("dtype = torch.int64", ["steps"]),
        ("*.weight & ndim=2 & size>=100", ["fc.weight"]),
        ("*.weight&dtype=float32", ["conv.weight", "fc.weight"]),
        ("*.bias", ["conv.bias", "fc.bias"]),
        ("conv.*", ["conv.weight", "conv.bias"]),
    ],
)
def test_a_rule_chooses(rule: str, names: list[str]) -> None:
    assert met(rule)[0] == names


def test_the_first_rule_that_is_met_wins() -> None:
    assert met("*.bias", "ndim=1", "size>=100", "ndim>=0") == [
        ["conv.bias", "fc.bias"],
        [],
        ["conv.weight", "fc.weight"],
        ["half.weight", "steps"],
        [],
    ]


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("size >=  10_000", "size>=10000"),
        ("size==5", "size=5"),
        ("a*&ndim = 2", "a* & ndim=2"),
        ("dtype=torch.float16", "dtype=float16"),
        ("odd name*", "odd name*"),
        ("[<]x", "[<]x"),
    ],
)
def test_a_rule_is_written_one_way(text: str, canonical: str) -> None:
    spec = parse(f'route({{"{text}": raw()}}, default=sign())')
    assert str(spec) == f'route({{"{canonical}": raw()}}, default=sign() | entropy())'
    assert parse(str(spec)) == spec


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        (">=10000", r"'' is not measured; write size>=10000"),
        ("sise>=3", "'sise' is not measured; did you mean 'size'"),
        ("width=3", "'width' is not measured; known: dtype, ndim, size"),
        ("size>=1e4", "size is compared to an integer; write size>=2"),
        ("size>=", "size is compared to an integer"),
        ("size>=-3", "size is compared to an integer"),
        ("ndim=matrix", "ndim is compared to an integer"),
        ("dtype=float17", "did you mean 'float16'"),
        ("dtype>=float16", "a dtype is equal to one"),
        ("*.bias & sise>3", r"'sise>3' in '\*.bias & sise>3'"),
        ("*.bias &", "lacks a condition beside &"),
    ],
)
def test_a_rule_that_cannot_be_read_is_refused(rule: str, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        parse(f'route({{"{rule}": raw()}}, default=sign())')


def test_the_same_rule_twice_is_refused() -> None:
    with pytest.raises(SpecError, match="'size>=9' is written twice"):
        parse('route({"size>=9": raw(), "size >= 9": lossless()}, default=sign())')


@given(st.text(alphabet="size>=<&ndimtyp0123 *.[]", max_size=20))
def test_any_rule_is_read_or_refused_and_read_back(rule: str) -> None:
    try:
        spec = parse(f'route({{"{rule}": raw()}}, default=sign())')
    except SpecError:
        return
    assert parse(str(spec)) == spec


def test_every_array_is_sent_by_the_compressor_of_its_rule() -> None:
    compressor = parse('route({"size<16": raw(), "ndim=2": sign()}, default=top_k(0.1))')
    x = {name: torch.randn(a.shape).to(a.dtype) for name, a in ARRAYS.items()}
    payload, _ = compressor.encode(x, compressor.init(x), rng_for(0))
    y = compressor.decode(payload, x)
    assert list(y) == list(x)
    assert torch.equal(y["conv.bias"], x["conv.bias"])
    assert len(y["fc.weight"].abs().unique()) == 1
    assert int((y["conv.weight"] != 0).sum()) == 29
