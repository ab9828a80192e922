"""Bounds on the norm of the (batch-averaged) gradient: floor 4.

These keep training stable. They bound no single sample's influence: for privacy, samples are
clipped one by one before any plug-in (package `dp`).
"""

from __future__ import annotations

from ..plugin import OptiModule
from ..vector import Vector

__all__ = ["ClipValue", "L2Clipping", "L2GlobalClipping"]


class L2Clipping(OptiModule):
    """Scale each tensor so that its L2 norm is at most `max_norm`; zero tensors stay zero.

    Args:
        max_norm: Bound on each tensor's norm, gradient units, > 0.
    """

    name = "l2-clipping"
    max_norm: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect(self.max_norm > 0, "max_norm > 0", max_norm=self.max_norm)

    def run(self, gradients: Vector) -> Vector:
        norms = gradients.norms()
        # A norm of 0 gives an infinite quotient, so 1; a NaN makes its tensor NaN rather than unclipped.
        return gradients * (self.max_norm / norms).minimum(1.0)


class L2GlobalClipping(OptiModule):
    """Scale the whole gradient so that its L2 norm is at most `max_norm`; a zero gradient stays zero.

    Args:
        max_norm: Bound on the norm over all tensors together, gradient units, > 0.
    """

    name = "l2-global-clipping"
    max_norm: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect(self.max_norm > 0, "max_norm > 0", max_norm=self.max_norm)

    def run(self, gradients: Vector) -> Vector:
        norm = gradients.norm()
        if norm == 0:
            return gradients
        factor = self.max_norm / norm
        # A NaN makes everything NaN, as in torch, rather than pass unclipped.
        return gradients * (1.0 if factor >= 1 else factor)


class ClipValue(OptiModule):
    """Limit each entry to ``[-max_value, max_value]``.

    Args:
        max_value: Bound on each entry's absolute value, gradient units, > 0.
    """

    name = "clip-value"
    max_value: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect(self.max_value > 0, "max_value > 0", max_value=self.max_value)

    def run(self, gradients: Vector) -> Vector:
        return gradients.clip(-self.max_value, self.max_value)
