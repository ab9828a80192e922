"""The contract that learning-rate schedules follow: floor 4, one pure function from a count to a rate.

Contents: `Schedule`, which counts steps and rounds; `schedule_of`, which builds one from what a user writes;
`rates`, which looks ahead.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, SupportsFloat

from ..plugin import Plugin, state
from ..registry import SCHEDULES

__all__ = ["Schedule", "rates", "schedule_of"]


class Schedule(Plugin, register=False):
    """A learning rate that changes with the number of steps, or of rounds, taken before.

    A subclass sets `name`, declares its hyper-parameters and implements the pure function `rate`; the counts
    are kept here. Declaring it registers it under its name; ``class X(Schedule, register=False)`` does not.

    Guarantees:
        - The first step uses ``rate(0)``; the first step of a round uses the rate of that round.
        - ``set_state(get_state())`` continues bitwise: the next rate is the one the live schedule gives.
        - Every rate given is finite and >= 0; an `advance` that raises leaves the state as it was.

    Args:
        base: The rate that all others derive from, finite and >= 0.
        by: What t counts, ``"step"`` or ``"round"``.

    Raises:
        TypeError: If a hyper-parameter has the wrong type.
        ValueError: If one is out of range.

    Example:
        >>> class Halving(Schedule, register=False):
        ...     name = "halving"
        ...     every: int = 2
        ...
        ...     def rate(self, t):
        ...         return self.base / 2 ** (t // self.every)
        >>> halving = Halving(base=0.8)
        >>> [halving.advance() for step in range(5)]
        [0.8, 0.8, 0.4, 0.4, 0.2]
    """

    base: float = 0.001
    by: str = dataclasses.field(default="step", kw_only=True)

    # Longer names than `steps` and `rate` need, so that they stay free for hyper-parameters.
    steps_taken: int = state(0)
    rounds_started: int = state(0)
    last_rate: float = state(0.0)

    _taken = (
        False  # of an instance: whether a rate counts by it already; no annotation, so no hyper-parameter
    )

    def __init_subclass__(cls, register: bool = True, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if register:
            SCHEDULES.add(cls)

    def __post_init__(self, *init_only: Any) -> None:
        """Check types, that numbers are finite, and the ranges of `base` and `by`."""
        super().__post_init__(*init_only)
        for hyper in self._hyper:
            value = getattr(self, hyper.name)
            if isinstance(value, float):
                self._expect(math.isfinite(value), f"a finite {hyper.name}", **{hyper.name: value})
        self._expect(self.base >= 0, "base >= 0", base=self.base)
        self._expect(self.by in ("step", "round"), "by='step' or by='round'", by=self.by)

    @classmethod
    def _kind(cls) -> str:
        return "schedule"

    def rate(self, t: int) -> float:
        """The rate of step (or round) `t`, 0 for the first; reads hyper-parameters, changes nothing."""
        raise TypeError(f"Expected {type(self).__name__} to define rate(self, t).")

    def advance(self) -> float:
        """Count one step and return its rate; called once a step, before the step uses the rate.

        Raises:
            ValueError: If the rate is not finite and >= 0; nothing is counted then.
        """
        self.last_rate = self._verified(self._now())
        self.steps_taken += 1
        return self.last_rate

    @property
    def current(self) -> float:
        """The rate of the last step; before the first, the one it will have."""
        return self.last_rate if self.steps_taken else self._verified(self._now())

    def on_round_start(self) -> None:
        """Count a round."""
        self.rounds_started += 1

    def feed(self, metric: float) -> None:
        """Take a measure of how well training goes; most schedules have no use for it."""

    def _now(self) -> int:
        # A run without rounds is one round, the first.
        return self.steps_taken if self.by == "step" else max(self.rounds_started - 1, 0)

    def _verified(self, t: int) -> float:
        rate: object
        try:
            rate = self.rate(t)
        except OverflowError:
            rate = math.inf  # how Python tells a power that is too large
        # Asking for the protocol takes longer than all else here, so floats are let through first.
        if not isinstance(rate, float | SupportsFloat):
            raise TypeError(f"Expected a number from schedule {self.name!r} at t={t}, got {rate!r}.")
        value = float(rate)
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(
                f"Expected a finite rate >= 0 from schedule {self.name!r} at t={t}, got {value!r}. "
                f"Its parameters: {self!r}."
            )
        return value


def schedule_of(value: object) -> Schedule:
    """The schedule that a number, a schedule, a name or ``(name, config)`` stands for.

    Args:
        value: A number is a constant rate; an instance is returned as it is; a name alone takes the
            defaults.

    Raises:
        TypeError: If it is none of these, or a config's key or value has the wrong name or type.
        ValueError: If the name is not known, or a value is out of range.

    Example:
        >>> schedule_of(0.1)
        Constant(base=0.1, by='step')
        >>> schedule_of(["exponential", {"base": 0.1, "factor": 0.5}]).rate(1)
        0.05
    """
    if isinstance(value, Schedule):
        return value
    name, config = _spec(value)
    found: type[Schedule] = SCHEDULES.find(name)
    return found.from_config(config)


def _spec(value: object) -> tuple[str, Mapping[str, Any]]:
    """Name and config of a schedule that is not built yet."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "constant", {"base": value}
    if isinstance(value, str):
        return value, {}
    if isinstance(value, Sequence) and len(value) == 2 and isinstance(value[0], str):
        if isinstance(value[1], Mapping):
            return value[0], value[1]
        raise TypeError(
            f"Expected a mapping as config of schedule {value[0]!r}, got {value[1]!r}. "
            f"Write ({value[0]!r}, {{'base': 0.1}})."
        )
    if isinstance(value, type) and issubclass(value, Schedule):
        raise TypeError(
            f"Expected an instance of a schedule, got the class {value.__name__}. "
            f"Write {value.__name__}(base=0.1)."
        )
    if isinstance(value, Plugin):
        raise TypeError(f"Expected a schedule, got the {value._kind()} {value.name!r}.")
    raise TypeError(
        f"Expected a learning rate as a number, a schedule, its name, or (name, config), got {value!r} "
        f"({type(value).__name__})."
    )


def rates(schedule: object, n: int) -> list[float]:
    """The first `n` rates of a schedule, of steps or of rounds as it counts; its state is not touched.

    Args:
        schedule: As `schedule_of` takes it. One that is fed is shown as it is before any metric.
        n: How many, >= 0.

    Raises:
        ValueError: If `n` is negative, or a rate is not finite and >= 0.
        TypeError: As `schedule_of`.

    Example:
        >>> rates(("linear", {"base": 1.0, "duration": 4}), 6)
        [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    """
    if isinstance(n, bool) or not isinstance(n, int):
        raise TypeError(f"Expected a whole number of rates, got n={n!r}.")
    if n < 0:
        raise ValueError(f"Expected n >= 0 rates, got n={n}.")
    given = schedule_of(schedule)
    fresh = type(given).from_config(given.get_config())
    return [fresh._verified(t) for t in range(n)]
