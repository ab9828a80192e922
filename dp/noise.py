"""Gaussian noise, released as exact integers on a lattice: floor 3.

Floating-point noise has holes: where the numbers that a generator can give lie further apart than the numbers
that a sum can take, the low bits of a release tell which sum it was. Here sum and noise are both rounded
to multiples of one power of two, added as integers, and scaled once, so a release is a lattice point that
every neighbouring dataset can give.

What remains, and is not in the price: a tail probability is computed in float64, right to about 2**-50
relative; a lattice point as wide as w = granularity / std then has a probability that is right to about
2**-49 / w relative, and noise beyond 2**-128 of probability (13 std) does not occur. An exact
discrete Gaussian would remove both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .errors import PrivacyParameterError
from .events import Gaussian
from .random import Stream

__all__ = ["Release", "gaussian", "granularity_for", "laplace", "release"]

_BLOCK = 1 << 16
_LATTICE_SHARE = 2.0**-12
"""What the lattice may add to the sensitivity, as a share of the clip norm."""
_LARGEST = 2**52
"""Lattice coordinates stay where float64 counts every integer."""


@dataclass(frozen=True, eq=False)
class Release:
    """What may leave: noised values, and the event that prices them.

    Attributes:
        values: Noised sum, multiples of `granularity`, shape ``(d,)``.
        event: One release of Gaussian noise; the sampler wraps it.
        granularity: Distance of the lattice's points, a power of two.
        sensitivity: L2 sensitivity that was priced: clip norm plus what rounding adds.
    """

    values: npt.NDArray[np.float64]
    event: Gaussian
    granularity: float
    sensitivity: float


def granularity_for(clip_norm: float, size: int) -> float:
    """The largest power of two g with ``g * sqrt(size) <= clip_norm * 2**-12``.

    Raises:
        PrivacyParameterError: If `clip_norm` is not finite and positive, or too small to divide.
    """
    if not (clip_norm > 0 and math.isfinite(clip_norm)):
        raise PrivacyParameterError(f"Expected clip_norm > 0 and finite, got clip_norm={clip_norm}.")
    _, exponent = math.frexp(clip_norm * _LATTICE_SHARE / math.sqrt(max(size, 1)))
    if exponent < -900:
        raise PrivacyParameterError(f"Expected clip_norm > 1e-250, got clip_norm={clip_norm}.")
    return math.ldexp(1.0, exponent - 1)


def release(
    clipped_sum: npt.NDArray[np.float64], clip_norm: float, noise_multiplier: float, stream: Stream
) -> Release:
    """Add Gaussian noise to a clipped sum, on a lattice.

    Computes ``g * (round(sum / g) + round(noise / g))`` with noise of standard deviation
    ``noise_multiplier * (clip_norm + g * sqrt(d))``.

    Guarantees:
        - Every value is a multiple of `granularity`, exactly, and the set of points that can be released does
          not depend on the data.
        - The release is a function of a Gaussian mechanism of noise multiplier `noise_multiplier` on a sum of
          sensitivity `Release.sensitivity`, up to the float error that the module's docstring states.
        - No value is NaN or infinite.

    Args:
        clipped_sum: Sum of per-sample vectors of norm at most `clip_norm`, shape ``(d,)``, finite.
        clip_norm: Bound C on the norm of one sample's vector.
        noise_multiplier: Noise std over the sensitivity; 0 adds none, which every accountant prices at
            infinity.
        stream: Randomness, used for this release alone.

    Returns:
        The release with its event.

    Raises:
        PrivacyParameterError: If a parameter is out of range.
        ValueError: If `clipped_sum` is no finite one-dimensional float64 array.
    """
    if clipped_sum.ndim != 1 or clipped_sum.dtype != np.float64:
        raise ValueError(
            "Expected clipped_sum as a flat float64 array, "
            f"got {clipped_sum.dtype} of shape {clipped_sum.shape}."
        )
    if not np.isfinite(clipped_sum).all():
        raise ValueError("Expected a finite clipped_sum, got NaN or infinities. Clip per sample first.")
    event = Gaussian(noise_multiplier)
    granularity = granularity_for(clip_norm, clipped_sum.size)
    sensitivity = math.nextafter(clip_norm + granularity * math.sqrt(clipped_sum.size), math.inf)
    lattice_std = event.noise_multiplier * sensitivity / granularity
    if lattice_std > _LARGEST / 32:
        raise PrivacyParameterError(
            f"Expected noise_multiplier < {_LARGEST / 32 * granularity / sensitivity:.3g} on "
            f"{clipped_sum.size} values, got noise_multiplier={noise_multiplier}."
        )
    values = np.empty(clipped_sum.size)
    for low in range(0, clipped_sum.size, _BLOCK):
        block = clipped_sum[low : low + _BLOCK]
        # Clamping moves no two sums apart, so it needs no price; refusing a large sum would tell about it.
        points = np.clip(np.rint(block / granularity), -_LARGEST / 2, _LARGEST / 2).astype(np.int64)
        points += np.rint(_standard_gaussian(block.size, stream) * lattice_std).astype(np.int64)
        values[low : low + _BLOCK] = points.astype(np.float64) * granularity
    return Release(values, event, granularity, sensitivity)


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
    for low in range(0, n, _BLOCK):
        values[low : low + _BLOCK] = _standard_gaussian(min(_BLOCK, n - low), stream)
    values *= std
    return values


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
    for low in range(0, n, _BLOCK):
        negative, probability = _sign_and_tail(min(_BLOCK, n - low), stream)
        # The absolute value is beyond x with probability exp(-x).
        magnitude = -np.log(probability)
        values[low : low + _BLOCK] = np.where(negative, -magnitude, magnitude)
    values *= scale
    return values


def _standard_gaussian(n: int, stream: Stream) -> npt.NDArray[np.float64]:
    """Draw by inverse distribution function: a sign, and the probability of being further out."""
    from scipy.special import ndtri  # loaded when noise is drawn: scipy takes a while

    negative, probability = _sign_and_tail(n, stream)
    # Half the probability lies on either side, so the quantile is at most 0.
    magnitude: npt.NDArray[np.float64] = ndtri(probability / 2)
    return np.where(negative, magnitude, -magnitude)


def _sign_and_tail(n: int, stream: Stream) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
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
