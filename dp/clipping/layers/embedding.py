"""Embeddings: a sample's gradient touches the rows that it looks up, and no more: floor 3."""

from __future__ import annotations

from typing import cast

import torch

from .rule import RULES, Rule, Share, by_sample, squares

__all__ = ["EMBEDDING"]


class Rows:
    """Gradients that are sums over the rows that a sample looks up.

    Args:
        rows: Indices by sample and position, shape ``(n, positions)``.
        b: Gradients of the outputs, shape ``(n, positions, width)``.
        num_rows: Rows of the table.
    """

    def __init__(self, rows: torch.Tensor, b: torch.Tensor, num_rows: int) -> None:
        self.rows, self.b, self.num_rows = rows.long(), b, num_rows

    def squared_norms(self) -> torch.Tensor:
        """As `Share.squared_norms`: a row that a sample looks up twice is added up before it is squared."""
        n, positions, width = self.b.shape
        if positions == 1:
            return squares(self.b)
        samples = torch.arange(n, device=self.rows.device)
        keys = (samples[:, None] * self.num_rows + self.rows).flatten()
        used, places = torch.unique(keys, return_inverse=True)
        sums = self.b.new_zeros(len(used), width).index_add_(0, places, self.b.flatten(0, 1))
        norms = torch.zeros(n, dtype=torch.float64, device=self.b.device)
        return norms.index_add_(0, used // self.num_rows, squares(sums))

    def per_sample(self, low: int, high: int) -> torch.Tensor:
        """As `Share.per_sample`."""
        n, width = high - low, self.b.shape[2]
        places = self.rows[low:high] + self.num_rows * torch.arange(n, device=self.rows.device)[:, None]
        grads = self.b.new_zeros(n * self.num_rows, width)
        grads.index_add_(0, places.flatten(), self.b[low:high].flatten(0, 1))
        return grads.reshape(n, self.num_rows, width)

    def weighted(self, factors: torch.Tensor) -> torch.Tensor:
        """As `Share.weighted`."""
        total = self.b.new_zeros(self.num_rows, self.b.shape[2])
        return total.index_add_(0, self.rows.flatten(), by_sample(factors, self.b).flatten(0, 1))


def _shares(layer: torch.nn.Module, a: torch.Tensor, b: torch.Tensor) -> dict[str, Share]:
    table = cast("torch.nn.Embedding", layer)
    rows, b = a.reshape(len(a), -1), b.reshape(len(b), -1, b.shape[-1])
    if table.padding_idx is not None:
        b = b.masked_fill((rows == table.padding_idx)[..., None], 0.0)  # torch keeps this row as it is
    return {"weight": Rows(rows, b, table.num_embeddings)}


def _refusal(layer: torch.nn.Module) -> str:
    if cast("torch.nn.Embedding", layer).scale_grad_by_freq:
        return "scale_grad_by_freq divides by how often the whole batch uses a row"
    return ""


EMBEDDING = Rule(_shares, parameters=("weight",), refusal=_refusal)
RULES[torch.nn.Embedding] = EMBEDDING
