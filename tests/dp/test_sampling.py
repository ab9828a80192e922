"""The Poisson sampler: exact probabilities, independent samples, and the event of what it drew."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from dp import PoissonSampler, PrivacyParameterError, insecure_source
from dp.events import Gaussian, Poisson
from tests.statistical import assert_counts, assert_mean, assert_rejects, assert_uncorrelated


class FixedWords:
    """A stream that says what the test wants."""

    def __init__(self, words: list[int]) -> None:
        self.words = np.array(words, dtype=np.uint64)

    def uint64(self, n: int) -> Any:
        out, self.words = self.words[:n], self.words[n:]
        return out


def test_a_sample_enters_where_its_word_is_below_the_rate_exactly() -> None:
    threshold = int(0.3 * 2.0**64)
    words = [threshold - 1, threshold, 0, 2**64 - 1]
    assert PoissonSampler(4, 0.3).draw(FixedWords(words)).tolist() == [0, 2]  # type: ignore[arg-type]


def test_rates_are_what_the_event_says_and_the_test_would_see_a_tenth_more() -> None:
    sampler = PoissonSampler(200_000, 0.05)
    sizes = np.zeros(200_000)
    sizes[sampler.draw(insecure_source(1).stream("batch"))] = 1
    std = (0.05 * 0.95) ** 0.5
    assert_mean(sizes, 0.05, std)
    assert_rejects(assert_mean, sizes, 0.055, std)
    # Neighbours enter independently of one another.
    assert_uncorrelated(sizes[:-1], sizes[1:])


def test_batch_sizes_are_binomial_not_fixed() -> None:
    sampler = PoissonSampler(40, 0.2)
    stream = insecure_source(2).stream("sizes")
    sizes = np.bincount([len(sampler.draw(stream)) for _ in range(20_000)], minlength=41)
    probabilities = stats.binom.pmf(np.arange(41), 40, 0.2)
    low, high = 3, 14
    merged = [sizes[: low + 1].sum(), *sizes[low + 1 : high], sizes[high:].sum()]
    expected = [
        probabilities[: low + 1].sum(),
        *probabilities[low + 1 : high],
        probabilities[high:].sum(),
    ]
    assert_counts(merged, expected)


def test_indices_are_distinct_ascending_and_cross_blocks() -> None:
    batch = PoissonSampler(150_000, 0.5).draw(insecure_source(3).stream("x"))
    assert batch.dtype == np.int64
    assert (np.diff(batch) > 0).all()
    assert batch.min() < 10
    assert batch.max() > 149_990


def test_rate_one_takes_everybody_and_a_small_rate_gives_empty_batches() -> None:
    stream = insecure_source(4).stream("x")
    assert PoissonSampler(5, 1.0).draw(stream).tolist() == [0, 1, 2, 3, 4]
    assert any(len(PoissonSampler(5, 0.01).draw(stream)) == 0 for _ in range(20))


def test_the_event_carries_the_rate_and_the_mean_divides_by_the_expectation() -> None:
    sampler = PoissonSampler(1000, 0.05)
    assert sampler.event(Gaussian(1.5)) == Poisson(0.05, Gaussian(1.5))
    assert sampler.expected_batch_size == 50


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, float("nan")])
def test_a_rate_that_is_no_probability_is_refused(rate: float) -> None:
    with pytest.raises(PrivacyParameterError, match="sample_rate="):
        PoissonSampler(10, rate)


def test_no_samples_are_refused() -> None:
    with pytest.raises(PrivacyParameterError, match="num_samples=0"):
        PoissonSampler(0, 0.5)
