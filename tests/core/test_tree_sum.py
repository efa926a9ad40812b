"""The sum of a round has the same bits however its blocks are shared out and arrive."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedcompress import parse, rng_for
from fedcompress.aggregation import Node, Sum, TreeSum, block_size
from fedcompress.compressor import Part
from fedcompress.errors import PayloadError

Given = tuple[dict[str, Part], float] | None

UPLINKS = ("raw()", "quantize(4)", "top_k(0.1) | entropy()", "power_sgd(2)")
SCALES = (1.0, 1e-30, 1e30)
MESSAGES = (1, 2, 5, 31, 33, 50, 101, 130, 200)


def like() -> dict[str, Tensor]:
    draw = rng_for(1)
    return {
        "w": torch.from_numpy(draw.standard_normal((7, 11)).astype(np.float32)),
        "b": torch.from_numpy(draw.standard_normal(5).astype(np.float32)),
        "double": torch.from_numpy(draw.standard_normal(3)),
        "half": torch.zeros(4, dtype=torch.float16),
        "steps": torch.tensor(7),
        "empty": torch.zeros(0),
    }


def updates(messages: int, seed: int, missing: float, spread: float) -> list[Given]:
    """One update for each position: of several forms and sizes, some missing, some of weight 0."""
    draw = random.Random(seed)
    found: list[Given] = []
    for position in range(messages):
        rng = rng_for(seed, client=position)
        if draw.random() < missing:
            found.append(None)
            continue
        scale = draw.choice(SCALES)
        update = {
            name: torch.from_numpy(np.asarray(rng.standard_normal(x.shape) * scale)).to(x.dtype)
            if x.dtype in (torch.float32, torch.float64)
            else torch.full(x.shape, position, dtype=x.dtype)
            for name, x in like().items()
        }
        compressor = parse(draw.choice(UPLINKS))
        payload, _ = compressor.encode(update, compressor.init(update), rng)
        weight = 0.0 if draw.random() < 0.1 else draw.random() * 10 ** draw.uniform(-spread, spread)
        found.append((compressor.read(payload, update)[0], weight))
    return found


def feed(total: TreeSum, given: list[Given], positions: list[int]) -> TreeSum:
    for position in positions:
        update = given[position]
        if update is None:
            total.miss(position)
        else:
            total.add(position, *update)
    return total


def bits(mean: dict[str, Tensor]) -> dict[str, bytes]:
    return {name: x.numpy().tobytes() for name, x in mean.items()}


def shipped(node: Node) -> Node:
    """A branch as it arrives: in memory that is not ours."""
    if node.total is None:
        return node
    copies = [x.clone() for x in node.total.buffers]
    return Node(
        node.level,
        node.index,
        Sum(node.total.exponent, node.total.share, copies, is_own=False),
    )


@settings(max_examples=60, deadline=None)
@given(
    messages=st.sampled_from(MESSAGES),
    seed=st.integers(0, 10**6),
    missing=st.sampled_from([0.0, 0.3, 0.9]),
    spread=st.sampled_from([0.0, 3.0, 300.0]),
)
def test_any_sharing_out_and_any_order_give_the_same_bits(
    messages: int, seed: int, missing: float, spread: float
) -> None:
    given = updates(messages, seed, missing, spread)
    if not any(update is not None and update[1] > 0 for update in given):
        return
    expected = bits(feed(TreeSum(like(), messages), given, list(range(messages))).mean())
    draw = random.Random(seed)

    shuffled = draw.sample(range(messages), messages)
    assert bits(feed(TreeSum(like(), messages), given, shuffled).mean()) == expected

    unsaid = [p for p in shuffled if given[p] is not None]
    assert bits(feed(TreeSum(like(), messages), given, unsaid).mean()) == expected

    # Blocks dealt out to workers, in runs or not, each of which sends in one go or in several.
    size = block_size(messages)
    blocks = [list(range(b, min(b + size, messages))) for b in range(0, messages, size)]
    workers = draw.randint(1, 5)
    if draw.random() < 0.5:
        draw.shuffle(blocks)
    cuts = sorted(draw.randint(0, len(blocks)) for _ in range(workers - 1))
    nodes: list[Node] = []
    for first, last in zip([0, *cuts], [*cuts, len(blocks)], strict=True):
        one = TreeSum(like(), messages)
        for block in blocks[first:last]:
            feed(one, given, draw.sample(block, len(block)))
            if draw.random() < 0.3:
                nodes += one.take_nodes()
        nodes += one.take_nodes()
    whole = TreeSum(like(), messages)
    for node in draw.sample(nodes, len(nodes)):
        whole.put(shipped(node))
    assert bits(whole.mean()) == expected


@pytest.mark.parametrize("messages", MESSAGES)
@pytest.mark.parametrize("spread", [0.0, 6.0])
def test_it_is_the_weighted_mean(messages: int, spread: float) -> None:
    found = [u for u in updates(messages, 3, 0.0, spread) if u is not None and u[1] > 0]
    total = TreeSum(like(), len(found))
    for position, (parts, weight) in enumerate(found):
        total.add(position, parts, weight)
    mean = total.mean()
    weights = [weight for _, weight in found]
    for name, x in like().items():
        each = [parts[name].dense().double().numpy() for parts, _ in found]
        average = np.average(each, axis=0, weights=weights)
        largest = np.max(np.abs(each), initial=0.0)
        exact = average + x.double().numpy() * x.is_floating_point()
        np.testing.assert_allclose(
            mean[name], exact, rtol=1e-3 if name == "half" else 1e-5, atol=largest * 1e-5
        )


@pytest.mark.parametrize("weight", [5e-324, 1e-300, 1.0, 1e300, 1.7e308])
def test_weights_of_any_size_neither_overflow_nor_vanish(weight: float) -> None:
    x = torch.full((4,), 2e38)
    compressor = parse("raw()")
    payload, _ = compressor.encode({"w": x}, {}, rng_for(1))
    total = TreeSum({"w": torch.zeros(4)}, 40)
    parts = compressor.read(payload, {"w": x})[0]
    total.add(0, parts, weight)
    total.add(39, {"w": parts["w"]}, weight / 2)
    torch.testing.assert_close(total.mean()["w"], x)


def test_blocks_depend_on_the_number_of_messages_alone() -> None:
    sizes = [block_size(n) for n in (1, 10, 32, 33, 100, 128, 129, 1024, 1025, 10**6)]
    assert sizes == [1, 1, 1, 4, 4, 4, 8, 8, 32, 32]


def test_whole_neighbours_become_one_branch() -> None:
    given = updates(100, 1, 0.0, 1.0)
    for blocks in range(1, 26):
        total = feed(TreeSum(like(), 100), given, list(range(4 * blocks)))
        nodes = total.take_nodes()
        assert len(nodes) == (1 if blocks == 25 else blocks.bit_count())
        assert total.take_nodes() == []


def test_nothing_is_counted_twice() -> None:
    given = updates(100, 1, 0.0, 1.0)
    first = feed(TreeSum(like(), 100), given, list(range(8)))
    (node,) = first.take_nodes()
    total = TreeSum(like(), 100)
    total.put(shipped(node))
    with pytest.raises(PayloadError, match="there already"):
        total.put(shipped(node))
    with pytest.raises(PayloadError, match="not awaited"):
        feed(total, given, [7])
    feed(total, given, [9])
    with pytest.raises(PayloadError, match="not awaited"):
        feed(total, given, [9])
    with pytest.raises(PayloadError, match="not awaited"):
        total.miss(100)
    with pytest.raises(PayloadError, match="there already"):
        total.put(Node(0, 2, None))


def test_positions_passed_over_hold_nothing_back() -> None:
    given = updates(200, 2, 0.4, 1.0)
    total = TreeSum(like(), 200)
    for position, update in enumerate(given):
        if update is not None:
            total.no_more_before(position)
            total.add(position, *update)
            assert sum(len(block.early) for block in total._open.values()) == 0
    expected = feed(TreeSum(like(), 200), given, list(range(200))).mean()
    assert bits(total.mean()) == bits(expected)
