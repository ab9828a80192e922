"""Samplers: they draw a batch and emit the event that prices it: floor 3."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .errors import PrivacyParameterError
from .events import Epoch, Gaussian, Poisson, TruncatedPoisson, WithoutReplacement
from .random import Stream

__all__ = [
    "BallsInBinsSampler",
    "FixedSizeSampler",
    "PoissonSampler",
    "ShuffledSampler",
    "TruncatedPoissonSampler",
]

_BLOCK = 1 << 16


@dataclass(frozen=True)
class PoissonSampler:
    """Every sample enters a batch independently with one probability.

    Guarantees:
        - A sample enters with probability ``floor(sample_rate * 2**64) / 2**64``: at most `sample_rate`,
          which is what the event says, and less by at most 2**-64.
        - Batches are independent of one another, may be empty, and hold no sample twice.

    Attributes:
        num_samples: Number of samples, at least 1; a public constant.
        sample_rate: Probability that a sample enters, in (0, 1].

    Raises:
        PrivacyParameterError: If a value is out of range.
    """

    num_samples: int
    sample_rate: float

    def __post_init__(self) -> None:
        _verify_count("num_samples", self.num_samples)
        if not 0 < self.sample_rate <= 1:
            raise PrivacyParameterError(
                f"Expected sample_rate in (0, 1], got sample_rate={self.sample_rate}. It is the probability "
                "that a sample enters a batch: expected batch size over number of samples."
            )

    @property
    def expected_batch_size(self) -> float:
        """What the mean of a batch divides by; the size that was drawn is private."""
        return self.num_samples * self.sample_rate

    def draw(self, stream: Stream) -> npt.NDArray[np.int64]:
        """Draw one batch.

        Args:
            stream: Randomness.

        Returns:
            Indices of the samples that entered, ascending.
        """
        # A float times 2**64 is exact, and so is the comparison of integers: no rounding can favour a sample.
        threshold = int(self.sample_rate * 2.0**64)
        if threshold >= 2**64:
            return np.arange(self.num_samples, dtype=np.int64)
        entered = [
            low + np.flatnonzero(stream.uint64(min(_BLOCK, self.num_samples - low)) < np.uint64(threshold))
            for low in range(0, self.num_samples, _BLOCK)
        ]
        return np.concatenate(entered).astype(np.int64, copy=False)

    def event(self, inner: Gaussian) -> Poisson:
        """The event of releasing `inner` about one batch."""
        return Poisson(self.sample_rate, inner)


@dataclass(frozen=True)
class TruncatedPoissonSampler:
    """Poisson batches, of which a uniform subset remains where they are larger than memory allows.

    Guarantees:
        - Batches are independent of one another, may be empty, and hold no sample twice.

    Attributes:
        num_samples: Number of samples, at least 1; a public constant.
        sample_rate: Probability that a sample enters before truncation, in (0, 1].
        max_batch_size: The most that remain, in [1, num_samples].

    Raises:
        PrivacyParameterError: If a value is out of range.
    """

    num_samples: int
    sample_rate: float
    max_batch_size: int

    def __post_init__(self) -> None:
        PoissonSampler(self.num_samples, self.sample_rate)
        _verify_count("max_batch_size", self.max_batch_size, self.num_samples)

    @property
    def expected_batch_size(self) -> float:
        """What the mean of a batch divides by: the expectation of the size that remains."""
        from scipy import stats

        below = stats.binom.cdf(np.arange(self.max_batch_size), self.num_samples, self.sample_rate)
        return float(self.max_batch_size - below.sum())

    def draw(self, stream: Stream) -> npt.NDArray[np.int64]:
        """Draw one batch: indices, ascending."""
        batch = PoissonSampler(self.num_samples, self.sample_rate).draw(stream)
        if len(batch) <= self.max_batch_size:
            return batch
        return np.sort(batch[_order(stream, len(batch))[: self.max_batch_size]])

    def event(self, inner: Gaussian) -> TruncatedPoisson:
        """The event of releasing `inner` about one batch."""
        return TruncatedPoisson(self.num_samples, self.sample_rate, self.max_batch_size, inner)


@dataclass(frozen=True)
class FixedSizeSampler:
    """Every batch is a uniform subset of one size; only RDP under REPLACE_ONE prices it.

    Guarantees:
        - Every subset of the size is as likely as any other, but for ties of 128-bit keys.
        - Batches are independent of one another and hold no sample twice.

    Attributes:
        num_samples: Number of samples, at least 1; a public constant.
        batch_size: How many enter, in [1, num_samples].

    Raises:
        PrivacyParameterError: If a value is out of range.
    """

    num_samples: int
    batch_size: int

    def __post_init__(self) -> None:
        _verify_count("num_samples", self.num_samples)
        _verify_count("batch_size", self.batch_size, self.num_samples)

    @property
    def expected_batch_size(self) -> float:
        """What the mean of a batch divides by."""
        return float(self.batch_size)

    def draw(self, stream: Stream) -> npt.NDArray[np.int64]:
        """Draw one batch: indices, ascending."""
        return np.sort(_order(stream, self.num_samples)[: self.batch_size])

    def event(self, inner: Gaussian) -> WithoutReplacement:
        """The event of releasing `inner` about one batch."""
        return WithoutReplacement(self.num_samples, self.batch_size, inner)


@dataclass(frozen=True)
class ShuffledSampler:
    """Epochs of batches: a random order, cut into pieces, as data loaders do; priced without amplification.

    Guarantees:
        - In an epoch every sample enters exactly one batch; sizes differ by at most one.

    An epoch costs one Gaussian release, so ten at noise 1 cost an epsilon of 17.9 at delta 1e-5 where
    Poisson batches at rate 0.01 cost 1.83. A removed sample leaves its place empty, so that no other moves.

    Attributes:
        num_samples: Number of samples, at least 1; a public constant.
        num_batches: Number of batches an epoch, in [1, num_samples].
        shuffle: Whether the order is random; otherwise it is that of the samples. The price is the same.

    Raises:
        PrivacyParameterError: If a value is out of range.
    """

    num_samples: int
    num_batches: int
    shuffle: bool = True

    def __post_init__(self) -> None:
        _verify_count("num_samples", self.num_samples)
        _verify_count("num_batches", self.num_batches, self.num_samples)

    @property
    def expected_batch_size(self) -> float:
        """What the mean of a batch divides by."""
        return self.num_samples / self.num_batches

    def epoch(self, stream: Stream) -> list[npt.NDArray[np.int64]]:
        """Draw the batches of one epoch: indices, ascending in each."""
        n = self.num_samples
        order = _order(stream, n) if self.shuffle else np.arange(n, dtype=np.int64)
        return [np.sort(batch) for batch in np.array_split(order, self.num_batches)]

    def event(self, inner: Gaussian) -> Epoch:
        """The event of releasing `inner` about each batch of one epoch: reserve it before the first."""
        return Epoch(self.num_batches, inner)


@dataclass(frozen=True)
class BallsInBinsSampler:
    """Epochs in which every sample picks one batch on its own, uniformly; priced without amplification.

    Guarantees:
        - In an epoch every sample enters exactly one batch, independently of all others; batches may be
          empty.

    The accountants here have no bound for what its randomness gains, so an epoch costs one release.

    Attributes:
        num_samples: Number of samples, at least 1; a public constant.
        num_batches: Number of batches an epoch, at least 1.

    Raises:
        PrivacyParameterError: If a value is out of range.

    References:
        Chua et al. (2024), https://arxiv.org/abs/2412.16802.
    """

    num_samples: int
    num_batches: int

    def __post_init__(self) -> None:
        _verify_count("num_samples", self.num_samples)
        _verify_count("num_batches", self.num_batches)

    @property
    def expected_batch_size(self) -> float:
        """What the mean of a batch divides by; the sizes that were drawn are private."""
        return self.num_samples / self.num_batches

    def epoch(self, stream: Stream) -> list[npt.NDArray[np.int64]]:
        """Draw the batches of one epoch: indices, ascending in each."""
        # The remainder of 64 bits favours a batch by at most num_batches / 2**64, and no price rests on it.
        bins = stream.uint64(self.num_samples) % np.uint64(self.num_batches)
        return [np.flatnonzero(bins == np.uint64(i)).astype(np.int64) for i in range(self.num_batches)]

    def event(self, inner: Gaussian) -> Epoch:
        """The event of releasing `inner` about each batch of one epoch: reserve it before the first."""
        return Epoch(self.num_batches, inner)


def _order(stream: Stream, n: int) -> npt.NDArray[np.int64]:
    """A uniform permutation, by sorting keys of 128 bits: two are equal with probability n**2 / 2**129."""
    return np.lexsort((stream.uint64(n), stream.uint64(n))).astype(np.int64, copy=False)


def _verify_count(name: str, value: int, high: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1 or (high and value > high):
        span = f"in [1, {high}]" if high else ">= 1"
        raise PrivacyParameterError(f"Expected {name} {span}, got {name}={value}.")
