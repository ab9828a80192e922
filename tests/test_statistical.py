"""The assertions accept what is right and reject what is 10 % wrong, at the sample sizes their docs name."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tests.statistical import (
    assert_counts,
    assert_distribution,
    assert_mean,
    assert_rejects,
    assert_std,
    assert_uncorrelated,
    assert_uniform_bits,
)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20261121)


def test_std_accepts_right_and_rejects_ten_percent(rng):
    x = rng.normal(3.0, 2.71828, 4_000)
    assert_std(x, 2.71828, mean=3.0)
    assert_rejects(assert_std, x, 2.71828 * 1.1, mean=3.0)
    assert_rejects(assert_std, x, 2.71828 / 1.1, mean=3.0)


def test_mean_accepts_right_and_rejects_shifted(rng):
    x = rng.normal(1.0, 2.0, 4_000)
    assert_mean(x, 1.0, 2.0)
    assert_rejects(assert_mean, x, 1.2, 2.0)


def test_counts_accept_right_and_reject_biased(rng):
    p = np.array([0.5, 0.3, 0.2])
    counts = rng.multinomial(10_000, p)
    assert_counts(counts, p)
    assert_rejects(assert_counts, counts, np.array([0.45, 0.35, 0.2]))


def test_distribution_accepts_right_and_rejects_ten_percent(rng):
    x = rng.normal(0.0, 1.0, 20_000)
    assert_distribution(x, stats.norm.cdf)
    assert_rejects(assert_distribution, 1.1 * x, stats.norm.cdf)


def test_uncorrelated_rejects_a_tenth(rng):
    a, b = rng.normal(size=(2, 10_000))
    assert_uncorrelated(a, b)
    assert_rejects(assert_uncorrelated, a, b + 0.1 * a)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint32, np.uint64])
def test_uniform_bits_accepts_uniform(rng, dtype):
    assert_uniform_bits(rng.integers(0, np.iinfo(dtype).max, 4_000, dtype=dtype, endpoint=True))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda x: x & ~np.uint64(1 << 17),  # One bit is stuck.
        lambda x: x % np.uint64(2**63 + 2**62),  # Folded range.
        lambda x: np.repeat(x[: x.size // 2], 2),  # Every word twice.
        lambda x: x >> np.uint64(1),
        lambda x: np.sort(x),
    ],
)
def test_uniform_bits_rejects_what_is_not(rng, spoil):
    x = rng.integers(0, 2**64, 20_000, dtype=np.uint64)
    assert_uniform_bits(x)
    assert_rejects(assert_uniform_bits, spoil(x))


def test_a_check_without_power_is_reported():
    with pytest.raises(AssertionError, match="no power"):
        assert_rejects(lambda: None)
