"""Proxy data out of nothing: noise, noise that matches a model's statistics, a generator.

None of them has seen a client's data; the two that ask a model know what the model has learnt.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedcompress.distill.generator import build_generator
from fedcompress.distill.logits import mode_restored
from fedcompress.errors import ConfigError

_ROWS_AT_ONCE = 256  # of a batch whose statistics are matched: enough for a mean and a variance
_LATENT = 64


def noise_inputs(
    rows: int, shape: Sequence[int], rng: np.random.Generator, *, vocabulary: int | None = None
) -> Tensor:
    """Draw inputs of which nothing is known but their shape.

    Parameters
    ----------
    rows : int
        How many.
    shape : sequence of int
        Of one row.
    rng : numpy.random.Generator
        Draws them.
    vocabulary : int, optional
        For tokens: how many there are.

    Returns
    -------
    Tensor
        Shape ``(rows, *shape)``: float32 of mean 0 and variance 1, as images are scaled; or
        int64 tokens, all alike likely.
    """
    if vocabulary is not None:
        return torch.from_numpy(rng.integers(0, vocabulary, size=(rows, *shape)))
    return torch.from_numpy(rng.standard_normal((rows, *shape), dtype=np.float32))


def matched_inputs(
    model: nn.Module,
    rows: int,
    shape: Sequence[int],
    rng: np.random.Generator,
    *,
    steps: int = 100,
    learning_rate: float = 0.1,
    device: str = "cpu",
) -> Tensor:
    """Change noise until a model's normalisation layers see the statistics they remember.

    The statistics' part of DeepInversion (Yin et al., 2020): Adam on the inputs lowers the
    distance of each batch's mean and variance from the running ones, of all batch-normalisation
    layers.

    Parameters
    ----------
    model : nn.Module
        Has layers of batch normalisation with running statistics; left as it was, on the CPU.
    rows : int
        How many, at least 2.
    shape : sequence of int
        Of one row.
    rng : numpy.random.Generator
        Draws the noise.
    steps : int
        Of Adam.
    learning_rate : float
        Of Adam.
    device : str
        Where to compute.

    Returns
    -------
    Tensor
        float32 on the CPU, shape ``(rows, *shape)``.

    Raises
    ------
    ConfigError
        If the model remembers no statistics.
    """
    check_has_statistics(model)
    parts = []
    with _frozen(model, device), _Statistics(model) as seen:
        for noise in _even_parts(noise_inputs(rows, shape, rng)):
            inputs = noise.to(device).requires_grad_()
            optimiser = torch.optim.Adam([inputs], lr=learning_rate)
            for _ in range(steps):
                optimiser.zero_grad()
                model(inputs)
                seen.take_distance().backward()  # type: ignore[no-untyped-call]
                optimiser.step()
            parts.append(inputs.detach().to("cpu"))
    return torch.cat(parts)


def generated_inputs(
    model: nn.Module,
    rows: int,
    shape: Sequence[int],
    classes: int,
    rng: np.random.Generator,
    *,
    steps: int = 200,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    device: str = "cpu",
) -> Tensor:
    """Train a generator of inputs that a model is sure of, and draw from it.

    For each row a class is drawn; the generator is trained by Adam so that the model names it
    (Chen et al., 2019), that two rows differ as their seeds do (Zhu et al., 2021), and that the
    model's normalisation layers, if there are any, see the statistics they remember.

    Parameters
    ----------
    model : nn.Module
        Maps inputs to logits (rows, classes); left as it was, on the CPU.
    rows : int
        How many.
    shape : sequence of int
        Of one row.
    classes : int
        How many the model knows.
    rng : numpy.random.Generator
        Draws the generator's weights, its seeds and the classes.
    steps, batch_size : int
        Steps of Adam, and rows in each, at least 2.
    learning_rate : float
        Of Adam.
    device : str
        Where to compute.

    Returns
    -------
    Tensor
        float32 on the CPU, shape ``(rows, *shape)``, mean 0 and variance 1 as images are scaled.
    """
    generator = build_generator(_LATENT + classes, shape, rng).to(device)
    optimiser = torch.optim.Adam(generator.parameters(), lr=learning_rate)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        seeds = torch.from_numpy(rng.standard_normal((count, _LATENT), dtype=np.float32))
        return seeds.to(device), torch.from_numpy(rng.integers(0, classes, size=count)).to(device)

    def generate(seeds: Tensor, labels: Tensor) -> Tensor:
        wanted = functional.one_hot(labels, classes).to(torch.float32)
        made: Tensor = generator(torch.cat([seeds, wanted], 1))
        return made

    with _frozen(model, device), _Statistics(model) as seen:
        for _ in range(steps):
            seeds, labels = draw(batch_size)
            inputs = generate(seeds, labels)
            loss = functional.cross_entropy(model(inputs), labels) + _sameness(inputs, seeds)
            optimiser.zero_grad()
            (loss + seen.take_distance()).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    # In training mode still: the last layer scales each batch to mean 0 and variance 1.
    with torch.no_grad():
        sizes = [len(part) for part in _even_parts(torch.empty(rows))]
        return torch.cat([generate(*draw(size)).to("cpu") for size in sizes])


def check_has_statistics(model: nn.Module) -> None:
    """Raise `ConfigError` unless a model remembers statistics of batch normalisation."""
    if not _remembering(model):
        raise ConfigError(
            f"proxy: {type(model).__name__} has no batch normalisation with running statistics "
            "to match; use kind = 'noise' or 'generator', or a model such as resnet"
        )


class _RunningStatistics(Protocol):
    running_mean: Tensor
    running_var: Tensor
    eps: float


def _remembering(model: nn.Module) -> list[nn.Module]:
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    return [m for m in model.modules() if isinstance(m, kinds) and m.running_mean is not None]


class _Statistics:
    """Distance of what normalisation layers see in a forward pass from what they remember."""

    def __init__(self, model: nn.Module) -> None:
        self._layers = _remembering(model)
        self._seen: list[Tensor] = []

    def __enter__(self) -> "_Statistics":
        self._hooks = [layer.register_forward_pre_hook(self._look) for layer in self._layers]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def take_distance(self) -> Tensor:
        """Sum over the layers since it was last taken; 0 where the model has none."""
        distance = torch.stack(self._seen).sum() if self._seen else torch.zeros(())
        self._seen = []
        return distance

    def _look(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._seen.append(_distance(layer, inputs[0]))  # type: ignore[arg-type]


def _distance(layer: _RunningStatistics, inputs: Tensor) -> Tensor:
    others = [d for d in range(inputs.ndim) if d != 1]
    # In units of the remembered spread: a channel of small numbers counts like any other.
    spread = layer.running_var + layer.eps
    mean = (inputs.mean(others) - layer.running_mean) / spread.sqrt()
    variance = (inputs.var(others, correction=0) - layer.running_var) / spread
    return mean.square().mean() + variance.square().mean()


def _sameness(inputs: Tensor, seeds: Tensor) -> Tensor:
    """Near 1 where rows are alike although their seeds differ, near 0 where they differ, too."""
    half = len(inputs) // 2
    apart = (inputs[:half] - inputs[half : 2 * half]).flatten(1).abs().mean(1)
    seeds_apart = (seeds[:half] - seeds[half : 2 * half]).abs().mean(1)
    return torch.exp(-(apart * seeds_apart).mean())


def _even_parts(rows: Tensor) -> Sequence[Tensor]:
    # Even, because a last batch of a row or two has no statistics.
    return torch.tensor_split(rows, -(-len(rows) // _ROWS_AT_ONCE))


@contextmanager
def _frozen(model: nn.Module, device: str) -> Iterator[None]:
    """Let gradients pass through a model in evaluation mode, but reach no weight."""
    model.to(device)
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    with mode_restored(model):
        model.eval()
        for parameter, _ in wanted:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter, flag in wanted:
                parameter.requires_grad_(flag)
            model.to("cpu")
