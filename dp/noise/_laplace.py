"""Laplace values in plain floating point: part of floor 3."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ..errors import PrivacyParameterError
from ..random import Stream
from ._tail import BLOCK, sign_and_tail

__all__ = ["laplace"]


def laplace(n: int, scale: float, stream: Stream) -> npt.NDArray[np.float64]:
    """Draw `n` Laplace values in plain floating point: density ``exp(-|x| / scale) / (2 scale)``.

    Guarantees:
        - Every draw uses 64 bits, and 128 where the tail needs them; none is NaN or infinite.

    Args:
        n: How many.
        scale: Mean absolute value, finite, at least 0; the standard deviation is ``sqrt(2) * scale``.
        stream: Randomness.

    Raises:
        PrivacyParameterError: If `scale` is negative or not finite.
    """
    if not (scale >= 0 and math.isfinite(scale)):
        raise PrivacyParameterError(f"Expected scale >= 0 and finite, got scale={scale}.")
    values = np.empty(n)
    for low in range(0, n, BLOCK):
        negative, probability = sign_and_tail(min(BLOCK, n - low), stream)
        # The absolute value is beyond x with probability exp(-x).
        magnitude = -np.log(probability)
        values[low : low + BLOCK] = np.where(negative, -magnitude, magnitude)
    values *= scale
    return values
