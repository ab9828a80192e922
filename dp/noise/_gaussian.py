"""Gaussian values in plain floating point: part of floor 3."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ..errors import PrivacyParameterError
from ..random import Stream
from ._tail import BLOCK, sign_and_tail

__all__ = ["gaussian", "standard_gaussian"]


def gaussian(n: int, std: float, stream: Stream) -> npt.NDArray[np.float64]:
    """Draw `n` Gaussian values in plain floating point; for sums that are released, use `release`.

    Guarantees:
        - Every draw uses 64 bits, and 128 where the tail needs them; none is NaN or infinite.

    Args:
        n: How many.
        std: Standard deviation, finite, at least 0.
        stream: Randomness.

    Raises:
        PrivacyParameterError: If `std` is negative or not finite.
    """
    if not (std >= 0 and math.isfinite(std)):
        raise PrivacyParameterError(f"Expected std >= 0 and finite, got std={std}.")
    values = np.empty(n)
    for low in range(0, n, BLOCK):
        values[low : low + BLOCK] = standard_gaussian(min(BLOCK, n - low), stream)
    values *= std
    return values


def standard_gaussian(n: int, stream: Stream) -> npt.NDArray[np.float64]:
    """Draw by inverse distribution function: a sign, and the probability of being further out."""
    from scipy.special import ndtri  # loaded when noise is drawn: scipy takes a while

    negative, probability = sign_and_tail(n, stream)
    # Half the probability lies on either side, so the quantile is at most 0.
    magnitude: npt.NDArray[np.float64] = ndtri(probability / 2)
    return np.where(negative, magnitude, -magnitude)
