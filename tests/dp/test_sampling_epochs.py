"""Samplers other than Poisson's: who enters, how often, how likely, and the event that says so."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dp import PrivacyParameterError, insecure_source, secure_source
from dp.events import Epoch, Gaussian, TruncatedPoisson, WithoutReplacement
from dp.sampling import BallsInBinsSampler, FixedSizeSampler, ShuffledSampler, TruncatedPoissonSampler
from tests.statistical import assert_counts, assert_mean, assert_rejects


@settings(max_examples=60)
@given(st.integers(1, 200), st.data())
def test_in_an_epoch_every_sample_enters_exactly_once(n: int, data: st.DataObject) -> None:
    batches = data.draw(st.integers(1, n))
    stream = secure_source().stream("epochs")
    for sampler in (ShuffledSampler(n, batches), ShuffledSampler(n, batches, shuffle=False)):
        epoch = sampler.epoch(stream)
        assert sorted(np.concatenate(epoch).tolist()) == list(range(n))
        assert max(map(len, epoch)) - min(map(len, epoch)) <= 1
        assert len(epoch) == batches
    bins = BallsInBinsSampler(n, batches + 3).epoch(stream)
    assert len(bins) == batches + 3
    assert sorted(np.concatenate(bins).tolist()) == list(range(n))


def test_every_order_of_four_samples_is_as_likely() -> None:
    stream = insecure_source(5).stream("orders")
    orders = {order: i for i, order in enumerate(itertools.permutations(range(4)))}
    counts = np.zeros(24, int)
    for _ in range(12_000):
        counts[orders[tuple(int(b[0]) for b in ShuffledSampler(4, 4).epoch(stream))]] += 1
    assert_counts(counts, np.full(24, 1 / 24))
    assert_rejects(assert_counts, counts, np.r_[np.full(12, 1.2), np.full(12, 0.8)] / 24)


def test_without_shuffling_the_order_is_the_samples_own() -> None:
    epoch = ShuffledSampler(5, 2, shuffle=False).epoch(insecure_source(1).stream("x"))
    assert [batch.tolist() for batch in epoch] == [[0, 1, 2], [3, 4]]


def test_every_subset_of_fixed_size_is_as_likely() -> None:
    stream = insecure_source(6).stream("subsets")
    subsets = {subset: i for i, subset in enumerate(itertools.combinations(range(6), 3))}
    counts = np.zeros(20, int)
    for _ in range(10_000):
        batch = FixedSizeSampler(6, 3).draw(stream)
        counts[subsets[tuple(batch.tolist())]] += 1
    assert_counts(counts, np.full(20, 1 / 20))
    assert_rejects(assert_counts, counts, np.r_[np.full(10, 1.2), np.full(10, 0.8)] / 20)


def test_samples_pick_their_bins_independently_and_uniformly() -> None:
    stream = insecure_source(7).stream("bins")
    sizes = np.concatenate([[len(b) for b in BallsInBinsSampler(50, 7).epoch(stream)] for _ in range(1000)])
    # One bin's size is binomial; a fixed size would have no variance.
    expected = stats.binom.pmf(np.arange(51), 50, 1 / 7)
    firsts = sizes[::7]
    counts = np.bincount(np.clip(firsts, 3, 11) - 3, minlength=9)
    assert_counts(counts, [expected[:4].sum(), *expected[4:11], expected[11:].sum()])


def test_truncated_batches_keep_the_limit_and_the_expected_size() -> None:
    sampler = TruncatedPoissonSampler(40, 0.2, 9)
    stream = insecure_source(8).stream("truncated")
    batches = [sampler.draw(stream) for _ in range(20_000)]
    sizes = np.array([len(batch) for batch in batches])
    assert sizes.max() == 9
    probabilities = stats.binom.pmf(np.arange(41), 40, 0.2)
    kept = np.minimum(np.arange(41), 9)
    mean = float(probabilities @ kept)
    std = float(probabilities @ (kept - mean) ** 2) ** 0.5
    assert sampler.expected_batch_size == pytest.approx(mean, rel=1e-12)
    assert_mean(sizes, mean, std)
    assert_rejects(assert_mean, sizes, 8.0, std)
    # Nobody is favoured by truncation, wherever in the order.
    entered = np.bincount(np.concatenate(batches), minlength=40) / len(batches)
    rate = mean / 40
    assert np.abs(entered - rate).max() < 6 * (rate * (1 - rate) / len(batches)) ** 0.5
    assert all((np.diff(batch) > 0).all() for batch in batches[:200])


def test_each_sampler_emits_the_event_of_what_it_draws() -> None:
    noise = Gaussian(1.5)
    assert FixedSizeSampler(100, 10).event(noise) == WithoutReplacement(100, 10, noise)
    assert TruncatedPoissonSampler(100, 0.1, 20).event(noise) == TruncatedPoisson(100, 0.1, 20, noise)
    assert ShuffledSampler(100, 10).event(noise) == Epoch(10, noise)
    assert BallsInBinsSampler(100, 10).event(noise) == Epoch(10, noise)
    assert [ShuffledSampler(100, 8).expected_batch_size, FixedSizeSampler(9, 4).expected_batch_size] == [
        12.5,
        4,
    ]
    assert BallsInBinsSampler(100, 8).expected_batch_size == 12.5


def test_sizes_that_make_no_sense_are_refused() -> None:
    with pytest.raises(PrivacyParameterError, match="batch_size=11"):
        FixedSizeSampler(10, 11)
    with pytest.raises(PrivacyParameterError, match="num_batches=0"):
        ShuffledSampler(10, 0)
    with pytest.raises(PrivacyParameterError, match="num_batches=11"):
        ShuffledSampler(10, 11)
    with pytest.raises(PrivacyParameterError, match=r"num_batches=1\.5"):
        BallsInBinsSampler(10, 1.5)  # type: ignore[arg-type]
    with pytest.raises(PrivacyParameterError, match="sample_rate=2"):
        TruncatedPoissonSampler(10, 2, 5)
