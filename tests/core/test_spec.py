"""The spec grammar: what parses, what does not, and what the errors say."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fedcompress as fc
from fedcompress import SpecError, parse


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("top_k(0.01)|quantize(4)|entropy()", "top_k(0.01) | quantize(4) | entropy()"),
        ("quantize(bits=4)", "quantize(4) | entropy()"),
        ("quantize(step=0.40)", "quantize(step=0.4) | entropy()"),
        ("quantize(step=1)", "quantize(step=1.0) | entropy()"),
        ("top_k(1)", "top_k(1.0) | entropy()"),
        ("  sign()  ", "sign() | entropy()"),
        ("cast('float16') | raw()", 'cast("float16") | raw()'),
        ("raw()", "raw()"),
        ("error_feedback(sign())", "error_feedback(sign() | entropy())"),
        ("random_k(1e-3, rescale='no')", 'random_k(0.001, rescale="no") | entropy()'),
        (
            "route({'*.bias': raw(), 'bn*': lossless()}, default=top_k(0.1) | sign())",
            'route({"*.bias": raw(), "bn*": lossless()}, default=top_k(0.1) | sign() | entropy())',
        ),
    ],
)
def test_canonical_text(text: str, canonical: str) -> None:
    assert str(parse(text)) == canonical
    assert parse(canonical) == parse(text)
    assert hash(parse(canonical)) == hash(parse(text))


def test_spec_equals_composition_by_hand() -> None:
    by_hand = fc.error_feedback(fc.chain(fc.top_k(0.01), fc.quantize(4), fc.entropy()))
    assert parse("error_feedback(top_k(0.01) | quantize(4) | entropy())") == by_hand
    routed = fc.route({"*.bias": fc.raw()}, default=fc.chain(fc.sign(), fc.pack()))
    assert parse(str(routed)) == routed


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("top_k(5)", r"top_k: fraction must be in \(0, 1\], got 5; did you mean 0.05\?"),
        ("top_k(0)", "must be in"),
        ("top_k(True)", "got True"),
        ("top_k('x')", "got 'x'"),
        ("top_k(float('nan'))", "unknown stage 'float'"),
        ("top_k()", "it takes: fraction"),
        ("top_k(0.1, 0.2)", "it takes: fraction"),
        ("topk(0.1)", "did you mean 'top_k'"),
        ("zzz()", "known: "),
        ("top_k", r"write top_k\(\)"),
        ("quantize()", "either bits or step"),
        ("quantize(4, step=0.1)", "either bits or step"),
        ("quantize(1)", "from 2 to 16, got 1"),
        ("quantize(step=-1)", "above 0, got -1"),
        ("quantize(4, rounding='up')", "'stochastic' or 'nearest', got 'up'"),
        ("cast('int8')", "'float16' or 'bfloat16'"),
        ("entropy() | top_k(0.1)", "entropy: a coder ends a chain"),
        ("quantize(4) | top_k(0.1)", "top_k: takes floats, but quantize gives symbols"),
        ("quantize(4) | raw()", "raw: would send the integers of quantize unpacked"),
        ("error_feedback(sign()) | entropy()", "cannot be a link"),
        ("error_feedback(error_feedback(sign()))", "stands twice"),
        (
            "error_feedback(route({'a': raw()}, default=error_feedback(sign())))",
            "stands twice",
        ),
        ("error_feedback(random_k(0.1))", "write random_k"),
        ("cast('float16') | quantize(4)", "takes floats, but cast gives narrow floats"),
        ("top_k(" + "9" * 400 + ")", "fraction must be in"),
        ("quantize(step=" + "9" * 400 + ")", "finite number"),
        ("route({'\ud800': raw()}, default=raw())", "cannot be written"),
        ("error_feedback(3)", "takes a chain or compressor, got 3"),
        ("route({}, default=raw())", "at least one pattern"),
        ("route({'a': 3}, default=raw())", "got 3"),
        ("__import__('os').system('true')", "not a plain name"),
        ("[x for x in ()]", "is not a call"),
        ("top_k(0.1) +", "cannot read"),
        ("", "cannot read"),
        ("top_k(**{})", "each setting once"),
        ("top_k(" + "(" * 3000, "cannot read"),
        ("x" * 5000, "characters"),
    ],
)
def test_errors_name_the_thing_the_value_and_the_mend(text: str, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        parse(text)


@given(st.text(alphabet="top_k(0.1)|quantize4, sign=entropy{}'*:[]\\\n", max_size=60))
def test_any_text_parses_or_raises_spec_error(text: str) -> None:
    try:
        compressor = parse(text)
    except SpecError:
        return
    assert parse(str(compressor)) == compressor


fractions = st.floats(min_value=1e-6, max_value=1)
links = st.one_of(
    fractions.map(lambda f: f"top_k({f!r})"),
    fractions.map(lambda f: f"random_k({f!r})"),
    st.floats(min_value=1e-9, max_value=1e9).map(lambda m: f"threshold({m!r})"),
)
ends = st.one_of(
    st.integers(2, 16).map(lambda b: f"quantize({b})"),
    st.floats(min_value=1e-3, max_value=100).map(lambda s: f"quantize(step={s!r})"),
    st.sampled_from(["sign()", "ternary()", "cast('float16')"]),
)


@given(st.lists(links, max_size=3), ends, st.sampled_from(["", " | entropy()", " | pack()"]))
def test_parse_of_str_is_the_compressor(head: list[str], end: str, coder: str) -> None:
    compressor = parse(" | ".join([*head, end]) + coder)
    assert parse(str(compressor)) == compressor
