"""Rates that stay or fall steadily: constant, exponential, inverse scaling, linear, polynomial, piecewise."""
# ruff: noqa: D102 - what `rate` is, Schedule says; each class says its formula

from __future__ import annotations

import bisect
import math
from dataclasses import field
from typing import Any

from .base import Schedule

__all__ = ["Constant", "Exponential", "InverseScaling", "Linear", "Piecewise", "Polynomial"]


class Constant(Schedule):
    """The same rate always: ``base``.

    Args:
        base: The rate.
        by: What t counts, ``"step"`` or ``"round"``.
    """

    name = "constant"

    def rate(self, t: int) -> float:
        return self.base


class Exponential(Schedule):
    """Multiplied by a factor each time: ``base * factor^t``.

    Args:
        base: The rate at t = 0.
        factor: What each rate is of the one before, > 0.
        by: What t counts, ``"step"`` or ``"round"``.
    """

    name = "exponential"
    factor: float = 0.99

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect(self.factor > 0, "factor > 0", factor=self.factor)

    def rate(self, t: int) -> float:
        return float(self.base * self.factor**t)


class InverseScaling(Schedule):
    """Divided by a power of the count: ``base / (1 + t)^power``.

    Args:
        base: The rate at t = 0.
        power: The exponent, >= 0; 0.5 is the classical ``1 / sqrt(t)``.
        by: What t counts, ``"step"`` or ``"round"``.
    """

    name = "inverse-scaling"
    power: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect(self.power >= 0, "power >= 0", power=self.power)

    def rate(self, t: int) -> float:
        return float(self.base * (1 + t) ** -self.power)  # a power too large goes to 0, it does not overflow


class Linear(Schedule):
    """Along a line to a final fraction: ``base * (1 - p + final * p)``.

    Here ``p = min(t, duration) / duration``.

    Args:
        base: The rate at t = 0.
        duration: Steps (or rounds) until the final rate is reached, >= 1.
        final: The final rate as a fraction of `base`, >= 0; it stays there.
        by: What t counts, ``"step"`` or ``"round"``.
    """

    name = "linear"
    duration: int = 1000
    final: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect(self.duration >= 1, "duration >= 1", duration=self.duration)
        self._expect(self.final >= 0, "final >= 0", final=self.final)

    def rate(self, t: int) -> float:
        passed = min(t, self.duration) / self.duration
        return self.base * ((1 - passed) + self.final * passed)  # exact at both ends


class Polynomial(Linear):
    """Along a power of the time left: ``base * (final + (1 - final) * (1 - p)^power)``.

    Here ``p = min(t, duration) / duration``.

    Args:
        base: The rate at t = 0.
        duration: Steps (or rounds) until the final rate is reached, >= 1.
        final: The final rate as a fraction of `base`, >= 0; it stays there.
        power: The exponent, > 0; 1 is `linear`.
        by: What t counts, ``"step"`` or ``"round"``.
    """

    name = "polynomial"
    power: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect(self.power > 0, "power > 0", power=self.power)

    def rate(self, t: int) -> float:
        left = (1 - min(t, self.duration) / self.duration) ** self.power
        return float(self.base * (self.final + (1 - self.final) * left))


class Piecewise(Schedule):
    """Constant between boundaries: from each on, multiplied by a factor, or the rate that is given.

    With `factors` the rate is ``base`` times all factors whose boundary is <= t; with `values`, the value
    of the last boundary <= t, and ``base`` before the first.

    Args:
        base: The rate before the first boundary.
        boundaries: Steps (or rounds) at which the rate changes, >= 1, increasing.
        factors: What the rate is multiplied by at each boundary, each >= 0; as many as boundaries, or none.
        values: The rate from each boundary on, each >= 0; as many as boundaries, or none.
        by: What t counts, ``"step"`` or ``"round"``.
    """

    name = "piecewise"
    boundaries: list[int] = field(default_factory=list)
    factors: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.boundaries = self._list("boundaries", whole=True)
        self.factors, self.values = self._list("factors"), self._list("values")
        rising = all(a < b for a, b in zip([0, *self.boundaries], self.boundaries, strict=False))
        self._expect(rising, "increasing boundaries >= 1", boundaries=self.boundaries)
        self._expect(
            not (self.factors and self.values), "factors or values", factors=self.factors, values=self.values
        )
        levels = self.factors or self.values
        self._expect(
            len(levels) == len(self.boundaries),
            "one factor or value for each boundary",
            boundaries=self.boundaries,
            factors=self.factors,
            values=self.values,
        )
        self._expect(
            all(0 <= x < math.inf for x in levels),
            "finite factors and values >= 0",
            factors=self.factors,
            values=self.values,
        )

    def _list(self, what: str, *, whole: bool = False) -> list[Any]:
        given = getattr(self, what)
        kinds = int if whole else (int, float)
        if not isinstance(given, list | tuple) or any(
            isinstance(x, bool) or not isinstance(x, kinds) for x in given
        ):
            of = "whole numbers" if whole else "numbers"
            raise TypeError(f"Expected a list of {of} for {self.name}.{what}, got {given!r}.")
        return list(given) if whole else [float(x) for x in given]

    def rate(self, t: int) -> float:
        passed = bisect.bisect_right(self.boundaries, t)
        if self.values:
            return [self.base, *self.values][passed]
        return self.base * math.prod(self.factors[:passed])
