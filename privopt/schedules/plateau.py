"""A rate that falls when a metric that is fed stops improving."""

from __future__ import annotations

import math

from ..plugin import state
from .base import Schedule

__all__ = ["ReduceOnPlateau"]


class ReduceOnPlateau(Schedule):
    """Multiplied by a factor whenever the metric that is fed has not improved for a while.

    ``max(base * factor^k, min_rate)`` after k reductions. A reduction comes with the first metric after
    `patience` ones in a row that are no better than the best (by more than the threshold); a metric that
    is not finite is no better. During the `cooldown` metrics after a reduction none is held against it.
    The reduced rate is that of the next step.

    Args:
        base: The rate before the first reduction.
        mode: ``"min"`` where less is better (a loss), ``"max"`` where more is (an accuracy).
        factor: What each reduction multiplies the rate by, in (0, 1).
        patience: Metrics without improvement that are tolerated in a row, >= 0.
        threshold: By how much a metric must pass the best to improve on it, >= 0.
        threshold_mode: ``"rel"``: as a fraction of the best; ``"abs"``: in the metric's own unit.
        cooldown: Metrics after a reduction that are not counted as bad, >= 0.
        min_rate: The rate that reductions stop at, >= 0.
        eps: Reductions by no more than this are left out, >= 0.
        by: What steps and rounds are counted as; the rate follows the metrics alone.
    """

    name = "reduce-on-plateau"
    mode: str = "min"
    factor: float = 0.1
    patience: int = 10
    threshold: float = 1e-4
    threshold_mode: str = "rel"
    cooldown: int = 0
    min_rate: float = 0.0
    eps: float = 1e-8

    reductions: int = state(0)
    best: float = state(0.0)
    has_best: bool = state(False)
    bad: int = state(0)
    cooling: int = state(0)

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        self._expect(self.mode in ("min", "max"), "mode='min' or 'max'", mode=self.mode)
        self._expect(0 < self.factor < 1, "0 < factor < 1", factor=self.factor)
        known = self.threshold_mode in ("rel", "abs")
        self._expect(known, "threshold_mode='rel' or 'abs'", threshold_mode=self.threshold_mode)
        for what in ("patience", "threshold", "cooldown", "min_rate", "eps"):
            value = getattr(self, what)
            self._expect(value >= 0, f"{what} >= 0", **{what: value})

    def rate(self, t: int) -> float:
        """The rate after the reductions so far, whatever `t`."""
        return self._after(self.reductions)

    def _after(self, reductions: int) -> float:
        # A base below min_rate is not raised to it.
        return max(self.base * self.factor**reductions, min(self.min_rate, self.base))

    def feed(self, metric: float) -> None:
        """Take a metric, and reduce the rate if it has been no better for too long.

        Raises:
            TypeError: If it is no number.
        """
        metric = self._number(metric)
        if self._improves(metric):
            self.best, self.has_best, self.bad = metric, True, 0
        else:
            self.bad += 1
        if self.cooling > 0:
            self.cooling, self.bad = self.cooling - 1, 0
        if self.bad > self.patience:
            if self._after(self.reductions) - self._after(self.reductions + 1) > self.eps:
                self.reductions += 1
            self.cooling, self.bad = self.cooldown, 0

    def _number(self, metric: object) -> float:
        # Whatever has a float is taken: numpy's scalars, tensors of one element.
        if isinstance(metric, str | bytes | bool) or not hasattr(metric, "__float__"):
            raise TypeError(
                f"Expected a number as metric of schedule {self.name!r}, got {metric!r} "
                f"({type(metric).__name__})."
            )
        return float(metric)

    def _improves(self, metric: float) -> bool:
        if not math.isfinite(metric):
            return False
        if not self.has_best:
            return True
        sign = 1 if self.mode == "max" else -1
        if self.threshold_mode == "rel":
            return sign * metric > sign * self.best * (1 + sign * self.threshold)
        return sign * metric > sign * self.best + self.threshold
