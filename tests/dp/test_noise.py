"""Noise: its distribution, its tail, and that releases lie on a lattice that tells nothing about the sum."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import dp
from dp import PrivacyParameterError, insecure_source
from dp.events import Gaussian
from dp.noise import granularity_for
from tests.statistical import (
    assert_distribution,
    assert_mean,
    assert_rejects,
    assert_std,
    assert_uncorrelated,
)


class FixedWords:
    """A stream that says what the test wants."""

    def __init__(self, words: list[int]) -> None:
        self.words = np.array(words, dtype=np.uint64)
        self.taken = 0

    def uint64(self, n: int) -> Any:
        self.taken += n
        out, self.words = self.words[:n], self.words[n:]
        return out


def draws(std: float = 2.71828, n: int = 100_000, seed: int = 1) -> Any:
    return dp.gaussian(n, std, insecure_source(seed).stream("noise"))


def test_gaussian_has_the_distribution_and_the_tests_would_see_a_tenth_more() -> None:
    x = draws()
    assert_mean(x, 0.0, 2.71828)
    assert_std(x, 2.71828)
    assert_rejects(assert_std, 1.1 * x[:4_000], 2.71828)
    assert_distribution(x, stats.norm(scale=2.71828).cdf)
    assert_rejects(assert_distribution, 1.1 * x[:20_000], stats.norm(scale=2.71828).cdf)
    assert_uncorrelated(x[:-1], x[1:])
    assert_uncorrelated(np.abs(x[:-1]), np.abs(x[1:]))


@pytest.mark.parametrize("tail", [0, 1, 2**20, 2**52, 2**53 - 1])
def test_far_tail_draws_use_another_64_bits_and_keep_full_precision(tail: int) -> None:
    further = 2**63 + 12345
    stream = FixedWords([tail << 1, further])
    [value] = dp.gaussian(1, 1.0, stream)  # type: ignore[arg-type]
    assert stream.taken == 2
    # log of (tail + fraction) / 2**64, taken with Python's integers.
    probability = (tail * 2**64 + further) / 2**128
    assert value == pytest.approx(stats.norm.isf(probability), rel=1e-12)


def test_neighbouring_far_tail_words_give_different_values() -> None:
    # Without the further bits there would be one value only beyond 8.9 std, and holes on the lattice.
    values = [dp.gaussian(1, 1.0, FixedWords([2, f]))[0] for f in range(0, 2**64, 2**58)]  # type: ignore[arg-type]
    assert len(set(values)) == 64


def test_ordinary_draws_take_one_word_and_the_sign_is_one_bit() -> None:
    word = (2**62 + 12345) << 1
    plus = dp.gaussian(1, 1.0, FixedWords([word]))[0]  # type: ignore[arg-type]
    minus = dp.gaussian(1, 1.0, FixedWords([word | 1]))[0]  # type: ignore[arg-type]
    assert plus == -minus > 0
    assert plus == pytest.approx(stats.norm.isf((2**62 + 12345.5) / 2**64), rel=1e-12)


def test_no_word_gives_nan_or_infinity() -> None:
    words = [0, 0, 1, 0, 2**64 - 1, 2**64 - 2, 2**54, 2**54 - 1, 0]
    for word in words:
        value = dp.gaussian(1, 1.0, FixedWords([word, 0]))[0]  # type: ignore[arg-type]
        assert math.isfinite(value)
        assert abs(value) < 13.2


@given(st.floats(1e-6, 1e6), st.integers(1, 10**9))
def test_granularity_is_the_largest_power_of_two_within_its_share(clip_norm: float, size: int) -> None:
    g = granularity_for(clip_norm, size)
    assert math.frexp(g)[0] == 0.5
    share = clip_norm * 2.0**-12 / math.sqrt(size)
    assert g <= share < 2 * g or math.isclose(share, 2 * g, rel_tol=1e-12)


def test_a_release_has_the_declared_noise_around_the_sum() -> None:
    total = np.linspace(-3, 3, 50_000)
    released = dp.release(total, 0.7, 1.3, insecure_source(3).stream("r"))
    expected = 1.3 * (0.7 + released.granularity * math.sqrt(total.size))
    assert released.event == Gaussian(1.3)
    assert released.sensitivity == pytest.approx(0.7 + released.granularity * math.sqrt(total.size))
    assert released.sensitivity <= 0.7 * (1 + 2.0**-12) * (1 + 1e-15)
    assert_std(released.values - total, expected)
    assert_mean(released.values - total, 0.0, expected)
    assert_rejects(assert_std, 1.1 * (released.values - total), expected)
    assert_distribution((released.values - total), stats.norm(scale=expected).cdf)


def test_every_release_is_a_lattice_point_whatever_the_sum() -> None:
    rng = np.random.default_rng(0)
    for scale in (0.0, 1e-9, 1.0, 1e6):
        total = rng.normal(size=2_000) * scale
        released = dp.release(total, 1.0, 0.8, insecure_source(4).stream(str(scale)))
        points = released.values / released.granularity
        assert np.array_equal(points, np.rint(points))
        # No point is minus zero or carries other bits: equal integers are equal bytes.
        assert np.array_equal(released.values, points.astype(np.int64) * released.granularity)
    # Power: plain floating-point noise leaves the lattice at once.
    plain = dp.gaussian(2_000, 0.8, insecure_source(5).stream("x")) / released.granularity
    assert not np.array_equal(plain, np.rint(plain))


def test_low_bits_of_a_release_identify_neither_of_two_sums() -> None:
    """The precision attack: guess the sum from which low bits can occur.

    Adding float noise to 0 or to 1 leaves marks: below 1/2 only the first keeps the draw's finest bits.
    """
    n, one = 40_000, 1.0

    def finest_bit(values: Any) -> Any:
        mantissa, exponent = np.frexp(values[values != 0])
        odd = np.ldexp(mantissa, 53).astype(np.int64)
        return exponent - 53 + np.log2((odd & -odd).astype(np.float64)).astype(int)

    def identified(zero: Any, one: Any) -> int:
        """How many releases of the first sum have a finest bit that the second never shows."""
        return int(np.sum(finest_bit(zero) < finest_bit(one).min()))

    a = dp.release(np.zeros(n), one, 1.0, insecure_source(6).stream("a")).values
    b = dp.release(np.full(n, one), one, 1.0, insecure_source(6).stream("b")).values
    assert identified(a, b) == identified(b, a) == 0
    # Power: the attack works on plain floats.
    noise = dp.gaussian(n, 1.0, insecure_source(6).stream("c"))
    assert identified(noise, one + dp.gaussian(n, 1.0, insecure_source(6).stream("d"))) > 100


def test_releases_from_different_streams_are_independent() -> None:
    a = dp.release(np.zeros(5_000), 1.0, 1.0, insecure_source(7).stream("a")).values
    b = dp.release(np.zeros(5_000), 1.0, 1.0, insecure_source(7).stream("b")).values
    assert_uncorrelated(a, b)


def test_no_noise_releases_the_rounded_sum() -> None:
    total = np.array([0.1, -5.0, 3.25])
    released = dp.release(total, 1.0, 0.0, insecure_source(1).stream("x"))
    assert np.abs(released.values - total).max() <= released.granularity / 2


def test_an_empty_vector_is_released_as_one() -> None:
    assert dp.release(np.zeros(0), 1.0, 1.0, insecure_source(1).stream("x")).values.shape == (0,)


@pytest.mark.parametrize(
    ("total", "clip_norm", "noise", "error", "text"),
    [
        (np.zeros(3), 0.0, 1.0, PrivacyParameterError, r"clip_norm=0\.0"),
        (np.zeros(3), math.inf, 1.0, PrivacyParameterError, "clip_norm=inf"),
        (np.zeros(3), 1.0, -1.0, PrivacyParameterError, r"noise_multiplier=-1\.0"),
        (np.zeros(3), 1.0, 1e17, PrivacyParameterError, r"noise_multiplier=1e\+17"),
        (np.array([1.0, math.nan]), 1.0, 1.0, ValueError, "NaN"),
        (np.zeros((2, 2)), 1.0, 1.0, ValueError, "shape"),
        (np.zeros(3, np.float32), 1.0, 1.0, ValueError, "float32"),
    ],
)
def test_wrong_arguments_are_named(
    total: Any, clip_norm: float, noise: float, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        dp.release(total, clip_norm, noise, insecure_source(1).stream("x"))


def test_gaussian_refuses_a_negative_std() -> None:
    with pytest.raises(PrivacyParameterError, match=r"std=-1\.0"):
        dp.gaussian(3, -1.0, insecure_source(1).stream("x"))


def test_a_sum_beyond_the_lattice_is_clamped_since_refusing_it_would_tell() -> None:
    released = dp.release(np.array([1e300, -1e300, 0.0]), 1.0, 1.0, insecure_source(1).stream("x"))
    assert np.isfinite(released.values).all()
    assert released.values[0] > 1e11 > -1e11 > released.values[1]


def test_laplace_has_the_distribution_and_the_tests_would_see_a_tenth_more() -> None:
    x = dp.noise.laplace(100_000, 2.71828, insecure_source(1).stream("noise"))
    assert_mean(x, 0.0, 2.71828 * math.sqrt(2))
    assert_mean(np.abs(x), 2.71828, 2.71828)
    assert_distribution(x, stats.laplace(scale=2.71828).cdf)
    assert_rejects(assert_distribution, 1.1 * x[:20_000], stats.laplace(scale=2.71828).cdf)
    assert_uncorrelated(x[:-1], x[1:])
    assert_uncorrelated(np.abs(x[:-1]), np.abs(x[1:]))


@pytest.mark.parametrize("tail", [0, 1, 2**20, 2**52, 2**53 - 1])
def test_far_tail_draws_of_laplace_keep_full_precision(tail: int) -> None:
    further = 2**63 + 12345
    stream = FixedWords([(tail << 1) | 1, further])
    [value] = dp.noise.laplace(1, 3.0, stream)  # type: ignore[arg-type]
    assert stream.taken == 2
    assert value == pytest.approx(-3.0 * math.log(2**127 / (tail * 2**64 + further)), rel=1e-14)


def test_laplace_refuses_a_negative_scale() -> None:
    with pytest.raises(PrivacyParameterError, match=r"scale=-1\.0"):
        dp.noise.laplace(3, -1.0, insecure_source(1).stream("x"))
