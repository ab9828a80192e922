"""The book-keeping engine against the loop over samples: layers, shared weights, NaN, models left alone."""

from __future__ import annotations

import math
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


def test_layers_without_a_rule_are_refused_with_the_way_out() -> None:
    with pytest.raises(UnsupportedLayer, match=r"LSTM at '1'.*make_clipper"):
        BookkeepingClipper(nn.Sequential(nn.Linear(3, 3), nn.LSTM(3, 3)))
