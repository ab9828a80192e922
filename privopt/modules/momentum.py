"""Momentum: floor 4."""

from __future__ import annotations

from ..plugin import OptiModule, state
from ..vector import Vector

__all__ = ["Momentum"]


class Momentum(OptiModule):
    """Heavy-ball momentum, or Nesterov's, as torch.optim.SGD has it (Sutskever et al. 2013).

    Computes ``v = beta v + g`` and gives ``v``, or ``beta v + g`` with `nesterov`.

    Args:
        beta: Share of the velocity kept each step, in [0, 1).
        nesterov: Look one step ahead.
        round_reset: Forget the velocity when a round starts.
    """

    name = "momentum"
    beta: float = 0.9
    nesterov: bool = False
    round_reset: bool = False
    velocity: Vector = state(0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect(0 <= self.beta < 1, "0 <= beta < 1", beta=self.beta)

    def run(self, gradients: Vector) -> Vector:
        self.velocity = self.beta * self.velocity + gradients
        return self.beta * self.velocity + gradients if self.nesterov else self.velocity
