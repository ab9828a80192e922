"""Gaussian noise, released as exact integers on a lattice: floor 3.

Floating-point noise has holes: where the numbers that a generator can give lie further apart than the numbers
that a sum can take, the low bits of a release tell which sum it was. Here sum and noise are both rounded
to multiples of one power of two, added as integers, and scaled once, so a release is a lattice point that
every neighbouring dataset can give.

What remains, and is not in the price: `rounded_gaussian` is within ``s * 2**-122`` of the ideal, in total
variation a coordinate, with s the std in lattice steps, about ``noise_multiplier * 2**13 * sqrt(d)``. For a
million values, a million releases and a noise multiplier of 1 that adds 2**-59 to delta.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import PrivacyParameterError
from ..events import Gaussian
from ..random import Stream
from .rounded import rounded_gaussian

__all__ = ["Release", "granularity_for", "release"]

_BLOCK = 1 << 18
"""Values at a time, so that memory beyond sum and release stays bounded."""
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
          sensitivity `Release.sensitivity`, up to the total variation that the module's docstring states.
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
        if lattice_std > 0:
            points += rounded_gaussian(block.size, lattice_std, stream)
        values[low : low + _BLOCK] = points.astype(np.float64) * granularity
    return Release(values, event, granularity, sensitivity)
