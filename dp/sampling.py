"""Samplers: they draw a batch and emit the event that prices it: floor 3."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .errors import PrivacyParameterError
from .events import Gaussian, Poisson
from .random import Stream

__all__ = ["PoissonSampler"]

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
        if (
            isinstance(self.num_samples, bool)
            or not isinstance(self.num_samples, int)
            or self.num_samples < 1
        ):
            raise PrivacyParameterError(f"Expected num_samples >= 1, got num_samples={self.num_samples}.")
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
