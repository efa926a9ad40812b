"""The student at the end: smaller, measured, and close to its teacher."""

import pytest
import safetensors.torch
import torch
from torch import nn

from fedcompress.errors import ConfigError, LayoutError
from fedcompress.randomness import rng_for
from strategies import distil_student
from strategies.student import count_parameters, file_bytes


def small(classes: int = 10) -> nn.Module:
    return nn.Sequential(
        nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.05), nn.Linear(8, classes)
    )


def test_student_is_smaller_and_agrees(toys, digits, tmp_path):
    teacher = toys.seeded(toys.mlp, 0)
    toys.train(teacher, digits["train_x"], digits["train_y"], 400, rate=0.3)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    result = distil_student(
        teacher,
        toys.seeded(small, 1),
        torch.cat([digits["proxy"], digits["train_x"]]),
        rng=rng_for(0, purpose="student"),
        steps=800,
        learning_rate=2e-2,
    )
    assert result.student_parameters == 64 * 8 + 8 + 16 + 8 * 10 + 10
    assert result.teacher_parameters == 64 * 32 + 32 + 32 * 10 + 10
    assert 0.85 < result.agreement <= 1
    assert result.agreement == result.distillation.agreement
    assert result.distillation.held_out_kl_after < 0.1 * result.distillation.held_out_kl_before
    score = toys.accuracy(result.student, digits["test_x"], digits["test_y"])
    assert score > toys.accuracy(teacher, digits["test_x"], digits["test_y"]) - 0.1
    assert not result.student.training
    assert int(result.student[1].num_batches_tracked) > 0
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name])

    path = tmp_path / "student.safetensors"
    safetensors.torch.save_file(result.student.state_dict(), path)
    assert path.stat().st_size == result.student_bytes
    assert result.student_bytes < result.teacher_bytes


def test_the_same_key_gives_the_same_student(toys, digits):
    teacher = toys.seeded(toys.mlp, 0)

    def run(seed: int) -> torch.Tensor:
        key = rng_for(seed, purpose="student")
        result = distil_student(teacher, toys.seeded(small, 1), digits["proxy"], rng=key, steps=20)
        return torch.cat([value.flatten() for value in result.student.parameters()])

    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))


def test_shared_weights_count_once():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    assert count_parameters(model) == 16 + 4 + 4
    assert file_bytes(model) > 0


def test_students_that_cannot_work(toys, digits):
    key = rng_for(0, purpose="student")
    teacher = toys.mlp()
    with pytest.raises(ConfigError, match="choose a smaller student"):
        distil_student(teacher, toys.mlp(), digits["proxy"], rng=key)
    with pytest.raises(LayoutError, match="same classes"):
        distil_student(teacher, small(7), digits["proxy"], rng=key)
    with pytest.raises(ConfigError, match="at least 2 rows, got 0"):
        distil_student(teacher, small(), digits["proxy"][:0], rng=key)
    with pytest.raises(ConfigError, match="temperature"):
        distil_student(teacher, small(), digits["proxy"], rng=key, temperature=0)
