"""Sums and means of numbers: one lane an entry, in fixed point or in exact integers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import SchemaError
from .base import (
    MAX_GUARD_BITS,
    MAX_INTEGER_BITS,
    MAX_REAL_BITS,
    MIN_BOUND,
    Carrier,
    Lanes,
    MaskedReduction,
    Number,
    Shape,
    Source,
    plain,
    total_of,
    verified_shape,
    verify_bound,
    verify_int,
    verify_name,
)

PEAK_LEVELS: Final = 2**40
"""Levels of a peak's 8th power: a peak of 1/32 of the bound is the smallest that can be told from zero."""
_HEADROOM: Final = 2.0
_DECAY: Final = 0.97
_FAR: Final = 4.0
_LOWEST: Final = 2.0**-20


@dataclass(frozen=True, slots=True)
class Adaptive:
    """A bound that follows the values from round to round (see `adaptive`).

    Attributes:
        initial: Bound of the first round.
        at_most: Cap that no offer of a server can pass.
        now: Bound of the round that this schema describes; None before the first.
        at_least: Floor that no offer can go below: with a tiny bound the sum of clipped values would tell
            signs, and the number of clipped ones how many values are beyond whatever the server likes.
    """

    initial: float
    at_most: float
    now: float | None = None
    at_least: float | None = None

    def __post_init__(self) -> None:
        """Refuse bounds that are not positive, finite and between floor and cap."""
        for name in ("initial", "at_most", "now", "at_least"):
            value = getattr(self, name)
            if value is not None:
                verify_bound(f"adaptive {name}", value)
                object.__setattr__(self, name, float(value))
        if self.at_least is None:
            object.__setattr__(self, "at_least", max(MIN_BOUND, self.initial * _LOWEST))
        for value in (self.initial, self.value):
            if not self.floor <= value <= self.at_most:
                raise SchemaError(
                    f"Expected an adaptive bound in at_least={self.floor}..at_most={self.at_most}, got "
                    f"{value}. Widen the limits, or choose another bound."
                )

    @property
    def floor(self) -> float:
        """The floor, as it was given or follows from `initial`."""
        return self.at_least or MIN_BOUND

    @property
    def value(self) -> float:
        """Bound of this round."""
        return self.initial if self.now is None else self.now

    def following(self, peaks: int) -> float:
        """Bound of the next round, from the sum of this round's peak levels (see `peak_level`).

        The 8th root of a sum of 8th powers lies between the largest peak and n^(1/8) times it, whatever
        the others are. Twice that is wanted. A bound below it, which every clipped value shows, rises to it
        at once; one above decays slowly, so that the peaks of many rounds hold it up, and fast only when so
        far above that halving is safe. It follows from the sum alone: every party derives the same.
        """
        # Three square roots, which every machine rounds alike, as no power function does.
        largest = self.value * math.sqrt(math.sqrt(math.sqrt(peaks / PEAK_LEVELS)))
        wanted = _HEADROOM * largest
        decay = 0.5 if self.value > _FAR * wanted else _DECAY
        return min(self.at_most, max(self.floor, wanted, decay * self.value))


def peak_level(peak: float) -> int:
    """Level of a client's peak over the bound, in 0..1: its 8th power."""
    square = peak * peak
    return int(square * square * square * square * PEAK_LEVELS)


Bound: TypeAlias = "int | float | Adaptive"


@dataclass(frozen=True, slots=True)
class Bounded(MaskedReduction):
    """What sums and means share: a bound, a number of levels and a shape."""

    bound: Bound
    bits: int = 16
    shape: Shape | None = None
    guard_bits: int = 0

    def __post_init__(self) -> None:
        """Refuse bounds, bits and shapes that cannot be carried."""
        object.__setattr__(self, "shape", verified_shape(self.kind, self.shape))
        if self.integer:
            object.__setattr__(self, "bound", int(self.limit))
        elif not isinstance(self.bound, Adaptive):
            verify_bound(f"{self.kind} bound", self.bound)
            object.__setattr__(self, "bound", float(self.bound))
        most = MAX_INTEGER_BITS if self.integer else MAX_REAL_BITS
        object.__setattr__(self, "bits", verify_int(f"{self.kind} bits", self.bits, 2, most))
        guard = verify_int(f"{self.kind} guard_bits", self.guard_bits, 0, MAX_GUARD_BITS)
        object.__setattr__(self, "guard_bits", guard)
        if self.integer:
            self._verify_integer_bound(int(self.limit))

    def _verify_integer_bound(self, limit: int) -> None:
        if limit < 1:
            raise SchemaError(
                f"Expected {self.kind} with a bound of at least 1, got bound={limit}: the largest absolute "
                "value that a client may give. Leave out a field that is always zero."
            )
        if limit > self.levels:
            bits = limit.bit_length() + 1
            wider = f"Raise bits to {bits}, or write" if bits <= MAX_INTEGER_BITS else "Write"
            raise SchemaError(
                f"Expected {self.kind} with an integer bound in 1..{self.levels} for bits={self.bits}, got "
                f"bound={limit}. {wider} bound={limit}.0 if the values are real."
            )

    @property
    def integer(self) -> bool:
        """An int bound declares integers (exact); a float bound declares reals (rounded to a quantum)."""
        return isinstance(self.bound, (int, np.integer)) and not isinstance(self.bound, bool)

    @property
    def accepts(self) -> tuple[str, str]:
        """Integers where the bound is one, else any real numbers."""
        return ("iub", "integers (its bound is an int)") if self.integer else ("iubf", "real numbers")

    @property
    def remedy(self) -> str:
        """What to do with reals where integers are declared."""
        return f"Write bound={self.bound}.0 where it is declared, or pass integers." if self.integer else ""

    @property
    def holds(self) -> tuple[type[np.generic], ...]:
        """Integers where sums are exact, else floats of either size."""
        return (np.int64,) if self.integer else (np.float64, np.float32)

    @property
    def limit(self) -> float:
        """Bound of this round, as a number."""
        return self.bound.value if isinstance(self.bound, Adaptive) else self.bound

    @property
    def levels(self) -> int:
        """Levels on each side of zero: 2^bits − 1 in all, so that zero is one of them."""
        return (1 << (self.bits - 1)) - 1

    @property
    def quantum(self) -> float:
        """Distance between two neighbouring levels, in value units; 1 for integers."""
        return 1.0 if self.integer else self.limit / self.levels

    @property
    def num_lanes(self) -> int:
        """Entries that travel."""
        return self.size

    def lanes(self) -> Iterator[Lanes]:
        """Levels; for reals how many were clipped, and where the bound adapts the peak."""
        top = int(self.limit) if self.integer else self.levels
        weighed = self.weighed_by is not None
        carrier: Carrier = "integer" if self.integer else "fixed"
        yield Lanes("value", carrier, self.num_lanes, -top, top, weighed, self.guard_bits)
        if not self.integer:
            yield Lanes("clipped", "clipped", 1, 0, self.num_lanes)
        if isinstance(self.bound, Adaptive):
            yield Lanes("peak", "peak", 1, 0, PEAK_LEVELS)

    def source(self, kind: str, values: NDArray[Any]) -> Source:
        """The values themselves."""
        return values.__getitem__

    def quantum_of(self, kind: str) -> float:
        """Quantum of the values, or the smallest peak that shows."""
        return {"value": self.quantum, "peak": self.limit / 32}.get(kind, 1.0)

    def says(self, kind: str) -> str:
        """What the server learns from a kind of lanes, in one line."""
        if kind == "peak":
            return "about the largest absolute value: the sum of its 8th power over the clients"
        said = MaskedReduction.says(self, kind)
        if kind == "value" and isinstance(self.bound, Adaptive):
            limits = f"{self.bound.floor:.3g}..{self.bound.at_most:.3g}"
            return f"{said}; clipped to a bound that the server sets within {limits}"
        return said

    def leaves(self, kind: str) -> str:
        """What all other clients, pooled, learn of one client from a kind of lanes."""
        return "its largest absolute value" if kind == "peak" else MaskedReduction.leaves(self, kind)

    def tells(self, kind: str) -> str:
        """What two rounds tell of a client that took part in one of them, from a kind of lanes."""
        if kind == "peak":
            return "its largest absolute value, where that is about the largest of all"
        return MaskedReduction.tells(self, kind)

    @property
    def remainder(self) -> str:
        """What all other clients of a round learn of one client."""
        return "its value, exactly" if self.integer else f"its value, to {self.quantum:.3g}"

    @property
    def difference(self) -> str:
        """What two rounds tell of a client that took part in one of them."""
        return "its value, as far as the others' values did not change"


@dataclass(frozen=True, slots=True)
class Summed(Bounded):
    """The sum over clients (see `summed`)."""

    kind: ClassVar[str] = "summed"
    entrywise: ClassVar[bool] = True

    @property
    def disclosure(self) -> str:
        """What the server learns, in one line."""
        return "the sum over the clients"

    def reduce(self, values: Sequence[Any], weights: Sequence[Any] | None = None) -> Number:
        """Sum over clients, in float64 or exact integers."""
        return total_of(values, self.integer)

    def assemble(self, sums: Mapping[str, NDArray[Any]], weight: int, out: NDArray[Any] | None = None) -> Any:
        """The sum, in its shape."""
        return plain(sums["value"].reshape(self.dims))

    def error_bound(self, n: int, at_most: int) -> float:
        """One quantum a client, and float64's round-off; integers are exact."""
        return 0.0 if self.integer else n * (self.quantum + 1e-13 * self.limit)


@dataclass(frozen=True, slots=True)
class Averaged(Bounded):
    """The mean over clients, equally weighted or by another field (see `averaged`)."""

    kind: ClassVar[str] = "averaged"
    entrywise: ClassVar[bool] = True
    weight: str | None = None

    def __post_init__(self) -> None:
        """Refuse what `summed` refuses, and a weight that is no field name."""
        Bounded.__post_init__(self)  # Zero-argument super() does not survive dataclass slots.
        if self.weight is not None:
            verify_name("averaged weight", self.weight)

    @property
    def disclosure(self) -> str:
        """What the server learns, in one line."""
        if self.weight is None:
            return "the mean over the clients"
        return f"the mean over the clients weighted by {self.weight!r}"

    @property
    def remainder(self) -> str:
        """What all other clients of a round learn of one client."""
        value = Bounded.remainder.fget(self)  # type: ignore[attr-defined]
        return value if self.weight is None else f"{value}, unless its {self.weight!r} is 0"

    @property
    def holds(self) -> tuple[type[np.generic], ...]:
        """Floats of either size: a mean of integers is none."""
        return (np.float64, np.float32)

    @property
    def weighed_by(self) -> str | None:
        """Name of the field that weighs this one, or None."""
        return self.weight

    def reduce(self, values: Sequence[Any], weights: Sequence[Any] | None = None) -> Number:
        """Weighted mean in float64; NaN where the total weight is zero."""
        if self.weight is None:
            weights = [1] * len(values)
        elif weights is None:
            raise ValueError(f"Expected the values of {self.weight!r}, which weighs this field, got none.")
        total = sum(int(w) for w in weights)
        if total == 0:
            return math.nan if self.dims == () else np.full(self.dims, math.nan)
        scaled = [int(w) * np.asarray(v, np.float64) for v, w in zip(values, weights, strict=True)]
        return plain(np.asarray(total_of(scaled, False) / total))

    def assemble(self, sums: Mapping[str, NDArray[Any]], weight: int, out: NDArray[Any] | None = None) -> Any:
        """The mean; NaN where nothing was weighed. In place where the array can hold it."""
        total, factor = sums["value"].reshape(self.dims), weight or math.nan
        if total.dtype.kind != "f":
            return plain(total / factor)
        np.divide(total, factor, out=total)
        return plain(total)

    def error_bound(self, n: int, at_most: int) -> float:
        """One quantum, whatever the weights, and float64's round-off."""
        return (0.0 if self.integer else self.quantum) + 1e-13 * self.limit
