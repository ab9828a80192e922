"""Clipping by a loop over samples: slow, obviously right, the oracle of every engine: floor 3."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from .base import MARGIN, ClippedSum, verify_clip_norm
from .torch_model import (
    LossFn,
    as_batch,
    kept_state,
    own_randomness,
    per_sample_losses,
    trainable,
    verify_separable,
)

if TYPE_CHECKING:
    import torch

__all__ = ["LoopClipper"]


class LoopClipper:
    """Clips one sample after another; works for every model whose samples do not mix.

    Guarantees:
        - As `OpacusClipper`, whatever the layers.

    Args:
        model: The model; it is used as it is and left as it was.
        loss_fn: Maps outputs and targets of a batch to one loss a sample; cross-entropy by default.

    Raises:
        UnsupportedLayer: If a layer mixes samples.
        ValueError: If nothing in the model is trainable.
    """

    def __init__(self, model: torch.nn.Module, loss_fn: LossFn | None = None) -> None:
        verify_separable(model)
        trainable(model)
        self.model = model
        self.loss_fn = loss_fn

    def clipped_sum(self, x: Any, y: Any, clip_norm: float, *, seed: int | None = None) -> ClippedSum:
        """The sum over a batch of gradients clipped to `clip_norm` each; see `OpacusClipper.clipped_sum`."""
        import torch

        verify_clip_norm(clip_norm)
        verify_separable(self.model)  # again: a frozen layer may have left evaluation mode
        params = trainable(self.model)
        total = {name: np.zeros(tuple(p.shape)) for name, p in params.items()}
        like = next(iter(params.values()))
        x, y = as_batch(x, like), as_batch(y, like)
        nonfinite = 0
        with kept_state(self.model), own_randomness(like.device, seed):
            for i in range(len(y)):
                loss = per_sample_losses(self.loss_fn, self.model(x[i : i + 1]), y[i : i + 1]).sum()
                grads = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
                found = {
                    name: g.double().numpy(force=True)
                    for name, g in zip(params, grads, strict=True)
                    if g is not None
                }
                norm = math.sqrt(math.fsum(float(np.sum(g**2)) for g in found.values()))
                if not math.isfinite(norm):
                    nonfinite += 1
                    continue
                bound = clip_norm * MARGIN
                for name, g in found.items():
                    total[name] += g * (bound / max(norm, bound))
        return ClippedSum(total, clip_norm, len(y), nonfinite)
