"""Skellam noise, the difference of two Poisson counts: closed under sums. Part of floor 3.

Several clients that add Skellam noise of variances v_1, v_2, ... have together added Skellam noise of
variance v_1 + v_2 + ..., exactly; the discrete Gaussian promises that up to an error only. A draw reads
64 bits for each count, and another 64 where these leave it open.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import numpy.typing as npt

from ..errors import PrivacyParameterError
from ..random import Stream

__all__ = ["LARGEST_VARIANCE", "skellam"]

LARGEST_VARIANCE = 2.0**16
"""Beyond it the table of a Poisson count takes long to compute."""
_BLOCK = 1 << 14


def skellam(n: int, variance: float, stream: Stream) -> npt.NDArray[np.int64]:
    """Draw `n` integers ``P1 - P2`` with P1, P2 Poisson of mean ``variance / 2``.

    Guarantees:
        - In total variation a draw is within 2**-100 of the ideal.
        - The sum of independent draws of variances v and w is one of variance v + w, up to that error.

    Args:
        n: How many.
        variance: Of a draw, in (0, `LARGEST_VARIANCE`].
        stream: Randomness.

    Raises:
        PrivacyParameterError: If `variance` is out of range.

    References:
        Agarwal, Kairouz, Liu (2021), https://arxiv.org/abs/2110.04995.
    """
    if not 0 < variance <= LARGEST_VARIANCE:
        raise PrivacyParameterError(
            f"Expected variance in (0, {LARGEST_VARIANCE:g}], got variance={variance}. "
            "Use rounded_gaussian for wider noise."
        )
    draws = np.empty(n, np.int64)
    for low in range(0, n, _BLOCK):
        size = min(_BLOCK, n - low)
        draws[low : low + size] = _poisson(size, variance / 2, stream) - _poisson(size, variance / 2, stream)
    return draws


def _poisson(n: int, mean: float, stream: Stream) -> npt.NDArray[np.int64]:
    """Invert the distribution function: how many of its values, as 128-bit integers, a draw reaches."""
    first, high, low = _poisson_table(mean)
    words = stream.uint64(n)
    reached = np.searchsorted(high, words, side="left")
    # Where a value's first 64 bits are the word itself, the next 64 decide.
    last = np.minimum(reached, high.size - 1)
    for i in np.flatnonzero(high[last] == words):
        further = int(stream.uint64(1)[0])
        bits = int(words[i]) << 64 | further
        j = int(reached[i])
        while j < high.size and (int(high[j]) << 64 | int(low[j])) <= bits:
            j += 1
        reached[i] = j
    return reached.astype(np.int64) + first


@functools.lru_cache(maxsize=16)
def _poisson_table(mean: float) -> tuple[int, npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """The first count, and ``floor(2**128 P(X <= k))`` from it on, in two halves of 64 bits."""
    # Weights by whole numbers from the mode outwards, so that nothing cancels; 2**-140 of it is left out.
    numerator, denominator = mean.as_integer_ratio()
    one, mode = 1 << 200, math.floor(mean)
    below, above = [one], []
    while below[-1] and len(below) <= mode:
        below.append(below[-1] * (mode - len(below) + 1) * denominator // numerator)
    weight, k = one, mode
    while weight:
        k += 1
        weight = weight * numerator // (denominator * k)
        above.append(weight)
    weights = below[::-1] + above
    total, reached, table = sum(weights), 0, []
    for weight in weights[:-1]:
        reached += weight
        table.append(min((reached << 128) // total, 2**128 - 1))
    high = np.array([t >> 64 for t in table], np.uint64)
    low = np.array([t & (2**64 - 1) for t in table], np.uint64)
    return mode - len(below) + 1, high, low
