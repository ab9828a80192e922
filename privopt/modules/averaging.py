"""Averages of the weights along the way: floor 4.

These pass gradients unchanged and act on the weights that a step arrives at, so each stands last among the
modules that act there. One that changes the step moves from where it left off: when something else sets
the weights (a client gets the server's model), take `round_reset` or call `reset`.
"""

from __future__ import annotations

from ..plugin import OptiModule, state
from ..vector import Vector
from .momentum import Decaying

__all__ = ["EMAWeights", "Lookahead", "ScheduleFree"]


class EMAWeights(Decaying):
    """Keep a running mean of the weights to evaluate with; training goes on unchanged (Polyak 1992).

    Computes ``average = beta average + (1 - beta) w`` from the weights after each step, starting with
    those after the first: torch.optim.swa_utils.AveragedModel's rule. The state `average` holds it.

    Args:
        beta: Share of the average kept each step, in [0, 1).
        round_reset: Forget the average when a round starts.

    References:
        Polyak and Juditsky (1992), https://doi.org/10.1137/0330046; Tarvainen and Valpola (2017),
        https://arxiv.org/abs/1703.01780, for weights that decay.
    """

    name = "ema-weights"
    beta: float = 0.999
    round_reset: bool = False
    average: Vector | None = state(None)

    def run(self, gradients: Vector) -> Vector:
        return gradients

    def finish(self, updates: Vector, weights: Vector) -> Vector:
        after = weights + updates
        if self.average is None:
            self.average = after
        else:
            self.average = self.beta * self.average + (1 - self.beta) * after
        return updates


class Lookahead(OptiModule):
    """Every few steps, go back part of the way to where they started (Zhang et al. 2019).

    Every `period` steps the slow weights move by ``slow = slow + alpha (w - slow)``, and the weights
    are set to them. The other modules' states go on.

    Args:
        period: Steps between two moves of the slow weights (k in the paper), >= 1.
        alpha: Share of the way that is kept, in (0, 1].
        round_reset: Start again from the weights of the round's first step.

    References:
        Zhang et al. (2019), https://arxiv.org/abs/1907.08610, Algorithm 1.
    """

    name = "lookahead"
    period: int = 5
    alpha: float = 0.5
    round_reset: bool = False
    slow: Vector | None = state(None)
    step: int = state(0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect(self.period >= 1, "period >= 1", period=self.period)
        self._expect(0 < self.alpha <= 1, "0 < alpha <= 1", alpha=self.alpha)

    def run(self, gradients: Vector) -> Vector:
        return gradients

    def finish(self, updates: Vector, weights: Vector) -> Vector:
        slow = weights.copy() if self.slow is None else self.slow
        self.step += 1
        if self.step % self.period == 0:
            slow = slow + self.alpha * (weights + updates - slow)
            updates = slow - weights
        self.slow = slow
        return updates


class ScheduleFree(Decaying):
    """Train between a fast sequence and its mean, so that no schedule is needed (Defazio et al. 2024).

    The weights are the paper's y, at which gradients are taken. The update u that the other modules and
    the rate give moves ``z = z + u``; the mean moves by ``x = (1 - c) x + c z`` with
    ``c = t^power / (1^power + ... + t^power)``; the weights are set to ``y = (1 - beta) z + beta x``.
    Evaluate with the state `average`, which is x. It replaces the momentum of the modules before it:
    take ``adam`` with ``beta_1=0``. The paper's weights of the mean under a warm-up are the rate's
    squares; a linear warm-up's are ``power=2``.

    Args:
        beta: Share of the mean in the weights that are trained, in [0, 1).
        power: How much later steps weigh in the mean, >= 0; 0 weighs all alike.
        round_reset: Start again from the weights of the round's first step.

    References:
        Defazio et al. (2024), https://arxiv.org/abs/2405.15682, Algorithm 1 and section 3.
    """

    name = "schedule-free"
    power: float = 0.0
    round_reset: bool = False
    fast: Vector | None = state(None)
    average: Vector | None = state(None)
    step: int = state(0)
    total: float = state(0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect(self.power >= 0, "power >= 0", power=self.power)

    def run(self, gradients: Vector) -> Vector:
        return gradients

    def finish(self, updates: Vector, weights: Vector) -> Vector:
        fast, average = self.fast, self.average
        if fast is None or average is None:
            fast = average = weights
        self.step += 1
        self.total += self.step**self.power
        share = self.step**self.power / self.total
        self.fast = fast + updates
        self.average = (1 - share) * average + share * self.fast
        return (1 - self.beta) * self.fast + self.beta * self.average - weights
