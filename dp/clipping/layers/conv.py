"""Convolutions in one to three dimensions: linear layers over the patches of their input: floor 3."""

from __future__ import annotations

from typing import Any, TypeAlias, cast

import torch
from torch.nn import functional
from torch.nn.grad import conv1d_weight, conv2d_weight, conv3d_weight

from .linear import product_norms
from .rule import RULES, Dense, Rule, Share, by_sample

__all__ = ["CONV"]

_Conv: TypeAlias = "torch.nn.Conv1d | torch.nn.Conv2d | torch.nn.Conv3d"
_WEIGHT: dict[int, Any] = {3: conv1d_weight, 4: conv2d_weight, 5: conv3d_weight}


class Patches:
    """Gradients of a convolution's weight.

    Args:
        layer: The convolution.
        a: Inputs, shape ``(n, channels, *space)``.
        b: Gradients of the outputs, shape ``(n, channels, *space)``.
    """

    def __init__(self, layer: _Conv, a: torch.Tensor, b: torch.Tensor) -> None:
        self.layer, self.b = layer, b
        self.padding: Any = layer.padding
        if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
            mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
            a = functional.pad(a, layer._reversed_padding_repeated_twice, mode=mode)
            self.padding = (0,) * (a.dim() - 2)
        self.a = a

    def squared_norms(self) -> torch.Tensor:
        """As `Share.squared_norms`."""
        norms = product_norms(*self._matrices(0, len(self.a)))
        return norms.reshape(len(self.a), -1).sum(1)

    def per_sample(self, low: int, high: int) -> torch.Tensor:
        """As `Share.per_sample`."""
        a, b = self._matrices(low, high)
        return (b.transpose(1, 2) @ a).reshape(high - low, *self.layer.weight.shape)

    def weighted(self, factors: torch.Tensor) -> torch.Tensor:
        """As `Share.weighted`, by torch's own kernel for the gradient of a weight."""
        layer, b = self.layer, by_sample(factors, self.b)
        where = layer.stride, self.padding, layer.dilation, layer.groups
        found: torch.Tensor = _WEIGHT[b.dim()](self.a, layer.weight.shape, b, *where)
        return found

    def _matrices(self, low: int, high: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Patches and gradients by sample and group, shapes ``(n * groups, positions, ...)``."""
        layer, dims = self.layer, self.a.dim() - 2
        patches = self.a[low:high]
        if any(self.padding):
            patches = functional.pad(patches, [p for width in reversed(self.padding) for p in (width, width)])
        geometry = zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)
        for axis, (size, stride, dilation) in enumerate(geometry, start=2):
            patches = patches.unfold(axis, dilation * (size - 1) + 1, stride)[..., ::dilation]
        n, groups = high - low, layer.groups
        # (n, channels, *space, *kernel): a row of a patch runs over channels of its group, then the kernel.
        patches = patches.reshape(n * groups, layer.in_channels // groups, *patches.shape[2:])
        order = [0, 1, *range(2 + dims, 2 + 2 * dims), *range(2, 2 + dims)]
        patches = patches.permute(order).flatten(1, 1 + dims).flatten(2).transpose(1, 2)
        b = self.b[low:high].reshape(n * groups, layer.out_channels // groups, -1).transpose(1, 2)
        return patches, b


def _shares(layer: torch.nn.Module, a: torch.Tensor, b: torch.Tensor) -> dict[str, Share]:
    return {"weight": Patches(cast("_Conv", layer), a, b), "bias": Dense(b.flatten(2).sum(2))}


CONV = Rule(_shares)
RULES.update({torch.nn.Conv1d: CONV, torch.nn.Conv2d: CONV, torch.nn.Conv3d: CONV})
