"""A batch's clipped sum against the plain gradient of the same batch, and against Opacus."""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from dp.clipping import BookkeepingClipper, LoopClipper, OpacusClipper

from .harness import Benchmark, Case, Disagreement, compare

CLIP_NORM = 1.0


class Attention(nn.Module):
    """Softmax attention of four heads out of linear layers."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.heads = heads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps shape ``(n, positions, width)`` to the same."""
        n, positions, width = x.shape
        shape = n, positions, self.heads, width // self.heads
        q, k, v = (layer(x).view(shape).transpose(1, 2) for layer in (self.q, self.k, self.v))
        weights = torch.softmax(q @ k.transpose(2, 3) / shape[3] ** 0.5, -1)
        found: torch.Tensor = self.out((weights @ v).transpose(1, 2).reshape(n, positions, width))
        return found


class Transformer(nn.Module):
    """One block and a linear head, 1 M parameters."""

    def __init__(self, width: int = 288) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(width), Attention(width))
        wide = nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        self.wide = nn.Sequential(nn.LayerNorm(width), *wide)
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps shape ``(n, positions, width)`` to ten scores a sample."""
        x = x + self.attention(x)
        scores: torch.Tensor = self.head((x + self.wide(x)).mean(1))
        return scores


def cnn() -> nn.Module:
    """The network of Opacus's MNIST example, 26 k parameters."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 8, 2, padding=3), nn.ReLU(), nn.MaxPool2d(2, 1)),
        *(nn.Conv2d(16, 32, 4, 2), nn.ReLU(), nn.MaxPool2d(2, 1)),
        *(nn.Flatten(), nn.Linear(512, 32), nn.ReLU(), nn.Linear(32, 10)),
    )


def mlp() -> nn.Module:
    """Two hidden layers of 512, 670 k parameters."""
    return nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], float]] = {
    "CNN 26 k, batch 256": (cnn, (256, 1, 28, 28), 1.6),
    "MLP 670 k, batch 256": (mlp, (256, 784), 1.4),
    "transformer 1 M, batch 64": (Transformer, (64, 32, 288), 1.2),
}


def cases() -> Iterator[Benchmark]:
    """Each model against its plain gradient, then against Opacus's per-sample gradients and ghost norms."""
    for name, (build, shape, bar) in MODELS.items():
        for baseline, limit in (("plain", bar), ("opacus", 1.0), ("ghost", 1.0)):
            case = f"{name}, against {baseline}"
            yield Benchmark(case, functools.partial(_measure, case, build, shape, baseline, limit))


def _measure(
    case: str, build: Callable[[], nn.Module], shape: tuple[int, ...], baseline: str, bar: float
) -> Case:
    logging.getLogger("opacus").setLevel(logging.ERROR)
    model = build()
    rng = np.random.default_rng(0)
    x = torch.as_tensor(rng.normal(size=shape), dtype=torch.float32)
    y = torch.as_tensor(rng.integers(0, 10, shape[0]))
    clipper = BookkeepingClipper(model)
    _verify(model, x[:8], y[:8])
    other: Callable[[], Any] = functools.partial(_plain, model, x, y)
    if baseline == "opacus":
        opacus = OpacusClipper(model)
        other = functools.partial(opacus.clipped_sum, x, y, CLIP_NORM)
    if baseline == "ghost":
        other = _ghost(build(), x, y)
    return compare(
        case, functools.partial(clipper.clipped_sum, x, y, CLIP_NORM), other, baseline, runs=9, bar=bar
    )


def _verify(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    """Raise Disagreement unless the sum is that of a loop over samples."""
    ours = BookkeepingClipper(model).clipped_sum(x, y, CLIP_NORM).flatten()
    loop = LoopClipper(model).clipped_sum(x, y, CLIP_NORM).flatten()
    if np.linalg.norm(ours - loop) > 1e-5 * np.linalg.norm(loop):
        raise Disagreement("the clipped sum is not that of a loop over samples.")


def _plain(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    """The gradient that a step without privacy takes, as the parameters' `grad`."""
    model.zero_grad()
    functional.cross_entropy(model(x), y, reduction="sum").backward()  # type: ignore[no-untyped-call]
    model.zero_grad()


def _ghost(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Callable[[], None]:
    """Opacus's fast gradient clipping with ghost norms: two backward passes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from opacus.grad_sample import GradSampleModuleFastGradientClipping
    wrapped = GradSampleModuleFastGradientClipping(
        model, max_grad_norm=CLIP_NORM, use_ghost_clipping=True, loss_reduction="sum"
    )

    def step() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            losses = functional.cross_entropy(wrapped(x), y, reduction="none")
            losses.sum().backward(retain_graph=True)  # type: ignore[no-untyped-call]
            factors = wrapped.get_clipping_coef()
            wrapped.disable_hooks()
            wrapped.zero_grad()
            (factors * losses).sum().backward()
            wrapped.enable_hooks()
            wrapped.zero_grad()

    return step
