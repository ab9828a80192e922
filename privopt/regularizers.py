"""Loss-regularization plug-ins: floor 4. Each adds its term's gradient before the modules run."""

from __future__ import annotations

from .plugin import Regularizer, state
from .vector import Vector

__all__ = ["FedProx", "Lasso", "LassoRegularizer", "Ridge", "RidgeRegularizer"]


class _Penalty(Regularizer, register=False):
    """A penalty of strength alpha >= 0."""

    name = "penalty"
    alpha: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect(self.alpha >= 0, "alpha >= 0", alpha=self.alpha)


class FedProx(_Penalty):
    """Pull towards the weights that the round started from (Li et al. 2020): ``g + alpha (w - w_0)``.

    Args:
        alpha: Strength of the pull (mu in the paper), >= 0.
    """

    name = "fedprox"
    reference: Vector | None = state(None)

    def on_round_start(self) -> None:
        self.reference = None  # the first step of the round sees the weights to stay close to

    def run(self, gradients: Vector, weights: Vector) -> Vector:
        if self.reference is None:
            # A copy: the weights' memory may be updated in place as the round goes on.
            self.reference = weights.copy()
            return gradients
        return gradients + self.alpha * (weights - self.reference)


class Lasso(_Penalty):
    """L1 penalty ``alpha ||w||_1``: ``g + alpha sign(w)``.

    Args:
        alpha: Strength of the penalty, >= 0.
    """

    name = "lasso"

    def run(self, gradients: Vector, weights: Vector) -> Vector:
        return gradients + self.alpha * weights.sign()


class Ridge(_Penalty):
    """L2 penalty ``alpha ||w||_2^2``: ``g + 2 alpha w``.

    Args:
        alpha: Strength of the penalty, >= 0.
    """

    name = "ridge"

    def run(self, gradients: Vector, weights: Vector) -> Vector:
        return gradients + (2 * self.alpha) * weights


LassoRegularizer = Lasso
RidgeRegularizer = Ridge
