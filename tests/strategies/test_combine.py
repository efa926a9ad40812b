"""Laws of ensembles: who is heard, by how much, and in which space."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedcompress.distill import Ensemble, aligned_logits, average_logits
from fedcompress.errors import ConfigError, LayoutError

COMBINE = ("logits", "probabilities")
BY_ROW = ("uniform", "confidence", "variance")
EVERY = [(combine, by_row) for combine in COMBINE for by_row in BY_ROW]


def some_logits(seed: int, teachers: int = 4, scale: float = 4.0) -> Tensor:
    drawn = np.random.default_rng(seed).normal(size=(teachers, 7, 5)) * scale
    return torch.from_numpy(drawn.astype(np.float32))


def combined(teachers: Tensor, combine: str, by_row: str, weights: list[float]) -> Tensor:
    pairs = zip(teachers, weights, strict=True)
    return average_logits(pairs, combine=combine, row_weighting=by_row)


@pytest.mark.parametrize(("combine", "by_row"), EVERY)
def test_teachers_that_agree_say_what_each_says(combine: str, by_row: str) -> None:
    one = some_logits(0)[0]
    got = combined(torch.stack([one] * 3), combine, by_row, [1.0, 5.0, 2.0])
    torch.testing.assert_close(got.softmax(-1), one.softmax(-1), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("combine", "by_row"), EVERY)
@given(seed=st.integers(0, 2**31))
def test_the_order_of_teachers_does_not_show(combine: str, by_row: str, seed: int) -> None:
    teachers, weights = some_logits(seed), [1.0, 2.0, 0.5, 3.0]
    order = np.random.default_rng(seed).permutation(4)
    again = combined(teachers[order], combine, by_row, [weights[i] for i in order])
    torch.testing.assert_close(
        combined(teachers, combine, by_row, weights), again, atol=1e-6, rtol=1e-6
    )


@pytest.mark.parametrize(("combine", "by_row"), EVERY)
def test_what_is_averaged_is_a_weighted_mean_on_each_row(combine: str, by_row: str) -> None:
    teachers, weights = some_logits(3).double(), torch.tensor([1.0, 2.0, 0.5, 3.0]).double()
    p = teachers.softmax(-1)
    heard = {
        "uniform": torch.ones(4, 7, 1).double(),
        "confidence": torch.exp((p * p.log()).sum(-1, keepdim=True)),
        "variance": teachers.var(-1, keepdim=True, correction=0),
    }[by_row] * weights[:, None, None]
    assert ((heard / heard.sum(0)).sum(0) - 1).abs().max() < 1e-12
    said = teachers if combine == "logits" else p
    expected = (said * heard).sum(0) / heard.sum(0)
    got = combined(teachers.float(), combine, by_row, weights.tolist())
    if combine == "probabilities":
        expected = expected.log()
    torch.testing.assert_close(got, expected.float(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("by_row", ["confidence", "variance"])
def test_a_teacher_that_knows_nothing_of_a_row_is_hardly_heard(by_row: str) -> None:
    sure, clueless = torch.tensor([[9.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.1, 0.2]])
    uniform = combined(torch.stack([sure, clueless]), "probabilities", "uniform", [1, 1])
    got = combined(torch.stack([sure, clueless]), "probabilities", by_row, [1, 1])
    assert got.softmax(-1)[0, 0] > uniform.softmax(-1)[0, 0] + 0.05


@pytest.mark.parametrize(("combine", "by_row"), EVERY)
def test_extreme_logits_stay_finite(combine: str, by_row: str) -> None:
    for value in (0.0, 1e-38, 3e38):
        teachers = torch.full((2, 3, 4), value)
        teachers[:, :, 0] = -value
        assert torch.isfinite(combined(teachers, combine, by_row, [1, 1])).all()


@given(share=st.floats(0, 0.99), seed=st.integers(0, 2**31))
def test_a_share_is_the_share_of_the_whole(share: float, seed: int) -> None:
    teachers = some_logits(seed, teachers=3)
    ensemble = Ensemble()
    ensemble.add(teachers[0], 2.0)
    ensemble.add(teachers[1], 3.0)
    before = ensemble.logits()
    ensemble.add_share(teachers[2], share)
    expected = (1 - share) * before + share * teachers[2]
    torch.testing.assert_close(ensemble.logits(), expected, atol=1e-4, rtol=1e-5)
    assert ensemble.weight == pytest.approx(5 / (1 - share))


@given(seed=st.integers(0, 2**31))
def test_alignment_undoes_a_bias_towards_some_classes(seed: int) -> None:
    """Rows of all classes alike: what a bias adds to a class's logit is taken back."""
    fair = 3 * torch.eye(5).repeat(40, 1) + some_logits(seed, 1, scale=0.3)[0, :5].repeat(40, 1)
    bias = torch.from_numpy(np.random.default_rng(seed).normal(size=5)).float()

    def away(logits: Tensor) -> float:
        return float((logits.softmax(-1).mean(0) - 0.2).abs().max())

    assert torch.equal(aligned_logits(fair + bias, 0.0), fair + bias)
    assert away(aligned_logits(fair + bias)) <= away(fair + bias) + 1e-6
    # a class that nobody knows is not made up
    unknown = fair.clone()
    unknown[:, 0] = -200
    assert aligned_logits(unknown).argmax(-1).ne(0).all()
    assert torch.isfinite(aligned_logits(unknown)).all()


def test_ensembles_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match=r"combine must be 'logits' or .* got 'mean'"):
        Ensemble(combine="mean")
    with pytest.raises(ConfigError, match="row_weighting must be 'uniform', 'confidence' or"):
        Ensemble(row_weighting="examples")
    with pytest.raises(ConfigError, match="got 0; give at least 1"):
        Ensemble().logits()
    ensemble = Ensemble()
    ensemble.add(torch.zeros(3, 4))
    with pytest.raises(LayoutError, match=r"teacher 1: .*\(3, 5\).*\(3, 4\)"):
        ensemble.add(torch.zeros(3, 5))
    with pytest.raises(ConfigError, match=r"share must be in \[0, 1\), got 1"):
        ensemble.add_share(torch.zeros(3, 4), 1.0)
