"""Extremes: a thermometer of truth values in one round, of which the sum tells the extremum alone.

A client whose value is level k says true to the first k questions "is it more than level 0, 1, 2 …?". The
disjunction over clients is the thermometer of the largest; who reached it, and what others hold below, it
does not tell.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import SchemaError
from .base import (
    NOT_FINITE,
    Lanes,
    MaskedReduction,
    Shape,
    Source,
    is_finite,
    outside,
    plain,
    verified_shape,
    verify_int,
    verify_number,
)

MAX_LEVELS: Final = 2**16
DEFAULT_LEVELS: Final = 256


@dataclass(frozen=True, slots=True)
class _Extreme(MaskedReduction):
    """What the largest and the smallest share: levels between two bounds."""

    low: int | float
    high: int | float
    levels: int | None = None
    shape: Shape | None = None

    def __post_init__(self) -> None:
        """Refuse limits between which there are no levels."""
        object.__setattr__(self, "shape", verified_shape(self.kind, self.shape))
        for name in ("low", "high"):
            what, value = f"{self.kind} {name}", getattr(self, name)
            limit = verify_int(what, value, -(2**62), 2**62) if self.integer else verify_number(what, value)
            object.__setattr__(self, name, limit)
        if not self.low < self.high:
            raise SchemaError(f"Expected {self.kind} with low < high, got {self.low} and {self.high}.")
        between = int(self.high - self.low) + 1
        if self.integer and between > MAX_LEVELS:
            raise SchemaError(
                f"Expected {self.kind} of integers with high - low < {MAX_LEVELS}, as each integer takes a "
                f"level, got {self.high - self.low}. Write low={self.low}.0, which makes the values real and "
                f"rounds the result to one of levels={DEFAULT_LEVELS}, or bring the limits closer."
            )
        levels = (between if self.integer else DEFAULT_LEVELS) if self.levels is None else self.levels
        if self.integer and levels != between:
            raise SchemaError(
                f"Expected {self.kind} of integers with levels={between}, one for each, got {levels!r}. "
                f"Leave levels out, or write low={self.low}.0 if the values are real."
            )
        object.__setattr__(self, "levels", verify_int(f"{self.kind} levels", levels, 2, MAX_LEVELS))

    @property
    def integer(self) -> bool:
        """Two ints declare integers (exact); one float, or two, declare reals (to one level)."""
        return all(
            isinstance(v, (int, np.integer)) and not isinstance(v, bool) for v in (self.low, self.high)
        )

    @property
    def accepts(self) -> tuple[str, str]:
        """Integers where the limits are, else any real numbers."""
        return ("iub", "integers (its limits are ints)") if self.integer else ("iubf", "real numbers")

    @property
    def remedy(self) -> str:
        """What to do with reals where integers are declared."""
        return f"Write low={self.low}.0 where it is declared, or pass integers." if self.integer else ""

    @property
    def steps(self) -> int:
        """Questions that a client answers for one entry."""
        assert self.levels is not None  # noqa: S101  # our invariant: set when the field is declared
        return self.levels - 1

    @property
    def step(self) -> float:
        """Distance between two levels, value units."""
        return float(self.high - self.low) / self.steps

    def grid(self) -> NDArray[Any]:
        """Value of each level, ascending."""
        if self.integer:
            return np.arange(self.low, self.high + 1)
        return np.linspace(self.low, self.high, self.steps + 1)

    def quantum_of(self, kind: str) -> float:
        """One level."""
        return 1.0 if kind == "clipped" else self.step

    @property
    def remainder(self) -> str:
        """What all other clients of a round learn of one client."""
        return "its value, exactly" if self.integer else f"its value, to one level of {self.step:.3g}"

    def lanes(self) -> Iterator[Lanes]:
        """A word for each level but one of each entry; for reals how many were clipped."""
        yield Lanes("value", "truth", self.size * self.steps)
        if not self.integer:
            yield Lanes("clipped", "clipped", 1, 0, self.size)

    def refuses(self, values: NDArray[Any]) -> str | None:
        """Integers beyond the limits, as any field of integers; NaN and infinity."""
        if not self.integer:
            return None if is_finite(values) else NOT_FINITE
        beyond = values.size and (int(values.min()) < self.low or int(values.max()) > self.high)
        return outside(int(self.low), int(self.high)) if beyond else None

    def clips(self, values: NDArray[Any]) -> int:
        """How many entries are beyond the limits."""
        # In float64: in its own precision a limit could be rounded, or overflow.
        low, high = np.float64(self.low), np.float64(self.high)
        return int(np.count_nonzero(values < low) + np.count_nonzero(values > high))

    def error_bound(self, n: int, at_most: int) -> float:
        """One level; integers are exact."""
        return 0.0 if self.integer else self.step * (1 + 1e-9)

    def _level(self, values: NDArray[Any], side: Literal["left", "right"]) -> NDArray[np.int64]:
        """Level of each value: the next one above (left) or below it (right)."""
        if self.integer:  # Verified to be in range; a comparison with a grid could go through float64.
            return values.astype(np.int64) - int(self.low)
        found = np.searchsorted(self.grid(), values.astype(np.float64), side=side)
        return np.clip(found if side == "left" else found - 1, 0, self.steps)

    def _valued(self, level: NDArray[np.int64]) -> Any:
        return plain(self.grid()[level].reshape(self.dims))


@dataclass(frozen=True, slots=True)
class Maximum(_Extreme):
    """The largest value (see `maximum`)."""

    kind: ClassVar[str] = "maximum"

    @property
    def disclosure(self) -> str:
        """What the server learns, in one line."""
        return "the largest value" + ("" if self.integer else ", rounded up to a level")

    @property
    def difference(self) -> str:
        """What two rounds tell of a client that took part in one of them."""
        return "its value, where the largest is larger in its round; else that its value was not larger"

    def reduce(self, values: Sequence[Any], weights: Sequence[Any] | None = None) -> Any:
        """The largest value, entry by entry."""
        return plain(np.max(np.asarray(values, np.int64 if self.integer else np.float64), axis=0))

    def source(self, kind: str, values: NDArray[Any]) -> Source:
        """True where the value is more than the level in question: its own level is rounded up."""
        level = self._level(values, "left")

        def above(where: slice) -> NDArray[np.bool_]:
            entry, question = np.divmod(np.arange(where.start, where.stop), self.steps)
            return level[entry] > question

        return above

    def assemble(self, sums: Mapping[str, NDArray[Any]], weight: int, out: NDArray[Any] | None = None) -> Any:
        """The level that somebody reaches and nobody passes."""
        return self._valued(np.count_nonzero(sums["value"].reshape(self.size, self.steps), axis=1))


@dataclass(frozen=True, slots=True)
class Minimum(_Extreme):
    """The smallest value (see `minimum`)."""

    kind: ClassVar[str] = "minimum"

    @property
    def disclosure(self) -> str:
        """What the server learns, in one line."""
        return "the smallest value" + ("" if self.integer else ", rounded down to a level")

    @property
    def difference(self) -> str:
        """What two rounds tell of a client that took part in one of them."""
        return "its value, where the smallest is smaller in its round; else that its value was not smaller"

    def reduce(self, values: Sequence[Any], weights: Sequence[Any] | None = None) -> Any:
        """The smallest value, entry by entry."""
        return plain(np.min(np.asarray(values, np.int64 if self.integer else np.float64), axis=0))

    def source(self, kind: str, values: NDArray[Any]) -> Source:
        """True where the value is at most the level in question: its own level is rounded down."""
        level = self._level(values, "right")

        def below(where: slice) -> NDArray[np.bool_]:
            entry, question = np.divmod(np.arange(where.start, where.stop), self.steps)
            return level[entry] <= question

        return below

    def assemble(self, sums: Mapping[str, NDArray[Any]], weight: int, out: NDArray[Any] | None = None) -> Any:
        """The level that somebody reaches and nobody is below."""
        true = np.count_nonzero(sums["value"].reshape(self.size, self.steps), axis=1)
        return self._valued(self.steps - true)
