"""The proximal term of FedProx: floor 4."""

from __future__ import annotations

from ..plugin import state
from ..vector import Vector
from .penalties import Penalty

__all__ = ["FedProx"]


class FedProx(Penalty):
    """Pull towards the weights that the round started from (Li et al. 2020): ``g + alpha (w - w_0)``.

    w_0 is where the first step after `Optimizer.start_round` is taken, which every round must call. An
    optimizer made anew for each round may go without.

    Args:
        alpha: Strength of the pull (mu in the paper), >= 0.

    References:
        Li et al. (2020), https://arxiv.org/abs/1812.06127, equation 2.
    """

    name = "fedprox"
    reference: Vector | None = state(None)

    def on_round_start(self) -> None:
        self.reference = None  # the first step of the round sees the weights to stay close to

    def on_round_end(self, accepted: bool) -> None:
        self.reference = None

    def run(self, gradients: Vector, weights: Vector) -> Vector:
        if self.reference is None:
            # A copy: the weights' memory may be updated in place as the round goes on.
            self.reference = weights.copy()
            return gradients
        return gradients + self.alpha * (weights - self.reference)
