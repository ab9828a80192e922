"""The book-keeping engine against the loop over samples: layers, shared weights, NaN, models left alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dp.clipping import LoopClipper
from dp.clipping.base import ClippedSum
from dp.clipping.bookkeeping import BookkeepingClipper
from dp.clipping.layers import RULES, Dense, Rule
from dp.clipping.layers.rule import squares
from dp.errors import UnsupportedLayer

N = 9


def seeded(build: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return build()


def normal(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(3).normal(size=shape).astype(np.float32)


def labels(n: int = N, classes: int = 3) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.random.default_rng(4).integers(0, classes, n)


def middle_norm(model: nn.Module, x: Any, y: Any) -> float:
    """A bound that about half of the samples exceed, so that clipping is at work and not everywhere."""
    loop = LoopClipper(model)
    norms = [
        np.linalg.norm(loop.clipped_sum(x[i : i + 1], y[i : i + 1], 1e9).flatten()) for i in range(len(y))
    ]
    assert min(norms) < max(norms)
    return float(np.sort(norms)[len(y) // 2 - 1 : len(y) // 2 + 1].mean())


def assert_equal_sums(got: ClippedSum, expected: ClippedSum) -> None:
    assert list(got.values) == list(expected.values)
    assert (got.count, got.nonfinite, got.clip_norm) == (
        expected.count,
        expected.nonfinite,
        expected.clip_norm,
    )
    scale = float(np.linalg.norm(expected.flatten()))
    for name, value in expected.values.items():
        assert got.values[name].shape == value.shape
        assert got.values[name].dtype == np.float64
        assert float(np.linalg.norm(got.values[name] - value)) <= 1e-5 * scale, name


def assert_equals_the_loop(model: nn.Module, x: Any, y: Any, clip_norm: float | None = None) -> None:
    bound = middle_norm(model, x, y) if clip_norm is None else clip_norm
    expected = LoopClipper(model).clipped_sum(x, y, bound)
    assert_equal_sums(BookkeepingClipper(model).clipped_sum(x, y, bound), expected)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Linear(5, 3))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 2, 2), nn.Flatten(), nn.Linear(54, 3)
    )


def test_multilayer_perceptrons_equal_the_loop() -> None:
    assert_equals_the_loop(seeded(mlp), normal(N, 6), labels())


def test_convolutional_networks_equal_the_loop() -> None:
    assert_equals_the_loop(seeded(cnn), normal(N, 2, 6, 6), labels())


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 3),
    st.sampled_from([1, 2]),
    st.integers(1, 3),
    st.integers(1, 2),
    st.one_of(st.integers(0, 2), st.just("same")),
    st.integers(1, 2),
    st.sampled_from(["zeros", "circular"]),
    st.booleans(),
)
def test_every_geometry_of_a_convolution_equals_the_loop(
    dims: int, groups: int, kernel: int, stride: int, padding: Any, dilation: int, mode: str, bias: bool
) -> None:
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    stride = 1 if padding == "same" else stride
    options = {"stride": stride, "padding": padding, "dilation": dilation, "padding_mode": mode}
    layer = seeded(lambda: kind(2, 4, kernel, groups=groups, bias=bias, **options))
    model = nn.Sequential(layer, nn.Tanh(), nn.Flatten(), seeded(lambda: nn.LazyLinear(3)))
    x = normal(5, 2, *(6, 5, 7)[:dims])
    model(torch.as_tensor(x))
    assert_equals_the_loop(model, x, labels(5), clip_norm=1.0)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_samples_without_a_finite_gradient_are_zeroed_and_counted(poison: float) -> None:
    model, x, y = seeded(cnn), normal(N, 2, 6, 6), labels()
    x[[0, 7]] = poison
    got = BookkeepingClipper(model).clipped_sum(x, y, 0.5)
    assert got.nonfinite == 2
    assert_equal_sums(got, LoopClipper(model).clipped_sum(x, y, 0.5))
    x[:] = poison
    nothing = BookkeepingClipper(model).clipped_sum(x, y, 0.5)
    assert nothing.nonfinite == N
    assert not nothing.flatten().any()


def test_an_empty_batch_gives_zeros_and_one_sample_at_most_c() -> None:
    model, x, y = seeded(cnn), normal(N, 2, 6, 6), labels()
    clipper = BookkeepingClipper(model)
    empty = clipper.clipped_sum(x[:0], y[:0], 1.0)
    assert (empty.count, empty.flatten().any()) == (0, False)
    for i in range(N):
        norm = np.linalg.norm(clipper.clipped_sum(x[i : i + 1], y[i : i + 1], 0.01).flatten())
        assert 0.01 * (1 - 1e-5) <= norm <= 0.01


class Stack(nn.Module):
    """Layers over a sequence, drawn by hypothesis, then a mean over positions."""

    def __init__(self, kinds: list[str], width: int) -> None:
        super().__init__()
        made: list[nn.Module] = [nn.Embedding(7, width)]
        made += [LAYERS[kind](width) for kind in kinds]
        self.layers = nn.Sequential(*made)
        self.head = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(x).mean(1))


class Across(nn.Module):
    """A layer for channels, over the positions of a sequence."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.transpose(1, 2)).transpose(1, 2)


class Attention(nn.Module):
    """Softmax attention of one head out of linear layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = torch.softmax(self.q(x) @ self.k(x).transpose(1, 2), -1)
        return x + weights @ self.v(x)


LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "linear": lambda w: nn.Linear(w, w),
    "activation": lambda w: nn.GELU(),
    "in place": lambda w: nn.Sequential(nn.Linear(w, w), nn.ReLU(inplace=True)),
    "layer norm": nn.LayerNorm,
    "layer norm without shift": lambda w: nn.LayerNorm(w, bias=False),
    "RMS norm": lambda w: nn.RMSNorm(w, eps=1e-5),
    "group norm": lambda w: Across(nn.GroupNorm(2, w)),
    "instance norm": lambda w: Across(nn.InstanceNorm1d(w, affine=True)),
    "convolution": lambda w: Across(nn.Conv1d(w, w, 3, padding=1)),
    "attention": Attention,
    "frozen": lambda w: nn.Linear(w, w).requires_grad_(False),
    "dropout, off": lambda w: nn.Dropout(0.5).eval(),
}


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.sampled_from(list(LAYERS)), max_size=5),
    st.sampled_from([2, 16]),  # gradients themselves, or Gram matrices
    st.integers(2, 5),
    st.sampled_from([1, 4, 100]),
    st.integers(0, 2**20),
)
def test_stacks_of_layers_over_sequences_equal_the_loop(
    kinds: list[str], width: int, positions: int, physical_batch: int, seed: int
) -> None:
    model = seeded(lambda: Stack(kinds, width))
    x = np.random.default_rng(seed).integers(0, 7, (N, positions))
    clipper = BookkeepingClipper(model, physical_batch=physical_batch)
    got = clipper.clipped_sum(x, labels(), 0.7)
    assert_equal_sums(got, LoopClipper(model).clipped_sum(x, labels(), 0.7))


class Tied(nn.Module):
    """An embedding whose table scores the words too, and a layer that is called as often as `depth` says."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.inner = nn.Linear(4, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight
        self.depth = depth

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.embedding(x).sum(1)
        for _ in range(self.depth):
            h = torch.tanh(self.inner(h))
        return self.head(h)


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_a_weight_of_two_layers_or_calls_is_clipped_by_the_norm_of_its_sum(depth: int) -> None:
    model, x, y = seeded(lambda: Tied(depth)), np.random.default_rng(1).integers(0, 7, (N, 5)), labels(N, 7)
    assert_equals_the_loop(model, x, y)


def test_gradients_that_cancel_between_positions_keep_their_norm() -> None:
    """Terms a million times the sum: Gram matrices in float32 cannot tell such a norm, and must not try."""

    class Cancels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(32, 32, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = self.layer(x).sum(2)
            return out[:, 0] - out[:, 1]

    x = 1000.0 * np.repeat(normal(N, 1, 32), 2, axis=1)
    x[:, 1] += 1e-3 * normal(N, 32)
    model = seeded(Cancels)
    clipper = BookkeepingClipper(model, lambda out, y: out)
    clipped = [
        float(np.linalg.norm(clipper.clipped_sum(x[i : i + 1], np.zeros(1), 0.01).flatten()))
        for i in range(N)
    ]
    exact = np.sqrt(32) * np.linalg.norm(x[:, 0].astype(float) - x[:, 1], axis=1)
    assert min(exact) > 0.02
    # The sum itself is rounded where its terms are: 1000 * 2**-23, of which an entry has half.
    np.testing.assert_allclose(clipped, 0.01, rtol=0.02)


def test_an_input_that_is_changed_in_place_later_is_refused() -> None:
    class Changes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.first(x).detach()
            out = self.second(h)
            h.mul_(2.0)
            return out

    with pytest.raises(UnsupportedLayer, match="'second' to stay as it was"):
        BookkeepingClipper(seeded(Changes)).clipped_sum(normal(N, 6), labels(), 1.0)


def test_positions_along_the_first_axis_are_found_though_they_are_as_many_as_samples() -> None:
    class Swapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x.transpose(0, 1)).mean(0)

    with pytest.raises(UnsupportedLayer, match="first axis"):
        BookkeepingClipper(seeded(Swapped)).clipped_sum(normal(N, N, 4), labels(), 1.0)


def test_a_third_partys_layer_is_clipped_by_the_rule_that_it_enters(monkeypatch: pytest.MonkeyPatch) -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.full((6,), 1.5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.scale

    model = nn.Sequential(Scale(), seeded(lambda: nn.Linear(6, 3)))
    with pytest.raises(UnsupportedLayer, match="Scale at '0'"):
        BookkeepingClipper(model)
    rule = Rule(lambda layer, a, b: {"scale": Dense(a * b)}, parameters=("scale",))
    monkeypatch.setitem(RULES, Scale, rule)
    assert_equals_the_loop(model, normal(N, 6), labels())
    wrong = Rule(lambda layer, a, b: {"scale": Dense(0.5 * a * b)}, parameters=("scale",))
    monkeypatch.setitem(RULES, Scale, wrong)
    with pytest.raises(UnsupportedLayer, match=r"'0\.scale'"):
        BookkeepingClipper(model).clipped_sum(normal(N, 6), labels(), 1.0)


def test_a_layer_that_computes_something_else_does_not_inherit_a_rule() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2.0 * super().forward(x)

    class Named(nn.Linear):
        pass

    with pytest.raises(UnsupportedLayer, match="Doubled at 'the top'"):
        BookkeepingClipper(Doubled(6, 3))
    assert_equals_the_loop(seeded(lambda: Named(6, 3)), normal(N, 6), labels())


@pytest.mark.parametrize(
    "layer",
    [
        nn.LSTM(3, 3),
        nn.MultiheadAttention(4, 2),
        nn.ConvTranspose1d(1, 1, 1),
        nn.Embedding(3, 3, scale_grad_by_freq=True),
        nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)),
    ],
)
def test_layers_without_a_rule_are_refused_with_the_way_out(layer: nn.Module) -> None:
    with pytest.raises(UnsupportedLayer, match=r"at '1.*make_clipper"):
        BookkeepingClipper(nn.Sequential(nn.Linear(3, 3), layer))


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1.0, 1e15, 1e25])
@pytest.mark.parametrize("width", [3, 256, 700])
def test_squared_norms_of_any_size_are_those_of_float64(width: int, scale: float) -> None:
    values = np.float32(scale) * normal(4, width)
    values[2] = 0.0
    expected = (values.astype(np.float64) ** 2).sum(1)
    np.testing.assert_allclose(squares(torch.as_tensor(values)).numpy(), expected, rtol=2e-6)


def test_no_hook_stays_behind_a_pass_that_fails() -> None:
    model = seeded(mlp)
    with pytest.raises(ValueError, match="one loss a sample"):
        BookkeepingClipper(model, nn.functional.cross_entropy).clipped_sum(normal(N, 6), labels(), 1.0)
    assert not any(layer._forward_hooks for layer in model.modules())
