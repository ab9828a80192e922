"""Skellam noise: its law, its closure under sums, and the words that another 64 bits settle."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from dp import PrivacyParameterError, insecure_source
from dp.noise import _skellam as module
from dp.noise import skellam
from tests.statistical import assert_counts, assert_mean, assert_rejects


def law(variance: float, reach: int) -> Any:
    k = np.arange(-40 - 20 * reach, 41 + 20 * reach)
    p = stats.skellam(variance / 2, variance / 2).pmf(k)
    return np.bincount(np.clip(k, -reach, reach) + reach, p / p.sum())


def counts(draws: Any, reach: int) -> Any:
    return np.bincount(np.clip(draws, -reach, reach) + reach, minlength=2 * reach + 1)


@pytest.mark.parametrize(("variance", "reach"), [(0.5, 3), (7.3890, 9), (400.0, 60)])
def test_draws_follow_the_law_and_a_tenth_more_is_seen(variance: float, reach: int) -> None:
    draws = skellam(200_000, variance, insecure_source(1).stream("skellam"))
    assert_counts(counts(draws, reach), law(variance, reach))
    wrong = skellam(200_000, 1.21 * variance, insecure_source(1).stream("skellam"))
    assert_rejects(assert_counts, counts(wrong, reach), law(variance, reach))


def test_sums_of_draws_are_draws_of_the_summed_variance() -> None:
    a = skellam(200_000, 3.0, insecure_source(2).stream("a"))
    b = skellam(200_000, 5.5, insecure_source(2).stream("b"))
    assert_counts(counts(a + b, 10), law(8.5, 10))
    assert_rejects(assert_counts, counts(a, 10), law(8.5, 10))
    assert_mean(a + b, 0.0, math.sqrt(8.5))


@pytest.mark.parametrize("mean", [0.25, 3.7, 900.0])
def test_the_table_is_the_poisson_distribution(mean: float) -> None:
    first, high, low = module._poisson_table(mean)
    values = [(int(h) << 64 | int(w)) / 2**128 for h, w in zip(high, low, strict=True)]
    assert values == pytest.approx(stats.poisson(mean).cdf(first + np.arange(high.size)), rel=1e-9, abs=1e-15)
    assert high.size + first > mean + 12 * math.sqrt(mean)


@pytest.mark.parametrize(("more", "expected"), [(-1, 0), (0, 1)])
def test_words_equal_to_a_value_are_settled_by_another_64_bits(more: int, expected: int) -> None:
    _, high, low = module._poisson_table(3.7)
    given = [np.array([high[5]]), np.array([int(low[5]) + more], np.uint64)]
    stream = type("Fixed", (), {"uint64": lambda self, n: given.pop(0)})()
    assert module._poisson(1, 3.7, stream)[0] == 5 + expected + module._poisson_table(3.7)[0]
    assert not given


@pytest.mark.parametrize("variance", [0.0, -1.0, float("nan"), 1e9])
def test_variances_out_of_range_are_named(variance: float) -> None:
    with pytest.raises(PrivacyParameterError, match="variance="):
        skellam(1, variance, insecure_source(1).stream("x"))
