"""The table of rules, and what a rule gives: shares of the samples in a parameter's gradient: floor 3."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

__all__ = ["RULES", "Dense", "Rule", "Share", "by_sample", "rule_of", "squares"]

_BLOCK = 256
_TINY, _HUGE = 1e-12, 1e18
"""Norms between these have squares well within float32, but for entries too small to matter."""


class Share(Protocol):
    """What each of n samples adds to the gradient of one parameter, mostly without holding it."""

    def squared_norms(self) -> torch.Tensor:
        """Squared L2 norms of the samples' gradients, float64, shape ``(n,)``."""
        ...  # pragma: no cover

    def per_sample(self, low: int, high: int) -> torch.Tensor:
        """The gradients of samples `low` to `high`, shape ``(high - low, *parameter)``."""
        ...  # pragma: no cover

    def weighted(self, factors: torch.Tensor) -> torch.Tensor:
        """The sum of the gradients times `factors`, float64 of shape ``(n,)``; shape of the parameter."""
        ...  # pragma: no cover


@dataclass(frozen=True)
class Rule:
    """How a kind of layer is clipped.

    Attributes:
        shares: Maps a layer, the input of one call (samples along the first axis) and the gradient of the
            loss's sum with respect to its output, to one `Share` for each of the layer's parameters.
        parameters: The parameters of its own that the rule covers.
        refusal: What is wrong with a layer of this kind, if anything; empty where nothing is.
    """

    shares: Callable[[torch.nn.Module, torch.Tensor, torch.Tensor], dict[str, Share]]
    parameters: tuple[str, ...] = ("weight", "bias")
    refusal: Callable[[torch.nn.Module], str] = lambda layer: ""


RULES: dict[type[torch.nn.Module], Rule] = {}
"""Rules by class of layer. Enter your own layer's: ``RULES[MyLayer] = Rule(my_shares)``."""


def rule_of(layer: torch.nn.Module) -> Rule | None:
    """The rule of a layer's class, or of the class whose `forward` it inherits; None where there is none."""
    for kind in type(layer).__mro__:
        if kind in RULES:
            return RULES[kind]
        if "forward" in vars(kind):
            return None  # It computes something else than the class that it is built on.
    return None


class Dense:
    """Gradients that are held, one a sample; for parameters that are small.

    Args:
        grads: Shape ``(n, *parameter)``.
    """

    def __init__(self, grads: torch.Tensor) -> None:
        self.grads = grads

    def squared_norms(self) -> torch.Tensor:
        """As `Share.squared_norms`."""
        return squares(self.grads)

    def per_sample(self, low: int, high: int) -> torch.Tensor:
        """As `Share.per_sample`."""
        return self.grads[low:high]

    def weighted(self, factors: torch.Tensor) -> torch.Tensor:
        """As `Share.weighted`."""
        return (factors.to(self.grads.dtype) @ self.grads.flatten(1)).reshape(self.grads.shape[1:])


def squares(values: torch.Tensor) -> torch.Tensor:
    """Squared L2 norms over all axes but the first, in float64, which no float32 overflows.

    Blocks of 256 float32 values are added up in float32 (to 1e-6), blocks in float64: a copy of all values
    takes longer than the sum. Norms whose squares float32 cannot hold are taken in float64 throughout.
    """
    flat = values.flatten(1)
    size = flat.shape[1] // _BLOCK * _BLOCK
    if values.dtype == torch.float32 and size > 0:
        blocks = torch.linalg.vector_norm(flat[:, :size].reshape(len(flat), -1, _BLOCK), dim=2)
        rest = torch.linalg.vector_norm(flat[:, size:], dim=1, keepdim=True)
        norms: torch.Tensor = torch.linalg.vector_norm(
            torch.cat([blocks, rest], 1), dim=1, dtype=torch.float64
        )
        if bool(((norms > _TINY) & (norms < _HUGE)).all()):
            return norms.square()
    exact: torch.Tensor = torch.linalg.vector_norm(flat, dim=1, dtype=torch.float64)
    return exact.square()


def by_sample(factors: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Values times their sample's factor, in the values' precision.

    A factor too small for it becomes zero: rounded to the few digits that are left there, it might grow.
    """
    factors = torch.where(factors < torch.finfo(values.dtype).tiny, 0.0, factors)
    return values * factors.to(values.dtype).reshape(-1, *[1] * (values.dim() - 1))
