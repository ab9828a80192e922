"""Rates along half a cosine, once or again and again."""
# ruff: noqa: D102 - what `rate` is, Schedule says; each class says its formula

from __future__ import annotations

import math

from .base import Schedule

__all__ = ["Cosine", "CosineRestarts"]


class Cosine(Schedule):
    """Along half a cosine to a final fraction: ``base * (final + (1 - final) * (1 + cos(pi * p)) / 2)``.

    Here ``p = min(t, duration) / duration``.

    Args:
        base: The rate at t = 0.
        duration: Steps (or rounds) until the final rate is reached, >= 1.
        final: The final rate as a fraction of `base`, >= 0; it stays there.
        by: What t counts, ``"step"`` or ``"round"``.

    References:
        Loshchilov and Hutter (2017), https://arxiv.org/abs/1608.03983, equation 5.
    """

    name = "cosine"
    duration: int = 1000
    final: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect(self.duration >= 1, "duration >= 1", duration=self.duration)
        self._expect(self.final >= 0, "final >= 0", final=self.final)

    def rate(self, t: int) -> float:
        return self.base * _fallen(min(t, self.duration) / self.duration, self.final)


class CosineRestarts(Schedule):
    """Cosines one after the other, each `multiplier` times as long as the one before (SGDR).

    ``base * (final + (1 - final) * (1 + cos(pi * p)) / 2)``, where p is the fraction of the current period
    that has passed; the periods last ``period, period * multiplier, period * multiplier^2, ...``.

    Args:
        base: The rate at the start of each period.
        period: Steps (or rounds) of the first period, >= 1.
        multiplier: How many times longer each period is than the one before, >= 1.
        final: The rate that a period falls towards, as a fraction of `base`, >= 0.
        by: What t counts, ``"step"`` or ``"round"``.

    References:
        Loshchilov and Hutter (2017), https://arxiv.org/abs/1608.03983.
    """

    name = "cosine-restarts"
    period: int = 100
    multiplier: int = 1
    final: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect(self.period >= 1, "period >= 1", period=self.period)
        self._expect(self.multiplier >= 1, "multiplier >= 1", multiplier=self.multiplier)
        self._expect(self.final >= 0, "final >= 0", final=self.final)

    def rate(self, t: int) -> float:
        length = self.period
        if self.multiplier == 1:
            t %= length
        # Whole numbers: a logarithm would be off by a period where it is rounded the wrong way.
        while t >= length:
            t, length = t - length, length * self.multiplier
        return self.base * _fallen(t / length, self.final)


def _fallen(passed: float, final: float) -> float:
    return final + (1 - final) * (1 + math.cos(math.pi * passed)) / 2
