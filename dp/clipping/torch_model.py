"""What the torch engines share: which parameters, which loss, which layers mix samples: floor 3.

torch is loaded by the functions, not by the file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

from ..errors import UnsupportedLayer

if TYPE_CHECKING:
    import torch

__all__ = [
    "LossFn",
    "kept_state",
    "not_in_place",
    "own_randomness",
    "per_sample_losses",
    "trainable",
    "verify_separable",
]

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
_COMPARED = 32
"""Samples that are looked at to tell whether samples mix."""


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
        if remedy is not None and kind in _MIXING and _is_constant(layer):
            continue
        if kind.startswith("InstanceNorm") and getattr(layer, "track_running_stats", False):
            remedy = f"{kind}(track_running_stats=False)"
        if getattr(layer, "max_norm", None) is not None:
            # It scales the rows that a batch uses, in place: the weights then tell which those were.
            remedy = f"{kind}(max_norm=None)"
        if getattr(layer, "sparse", False) is True:
            remedy = f"{kind}(sparse=False)"
        if remedy is not None:
            raise UnsupportedLayer(
                f"Expected layers whose gradient can be taken per sample, got {kind} at "
                f"{name or 'the top'!r}. Replace it by {remedy}."
            )


def _is_constant(layer: torch.nn.Module) -> bool:
    """Whether a batch norm is frozen, in evaluation mode, with statistics of its own: a fixed affine map."""
    frozen = not any(p.requires_grad for p in layer.parameters())
    return frozen and not layer.training and getattr(layer, "running_mean", None) is not None


def per_sample_losses(loss_fn: LossFn | None, outputs: Any, y: torch.Tensor) -> torch.Tensor:
    """One loss a sample; cross-entropy where no function is given.

    Raises:
        ValueError: If the function returns another shape, such as a mean, or a target is none of the
            classes that the outputs score; which one, it does not say.
    """
    import torch

    if loss_fn is None:
        y = y if y.is_floating_point() else y.long()
        if not y.is_floating_point() and bool(((y < 0) | (y >= outputs.shape[1])).any()):
            # torch's own error tells the target, which is a row's.
            raise ValueError(
                f"Expected targets from 0 to {outputs.shape[1] - 1}, as the model scores {outputs.shape[1]} "
                "classes, got one outside. Number the classes from 0, or give the model more scores."
            )
        return torch.nn.functional.cross_entropy(outputs, y, reduction="none")
    losses = loss_fn(outputs, y)
    if losses.shape != (len(y),):
        raise ValueError(
            f"Expected loss_fn to return one loss a sample, shape ({len(y)},), got {tuple(losses.shape)}. "
            "Use reduction='none'."
        )
    return losses


def as_batch(values: Any, like: torch.nn.Parameter) -> torch.Tensor:
    """Values as a tensor where the model is; real numbers in the model's precision."""
    import torch

    batch = torch.as_tensor(values)
    dtype = like.dtype if batch.is_floating_point() and like.is_floating_point() else None
    return batch.to(like.device, dtype)


@contextmanager
def own_randomness(device: torch.device, seed: int | None) -> Iterator[None]:
    """What the model draws (dropout) follows `seed`, or the operating system; then torch goes on as before.

    A script's `manual_seed` must not decide it: masks go by place in the batch, so that under a seed that
    others know one sample more would change the masks of all that come after it.
    """
    import torch

    index = 0 if device.index is None else device.index
    elsewhere = device.type != "cpu"
    kind = device.type if elsewhere else "cuda"
    with torch.random.fork_rng([index] if elsewhere else [], device_type=kind):
        chosen = int.from_bytes(os.urandom(8), "little") if seed is None else seed
        torch.default_generator.manual_seed(chosen)
        if elsewhere:
            torch.get_device_module(device).manual_seed(chosen)
        yield


@contextmanager
def kept_state(model: torch.nn.Module) -> Iterator[None]:
    """Raise UnsupportedLayer if a forward pass changes the model's tensors: un-noised, they tell of data.

    Buffers are put back; weights are not copied for it, since the one layer that torch has for changing
    them (`Embedding(max_norm=...)`) is refused before.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    versions = {name: tensor._version for name, tensor in tensors.items()}
    copies = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    try:
        yield
    finally:
        now = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        changed = [n for n, t in tensors.items() if now.get(n) is not t or t._version != versions[n]]
        for name in changed:
            if name in copies:
                owner, _, last = name.rpartition(".")
                model.get_submodule(owner)._buffers[last] = copies[name]
    if changed:
        raise UnsupportedLayer(
            f"Expected a model whose forward pass leaves it as it is, got one that changes {changed[0]!r}: "
            "what it keeps of the samples would leave without noise. Keep state out of the forward pass."
        )


def verify_apart(model: torch.nn.Module, loss_fn: LossFn | None, x: torch.Tensor, y: torch.Tensor) -> bool:
    """Raise UnsupportedLayer if one sample's loss depends on the others; False where that cannot be seen.

    Some samples are exchanged for copies of another, and then left out; the losses of those that stay must
    stay. That finds a mean over the batch in whichever layer or loss, which no list of names can.

    Args:
        model: The model.
        loss_fn: As in `per_sample_losses`.
        x: Inputs of a batch.
        y: Targets of the batch.
    """
    import torch

    x, y = x[:_COMPARED], y[:_COMPARED]
    half = len(y) // 2
    if half == 0:
        return False

    def losses(chosen: list[int], seed: int = 1) -> torch.Tensor:
        with torch.no_grad(), own_randomness(x.device, seed):
            return per_sample_losses(loss_fn, model(x[chosen]), y[chosen])

    everybody = list(range(len(y)))
    # The same shape and seed give the same dropout masks; other randomness than torch's hides the answer.
    exchanged = [*everybody[:half], *[0] * (len(y) - half)]
    whole = losses(everybody)
    if bool(_differ(whole, losses(everybody))):
        return False
    together = _differ(whole[:half], losses(exchanged)[:half])
    # Another shape gives other masks.
    with _without_dropout(model):
        whole = losses(everybody)
        if not bool(_differ(whole, losses(everybody, seed=2))):
            together |= _differ(whole[:half], losses(everybody[:half]))
    if bool(together):
        raise UnsupportedLayer(
            "Expected a loss a sample that depends on that sample alone, got one that changes with the other "
            "samples of the batch. Take statistics of the batch (a mean, a norm, attention, its size) out of "
            "the model and the loss, or use LoopClipper, which shows the model one sample at a time."
        )
    return True


def _differ(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Whether any two losses are further apart than rounding explains; NaN equals NaN."""
    import torch

    tolerance = torch.finfo(a.dtype).eps ** 0.5
    return ~torch.isclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True).all()


@contextmanager
def _without_dropout(model: torch.nn.Module) -> Iterator[None]:
    import torch

    layers = [m for m in model.modules() if isinstance(m, torch.nn.modules.dropout._DropoutNd) and m.training]
    for layer in layers:
        layer.training = False
    try:
        yield
    finally:
        for layer in layers:
            layer.training = True


@contextmanager
def not_in_place(model: torch.nn.Module) -> Iterator[None]:
    """Layers that change their input in place make a new tensor while this lasts."""
    layers: list[Any] = [layer for layer in model.modules() if getattr(layer, "inplace", False) is True]
    for layer in layers:
        layer.inplace = False
    try:
        yield
    finally:
        for layer in layers:
            layer.inplace = True
