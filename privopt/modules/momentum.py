"""Running means of the gradient: floor 4."""

from __future__ import annotations

from ..plugin import OptiModule, state
from ..vector import Vector

__all__ = ["Decaying", "Ewma", "Lion", "Momentum", "YogiMomentum"]


class Decaying(OptiModule, register=False):
    """Base of modules with one memory of which a share is kept each step.

    Args:
        beta: Share of the memory kept each step, in [0, 1).
    """

    name = "decaying"
    beta: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect(0 <= self.beta < 1, "0 <= beta < 1", beta=self.beta)


class Momentum(Decaying):
    """Heavy-ball momentum, or Nesterov's, as torch.optim.SGD has it (Sutskever et al. 2013).

    Computes ``v = beta v + g`` and gives ``v``, or ``beta v + g`` with `nesterov`.

    Args:
        beta: Share of the velocity kept each step, in [0, 1).
        nesterov: Look one step ahead.
        round_reset: Forget the velocity when a round starts.

    References:
        Sutskever et al. (2013), https://proceedings.mlr.press/v28/sutskever13.html.
    """

    name = "momentum"
    nesterov: bool = False
    round_reset: bool = False
    velocity: Vector = state(0.0)

    def run(self, gradients: Vector) -> Vector:
        self.velocity = self.beta * self.velocity + gradients
        return self.beta * self.velocity + gradients if self.nesterov else self.velocity


class Ewma(Decaying):
    """Exponentially weighted moving average of the gradients: ``s = beta s + (1 - beta) g``.

    The average starts at zero and is not corrected for it.

    Args:
        beta: Share of the average kept each step, in [0, 1).
        round_reset: Forget the average when a round starts.
    """

    name = "ewma"
    round_reset: bool = False
    average: Vector = state(0.0)

    def run(self, gradients: Vector) -> Vector:
        self.average = self.beta * self.average + (1 - self.beta) * gradients
        return self.average


class YogiMomentum(Decaying):
    """Average that moves by the gradient's size only: ``s = s - sign(s - g) (1 - beta) g``.

    Yogi's rule for its second moment (Zaheer et al. 2018), taken on the gradient itself. Where ``g < 0``
    it leads away from the gradient, so it is of use on gradients that are made non-negative.

    Args:
        beta: One minus the share of the gradient by which the average moves, in [0, 1).
        round_reset: Forget the average when a round starts.

    References:
        Zaheer et al. (2018), https://papers.nips.cc/paper/8186, Algorithm 2.
    """

    name = "yogi-momentum"
    round_reset: bool = False
    average: Vector = state(0.0)

    def run(self, gradients: Vector) -> Vector:
        self.average = self.average - (self.average - gradients).sign() * ((1 - self.beta) * gradients)
        return self.average


class Lion(OptiModule):
    """Lion: sign of an average that weighs the newest gradient more (Chen et al. 2023, Algorithm 2).

    Gives ``sign(beta_1 m + (1 - beta_1) g)``, then ``m = beta_2 m + (1 - beta_2) g``. Every entry moves
    by the learning rate, so take one three to ten times smaller than Adam's.

    Args:
        beta_1: Share of the memory in the direction, in [0, 1).
        beta_2: Share of the memory kept each step, in [0, 1).
        round_reset: Forget the memory when a round starts.

    References:
        Chen et al. (2023), https://arxiv.org/abs/2302.06675.
    """

    name = "lion"
    beta_1: float = 0.9
    beta_2: float = 0.99
    round_reset: bool = False
    m: Vector = state(0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect(0 <= self.beta_1 < 1, "0 <= beta_1 < 1", beta_1=self.beta_1)
        self._expect(0 <= self.beta_2 < 1, "0 <= beta_2 < 1", beta_2=self.beta_2)

    def run(self, gradients: Vector) -> Vector:
        direction = self.beta_1 * self.m + (1 - self.beta_1) * gradients
        self.m = self.beta_2 * self.m + (1 - self.beta_2) * gradients
        return direction.sign()
