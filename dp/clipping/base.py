"""What a clipper is and what it returns, for any framework: floor 3."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..errors import PrivacyParameterError
from ..events import Neighboring

__all__ = ["ClippedSum", "Clipper", "verify_clip_norm"]

MARGIN = 1 - 2.0**-40
"""Clipped norms aim this far below C, so that float64 rounding cannot lift one above it."""


@dataclass(frozen=True, eq=False, repr=False)
class ClippedSum:
    """A sum of per-sample gradients, each of L2 norm at most `clip_norm` over all parameters jointly.

    It is private: it must be noised before anything of it leaves, `count` and `nonfinite` included. The repr
    shows what is public alone.

    Attributes:
        values: The sum by parameter, float64, in the model's order.
        clip_norm: Bound C on the norm of each summand.
        count: Number of samples in the batch.
        nonfinite: Samples whose gradient held NaN or infinities; they count as zero vectors.
    """

    values: Mapping[str, npt.NDArray[np.float64]]
    clip_norm: float
    count: int
    nonfinite: int

    def __repr__(self) -> str:
        size = sum(value.size for value in self.values.values())
        return f"<ClippedSum of {len(self.values)} parameters, {size} values, clip_norm={self.clip_norm:g}>"

    def sensitivity(self, neighboring: Neighboring | str = Neighboring.ADD_OR_REMOVE_ONE) -> float:
        """How far one unit can move the sum: C if it comes or goes, 2C if it is replaced by another."""
        return self.clip_norm * (2.0 if Neighboring(neighboring) is Neighboring.REPLACE_ONE else 1.0)

    def flatten(self) -> npt.NDArray[np.float64]:
        """The values as one vector, in order."""
        return np.concatenate([np.zeros(0), *(value.ravel() for value in self.values.values())])

    def unflatten(self, flat: npt.NDArray[np.float64]) -> dict[str, npt.NDArray[np.float64]]:
        """A vector of the same length as arrays of the values' names and shapes."""
        parts, low = {}, 0
        for name, value in self.values.items():
            parts[name] = flat[low : low + value.size].reshape(value.shape)
            low += value.size
        return parts


class Clipper(Protocol):
    """Computes clipped sums for one model."""

    def clipped_sum(self, x: Any, y: Any, clip_norm: float, *, seed: int | None = None) -> ClippedSum:
        """The sum over a batch, which may be empty, of gradients clipped to `clip_norm` each.

        `seed` decides what the model draws itself, such as dropout; the operating system does by default.
        """
        ...  # pragma: no cover


def verify_clip_norm(clip_norm: float) -> None:
    """Raise PrivacyParameterError unless `clip_norm` can bound a norm."""
    if not (clip_norm > 0 and math.isfinite(clip_norm)):
        raise PrivacyParameterError(f"Expected clip_norm > 0 and finite, got clip_norm={clip_norm}.")
