"""A sign and a tail probability from a word: what the inverse distribution functions start from."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..random import Stream

__all__ = ["BLOCK", "sign_and_tail"]

BLOCK = 1 << 16
"""Values that are drawn at a time, so that what lies between the steps stays in cache."""


def sign_and_tail(n: int, stream: Stream) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    """Which draws are negative, and the probability of each of a larger absolute value, in (0, 1].

    That probability is k / 2**63 with 63 random bits. Where k needs fewer bits than float64 holds, one draw
    in 1,024, another 64 bits follow k's, so that tail probabilities keep full relative precision.
    """
    words = stream.uint64(n)
    negative = (words & np.uint64(1)).astype(bool)
    tail = words >> np.uint64(1)
    probability = tail.astype(np.float64) + 0.5
    few = np.flatnonzero(tail < np.uint64(2**53))
    further = stream.uint64(few.size)
    probability[few] = tail[few].astype(np.float64) + (further.astype(np.float64) + 0.5) * 2.0**-64
    return negative, probability * 2.0**-63
