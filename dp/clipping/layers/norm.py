"""Normalizations: their scale and shift are as small as a sample's gradient of them: floor 3."""

from __future__ import annotations

from typing import cast

import torch
from torch.nn import functional

from .rule import RULES, Dense, Rule, Share

__all__ = ["CHANNEL_NORM", "LAYER_NORM"]


def _layer_norm(layer: torch.nn.Module, a: torch.Tensor, b: torch.Tensor) -> dict[str, Share]:
    if isinstance(layer, torch.nn.LayerNorm):
        a = functional.layer_norm(a, layer.normalized_shape, eps=layer.eps)
        shape = layer.normalized_shape
    else:
        norm = cast("torch.nn.RMSNorm", layer)
        a, shape = functional.rms_norm(a, norm.normalized_shape, eps=norm.eps), norm.normalized_shape
    scaled = (a * b).reshape(len(a), -1, *shape).sum(1)
    if isinstance(layer, torch.nn.LayerNorm) and layer.bias is not None:
        return {"weight": Dense(scaled), "bias": Dense(b.reshape(len(b), -1, *shape).sum(1))}
    return {"weight": Dense(scaled)}


def _channel_norm(layer: torch.nn.Module, a: torch.Tensor, b: torch.Tensor) -> dict[str, Share]:
    if isinstance(layer, torch.nn.GroupNorm):
        a = functional.group_norm(a, layer.num_groups, eps=layer.eps)
    else:
        a = functional.instance_norm(a, eps=cast("torch.nn.InstanceNorm2d", layer).eps)
    sums = (values.reshape(*values.shape[:2], -1).sum(2) for values in (a * b, b))
    return dict(zip(("weight", "bias"), map(Dense, sums), strict=True))


LAYER_NORM = Rule(_layer_norm)
CHANNEL_NORM = Rule(_channel_norm)
RULES.update({torch.nn.LayerNorm: LAYER_NORM, torch.nn.RMSNorm: LAYER_NORM, torch.nn.GroupNorm: CHANNEL_NORM})
# A batch's statistics are none of theirs: `verify_separable` refuses those that track any.
_INSTANCE = (torch.nn.InstanceNorm1d, torch.nn.InstanceNorm2d, torch.nn.InstanceNorm3d)
RULES.update(dict.fromkeys(_INSTANCE, CHANNEL_NORM))
