"""Steps as long as each tensor can bear, by the ratio of its norm to the step's: floor 4."""

from __future__ import annotations

from ..plugin import OptiModule
from ..vector import PerTensor, Vector
from .adaptive import MomentsModule

__all__ = ["Lamb", "Lars"]


def trust_ratio(above: PerTensor, below: PerTensor) -> PerTensor:
    """``above / below`` where neither is zero, 1 elsewhere: a tensor that is zero could never leave it."""
    return above.where_positive(below.where_positive(above / below, 1.0), 1.0)


class Lars(OptiModule):
    """LARS: scale each tensor's gradient by the ratio of the weights' norm to it (You et al. 2017).

    Gives ``coefficient ||w|| / (||g|| + decay ||w|| + eps) (g + decay w)`` for each tensor, and
    ``g + decay w`` where that is 0 or 0 / 0. The paper's algorithm is this and a heavy ball:
    ``modules=["lars", "momentum"]``. Where optax divides by ``||g + decay w||``, take the regularizer `ridge`
    of half that decay and ``decay=0`` here.

    Args:
        coefficient: Trust in each step (eta in the paper), > 0.
        decay: Weight decay inside the ratio (beta in the paper), >= 0; leave the optimizer's at 0 then.
        eps: Added to the denominator, >= 0.

    References:
        You et al. (2017), https://arxiv.org/abs/1708.03888, Algorithm 1.
    """

    name = "lars"
    coefficient: float = 1e-3
    decay: float = 0.0
    eps: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect(self.coefficient > 0, "coefficient > 0", coefficient=self.coefficient)
        self._expect(self.decay >= 0, "decay >= 0", decay=self.decay)
        self._expect(self.eps >= 0, "eps >= 0", eps=self.eps)

    def run(self, gradients: Vector, weights: Vector) -> Vector:
        sizes = weights.norms()
        ratio = trust_ratio(self.coefficient * sizes, gradients.norms() + self.decay * sizes + self.eps)
        return (gradients + self.decay * weights) * ratio


class Lamb(MomentsModule):
    """LAMB: Adam's direction, as long for each tensor as its weights are (You et al. 2020).

    With ``r = m_hat / (sqrt(v_hat) + eps) + decay w`` it gives ``||w|| / ||r|| r`` for each tensor, and
    ``r`` where ``w`` or ``r`` is zero.

    Args:
        beta_1: Share of the first moment kept each step, in [0, 1).
        beta_2: Share of the second moment kept each step, in [0, 1).
        amsgrad: Divide by the running maximum of the second moment (Reddi et al. 2018).
        eps: Added to the denominator, gradient units, >= 0.
        round_reset: Forget moments and step count when a round starts.
        decay: Weight decay inside the ratio (lambda in the paper), >= 0; leave the optimizer's at 0 then.

    References:
        You et al. (2020), https://arxiv.org/abs/1904.00962, Algorithm 2 with phi(x) = x.
    """

    name = "lamb"
    eps: float = 1e-6
    decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect(self.decay >= 0, "decay >= 0", decay=self.decay)

    def run(self, gradients: Vector, weights: Vector) -> Vector:
        self.observe(gradients)
        direction = self.m_hat / (self.v_hat.sqrt() + self.eps) + self.decay * weights
        return direction * trust_ratio(weights.norms(), direction.norms())
