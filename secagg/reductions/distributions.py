"""Distributions of values over all clients: sums of powers, counts in bins, quantiles.

A client gives any number of values up to a declared limit, stacked on a first axis, or a single one. It sums
up what it has before anything is encoded, so a vector is as long whether it holds one value or a million.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from ..errors import SchemaError
from .base import (
    MAX_GUARD_BITS,
    MAX_INTEGER_BITS,
    MAX_REAL_BITS,
    NOT_FINITE,
    Lanes,
    MaskedReduction,
    Shape,
    Source,
    is_finite,
    verified_shape,
    verify_bound,
    verify_int,
    verify_name,
    verify_number,
)
from .results import BinCounts, PowerSums, ranks, stacked

MAX_ORDER: Final = 8
MAX_BINS: Final = 2**14
_BLOCK: Final = 1 << 16
"""Entries that are read at a time, so that a long file of values is never copied whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Distribution(MaskedReduction):
    """What the reductions here share: several values a client."""

    at_most: int = 2**20
    shape: Shape | None = None
    guard_bits: int = 0

    def __post_init__(self) -> None:
        """Refuse limits and shapes that cannot be carried."""
        at_most = verify_int(f"{self.kind} at_most", self.at_most, 1, 2**MAX_INTEGER_BITS)
        object.__setattr__(self, "at_most", at_most)
        object.__setattr__(self, "shape", verified_shape(self.kind, self.shape))
        guard = verify_int(f"{self.kind} guard_bits", self.guard_bits, 0, MAX_GUARD_BITS)
        object.__setattr__(self, "guard_bits", guard)

    @property
    def expects(self) -> str:
        """One value, or several on a first axis."""
        if self.weighed_by is not None:
            return f"shape {self.dims}"
        several = ", ".join(["m", *map(str, self.dims)]) + ("," if not self.dims else "")
        return f"shape {self.dims}, or ({several}) of m <= {self.at_most} values"

    def arranged(self, values: NDArray[Any]) -> NDArray[Any] | None:
        """One value a row."""
        several = values.ndim == len(self.dims) + 1 and values.shape[1:] == self.dims
        if values.shape == self.dims:
            return values.reshape(1, self.size)
        if self.weighed_by is None and several and len(values) <= self.at_most:
            return values.reshape(len(values), self.size)
        return None

    def refuses(self, values: NDArray[Any]) -> str | None:
        """NaN and infinity belong to no distribution."""
        return None if is_finite(values) else NOT_FINITE

    def _rows(self, values: NDArray[Any]) -> Iterator[slice]:
        step = max(1, _BLOCK // max(1, self.size))
        return (slice(low, low + step) for low in range(0, len(values), step))


@dataclass(frozen=True, slots=True)
class Moments(_Distribution):
    """Sums of powers of all values (see `moments`)."""

    kind: ClassVar[str] = "moments"
    bound: float
    order: int = 2
    bits: int = 20
    weight: str | None = None

    def __post_init__(self) -> None:
        """Refuse bounds, orders, bits and weights that cannot be carried."""
        _Distribution.__post_init__(self)  # Zero-argument super() does not survive dataclass slots.
        verify_bound("moments bound", self.bound)
        object.__setattr__(self, "bound", float(self.bound))
        object.__setattr__(self, "order", verify_int("moments order", self.order, 1, MAX_ORDER))
        object.__setattr__(self, "bits", verify_int("moments bits", self.bits, 2, MAX_REAL_BITS))
        if self.weight is not None:
            verify_name("moments weight", self.weight)
            verify_int("moments at_most, where weight= weighs one value a client,", self.at_most, 1, 1)

    @property
    def disclosure(self) -> str:
        """What the server learns, in one line."""
        return "the count and the sums of powers of all values"

    @property
    def remainder(self) -> str:
        """What all other clients of a round learn of one client."""
        return f"its count and its sums of powers, to {self.quantum_of('power 1'):.3g} in that of x"

    @property
    def difference(self) -> str:
        """What two rounds tell of a client that took part in one of them."""
        return "its count and its sums of powers, as far as the others' did not change"

    @property
    def weighed_by(self) -> str | None:
        """Name of the field that weighs this one, or None."""
        return self.weight

    @property
    def levels(self) -> int:
        """Levels between 0 and the bound's power."""
        return (1 << (self.bits - 1)) - 1

    def quantum_of(self, kind: str) -> float:
        """A power's bound over its levels."""
        return self.bound ** int(kind.removeprefix("power ")) / self.levels if kind[:5] == "power" else 1.0

    def says(self, kind: str) -> str:
        """What the server learns from a kind of lanes, in one line."""
        if kind == "count":
            return "the number of values" if self.weight is None else f"the sum of {self.weight!r}"
        if kind.startswith("power "):
            return f"the sum of x^{kind.removeprefix('power ')} over all values"
        return MaskedReduction.says(self, kind)

    def lanes(self) -> Iterator[Lanes]:
        """The count; each power, the even ones of which are never negative; how many were clipped."""
        weighed = self.weight is not None
        yield Lanes("count", "integer", 1, 0, self.at_most, weighed, self.guard_bits)
        top = self.at_most * self.levels
        for power in range(1, self.order + 1):
            low = -top if power % 2 else 0
            yield Lanes(f"power {power}", "rounded", self.size, low, top, weighed, self.guard_bits)
        yield Lanes("clipped", "clipped", 1, 0, self.at_most * self.size)

    def source(self, kind: str, values: NDArray[Any]) -> Source:
        """The number of values, or the sum of one power of them, in levels."""
        if kind == "count":
            return np.array([len(values)]).__getitem__
        power = int(kind.removeprefix("power "))

        def levels(where: slice) -> NDArray[np.float64]:
            total = np.zeros(where.stop - where.start)
            for rows in self._rows(values):
                # Clipped first: the quotient of what is far beyond a tiny bound would overflow.
                x = np.clip(values[rows, where].astype(np.float64), -self.bound, self.bound) / self.bound
                total += np.sum(x**power, axis=0)
            return total * self.levels

        return levels

    def clips(self, values: NDArray[Any]) -> int:
        """How many entries are beyond the bound."""
        # In float64: the absolute value of the smallest integer is no integer of its type.
        blocks = (np.asarray(values[rows], np.float64) for rows in self._rows(values))
        return sum(int(np.count_nonzero(np.abs(block) > self.bound)) for block in blocks)

    def assemble(
        self, sums: Mapping[str, NDArray[Any]], weight: int, out: NDArray[Any] | None = None
    ) -> PowerSums:
        """The count and the sums of powers."""
        powers = [sums[f"power {k}"].reshape(self.dims) for k in range(1, self.order + 1)]
        return PowerSums(int(sums["count"][0]), np.stack(powers))

    def reduce(self, values: Sequence[Any], weights: Sequence[Any] | None = None) -> PowerSums:
        """Sums of powers in float64."""
        if self.weight is not None and weights is None:
            raise ValueError(f"Expected the values of {self.weight!r}, which weighs this field, got none.")
        rows = stacked(values, self.dims)
        weigh = np.ones(len(rows), np.int64) if weights is None else np.array([int(w) for w in weights])
        powers = [np.tensordot(weigh.astype(np.float64), rows**k, 1) for k in range(1, self.order + 1)]
        return PowerSums(int(weigh.sum()), np.array(powers))

    def error_bound(self, n: int, at_most: int) -> NDArray[np.float64]:
        """None in the count; in each power one quantum a client, and float64's round-off."""
        values = 1e-13 * self.at_most * at_most
        powers = [
            n * (self.quantum_of(f"power {k}") + values * self.bound**k) for k in range(1, self.order + 1)
        ]
        return np.array([0.0, *powers]).reshape(-1, *(1 for _ in self.dims))


@dataclass(frozen=True, slots=True)
class Histogram(_Distribution):
    """How many values lie in each bin (see `histogram`)."""

    kind: ClassVar[str] = "histogram"
    edges: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuse edges that make no bins."""
        _Distribution.__post_init__(self)
        given: Any = self.edges  # as it was written: an array, too
        edges = given.tolist() if isinstance(given, np.ndarray) else given
        if not isinstance(edges, (tuple, list, range)) or not 2 <= len(edges) <= MAX_BINS + 1:
            raise SchemaError(f"Expected {self.kind} bins: 2 to {MAX_BINS + 1} edges, got {_shown(edges)}.")
        edges = tuple(verify_number(f"each edge of {self.kind}", edge) for edge in edges)
        if any(not low < high for low, high in pairwise(edges)):
            raise SchemaError(
                f"Expected {self.kind} edges in ascending order, each once. Sort bins=, or give "
                "range=(low, high)."
            )
        object.__setattr__(self, "edges", edges)

    @property
    def disclosure(self) -> str:
        """What the server learns, in one line."""
        return "how many values lie in each bin, below and above"

    @property
    def remainder(self) -> str:
        """What all other clients of a round learn of one client."""
        return "the histogram of its values"

    @property
    def difference(self) -> str:
        """What two rounds tell of a client that took part in one of them."""
        return "the histogram of its values, as far as the others' values did not change"

    def lanes(self) -> Iterator[Lanes]:
        """Below, each bin, above; for each entry of a value."""
        size = self.size * (len(self.edges) + 1)
        yield Lanes("value", "integer", size, 0, self.at_most, guard_bits=self.guard_bits)

    def source(self, kind: str, values: NDArray[Any]) -> Source:
        """Counts, entry by entry: below, each bin, above."""
        edges, bins = np.array(self.edges), len(self.edges) + 1
        counts = np.zeros(self.size * bins, np.int64)
        first = bins * np.arange(self.size)
        for rows in self._rows(values):
            x = values[rows].astype(np.float64)
            found = np.searchsorted(edges, x, side="right") - (x == edges[-1])  # The last bin is closed.
            counts += np.bincount((found + first).reshape(-1), minlength=counts.size)
        return counts.__getitem__

    def _counts(self, sums: Mapping[str, NDArray[Any]]) -> BinCounts:
        counts = sums["value"].reshape(*self.dims, len(self.edges) + 1)
        below, above = counts[..., 0], counts[..., -1]
        outer = (below, above) if self.dims else (int(below), int(above))
        return BinCounts(self.edges, counts[..., 1:-1].copy(), *outer)

    def assemble(self, sums: Mapping[str, NDArray[Any]], weight: int, out: NDArray[Any] | None = None) -> Any:
        """The counts."""
        return self._counts(sums)

    def reduce(self, values: Sequence[Any], weights: Sequence[Any] | None = None) -> Any:
        """Histogram by numpy of all values, entry by entry."""
        rows = stacked(values, self.dims)
        columns = rows.reshape(len(rows), self.size).T
        below = np.array([np.count_nonzero(x < self.edges[0]) for x in columns], np.int64)
        above = np.array([np.count_nonzero(x > self.edges[-1]) for x in columns], np.int64)
        inside = [np.histogram(x, np.array(self.edges))[0] for x in columns]
        counts = np.array(inside, np.int64).reshape(*self.dims, len(self.edges) - 1)
        if not self.dims:
            return BinCounts(self.edges, counts, int(below[0]), int(above[0]))
        return BinCounts(self.edges, counts, below.reshape(self.dims), above.reshape(self.dims))


@dataclass(frozen=True, slots=True)
class Quantile(Histogram):
    """Quantiles of all values, from their histogram (see `quantile`)."""

    kind: ClassVar[str] = "quantile"
    q: float | tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuse shares that are none, and edges that make no bins."""
        Histogram.__post_init__(self)
        written: Any = self.q  # an array, too
        given = written.tolist() if isinstance(written, np.ndarray) else written
        several = isinstance(given, (tuple, list))
        shares = tuple(verify_number("quantile q", q) for q in (given if several else (given,)))
        if not shares or any(not 0 <= q <= 1 for q in shares):
            raise SchemaError(f"Expected quantile q: one or several shares in 0..1, got {given!r}.")
        object.__setattr__(self, "q", shares if several else shares[0])

    @property
    def disclosure(self) -> str:
        """What the server learns, in one line."""
        return "how many values lie in each bin, from which quantiles are interpolated"

    def assemble(self, sums: Mapping[str, NDArray[Any]], weight: int, out: NDArray[Any] | None = None) -> Any:
        """The quantiles: those of the counts."""
        return self._counts(sums).quantile(self.q)

    def reduce(self, values: Sequence[Any], weights: Sequence[Any] | None = None) -> Any:
        """The smallest value that a share q of all values does not pass; infinite outside the edges."""
        rows = np.sort(stacked(values, self.dims), axis=0)
        shares = np.asarray(self.q)
        if not len(rows):
            found = np.full((*shares.shape, *self.dims), math.nan)
        else:
            found = rows[ranks(shares, len(rows)) - 1]
        found = np.where(found < self.edges[0], -math.inf, np.where(found > self.edges[-1], math.inf, found))
        return found.item() if found.ndim == 0 else found

    def error_bound(self, n: int, at_most: int) -> float:
        """The widest bin."""
        return max(high - low for low, high in pairwise(self.edges))


def _shown(value: Any) -> str:
    """What came instead, without the length of it."""
    return f"{len(value)} of them" if isinstance(value, (tuple, list)) else repr(value)
