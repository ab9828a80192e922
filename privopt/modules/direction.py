"""What a step's direction is, whatever its length: floor 4."""

from __future__ import annotations

from ..plugin import OptiModule
from ..vector import Vector

__all__ = ["Cautious", "Centralize", "Normalize", "Sign"]


class Sign(OptiModule):
    """Keep each entry's sign only, 0 at 0: signSGD (Bernstein et al. 2018, Algorithm 1).

    References:
        Bernstein et al. (2018), https://arxiv.org/abs/1802.04434.
    """

    name = "sign"

    def run(self, gradients: Vector) -> Vector:
        return gradients.sign()


class Centralize(OptiModule):
    """Subtract each row's mean from tensors of two or more axes (Yong et al. 2020).

    A row is what one index of the first axis selects: in torch's layers, the weights into one unit or
    channel. Tensors of no or one axis pass unchanged.

    References:
        Yong et al. (2020), https://arxiv.org/abs/2004.01461, equation 1.
    """

    name = "centralize"

    def run(self, gradients: Vector) -> Vector:
        return gradients - gradients.row_means()


class Normalize(OptiModule):
    """Scale the gradient to norm one: ``g / (||g|| + eps)``; a zero gradient stays zero.

    Args:
        per_tensor: Scale each tensor by its own norm instead of all by the norm over them together.
        eps: Added to the norm, gradient units, > 0.
    """

    name = "normalize"
    per_tensor: bool = False
    eps: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect(self.eps > 0, "eps > 0", eps=self.eps)

    def run(self, gradients: Vector) -> Vector:
        norm = gradients.norms() if self.per_tensor else gradients.norm()
        return gradients / (norm + self.eps)


class Cautious(OptiModule):
    """Drop the entries of the step that run against the gradient, and lengthen the rest (Liang et al. 2024).

    Put it after the modules that it guards: ``modules=["adam", "cautious"]``. Where a direction and the
    gradient that entered the first module differ in sign, or one is zero, the step would not descend
    and the direction becomes 0. What stays of each tensor is divided by the share that stays, or by `eps`
    where that is larger.

    Args:
        eps: Least share of a tensor to divide by, in (0, 1].

    References:
        Liang et al. (2024), https://arxiv.org/abs/2411.16085, Algorithm 1, with the scale of its code:
        the mean of each tensor's mask.
    """

    name = "cautious"
    eps: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect(0 < self.eps <= 1, "0 < eps <= 1", eps=self.eps)

    def run(self, gradients: Vector, raw_gradients: Vector) -> Vector:
        # Signs before their product: that of two small numbers may vanish. 1 to keep, 0 to drop.
        mask = (gradients.sign() * raw_gradients.sign()).maximum(0.0)
        kept, dropped = mask.sums(), (1 - mask).sums()
        return gradients * mask / (kept / (kept + dropped)).maximum(self.eps)
