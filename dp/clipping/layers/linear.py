"""Linear layers: a sample's gradient is a sum of outer products, whose norm needs no gradient: floor 3."""

from __future__ import annotations

import torch

from .rule import RULES, Dense, Rule, Share, by_sample, squares

__all__ = ["LINEAR", "Products", "product_norms"]

HELD_VALUES = 2**22
"""Per-sample gradients held at once for a norm, in values: 16 MB of float32."""
CANCELLED = 2.0**-12
"""A squared norm this far below its bound has lost too many digits of its Gram matrices."""


class Products:
    """Gradients of the form ``sum_t b_t a_t^T``.

    Args:
        a: Inputs by sample and position, shape ``(n, positions, inputs)``.
        b: Gradients of the outputs, shape ``(n, positions, outputs)``.
    """

    def __init__(self, a: torch.Tensor, b: torch.Tensor) -> None:
        self.a, self.b = a, b

    def squared_norms(self) -> torch.Tensor:
        """As `Share.squared_norms`."""
        return product_norms(self.a, self.b)

    def per_sample(self, low: int, high: int) -> torch.Tensor:
        """As `Share.per_sample`."""
        return self.b[low:high].transpose(1, 2) @ self.a[low:high]

    def weighted(self, factors: torch.Tensor) -> torch.Tensor:
        """As `Share.weighted`: one matrix product, as in a plain backward pass."""
        return by_sample(factors, self.b).flatten(0, 1).T @ self.a.flatten(0, 1)


def product_norms(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Squared norms of ``sum_t b_t a_t^T`` by whichever takes fewer operations of two ways.

    Either the gradients themselves, or ``sum_{s,t} (a_s . a_t) (b_s . b_t)``, which is the same number. Where
    the terms of the second cancel so far that their rounding would show, the first is taken.

    Args:
        a: Shape ``(n, positions, inputs)``.
        b: Shape ``(n, positions, outputs)``.

    References:
        "Differentially private optimization on large model at small cost" (2023),
        https://arxiv.org/abs/2210.00038, section 3; Goodfellow (2015) for one position.
    """
    positions, inputs, outputs = a.shape[1], a.shape[2], b.shape[2]
    if positions == 1:
        return squares(a) * squares(b)
    if positions * (inputs + outputs) > inputs * outputs:
        return _direct_norms(a, b)
    gram = (a @ a.transpose(1, 2)).mul_(b @ b.transpose(1, 2))
    norms = gram.sum((1, 2), dtype=torch.float64)
    # Not `<`: what is not a number has to be looked at too.
    unsure = ~(norms >= CANCELLED * squares(a) * squares(b))
    if bool(unsure.any()):
        norms[unsure] = _direct_norms(a[unsure], b[unsure])
    return norms


def _direct_norms(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The same through the gradients, as few samples at a time as memory asks for."""
    samples = max(1, HELD_VALUES // (a.shape[2] * b.shape[2]))
    chunks = [slice(low, low + samples) for low in range(0, len(a), samples)]
    return torch.cat([squares(b[chunk].transpose(1, 2) @ a[chunk]) for chunk in chunks])


def _shares(layer: torch.nn.Module, a: torch.Tensor, b: torch.Tensor) -> dict[str, Share]:
    a, b = a.reshape(len(a), -1, a.shape[-1]), b.reshape(len(b), -1, b.shape[-1])
    return {"weight": Products(a, b), "bias": Dense(b.sum(1))}


LINEAR = Rule(_shares)
RULES[torch.nn.Linear] = LINEAR
