"""A ramp before any other schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .base import Schedule, _spec, schedule_of

__all__ = ["Warmup"]


class Warmup(Schedule):
    """A linear ramp up to another schedule's first rate, then that schedule from its start.

    ``then.rate(0) * (start + (1 - start) * (t + 1) / (duration + 1))`` for ``t < duration``, then
    ``then.rate(t - duration)``. The ramp leaves `start` one step before the first, so that with start = 0
    no step is taken at rate zero.

    Args:
        base: The base rate of `then` where `then` is named without one; 0: its own.
        duration: Steps (or rounds) of the ramp, >= 0.
        then: What follows: a schedule, its name, ``[name, config]``, or a number (a constant rate).
        start: Where the ramp comes from, as a fraction of the first rate of `then`, in [0, 1].
        by: What t counts, ``"step"`` or ``"round"``, for both.

    References:
        Goyal et al. (2017), https://arxiv.org/abs/1706.02677, section 2.2.

    Example:
        >>> from privopt.schedules import rates
        >>> rates(Warmup(duration=3, then=["linear", {"base": 1.0, "duration": 2}]), 6)
        [0.25, 0.5, 0.75, 1.0, 0.5, 0.0]
    """

    name = "warmup"
    base: float = 0.0
    duration: int = 100
    then: Any = "constant"
    start: float = 0.0

    def __post_init__(self) -> None:
        """Build `then`, which counts what the ramp counts."""
        super().__post_init__()
        self._expect(self.duration >= 0, "duration >= 0", duration=self.duration)
        self._expect(0 <= self.start <= 1, "0 <= start <= 1", start=self.start)
        if not isinstance(self.then, Schedule):
            name, config = _spec(self.then)
            inherited = {"by": self.by, "base": self.base} if self.base else {"by": self.by}
            self.then = schedule_of((name, {**inherited, **config}))
        then: Schedule = self.then
        self._expect(then.by == self.by, "`then` to count what the warm-up counts", by=self.by, then=then)
        agreed = self.base in (0, then.base)
        self._expect(agreed, "one base rate, its own or that of `then`", base=self.base, then=then)
        self.base = then.base

    def rate(self, t: int) -> float:
        """The ramp's rate, or that of what follows."""
        then: Schedule = self.then
        if t >= self.duration:
            return then.rate(t - self.duration)
        return then.rate(0) * (self.start + (1 - self.start) * ((t + 1) / (self.duration + 1)))

    def feed(self, metric: float) -> None:
        """Hand a metric on, once it is about a step after the ramp: what follows starts there."""
        last = self.steps_taken - 1 if self.by == "step" else self._now()
        if max(last, 0) >= self.duration:
            self.then.feed(metric)

    # `then` is a plug-in with a config and a state of its own, kept inside these.

    def get_config(self) -> dict[str, Any]:
        """As JSON values, `then` as ``[name, config]``."""
        return {**super().get_config(), "then": [self.then.name, self.then.get_config()]}

    def get_state(self) -> dict[str, Any]:
        """The counts, and the state of `then`."""
        return {**super().get_state(), "then": self.then.get_state()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Take over a state from `get_state`; nothing changes unless all of it fits."""
        if "then" not in state:
            raise KeyError(f"Expected state 'then' of schedule {self.name!r}, got {sorted(state)}.")
        before = self.then.get_state()
        self.then.set_state(state["then"])
        try:
            super().set_state({key: value for key, value in state.items() if key != "then"})
        except (KeyError, ValueError):
            self.then.set_state(before)
            raise

    def reset(self) -> None:
        """Forget the counts, and the state of `then`."""
        super().reset()
        self.then.reset()
