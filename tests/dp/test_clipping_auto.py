"""The choice of an engine, and the engine that maps over samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dp.clipping import LoopClipper, VmapClipper, make_clipper
from dp.clipping.auto import AutoClipper
from dp.errors import UnsupportedLayer

N = 7


class Attends(nn.Module):
    """torch's own attention, which uses its weights as functions do."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


class Behind(nn.Module):
    """A layer whose weight is used behind its back."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head((self.inner(x) + nn.functional.linear(x, self.inner.weight)).mean(1))


class Decides(nn.Module):
    """A branch that depends on a sample, and a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = [row if float(row.detach().sum()) > 0 else 2.0 * row for row in x]
        return self.head((torch.stack(rows) * self.scale).mean(1))


class Recurrent(nn.Module):
    """torch's recurrent layer, which is one operation for all of its steps."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTM(4, 4, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.cell(x)[0][:, -1])


CASES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "linear": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(20, 3)), "bookkeeping"),
    "attention": (Attends, "vmap"),
    "behind": (Behind, "vmap"),
    "transposed": (
        lambda: nn.Sequential(nn.ConvTranspose1d(5, 2, 2), nn.Flatten(), nn.Linear(10, 3)),
        "vmap",
    ),
    "decides": (Decides, "loop"),
    "recurrent": (Recurrent, "vmap"),
}


@pytest.mark.parametrize("name", CASES)
def test_the_fastest_engine_that_can_is_taken_and_equals_the_loop(name: str) -> None:
    build, engine = CASES[name]
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = build()
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(N, 5, 4)).astype(np.float32), rng.integers(0, 3, N)
    clipper = make_clipper(model)
    assert isinstance(clipper, AutoClipper)
    for bound in (0.5, 5.0):
        got = clipper.clipped_sum(x, y, bound).flatten()
        expected = LoopClipper(model).clipped_sum(x, y, bound).flatten()
        assert np.linalg.norm(got - expected) <= 1e-5 * np.linalg.norm(expected)
    assert clipper.engine == engine


def test_samples_that_mix_are_refused_not_shown_one_at_a_time() -> None:
    class Mixes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x - x.mean(0))

    x = np.random.default_rng(0).normal(size=(N, 4)).astype(np.float32)
    with pytest.raises(UnsupportedLayer, match="other samples"):
        make_clipper(Mixes()).clipped_sum(x, np.zeros(N, int), 1.0)
    with pytest.raises(UnsupportedLayer, match="BatchNorm1d"):
        make_clipper(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)))


@pytest.mark.parametrize("engine", ["bookkeeping", "vmap", "opacus", "loop"])
def test_an_engine_is_taken_by_its_name(engine: str) -> None:
    model = nn.Linear(4, 3)
    assert type(make_clipper(model, engine=engine)).__name__.lower() == f"{engine}clipper"


def test_unknown_engines_are_named() -> None:
    with pytest.raises(ValueError, match="engine='fast'"):
        make_clipper(nn.Linear(4, 3), engine="fast")
    with pytest.raises(ValueError, match="trainable"):
        make_clipper(nn.Flatten())


def test_mapping_over_samples_refuses_what_it_cannot_map_and_targets_that_are_no_class() -> None:
    x: Any = np.ones((N, 5, 4), np.float32)
    with pytest.raises(UnsupportedLayer, match="LoopClipper"):
        VmapClipper(Decides()).clipped_sum(x, np.zeros(N, int), 1.0)
    with pytest.raises(ValueError, match="from 0 to 2") as caught:
        VmapClipper(Attends()).clipped_sum(x, np.full(N, 41), 1.0)
    assert "41" not in str(caught.value)
    with pytest.raises(ValueError, match="physical_batch=0"):
        VmapClipper(nn.Linear(4, 3), physical_batch=0)
