"""Steps scaled by running moments of the gradient: floor 4."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from ..plugin import OptiModule, state
from ..vector import Vector

__all__ = ["Adam"]


class Adam(OptiModule):
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
    """

    name = "adam"
    aliases: ClassVar[Mapping[str, str]] = {"beta1": "beta_1", "beta2": "beta_2"}
    beta_1: float = 0.9
    beta_2: float = 0.99
    amsgrad: bool = False
    eps: float = 1e-7
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

    def run(self, gradients: Vector) -> Vector:
        self.step += 1
        self.m = self.beta_1 * self.m + (1 - self.beta_1) * gradients
        self.v = self.beta_2 * self.v + (1 - self.beta_2) * gradients * gradients
        second = self.v
        if self.amsgrad:
            second = self.v_max = self.v if self.v_max is None else self.v_max.maximum(self.v)
        m_hat = self.m / (1 - self.beta_1**self.step)
        v_hat = second / (1 - self.beta_2**self.step)
        return m_hat / (v_hat.sqrt() + self.eps)
