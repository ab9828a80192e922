"""Steps scaled by running moments of the gradient: floor 4.

`AdaGrad` and `RMSProp` keep a mean of squares. The Adam family keeps a mean of gradients too; it shares
`MomentsModule`, and each member says what differs: how the second moment moves, or how both make a step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from ..plugin import OptiModule, state
from ..vector import Vector
from .momentum import Decaying

__all__ = ["AdaBelief", "AdaGrad", "Adam", "MomentsModule", "NAdam", "RAdam", "RMSProp", "Yogi"]


class AdaGrad(OptiModule):
    """AdaGrad: divide by the root of the sum of all squares so far (Duchi et al. 2011).

    Computes ``s = s + g^2`` and gives ``g / (sqrt(s) + eps)``. The default ``eps=1e-7`` is declearn's;
    torch.optim.Adagrad takes 1e-10.

    Args:
        eps: Added to the denominator, gradient units, >= 0.
        round_reset: Forget the sum when a round starts.

    References:
        Duchi et al. (2011), https://jmlr.org/papers/v12/duchi11a.html.
    """

    name = "adagrad"
    eps: float = 1e-7
    round_reset: bool = False
    squares: Vector = state(0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect(self.eps >= 0, "eps >= 0", eps=self.eps)

    def run(self, gradients: Vector) -> Vector:
        self.squares = self.squares + gradients * gradients
        return gradients / (self.squares.sqrt() + self.eps)


class RMSProp(Decaying):
    """RMSProp: divide by the root of the running mean of squares (Tieleman and Hinton 2012).

    Computes ``s = beta s + (1 - beta) g^2`` and gives ``g / (sqrt(s) + eps)``. The defaults
    ``beta=0.9, eps=1e-7`` are declearn's; torch.optim.RMSprop takes 0.99 and 1e-8.

    Args:
        beta: Share of the mean kept each step, in [0, 1).
        eps: Added to the denominator, gradient units, >= 0.
        round_reset: Forget the mean when a round starts.

    References:
        Tieleman and Hinton (2012), Lecture 6.5 of Neural Networks for Machine Learning.
    """

    name = "rmsprop"
    eps: float = 1e-7
    round_reset: bool = False
    squares: Vector = state(0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect(self.eps >= 0, "eps >= 0", eps=self.eps)

    def run(self, gradients: Vector) -> Vector:
        self.squares = self.beta * self.squares + (1 - self.beta) * gradients * gradients
        return gradients / (self.squares.sqrt() + self.eps)


class MomentsModule(OptiModule, register=False):
    """Base of the Adam family: running first and second moments of the gradient, and their step count.

    A subclass calls `observe` in its `run` and makes a direction of `m_hat` and `v_hat`; it may replace
    `second_moment`.

    Args:
        beta_1: Share of the first moment kept each step, in [0, 1).
        beta_2: Share of the second moment kept each step, in [0, 1).
        amsgrad: Divide by the running maximum of the second moment (Reddi et al. 2018).
        eps: Added to the denominator, gradient units, >= 0.
        round_reset: Forget moments and step count when a round starts.
    """

    name = "moments"
    aliases: ClassVar[Mapping[str, str]] = {"beta1": "beta_1", "beta2": "beta_2"}
    beta_1: float = 0.9
    beta_2: float = 0.999
    amsgrad: bool = False
    eps: float = 1e-8
    round_reset: bool = False
    m: Vector = state(0.0)
    v: Vector = state(0.0)
    v_max: Vector | None = state(None)
    step: int = state(0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect(0 <= self.beta_1 < 1, "0 <= beta_1 < 1", beta_1=self.beta_1)
        self._expect(0 <= self.beta_2 < 1, "0 <= beta_2 < 1", beta_2=self.beta_2)
        self._expect(self.eps >= 0, "eps >= 0", eps=self.eps)

    def observe(self, gradients: Vector) -> None:
        """Take one step's gradients into the moments."""
        self.step += 1
        self.m = self.beta_1 * self.m + (1 - self.beta_1) * gradients
        self.v = self.second_moment(gradients)
        if self.amsgrad:
            # No second moment is negative: the maximum with 0 makes the first a Vector of its own.
            self.v_max = self.v.maximum(0.0 if self.v_max is None else self.v_max)

    def second_moment(self, gradients: Vector) -> Vector:
        """The second moment after this step; `m` has moved already, `v` has not."""
        return self.beta_2 * self.v + (1 - self.beta_2) * gradients * gradients

    @property
    def m_hat(self) -> Vector:
        """The first moment, corrected for its start at zero."""
        return self.m / (1 - self.beta_1**self.step)

    @property
    def v_hat(self) -> Vector:
        """The second moment, or with `amsgrad` its maximum, corrected for its start at zero."""
        return (self.v if self.v_max is None else self.v_max) / (1 - self.beta_2**self.step)


class Adam(MomentsModule):
    """Adam: bias-corrected first moment over the root of the second (Kingma and Ba 2015, Alg. 1).

    Computes ``m_hat / (sqrt(v_hat) + eps)``; with `amsgrad`, ``v_hat`` is the largest seen so far,
    corrected as torch does it. The defaults ``beta_2=0.99, eps=1e-7`` are declearn's; torch.optim.Adam
    takes 0.999 and 1e-8.

    Args:
        beta_1: Share of the first moment kept each step, in [0, 1).
        beta_2: Share of the second moment kept each step, in [0, 1).
        amsgrad: Divide by the running maximum of the second moment (Reddi et al. 2018).
        eps: Added to the denominator, gradient units, >= 0.
        round_reset: Forget moments and step count when a round starts.

    References:
        Kingma and Ba (2015), https://arxiv.org/abs/1412.6980.
        Reddi et al. (2018), https://openreview.net/forum?id=ryQu7f-RZ.
    """

    name = "adam"
    beta_2: float = 0.99
    eps: float = 1e-7

    def run(self, gradients: Vector) -> Vector:
        self.observe(gradients)
        return self.m_hat / (self.v_hat.sqrt() + self.eps)


class Yogi(Adam):
    """Yogi: Adam with a second moment that grows and shrinks by bounded steps (Zaheer et al. 2018).

    Computes ``v = v - (1 - beta_2) sign(v - g^2) g^2`` and gives ``m_hat / (sqrt(v_hat) + eps)``.
    Both moments start at zero and are corrected for it, as Adam's are; the paper starts ``v`` at one
    batch's squares and corrects nothing. The paper takes ``beta_2=0.999, eps=1e-3``.

    Args:
        beta_1: Share of the first moment kept each step, in [0, 1).
        beta_2: One minus the share of the square by which the second moment moves, in [0, 1).
        amsgrad: Divide by the running maximum of the second moment (Reddi et al. 2018).
        eps: Added to the denominator, gradient units, >= 0.
        round_reset: Forget moments and step count when a round starts.

    References:
        Zaheer et al. (2018), https://papers.nips.cc/paper/8186, Algorithm 2.
    """

    name = "yogi"

    def second_moment(self, gradients: Vector) -> Vector:
        squares = gradients * gradients
        return self.v - (self.v - squares).sign() * ((1 - self.beta_2) * squares)


class AdaBelief(Adam):
    """AdaBelief: Adam that divides by how far gradients fall from their mean (Zhuang et al. 2020).

    Computes ``v = beta_2 v + (1 - beta_2) (g - m)^2 + eps`` and gives ``m_hat / (sqrt(v_hat) + eps)``.

    Args:
        beta_1: Share of the first moment kept each step, in [0, 1).
        beta_2: Share of the second moment kept each step, in [0, 1).
        amsgrad: Divide by the running maximum of the second moment (Reddi et al. 2018).
        eps: Added to the second moment each step and to the denominator, >= 0.
        round_reset: Forget moments and step count when a round starts.

    References:
        Zhuang et al. (2020), https://arxiv.org/abs/2010.07468, Algorithm 2; the default of `eps` is
        their code's.
    """

    name = "adabelief"
    beta_2: float = 0.999
    eps: float = 1e-16

    def second_moment(self, gradients: Vector) -> Vector:
        surprise = gradients - self.m
        return self.beta_2 * self.v + (1 - self.beta_2) * surprise * surprise + self.eps


class NAdam(MomentsModule):
    """NAdam: Adam with Nesterov's look ahead, its momentum warmed up (Dozat 2016), as torch has it.

    With ``mu_t = beta_1 (1 - 0.96^(t momentum_decay) / 2)`` and ``P_t = mu_1 ... mu_t`` it gives
    ``(mu_(t+1) m / (1 - P_(t+1)) + (1 - mu_t) g / (1 - P_t)) / (sqrt(v_hat) + eps)``.

    Args:
        beta_1: Share of the first moment kept each step, in [0, 1).
        beta_2: Share of the second moment kept each step, in [0, 1).
        amsgrad: Divide by the running maximum of the second moment (Reddi et al. 2018).
        eps: Added to the denominator, gradient units, >= 0.
        round_reset: Forget moments and step count when a round starts.
        momentum_decay: How fast the momentum's warm-up ends, >= 0; at 0 it stays at half of `beta_1`. One
            number for all tensors.

    References:
        Dozat (2016), https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ; the defaults are torch's.
    """

    name = "nadam"
    momentum_decay: float = 4e-3
    warmed: float = state(1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect(self.momentum_decay >= 0, "momentum_decay >= 0", momentum_decay=self.momentum_decay)

    def run(self, gradients: Vector) -> Vector:
        self.observe(gradients)
        now: float = 1 - 0.96 ** (self.step * self.momentum_decay) / 2
        then: float = 1 - 0.96 ** ((self.step + 1) * self.momentum_decay) / 2
        self.warmed = float(self.warmed * now)  # P_t without its power of beta_1
        product = self.beta_1**self.step * self.warmed
        ahead = (self.beta_1 * then / (1 - product * self.beta_1 * then)) * self.m
        here = ((1 - self.beta_1 * now) / (1 - product)) * gradients
        return (ahead + here) / (self.v_hat.sqrt() + self.eps)


class RAdam(MomentsModule):
    """RAdam: Adam that divides only once the second moment can be trusted (Liu et al. 2020).

    With ``rho = 2 / (1 - beta_2) - 1`` and ``rho_t = rho - 2 t beta_2^t / (1 - beta_2^t)`` it gives
    ``m_hat`` while ``rho_t <= 5``, then ``r m_hat sqrt(1 - beta_2^t) / (sqrt(v) + eps)`` with
    ``r^2 = (rho_t - 4) (rho_t - 2) rho / ((rho - 4) (rho - 2) rho_t)``: as torch has it.

    Args:
        beta_1: Share of the first moment kept each step, in [0, 1).
        beta_2: Share of the second moment kept each step, in [0, 1); at 2/3 or below it never divides. One
            number for all tensors.
        amsgrad: Divide by the running maximum of the second moment (Reddi et al. 2018).
        eps: Added to the root before the correction, gradient units, >= 0.
        round_reset: Forget moments and step count when a round starts.

    References:
        Liu et al. (2020), https://arxiv.org/abs/1908.03265, Algorithm 2; the bound 5 is their code's.
    """

    name = "radam"

    def run(self, gradients: Vector) -> Vector:
        self.observe(gradients)
        unseen: float = self.beta_2**self.step
        longest = 2 / (1 - self.beta_2) - 1
        length = longest - 2 * self.step * unseen / (1 - unseen)
        if length <= 5:
            return self.m_hat
        rectified = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
        rate: float = rectified**0.5
        seen: float = (1 - unseen) ** 0.5
        return rate * self.m_hat / (self.v_hat.sqrt() + self.eps / seen)
