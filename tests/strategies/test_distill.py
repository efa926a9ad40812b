"""Laws of the distillation math."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fedcompress.distill import average_logits, distil, kl_divergence, predict_logits
from fedcompress.errors import ConfigError, FedcompressError, LayoutError, NotFiniteError
from fedcompress.randomness import rng_for


def rng() -> np.random.Generator:
    return rng_for(0, purpose="test")


def weights_of(model: nn.Module) -> Tensor:
    return torch.cat([value.double().flatten() for value in model.state_dict().values()])


@given(
    st.lists(st.floats(0.01, 100), min_size=1, max_size=5),
    st.integers(0, 2**31),
)
def test_average_is_the_weighted_mean(weights: list[float], seed: int) -> None:
    logits = np.random.default_rng(seed).normal(size=(len(weights), 6, 3)).astype(np.float32)
    got = average_logits(zip(torch.from_numpy(logits), weights, strict=True))
    np.testing.assert_allclose(got, np.average(logits, axis=0, weights=weights), atol=1e-5)


def test_average_by_hand() -> None:
    a, b = torch.tensor([[0.0, 4.0]]), torch.tensor([[8.0, 0.0]])
    assert average_logits([(a, 1), (b, 1)]).tolist() == [[4.0, 2.0]]
    assert average_logits([(a, 3), (b, 1)]).tolist() == [[2.0, 3.0]]
    assert average_logits([(a, 3), (b, 0)]).tolist() == [[0.0, 4.0]]


@pytest.mark.parametrize(
    ("teachers", "fault"),
    [
        ([], "got 0"),
        ([(torch.zeros(2, 3), 0.0)], "sum to 0"),
        ([(torch.zeros(2, 3), -1.0)], "teacher 0: weight .* got -1.0"),
        ([(torch.zeros(2, 3), float("nan"))], "got nan"),
        ([(torch.zeros(2, 3), 1.0), (torch.zeros(2, 4), 1.0)], r"teacher 1: .*\(2, 4\).*\(2, 3\)"),
    ],
)
def test_teachers_that_cannot_be_averaged(teachers: list[tuple[Tensor, float]], fault: str) -> None:
    with pytest.raises(FedcompressError, match=fault):
        average_logits(teachers)


@given(st.floats(0.5, 8), st.integers(0, 2**31))
def test_divergence_is_what_the_definition_says(temperature: float, seed: int) -> None:
    rows = torch.from_numpy(np.random.default_rng(seed).normal(size=(2, 5, 4)) * 3)
    student, teacher = rows
    p, q = (teacher / temperature).softmax(-1), (student / temperature).softmax(-1)
    expected = temperature**2 * (p * (p.log() - q.log())).sum(-1).mean()
    got = kl_divergence(student, teacher, temperature)
    assert float(got) == pytest.approx(float(expected), abs=1e-9)
    assert got >= -1e-12
    assert float(kl_divergence(student, student, temperature)) == pytest.approx(0, abs=1e-12)
    # logits mean the same after a shift
    assert float(kl_divergence(student + 3, teacher, temperature)) == pytest.approx(
        float(got), abs=1e-9
    )


def test_temperature_keeps_gradients_comparable() -> None:
    teacher = torch.randn(50, 10, generator=torch.Generator().manual_seed(0))
    norms = []
    for temperature in (2.0, 8.0):
        student = torch.zeros(50, 10, requires_grad=True)
        kl_divergence(student, teacher, temperature).backward()
        norms.append(float(student.grad.norm()))
    assert norms[0] == pytest.approx(norms[1], rel=0.3)


def test_logits_do_not_depend_on_the_batch_and_leave_the_mode(toys) -> None:
    model = toys.seeded(toys.normalised_mlp, 0)
    model[3].eval()
    x = torch.rand(50, 64)
    whole = predict_logits(model, x)
    parts = predict_logits(model, x, batch_size=7)
    torch.testing.assert_close(whole, parts)
    assert model.training
    assert not model[3].training


def test_divergence_falls_and_follows_the_teacher(toys, digits) -> None:
    teacher = toys.seeded(toys.mlp, 1)
    toys.train(teacher, digits["train_x"], digits["train_y"], 60)
    student = toys.seeded(toys.mlp, 2)
    target = predict_logits(teacher, digits["proxy"])
    result = distil(student, digits["proxy"], target, rng=rng(), steps=300, learning_rate=1e-2)
    assert result.held_out_kl_after < 0.3 * result.held_out_kl_before
    assert result.agreement > 0.85


def test_a_student_that_equals_its_teacher_is_left_alone(toys, digits) -> None:
    student = toys.seeded(toys.mlp, 1)
    before = weights_of(student)
    target = predict_logits(student, digits["proxy"])
    result = distil(student, digits["proxy"], target, rng=rng(), steps=100, patience=20)
    assert torch.equal(weights_of(student), before)
    assert result.best_step == 0
    assert result.held_out_kl_after == pytest.approx(0, abs=1e-9)
    assert result.agreement == 1.0
    assert result.stopped_early
    assert result.steps == 20


@pytest.mark.parametrize("holdout_fraction", [0.0, 0.3])
def test_stopping_keeps_the_best_weights(toys, digits, holdout_fraction: float) -> None:
    """A learning rate that destroys the student must leave it as it was at its best."""
    teacher, student = toys.seeded(toys.mlp, 1), toys.seeded(toys.mlp, 2)
    toys.train(teacher, digits["train_x"], digits["train_y"], 60)
    target = predict_logits(teacher, digits["proxy"])
    result = distil(
        student,
        digits["proxy"],
        target,
        rng=rng(),
        learning_rate=50.0,
        steps=100,
        patience=15,
        check_every=5,
        holdout_fraction=holdout_fraction,
    )
    assert result.held_out_kl_after <= result.held_out_kl_before
    held_out_everything = float(
        kl_divergence(predict_logits(student, digits["proxy"]), target, 1.0)
    )
    if holdout_fraction == 0:
        assert held_out_everything == pytest.approx(result.held_out_kl_after, rel=1e-5)
    assert torch.isfinite(weights_of(student)).all()


def test_determinism_without_touching_the_global_generator(toys, digits) -> None:
    target = predict_logits(toys.seeded(toys.mlp, 1), digits["proxy"])

    def run(seed: int) -> Tensor:
        student = toys.seeded(toys.normalised_mlp, 2)
        key = rng_for(seed, purpose="test")
        distil(student, digits["proxy"], target, rng=key, steps=30, learn_statistics=True)
        return weights_of(student)

    state = torch.get_rng_state()
    first = run(0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert torch.equal(first, run(0))
    assert not torch.equal(first, run(1))


@pytest.mark.parametrize("learn_statistics", [False, True])
def test_normalisation_statistics(toys, digits, learn_statistics: bool) -> None:
    student = toys.seeded(toys.normalised_mlp, 2)
    target = predict_logits(toys.seeded(toys.mlp, 1), digits["proxy"])
    mean = student[1].running_mean.clone()
    distil(
        student,
        digits["proxy"],
        target,
        rng=rng(),
        steps=30,
        learn_statistics=learn_statistics,
        learning_rate=1e-2,
    )
    assert torch.equal(student[1].running_mean, mean) is not learn_statistics
    assert (int(student[1].num_batches_tracked) > 0) is learn_statistics


def test_sequences_and_recurrent_models() -> None:
    class Characters(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(12, 4)
            self.lstm = nn.LSTM(4, 8, batch_first=True)
            self.head = nn.Linear(8, 12)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.lstm(self.embedding(tokens))[0])

    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokens = torch.randint(0, 12, (40, 6))
        teacher, student = Characters(), Characters()
    target = predict_logits(teacher, tokens)
    assert target.shape == (40, 6, 12)
    result = distil(student, tokens, target, rng=rng(), steps=60, learning_rate=1e-2)
    assert result.held_out_kl_after < result.held_out_kl_before


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"temperature": 0}, "distil: temperature must be a finite number > 0, got 0"),
        ({"temperature": float("nan")}, "temperature .* got nan"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"steps": 0}, "steps must be a whole number >= 1, got 0"),
        ({"steps": 1.5}, "steps"),
        ({"batch_size": True}, "batch_size"),
        ({"patience": 0}, "patience"),
        ({"holdout_fraction": 1}, r"holdout_fraction must be in \[0, 1\), got 1"),
        ({"hard_label_weight": 1.5}, r"hard_label_weight must be in \[0, 1\], got 1.5"),
    ],
)
def test_settings_out_of_range(toys, settings: dict[str, float], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        distil(toys.mlp(), torch.rand(9, 64), torch.zeros(9, 10), rng=rng(), **settings)


def test_data_that_does_not_fit(toys) -> None:
    model = toys.mlp()
    with pytest.raises(ConfigError, match="at least 2 rows, got 0"):
        distil(model, torch.rand(0, 64), torch.zeros(0, 10), rng=rng())
    with pytest.raises(LayoutError, match=r"\(9, \.\.\., classes\).*got \(8, 10\)"):
        distil(model, torch.rand(9, 64), torch.zeros(8, 10), rng=rng())
    with pytest.raises(LayoutError, match="same classes"):
        distil(model, torch.rand(9, 64), torch.zeros(9, 7), rng=rng())
    with pytest.raises(NotFiniteError, match="teachers"):
        distil(model, torch.rand(9, 64), torch.full((9, 10), float("inf")), rng=rng())
    nn.init.constant_(model[0].weight, float("nan"))
    with pytest.raises(NotFiniteError, match="student"):
        distil(model, torch.rand(9, 64), torch.zeros(9, 10), rng=rng())


def test_hard_labels_by_hand() -> None:
    """One weight a row and class: each row ends where the mixture of both losses is lowest."""
    inputs, teacher = torch.eye(4), torch.tensor([[4.0, 0.0]]).repeat(4, 1)
    labels = torch.tensor([1, 1, -1, -1])

    def learnt(share: float, told: Tensor | None) -> Tensor:
        student = nn.Linear(4, 2, bias=False)
        nn.init.zeros_(student.weight)
        distil(
            student,
            inputs,
            teacher,
            rng=rng(),
            hard_label_weight=share,
            labels=told,
            steps=300,
            patience=300,
            batch_size=4,
            learning_rate=0.3,
            holdout_fraction=0.0,
        )
        return student.weight.detach().T.softmax(-1)[:, 0]

    soft = float(torch.tensor(4.0).sigmoid())
    torch.testing.assert_close(learnt(0.0, None), torch.full((4,), soft), atol=0.01, rtol=0)
    # labels that are not told are the class that the teachers name
    assert torch.equal(learnt(1.0, None), learnt(1.0, torch.zeros(4, dtype=torch.int64)))
    told = learnt(1.0, labels)
    assert (told[:2] < 0.02).all()
    assert (told[2:] > 0.98).all()
    half = learnt(0.5, labels)[:2]
    torch.testing.assert_close(half, torch.full((2,), soft / 2), atol=0.01, rtol=0)


def test_without_hard_labels_nothing_changes(toys, digits) -> None:
    target = predict_logits(toys.seeded(toys.mlp, 1), digits["proxy"])
    labels = torch.zeros(len(digits["proxy"]), dtype=torch.int64)

    def run(told: Tensor | None) -> Tensor:
        student = toys.seeded(toys.mlp, 2)
        distil(student, digits["proxy"], target, rng=rng(), steps=20, labels=told)
        return weights_of(student)

    assert torch.equal(run(None), run(labels))


@pytest.mark.parametrize(
    ("labels", "fault"),
    [
        (torch.zeros(8, dtype=torch.int64), r"int64 of shape \(9,\), got .* of shape \(8,\)"),
        (torch.zeros(9), "got torch.float32"),
        (torch.full((9,), 10), "classes 0 to 9, or -1 .* got 10 to 10"),
        (torch.full((9,), -2), "got -2 to -2"),
    ],
)
def test_labels_that_cannot_be(toys, labels: Tensor, fault: str) -> None:
    with pytest.raises(FedcompressError, match=fault):
        distil(toys.mlp(), torch.rand(9, 64), torch.zeros(9, 10), rng=rng(), labels=labels)
