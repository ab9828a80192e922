"""Rates that rise and fall: triangles again and again, or one cycle over a whole training."""
# ruff: noqa: D102 - what `rate` is, Schedule says; each class says its formula

from __future__ import annotations

import math

from .base import Schedule

__all__ = ["CyclicExpRange", "CyclicTriangular", "OneCycle"]


class _Cyclic(Schedule, register=False):
    """Triangles between `base` and `max_rate`."""

    name = "cyclic"
    max_rate: float = 0.01
    rise: int = 2000
    fall: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect(self.max_rate >= self.base, "max_rate >= base", max_rate=self.max_rate, base=self.base)
        self._expect(self.rise >= 1, "rise >= 1", rise=self.rise)
        self._expect(self.fall >= 0, "fall >= 0", fall=self.fall)

    def _cycle(self, t: int) -> tuple[int, float]:
        """Number of the cycle, 0 for the first, and height in [0, 1] within it."""
        fall = self.fall or self.rise
        cycle, passed = divmod(t, self.rise + fall)
        return cycle, passed / self.rise if passed <= self.rise else (self.rise + fall - passed) / fall


class CyclicTriangular(_Cyclic):
    """Up a line and down a line, again and again: ``base + (max_rate - base) * shrink^cycle * height``.

    The height goes from 0 to 1 in `rise` steps and back to 0 in `fall` steps; cycle counts from 0.

    Args:
        base: The lowest rate, at t = 0.
        max_rate: The highest rate, >= `base`.
        rise: Steps (or rounds) up, >= 1.
        fall: Steps (or rounds) down; 0: as many as up.
        shrink: What each cycle's amplitude is of the one before, in (0, 1]; 0.5 is "triangular2".
        by: What t counts, ``"step"`` or ``"round"``.

    References:
        Smith (2017), https://arxiv.org/abs/1506.01186.
    """

    name = "cyclic-triangular"
    shrink: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect(0 < self.shrink <= 1, "0 < shrink <= 1", shrink=self.shrink)

    def rate(self, t: int) -> float:
        cycle, height = self._cycle(t)
        return float(self.base + (self.max_rate - self.base) * self.shrink**cycle * height)


class CyclicExpRange(_Cyclic):
    """Up and down lines of falling amplitude: ``base + (max_rate - base) * factor^t * height``.

    The height goes from 0 to 1 in `rise` steps and back to 0 in `fall` steps.

    Args:
        base: The lowest rate, at t = 0.
        max_rate: The rate that the first cycle would reach without the factor, >= `base`.
        rise: Steps (or rounds) up, >= 1.
        fall: Steps (or rounds) down; 0: as many as up.
        factor: What the amplitude is multiplied by at each step (or round), in (0, 1].
        by: What t counts, ``"step"`` or ``"round"``.

    References:
        Smith (2017), https://arxiv.org/abs/1506.01186.
    """

    name = "cyclic-exp-range"
    factor: float = 0.9999

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect(0 < self.factor <= 1, "0 < factor <= 1", factor=self.factor)

    def rate(self, t: int) -> float:
        return float(self.base + (self.max_rate - self.base) * self.factor**t * self._cycle(t)[1])


class OneCycle(Schedule):
    """Up to the peak and down below the start, over a whole training (the 1cycle policy).

    From ``base / div_factor`` up to ``base``, then down to ``base / div_factor / final_div_factor``; in three
    phases down to ``base / div_factor`` as fast as it came, then to the final rate. With T steps in all, the
    rise ends at ``pct_start * T - 1``, the symmetric fall at ``2 * pct_start * T - 2``, the last phase at
    ``T - 1``. Between two rates a and b the rate is ``b + (a - b) * (1 + cos(pi * p)) / 2`` or
    ``a + (b - a) * p``, where p is the fraction of the phase that has passed.

    Args:
        base: The highest rate.
        duration: Steps (or rounds) in all, >= 1; the last one's rate stays.
        pct_start: Fraction of them spent rising, in [0, 1]; in three phases in [0, 0.5].
        anneal_strategy: ``"cos"`` or ``"linear"``.
        div_factor: The highest rate over the first, >= 1.
        final_div_factor: The first rate over the last, > 0.
        three_phase: Whether to come down as fast as it went up, and then slowly to the final rate.
        by: What t counts, ``"step"`` or ``"round"``.

    References:
        Smith and Topin (2018), https://arxiv.org/abs/1708.07120.
    """

    name = "one-cycle"
    duration: int = 1000
    pct_start: float = 0.3
    anneal_strategy: str = "cos"
    div_factor: float = 25.0
    final_div_factor: float = 10_000.0
    three_phase: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect(self.duration >= 1, "duration >= 1", duration=self.duration)
        most = 0.5 if self.three_phase else 1
        self._expect(0 <= self.pct_start <= most, f"0 <= pct_start <= {most}", pct_start=self.pct_start)
        known = self.anneal_strategy in ("cos", "linear")
        self._expect(known, "anneal_strategy='cos' or 'linear'", anneal_strategy=self.anneal_strategy)
        self._expect(self.div_factor >= 1, "div_factor >= 1", div_factor=self.div_factor)
        self._expect(
            self.final_div_factor > 0, "final_div_factor > 0", final_div_factor=self.final_div_factor
        )

    def rate(self, t: int) -> float:
        first, end = self.base / self.div_factor, self.duration - 1
        risen = self.pct_start * self.duration - 1
        phases = [(risen, self.base), (end, first / self.final_div_factor)]
        if self.three_phase:
            phases.insert(1, (2 * self.pct_start * self.duration - 2, first))
        t = min(t, end)
        begin, low = 0.0, first
        for until, high in phases:
            if t <= until:
                break
            begin, low = until, high
        return self._between(low, high, (t - begin) / (until - begin) if until > begin else 1.0)

    def _between(self, start: float, stop: float, passed: float) -> float:
        if self.anneal_strategy == "linear":
            return start + (stop - start) * passed
        return stop + (start - stop) * (1 + math.cos(math.pi * passed)) / 2
