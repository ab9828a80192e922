"""What a distribution's sums say: `PowerSums` of moments, `BinCounts` of histograms."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .base import plain


class _Result(ABC):
    """Compared as the numbers that it holds; an array of them to numpy."""

    __slots__ = ()

    @abstractmethod
    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """All numbers as one array."""

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return np.array_equal(np.asarray(self), np.asarray(other), equal_nan=True)

    __hash__ = None  # type: ignore[assignment]  # as everything that is compared by its arrays


@dataclass(frozen=True, slots=True, eq=False)
class PowerSums(_Result):
    """Sums of powers over all values of all clients, and the moments that follow from them.

    As an array: the count, then each sum of powers, on the first axis.

    Attributes:
        count: Number of values, or the sum of their weights.
        sums: Σx, Σx², … up to the declared order, on the first axis; then the shape of one value.
    """

    count: int
    sums: NDArray[np.float64]

    @property
    def order(self) -> int:
        """Highest power."""
        return len(self.sums)

    @property
    def mean(self) -> Any:
        """Mean; NaN where there is no value."""
        return self.raw(1)

    @property
    def variance(self) -> Any:
        """Mean squared distance from the mean (divided by the count, not by one less); never negative."""
        return self.central(2)

    @property
    def std(self) -> Any:
        """Root of the variance."""
        return plain(np.sqrt(np.asarray(self.variance)))

    def raw(self, power: int) -> Any:
        """Mean of x to a power in 1..order; NaN where there is no value."""
        if not 1 <= power <= self.order:
            raise ValueError(f"Expected a power in 1..{self.order}, got {power}. Declare a higher order.")
        return plain(np.asarray(self.sums[power - 1] / (self.count or math.nan)))

    def central(self, power: int) -> Any:
        """Mean of (x − mean) to a power in 1..order; an even one is never negative.

        Computed from raw moments, so its error is that of sums of size bound^power: choose a bound that
        values come close to, and enough bits.
        """
        mean = np.asarray(self.mean)
        found = np.asarray(self.raw(power))  # Refuses a power beyond the order.
        for k in range(power):
            lower = 1.0 if k == 0 else np.asarray(self.raw(k))
            found = found + math.comb(power, k) * lower * (-mean) ** (power - k)
        return plain(np.maximum(found, 0.0) if power % 2 == 0 else found)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        count = np.full((1, *self.sums.shape[1:]), self.count, np.float64)
        return np.concatenate([count, self.sums]).astype(dtype or np.float64, copy=False)


@dataclass(frozen=True, slots=True, eq=False)
class BinCounts(_Result):
    """How many of all clients' values lie in each bin.

    As an array: below, the bins, above, on the last axis.

    Attributes:
        edges: Edges of the bins. A bin holds its lower edge and not its upper one; the last holds both.
        counts: Values in each bin, on the last axis; before it the shape of one value.
        below: Values below the first edge.
        above: Values above the last edge.
    """

    edges: tuple[float, ...]
    counts: NDArray[np.int64]
    below: int | NDArray[np.int64]
    above: int | NDArray[np.int64]

    @property
    def total(self) -> int | NDArray[np.int64]:
        """All values, in bins and outside."""
        return plain(np.asarray(self.counts.sum(axis=-1) + self.below + self.above))  # type: ignore[return-value]  # counts are integers

    def quantile(self, q: ArrayLike) -> Any:
        """Quantiles, interpolated inside their bins.

        Guarantees:
            - Less than one bin from the smallest value that at least a share q of all values do not pass
              (numpy's ``method="inverted_cdf"``), which lies in the same bin.
            - −inf or inf where that value lies outside the edges; NaN where there is no value.

        Args:
            q: Shares in [0, 1], one or several.

        Returns:
            Quantiles: the shape of `q`, then that of one value.

        Raises:
            ValueError: If a share is not in [0, 1].
        """
        shares = np.asarray(q, np.float64)
        if not np.all((shares >= 0) & (shares <= 1)):
            raise ValueError(f"Expected shares in [0, 1], got q={q!r}.")
        full = np.asarray(self)
        cumulated = np.cumsum(full, axis=-1)
        total = cumulated[..., -1]
        rank = ranks(shares.reshape(shares.shape + (1,) * total.ndim), total)
        # The bin of the value of that rank: as many bins end before it.
        found = np.sum(cumulated < rank[..., None], axis=-1)
        inside = np.clip(found, 0, full.shape[-1] - 1)[..., None]
        held = np.take_along_axis(np.broadcast_to(full, (*rank.shape, full.shape[-1])), inside, -1)[..., 0]
        until = np.take_along_axis(np.broadcast_to(cumulated, (*rank.shape, full.shape[-1])), inside, -1)[
            ..., 0
        ]
        limits = np.array([-math.inf, *self.edges, math.inf])
        low, high = limits[inside[..., 0]], limits[inside[..., 0] + 1]
        with np.errstate(invalid="ignore", divide="ignore"):  # Outer bins and empty ones are put right below.
            value = low + (high - low) * (rank - (until - held) - 0.5) / held
        value = np.where(np.isneginf(low), low, np.where(np.isposinf(high), high, value))
        return plain(np.where(np.broadcast_to(total, value.shape) > 0, value, math.nan))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        outer = [np.asarray(side)[..., None] for side in (self.below, self.above)]
        return np.concatenate([outer[0], self.counts, outer[1]], axis=-1).astype(
            dtype or np.int64, copy=False
        )


def ranks(q: NDArray[np.float64], total: Any) -> NDArray[np.int64]:
    """Which value, counted from 1 in ascending order, is the smallest that a share `q` does not pass."""
    # q·total may be rounded up past an integer, as 0.07 · 100 is; a share that close to it means it.
    whole = np.asarray(total, np.int64)
    wanted: NDArray[np.float64] = np.maximum(np.ceil(q * whole * (1 - 2.0**-50)), 1)
    return np.where(q >= 1, np.maximum(whole, 1), wanted.astype(np.int64))


def stacked(values: Sequence[Any], dims: tuple[int, ...]) -> NDArray[np.float64]:
    """All clients' values, one a row: each client gives one of shape `dims`, or several on a first axis."""
    arrays = [np.asarray(v, np.float64) for v in values]
    return np.concatenate([a[None] if a.ndim == len(dims) else a for a in arrays])
