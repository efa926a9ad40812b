"""What sparsifying stages promise: which entries they keep, how many, and what remains unsent."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedcompress import dgc, parse, rng_for
from fedcompress.errors import LayoutError, SpecError
from fedcompress.stages import selection
from fedcompress.stages.selection import count_of


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(rng_for(seed, purpose="x").standard_normal(shape).astype(np.float32))


def sent(spec: str, update: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    compressor = parse(spec)
    payload, _ = compressor.encode(update, compressor.init(update), rng_for(1))
    return compressor.decode(payload, update)


def first_largest(x: torch.Tensor, k: int) -> torch.Tensor:
    """Sort by magnitude, of equal ones the first first: the definition."""
    return x.abs().sort(descending=True, stable=True).indices[:k].sort().values


few_values = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.5, -2.5, 1e-40, -3e38, 0.1])


@settings(deadline=None, max_examples=150)
@given(
    hnp.arrays(np.float32, st.integers(1, 300), elements=few_values),
    st.floats(0, 1),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_the_first_of_equal_magnitudes_are_kept(
    values: np.ndarray, share: float, dtype: torch.dtype
) -> None:
    x = torch.from_numpy(values).to(dtype)
    k = max(1, round(share * x.numel()))
    assert torch.equal(selection.largest(x, k), first_largest(x, k))
    assert torch.equal(selection.largest_by_sorting(x, k), first_largest(x, k))


@pytest.mark.parametrize("fraction", [1e-5, 0.001, 0.01, 0.3, 0.99])
@pytest.mark.parametrize("kind", ["smooth", "sorted", "few values", "mostly zero", "periodic"])
def test_selection_by_sample_is_exact(kind: str, fraction: float) -> None:
    x = normal(100_000) ** 3
    if kind == "sorted":
        x = x.sort().values
    elif kind == "few values":
        x = x.round()
    elif kind == "mostly zero":
        x[normal(100_000, seed=1) > -1.5] = 0
    elif kind == "periodic":  # a sample at equal distances would see one column of a matrix
        x = x * (torch.arange(100_000) % 1000 == 0)
    k = count_of(fraction, x.numel())
    assert torch.equal(selection.largest(x, k), first_largest(x, k))


@pytest.mark.parametrize(("block", "fraction"), [(2, 0.5), (7, 0.3), (64, 0.05), (1000, 0.01)])
def test_blockwise_top_k_keeps_as_many_of_every_block(block: int, fraction: float) -> None:
    x = (normal(2530) * 2).round()  # with ties
    y = sent(f"top_k({fraction}, block={block})", {"x": x})["x"]
    for start in range(0, 2530, block):
        part = x[start : start + block]
        expected = torch.zeros_like(part)
        kept = first_largest(part, count_of(fraction, part.numel()))
        expected[kept] = part[kept]
        assert torch.equal(y[start : start + block], expected)
    rows = x[:2520].reshape(-1, 7)
    found = selection.largest_of_rows_by_sorting(rows, 3)
    assert torch.equal(found, selection.largest_of_blocks(x[:2520], 7, 3, 0))


@pytest.mark.parametrize("fraction", [0.001, 0.05, 0.5])
def test_global_top_k_is_top_k_of_the_whole_update(fraction: float) -> None:
    update = {
        "large": normal(40, 50) * 10,
        "small": normal(300, seed=1) * 1e-3,
        "ties": normal(77, seed=2).round(),
        "none": torch.zeros(0, 3),
        "scalar": torch.tensor(0.4),
        "steps": torch.tensor(3),
    }
    floats = {name: x for name, x in update.items() if x.is_floating_point()}
    whole = torch.cat([x.reshape(-1) for x in floats.values()])
    decoded = sent(f"global_top_k({fraction})", update)
    y = torch.cat([decoded[name].reshape(-1) for name in floats])
    assert torch.equal(y, sent(f"top_k({fraction})", {"x": whole})["x"])
    assert int((y != 0).sum()) == count_of(fraction, whole.numel())


@pytest.mark.parametrize("fraction", [0.02, 0.3])
def test_top_rows_keeps_the_rows_of_largest_norm(fraction: float) -> None:
    scales = torch.logspace(-3, 3, 50)[torch.randperm(50, generator=torch.Generator())]
    x = normal(50, 6, 3, 3) * scales[:, None, None, None]
    y = sent(f"top_rows({fraction})", {"x": x})["x"]
    kept = y.flatten(1).any(1)
    assert int(kept.sum()) == count_of(fraction, 50)
    assert torch.equal(y[kept], x[kept])
    norms = x.double().flatten(1).norm(dim=1)
    assert float(norms[kept].min()) > float(norms[~kept].max())


def test_rows_cost_next_to_no_positions() -> None:
    x = {"x": normal(512, 4608)}
    compressor = parse("top_rows(0.01) | quantize(4)")
    payload, _ = compressor.encode(x, {}, rng_for(0))
    assert compressor.breakdown(payload, x)["index"] <= math.log2(math.comb(512, 5)) / 8 + 3


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 2), (4, 8), (1, 16), (3, 5)])
@pytest.mark.parametrize("size", [1, 3, 4, 1000, 1003])
def test_n_of_m_keeps_the_largest_of_every_group(n: int, m: int, size: int) -> None:
    x = (normal(size) * 3).round() + 0.25
    y = sent(f"n_of_m({n}, {m})", {"x": x})["x"]
    for start in range(0, size, m):
        part = x[start : start + m]
        kept = first_largest(part, min(n, part.numel()))
        expected = torch.zeros_like(part)
        expected[kept] = part[kept]
        assert torch.equal(y[start : start + m], expected)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 16)])
def test_a_pattern_costs_at_most_its_logarithm(n: int, m: int) -> None:
    x = {"x": normal(64_000)}
    compressor = parse(f"n_of_m({n}, {m}) | sign()")
    payload, _ = compressor.encode(x, {}, rng_for(0))
    signs_bits = 64_000 * n / m
    bound_bits = 64_000 / m * math.log2(math.comb(m, n)) + signs_bits
    assert len(payload) * 8 <= 1.01 * bound_bits + 8 * 60


def test_n_of_m_refuses_more_patterns_than_a_table_holds() -> None:
    with pytest.raises(SpecError, match="16 of 32"):
        parse("n_of_m(16, 32)")
    with pytest.raises(SpecError, match="n must be"):
        parse("n_of_m(4, 4)")


@pytest.mark.parametrize(
    "settings", ["0.05", "0.05, momentum=0.5, clip=3.0", '0.02, values=cast("float16") | entropy()']
)
def test_dgc_conserves_the_velocity(settings: str) -> None:
    """Check sent + v == old v + momentum · old u + clipped update, and that u forgets the sent."""
    compressor = parse(f"dgc({settings})")
    assert isinstance(compressor, dgc)
    like = {"w": normal(40, 20), "b": normal(7), "n": torch.tensor(3)}
    state = compressor.init(like)
    for i in range(7):
        update = {"w": normal(40, 20, seed=i), "b": normal(7, seed=i), "n": torch.tensor(i)}
        norm = float(torch.cat([update["w"].reshape(-1), update["b"]]).norm())
        shrink = min(1.0, compressor.clip / norm) if compressor.clip else 1.0
        payload, new = compressor.encode(update, state, rng_for(0, round=i))
        decoded = compressor.decode(payload, like)
        assert torch.equal(decoded["n"], update["n"])
        for name in ("w", "b"):
            velocity = compressor.momentum * state[f"velocity/{name}"] + shrink * update[name]
            left = decoded[name] + new[f"unsent/{name}"]
            assert torch.allclose(left, state[f"unsent/{name}"] + velocity, atol=1e-5)
            kept = decoded[name] != 0
            assert not new[f"velocity/{name}"][kept].any()
            assert torch.allclose(new[f"velocity/{name}"][~kept], velocity[~kept], atol=1e-6)
        state = new


def test_dgc_sends_more_in_its_first_rounds() -> None:
    """Check the schedule of Lin et al.: 25 %, 6.25 %, 1.5625 %, 0.39 %, then 0.1 %."""
    compressor = dgc(0.25 / 4**4, warmup_rounds=4)
    x = {"w": normal(64, 64)}
    state = compressor.init(x)
    kept = []
    for i in range(6):
        payload, state = compressor.encode(x, state, rng_for(0, round=i))
        kept.append(int((compressor.decode(payload, x)["w"] != 0).sum()))
    assert kept == [1024, 256, 64, 16, 4, 4]
    assert int(state["rounds"]) == 6


def test_dgc_without_momentum_and_warm_up_is_error_feedback() -> None:
    x = {"w": normal(64, 64)}
    plain = parse("dgc(0.01, momentum=0, warmup_rounds=0)")
    feedback = parse("error_feedback(top_k(0.01))")
    states = plain.init(x), feedback.init(x)
    for i in range(4):
        update = {"w": normal(64, 64, seed=i)}
        a, state_a, got_a = plain.encode_and_decode(update, states[0], rng_for(i))
        b, state_b, got_b = feedback.encode_and_decode(update, states[1], rng_for(i))
        states = state_a, state_b
        assert a[16:] == b[16:]
        assert torch.equal(got_a["w"], got_b["w"])


def test_dgc_refuses_what_cannot_work() -> None:
    with pytest.raises(SpecError, match="below 1"):
        parse("dgc(0.1, momentum=1)")
    with pytest.raises(SpecError, match="magnifies"):
        parse("dgc(0.1, values=random_k(0.5))")
    with pytest.raises(SpecError, match="must be a chain"):
        parse("dgc(0.1, values=error_feedback(sign()))")
    with pytest.raises(LayoutError, match="make the state with init"):
        parse("dgc(0.1)").encode({"w": normal(5)}, {"rounds": torch.tensor(0)}, rng_for(0))
