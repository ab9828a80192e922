"""The discrete Gaussian: its table against exact weights, its draws against an exact sampler and the law."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from dp import PrivacyParameterError, insecure_source
from dp.noise import discrete_gaussian, exact_discrete_gaussian
from tests.statistical import assert_counts, assert_rejects, assert_std, assert_uncorrelated


def law(std: float, reach: int) -> Any:
    """Probabilities of <= -reach .. >= reach, by floats from the definition."""
    k = np.arange(-40 * int(std + 1), 40 * int(std + 1) + 1)
    p = np.exp(-(k**2) / (2 * std**2))
    return np.bincount(np.clip(k, -reach, reach) + reach, p / p.sum())


def counts(draws: Any, reach: int) -> Any:
    return np.bincount(np.clip(draws, -reach, reach) + reach, minlength=2 * reach + 1)


@pytest.mark.parametrize(("std", "reach"), [(0.7, 2), (2.71828, 9), (64.0, 200)])
def test_draws_by_table_follow_the_law_and_a_tenth_more_is_seen(std: float, reach: int) -> None:
    draws = discrete_gaussian(300_000, std, insecure_source(1).stream("table"))
    assert_counts(counts(draws, reach), law(std, reach))
    wrong = discrete_gaussian(300_000, 1.1 * std, insecure_source(1).stream("table"))
    assert_rejects(assert_counts, counts(wrong, reach), law(std, reach))
    assert_uncorrelated(draws[:-1], draws[1:])


def test_draws_of_the_exact_sampler_follow_the_same_law() -> None:
    draws = exact_discrete_gaussian(4_000, Fraction(27, 10), insecure_source(2).stream("exact"))
    assert_counts(counts(np.array(draws), 6), law(2.7, 6))
    assert_rejects(assert_counts, counts(np.array(draws), 6), law(2.7 * 1.1, 6))


def test_wide_draws_have_their_standard_deviation() -> None:
    draws = discrete_gaussian(50_000, 2000.0, insecure_source(3).stream("wide"))
    assert_std(draws, 2000.0)
    assert_rejects(assert_std, 1.1 * draws[:4_000], 2000.0)


def test_a_word_on_a_threshold_is_settled_by_another_64_bits() -> None:
    # Column 0 has no weight of its own: at threshold zero every further word sends it to its alias.
    class Zeros:
        taken = 0

        def uint64(self, n: int) -> Any:
            self.taken += n
            return np.zeros(n, np.uint64)

    stream = Zeros()
    [draw] = discrete_gaussian(1, 64.0, stream)  # type: ignore[arg-type]
    assert stream.taken == 2
    assert abs(draw) < 14 * 64


@pytest.mark.parametrize("std", [0.0, -1.0, float("nan"), float("inf"), 5000.0])
def test_scales_out_of_range_are_named(std: float) -> None:
    with pytest.raises(PrivacyParameterError, match=f"std={std}"):
        discrete_gaussian(1, std, insecure_source(1).stream("x"))


def test_the_exact_sampler_refuses_no_scale() -> None:
    with pytest.raises(PrivacyParameterError, match="std=0"):
        exact_discrete_gaussian(1, Fraction(0), insecure_source(1).stream("x"))
