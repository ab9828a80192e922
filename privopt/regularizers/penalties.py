"""Penalties on the size of the weights: floor 4."""

from __future__ import annotations

from ..plugin import Regularizer
from ..vector import Vector

__all__ = ["ElasticNet", "Lasso", "Penalty", "Ridge"]


class Penalty(Regularizer, register=False):
    """Base of terms with a strength: a subclass implements `run`.

    Args:
        alpha: Strength of the term, >= 0.
    """

    name = "penalty"
    alpha: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect(self.alpha >= 0, "alpha >= 0", alpha=self.alpha)


class Lasso(Penalty):
    """L1 penalty ``alpha ||w||_1``: ``g + alpha sign(w)``.

    Args:
        alpha: Strength of the penalty, >= 0.
    """

    name = "lasso"

    def run(self, gradients: Vector, weights: Vector) -> Vector:
        return gradients + self.alpha * weights.sign()


class Ridge(Penalty):
    """L2 penalty ``alpha ||w||_2^2``: ``g + 2 alpha w``.

    Args:
        alpha: Strength of the penalty, >= 0.
    """

    name = "ridge"

    def run(self, gradients: Vector, weights: Vector) -> Vector:
        return gradients + (2 * self.alpha) * weights


class ElasticNet(Penalty):
    """Mix of both penalties, ``alpha (r ||w||_1 + (1 - r) ||w||_2^2)`` (Zou and Hastie 2005).

    Adds ``alpha (r sign(w) + 2 (1 - r) w)``: `lasso` of the same strength at ``r = 1``, `ridge` at
    ``r = 0``. scikit-learn's ElasticNet halves the second term.

    Args:
        alpha: Strength of the penalty, >= 0.
        l1_ratio: Share r of the L1 penalty, in [0, 1].

    References:
        Zou and Hastie (2005), https://doi.org/10.1111/j.1467-9868.2005.00503.x, equation 3.
    """

    name = "elastic-net"
    l1_ratio: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect(0 <= self.l1_ratio <= 1, "0 <= l1_ratio <= 1", l1_ratio=self.l1_ratio)

    def run(self, gradients: Vector, weights: Vector) -> Vector:
        lasso, ridge = self.l1_ratio * weights.sign(), (2 * (1 - self.l1_ratio)) * weights
        return gradients + self.alpha * (lasso + ridge)
