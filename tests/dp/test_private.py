"""One private step: what it adds, what it divides by, what it costs, and what it never tells."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import dp
from dp import PoissonSampler, PrivacyParameterError, PrivateGradient, insecure_source
from dp.events import Gaussian, Poisson
from tests.statistical import assert_mean, assert_rejects, assert_std, assert_uncorrelated

N, RATE, CLIP, NOISE = 200, 0.1, 0.37, 1.3


def make(**overrides: Any) -> tuple[PrivateGradient, Any, Any]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, 60)).astype(np.float32)
    y = rng.integers(0, 10, N)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(60, 10)
    settings = {
        "sampler": PoissonSampler(N, RATE),
        "clip_norm": CLIP,
        "noise_multiplier": NOISE,
        **overrides,
    }
    return PrivateGradient(dp.OpacusClipper(model), x, y, **settings), x, y


def flat(values: dict[str, Any]) -> Any:
    return np.concatenate([v.ravel() for v in values.values()])


def test_the_noise_on_a_batch_mean_is_z_times_c_over_b() -> None:
    private, x, y = make()
    source = insecure_source(11)
    noise, sizes = [], []
    for step in range(20):
        batch = private.sampler.draw(source.stream(f"{step}"))
        clipped = private.clipper.clipped_sum(x[batch], y[batch], CLIP).flatten()
        expected = clipped / (N * RATE)
        noise.append(flat(private.draw(source.stream(f"{step}"))) - expected)
        sizes.append(len(batch))
    # The batches had many sizes; the divisor was the expected one each time.
    assert len(set(sizes)) > 5
    sample = np.concatenate(noise)
    std = NOISE * CLIP / (N * RATE)
    assert sample.size == 20 * 610
    assert_std(sample, std)
    assert_mean(sample, 0.0, std)
    assert_rejects(assert_std, 1.1 * sample, std)
    assert_rejects(assert_std, sample, std * (N * RATE))
    # Every tensor is noised, the short bias too, and no two steps alike.
    assert_std(np.concatenate([n[-10:] for n in noise]), std)
    assert_uncorrelated(np.concatenate(noise[:-1]), np.concatenate(noise[1:]))


def test_an_empty_batch_is_noised_like_any_other() -> None:
    private, _, _ = make(sampler=PoissonSampler(N, 1e-9))
    drawn = flat(private.draw(insecure_source(1).stream("x")))
    assert_std(drawn, NOISE * CLIP / (N * 1e-9))


def test_one_sample_more_moves_the_sum_by_at_most_c() -> None:
    private, x, y = make()
    for i in range(20):
        with_it = private.clipper.clipped_sum(x[: i + 1], y[: i + 1], CLIP).flatten()
        without = private.clipper.clipped_sum(x[:i], y[:i], CLIP).flatten()
        # Up to float32's rounding of the same sample in another batch, which OpacusClipper's docstring names.
        assert np.linalg.norm(with_it - without) <= CLIP * (1 + 1e-6)


def test_the_event_is_what_ran() -> None:
    private, _, _ = make()
    assert private.event == private.step_event == Poisson(RATE, Gaussian(NOISE))


def test_draws_replay_from_a_test_source_and_never_from_the_default_one() -> None:
    private, _, _ = make()
    first = private.draw(insecure_source(5).stream("a"))
    again = private.draw(insecure_source(5).stream("a"))
    other = private.draw(insecure_source(5).stream("b"))
    assert all(np.array_equal(first[n], again[n]) for n in first)
    assert not np.array_equal(flat(first), flat(other))
    assert not np.array_equal(flat(private.draw()), flat(private.draw()))
    seeded, _, _ = make(source=insecure_source(5))
    assert not np.array_equal(flat(seeded.draw()), flat(seeded.draw()))


def test_dropout_replays_with_the_stream_whatever_torchs_seed_is() -> None:
    x, y = np.ones((N, 4), np.float32), np.zeros(N, np.int64)
    model = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.Linear(16, 2))
    private = PrivateGradient(
        dp.OpacusClipper(model),
        x,
        y,
        sampler=PoissonSampler(N, RATE),
        clip_norm=CLIP,
        noise_multiplier=NOISE,
    )
    source = insecure_source(2)
    torch.manual_seed(0)
    first = flat(private.draw(source.stream("a")))
    assert np.array_equal(first, flat(private.draw(source.stream("a"))))
    assert not np.array_equal(first, flat(private.draw(source.stream("b"))))


def test_values_come_by_parameter_in_the_models_order() -> None:
    private, _, _ = make()
    assert {n: v.shape for n, v in private.draw().items()} == {"weight": (10, 60), "bias": (10,)}


def test_the_mean_of_many_draws_is_the_clipped_gradient() -> None:
    private, x, y = make(noise_multiplier=0.01)
    whole = private.clipper.clipped_sum(x, y, CLIP).flatten() / N
    source = insecure_source(9)
    draws = np.stack([flat(private.draw(source.stream(str(i)))) for i in range(300)])
    error = np.linalg.norm(draws.mean(0) - whole)
    # A batch's mean scatters by C / sqrt(B) at most; three hundred of them by a seventeenth of it.
    assert error <= 3 * CLIP / math.sqrt(N * RATE * 300)
    assert error < 0.2 * np.linalg.norm(whole)


def test_repr_shows_public_constants_only() -> None:
    private, _, _ = make()
    assert repr(private) == "PrivateGradient(poisson(q=0.1, gaussian(z=1.3)), clip_norm=0.37)"


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(PrivacyParameterError, match=r"clip_norm=-1\.0"):
        make(clip_norm=-1.0)
    with pytest.raises(PrivacyParameterError, match=r"noise_multiplier=-1\.0"):
        make(noise_multiplier=-1.0)
    with pytest.raises(ValueError, match="199"):
        make(sampler=PoissonSampler(199, RATE))
