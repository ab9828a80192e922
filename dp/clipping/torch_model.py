"""What the torch engines share: which parameters, which loss, which layers mix samples: floor 3.

torch is loaded by the functions, not by the file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from ..errors import UnsupportedLayer

if TYPE_CHECKING:
    import torch

__all__ = ["LossFn", "per_sample_losses", "trainable", "verify_separable"]

LossFn: TypeAlias = "Callable[[torch.Tensor, torch.Tensor], torch.Tensor]"

# Layers through which one sample changes another's output, or the model's state, and what to use instead.
_MIXING = {
    "BatchNorm1d": "GroupNorm or LayerNorm",
    "BatchNorm2d": "GroupNorm",
    "BatchNorm3d": "GroupNorm",
    "SyncBatchNorm": "GroupNorm",
    "LazyBatchNorm1d": "GroupNorm or LayerNorm",
    "LazyBatchNorm2d": "GroupNorm",
    "LazyBatchNorm3d": "GroupNorm",
}


def trainable(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters that require gradients, in the model's order; shared ones once.

    Raises:
        ValueError: If there are none.
    """
    found = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not found:
        raise ValueError("Expected a model with trainable parameters, got none.")
    return found


def verify_separable(model: torch.nn.Module, others: dict[str, str] | None = None) -> None:
    """Raise UnsupportedLayer for the first layer that mixes samples or that `others` (class: remedy) has."""
    refused = _MIXING | (others or {})
    for name, layer in model.named_modules():
        kind = type(layer).__name__
        remedy = refused.get(kind)
        if kind.startswith("InstanceNorm") and getattr(layer, "track_running_stats", False):
            remedy = f"{kind}(track_running_stats=False)"
        if remedy is not None:
            raise UnsupportedLayer(
                f"Expected layers whose gradient can be taken per sample, got {kind} at "
                f"{name or 'the top'!r}. Replace it by {remedy}."
            )


def per_sample_losses(loss_fn: LossFn | None, outputs: Any, y: torch.Tensor) -> torch.Tensor:
    """One loss a sample; cross-entropy where no function is given.

    Raises:
        ValueError: If the function returns another shape, such as a mean.
    """
    import torch

    if loss_fn is None:
        return torch.nn.functional.cross_entropy(outputs, y, reduction="none")
    losses = loss_fn(outputs, y)
    if losses.shape != (len(y),):
        raise ValueError(
            f"Expected loss_fn to return one loss a sample, shape ({len(y)},), got {tuple(losses.shape)}. "
            "Use reduction='none'."
        )
    return losses


def as_batch(values: Any, like: torch.nn.Parameter) -> torch.Tensor:
    """Values as a tensor where the model is."""
    import torch

    return torch.as_tensor(values).to(like.device)
