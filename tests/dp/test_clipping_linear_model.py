"""Clipping of linear models in closed form, against a loop over samples of the same model in torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dp
from dp.clipping.linear_model import LinearModelClipper
from dp.noise import release


def losses(kind):
    functional = torch.nn.functional
    if kind == "softmax":
        return None
    if kind == "logistic":
        return lambda z, y: functional.binary_cross_entropy_with_logits(z[:, 0], y.double(), reduction="none")
    return lambda z, y: 0.5 * ((z - y) ** 2).sum(dim=1)


def drawn(kind, samples, inputs, outputs, bias, seed):
    rng = np.random.default_rng(seed)
    weights = {"weight": rng.normal(size=(outputs, inputs))}
    if bias:
        weights["bias"] = rng.normal(size=outputs)
    x = rng.normal(size=(samples, inputs)) * rng.choice([0.01, 1.0, 30.0], size=(samples, 1))
    if kind == "squared":
        y = rng.normal(size=(samples, outputs))
    else:
        y = rng.integers(0, outputs if kind == "softmax" else 2, samples)
    return weights, x, y


@given(
    st.sampled_from(["softmax", "logistic", "squared"]),
    st.integers(0, 9),
    st.integers(1, 6),
    st.integers(2, 4),
    st.booleans(),
    st.floats(1e-3, 1e3),
    st.integers(0, 2**32),
)
@settings(max_examples=60)
def test_it_is_the_loop_over_samples(kind, samples, inputs, outputs, bias, clip_norm, seed):
    outputs = 1 if kind == "logistic" else outputs
    weights, x, y = drawn(kind, samples, inputs, outputs, bias, seed)
    model = torch.nn.Linear(inputs, outputs, bias=bias).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.as_tensor(weights[name]))
    expected = dp.LoopClipper(model, losses(kind)).clipped_sum(x, y, clip_norm)
    found = LinearModelClipper(weights, kind).clipped_sum(x, y, clip_norm)
    assert (found.count, found.nonfinite) == (samples, 0)
    assert list(found.values) == list(weights)
    for name, value in found.values.items():
        np.testing.assert_allclose(value, expected.values[name], rtol=1e-9, atol=1e-12 * clip_norm)


@pytest.mark.parametrize("kind", ["softmax", "squared"])
def test_no_sample_moves_the_sum_by_more_than_the_clip_norm(kind):
    weights, x, y = drawn(kind, 40, 5, 3, True, 1)
    clipper = LinearModelClipper(weights, kind)
    whole = clipper.clipped_sum(x, y, 0.5).flatten()
    for i in range(40):
        left = np.arange(40) != i
        assert np.linalg.norm(whole - clipper.clipped_sum(x[left], y[left], 0.5).flatten()) <= 0.5 + 1e-12


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e200])
def test_a_sample_that_is_not_finite_counts_as_zero(bad):
    weights, x, y = drawn("squared", 6, 3, 2, True, 2)
    clipper = LinearModelClipper(weights, "squared")
    clean = clipper.clipped_sum(x[1:], y[1:], 1.0)
    x[0, 1] = bad
    found = clipper.clipped_sum(x, y, 1.0)
    assert found.nonfinite == 1
    np.testing.assert_allclose(found.flatten(), clean.flatten(), rtol=1e-12)


def test_many_samples_are_taken_in_blocks():
    weights, x, y = drawn("softmax", 40_000, 3, 4, True, 3)
    clipper = LinearModelClipper(weights)
    parts = [
        clipper.clipped_sum(x[i : i + 9999], y[i : i + 9999], 1.0).flatten() for i in range(0, 40_000, 9999)
    ]
    np.testing.assert_allclose(clipper.clipped_sum(x, y, 1.0).flatten(), np.sum(parts, axis=0), rtol=1e-10)


def test_weights_trained_in_place_are_used_and_the_noise_hides_the_sum():
    """Private logistic regression reaches what the data says: labels follow the first input."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=(4000, 2))
    y = (x[:, 0] > 0).astype(int)
    weights = {"weight": np.zeros((1, 2)), "bias": np.zeros(1)}
    clipper = LinearModelClipper(weights, "logistic")
    for step in range(30):
        clipped = clipper.clipped_sum(x, y, 1.0)
        noised = release(clipped.flatten(), 1.0, 1.0, dp.secure_source().stream(f"step {step}"))
        for name, value in clipped.unflatten(noised.values / len(x)).items():
            weights[name] -= 2.0 * value
    assert np.mean((x @ weights["weight"].T + weights["bias"] > 0)[:, 0] == y) > 0.97


@pytest.mark.parametrize(
    ("weights", "loss", "says"),
    [
        ({"w": np.zeros((2, 3))}, "softmax", "Expected 'weight'"),
        ({"weight": np.zeros(3)}, "softmax", "shape"),
        ({"weight": np.zeros((2, 3)), "bias": np.zeros(3)}, "softmax", "bias"),
        ({"weight": np.zeros((2, 3))}, "logistic", "one output"),
        ({"weight": np.zeros((2, 3))}, "hinge", "got 'hinge'"),
    ],
)
def test_what_is_no_such_model_is_refused(weights, loss, says):
    with pytest.raises(ValueError, match=says):
        LinearModelClipper(weights, loss)


def test_targets_and_inputs_that_do_not_fit_are_refused_without_naming_them():
    clipper = LinearModelClipper({"weight": np.zeros((3, 2))})
    with pytest.raises(ValueError, match=r"from 0 to 2") as info:
        clipper.clipped_sum(np.zeros((2, 2)), [0, 77], 1.0)
    assert "77" not in str(info.value)
    with pytest.raises(ValueError, match=r"inputs of shape \(2, 2\)"):
        clipper.clipped_sum(np.zeros((2, 3)), [0, 1], 1.0)
    with pytest.raises(dp.PrivacyParameterError, match="clip_norm"):
        clipper.clipped_sum(np.zeros((1, 2)), [0], 0.0)
