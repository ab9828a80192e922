"""Clipping through `torch.func`: one sample's gradient, mapped over a few samples at a time: floor 3."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from .base import MARGIN, ClippedSum, verify_clip_norm
from .bookkeeping import NotCovered
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

__all__ = ["VmapClipper"]

_HELD_VALUES = 2**23
"""Per-sample gradients held at once, in values: 32 MB of float32."""


class VmapClipper:
    """Clips per-sample gradients of whatever torch can map over samples; shows the model one at a time.

    Guarantees:
        - As `OpacusClipper`. Samples cannot mix: each is a batch of its own.
        - Parameters may be used in any way, by any layer.

    Args:
        model: The model.
        loss_fn: Maps outputs and targets of a batch to one loss a sample; cross-entropy by default.
        physical_batch: Most samples whose gradients are held at once; by default as many as fit 32 MB.

    Raises:
        UnsupportedLayer: If a layer mixes samples.
        ValueError: If nothing in the model is trainable, or `physical_batch` is less than 1.
    """

    def __init__(
        self, model: torch.nn.Module, loss_fn: LossFn | None = None, *, physical_batch: int | None = None
    ) -> None:
        verify_separable(model)
        size = sum(p.numel() for p in trainable(model).values())
        if physical_batch is not None and physical_batch < 1:
            raise ValueError(f"Expected physical_batch >= 1, got physical_batch={physical_batch}.")
        self.model = model
        self.loss_fn = loss_fn
        self.physical_batch = physical_batch or min(64, max(1, _HELD_VALUES // size))

    def clipped_sum(self, x: Any, y: Any, clip_norm: float, *, seed: int | None = None) -> ClippedSum:
        """The sum over a batch of gradients clipped to `clip_norm` each; see `OpacusClipper.clipped_sum`.

        Raises:
            UnsupportedLayer: If torch cannot map a layer over samples; `LoopClipper` can.
        """
        import torch

        verify_clip_norm(clip_norm)
        if len(x) != len(y):
            raise ValueError(f"Expected as many inputs as targets, got {len(x)} and {len(y)}.")
        verify_separable(self.model)  # again: a frozen layer may have left evaluation mode
        params = trainable(self.model)
        like = next(iter(params.values()))
        total = {n: torch.zeros(p.shape, dtype=torch.float64, device=like.device) for n, p in params.items()}
        nonfinite = 0
        with kept_state(self.model), own_randomness(like.device, seed):
            for low in range(0, len(y), self.physical_batch):
                chunk = slice(low, low + self.physical_batch)
                samples = self._per_sample(params, as_batch(x[chunk], like), as_batch(y[chunk], like))
                nonfinite += add_clipped(total, samples, clip_norm)
        values = {name: value.numpy(force=True) for name, value in total.items()}
        return ClippedSum(values, clip_norm, len(y), nonfinite)

    def _per_sample(
        self, params: dict[str, torch.nn.Parameter], x: torch.Tensor, y: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Gradients of one chunk's samples, shape ``(samples, *parameter)``."""
        import torch

        def loss(weights: dict[str, torch.Tensor], a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            outputs = torch.func.functional_call(self.model, weights, (a[None],))
            if self.loss_fn is None:
                b = b if b.is_floating_point() else b.long()
                return torch.nn.functional.cross_entropy(outputs, b[None])
            return per_sample_losses(self.loss_fn, outputs, b[None])[0]

        if self.loss_fn is None:
            # Looks at the targets, which cannot be looked at while they are mapped over.
            with torch.no_grad():
                outputs = self.model(x[:1])
                per_sample_losses(None, outputs.expand(len(y), *outputs.shape[1:]), y)
        weights = {name: p.detach() for name, p in params.items()}
        mapped = torch.func.vmap(torch.func.grad(loss), (None, 0, 0), randomness="different")
        try:
            with warnings.catch_warnings():
                # Where torch has no rule for an operation it loops over samples, and says so.
                warnings.filterwarnings("ignore", message="There is a performance drop")
                found: dict[str, torch.Tensor] = mapped(weights, x, y)
        except RuntimeError as error:  # what torch raises at operations that it cannot map
            raise NotCovered(
                "Expected a model that torch.func can map over samples, got one that it cannot. Take "
                "decisions that depend on data and unusual layers out of it, or use LoopClipper."
            ) from error
        return found


def add_clipped(total: dict[str, torch.Tensor], samples: dict[str, torch.Tensor], clip_norm: float) -> int:
    """Add the clipped gradients of a chunk; returns how many were not finite."""
    import torch

    parts = [torch.linalg.vector_norm(g.flatten(1), dim=1, dtype=torch.float64) for g in samples.values()]
    norms = torch.linalg.vector_norm(torch.stack(parts), dim=0)
    finite = norms.isfinite()
    bound = clip_norm * MARGIN
    factors = bound / norms[finite].clamp(min=bound)
    for name, g in samples.items():
        # Zero times NaN is NaN: what is not finite is taken out, not scaled.
        kept = g.flatten(1) if bool(finite.all()) else g.flatten(1)[finite]
        total[name] += (factors @ kept.double()).reshape(g.shape[1:])
    return int((~finite).sum())
