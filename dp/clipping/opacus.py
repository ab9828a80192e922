"""Clipping through Opacus's per-sample gradients: floor 3.

Opacus hooks the model's layers for the length of one call and stores every sample's gradient; how many
samples are held at once is bounded, whatever the batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..errors import UnsupportedLayer
from .base import MARGIN, ClippedSum, verify_clip_norm
from .torch_model import (
    LossFn,
    as_batch,
    kept_state,
    not_in_place,
    own_randomness,
    per_sample_losses,
    trainable,
    verify_apart,
    verify_separable,
)

if TYPE_CHECKING:
    import torch

__all__ = ["OpacusClipper"]

_REPLACEMENTS = {
    "LSTM": "opacus.layers.DPLSTM",
    "GRU": "opacus.layers.DPGRU",
    "RNN": "opacus.layers.DPRNN",
    "MultiheadAttention": "opacus.layers.DPMultiheadAttention",
    "TransformerEncoderLayer": "a layer built on opacus.layers.DPMultiheadAttention",
}
_HELD_VALUES = 2**25
"""Per-sample gradients held at once, in values: 128 MB of float32."""


class OpacusClipper:
    """Clips per-sample gradients of a torch model, jointly over all trainable parameters.

    Guarantees:
        - Each sample's share of the sum has an L2 norm of at most C over all parameters together; norms,
          factors and the sum are float64.
        - A gradient that holds NaN or infinities counts as zero, and in `ClippedSum.nonfinite`.
        - An empty batch gives zeros. Parameters that a batch does not reach get zeros.
        - The model is used in the mode that it is in, and left as it was: no hooks, gradients, attributes.
          One that changes its own buffers is refused.
        - What it draws (dropout) is not decided by torch's global seed.
        - The first batches are checked: a sample's loss must not depend on the other samples, and per-sample
          gradients must add up to the batch's gradient.

    What is not covered: a matrix product may round one sample's gradient differently when other samples share
    the batch, in the last bits of the model's precision (1e-7 of C for float32, a sample). Samples that mix
    for some inputs only can pass the check, which sees the first batches.

    Args:
        model: The model.
        loss_fn: Maps outputs and targets of a batch to one loss a sample; cross-entropy by default.
        physical_batch: Most samples whose gradients are held at once; by default as many as fit 128 MB.

    Raises:
        UnsupportedLayer: If a layer mixes samples, or Opacus cannot take its gradient per sample.
        ValueError: If nothing in the model is trainable, or `physical_batch` is less than 1.
    """

    def __init__(
        self, model: torch.nn.Module, loss_fn: LossFn | None = None, *, physical_batch: int | None = None
    ) -> None:
        verify_separable(model, _REPLACEMENTS)
        size = sum(p.numel() for p in trainable(model).values())
        if physical_batch is not None and physical_batch < 1:
            raise ValueError(f"Expected physical_batch >= 1, got physical_batch={physical_batch}.")
        self.model = model
        self.loss_fn = loss_fn
        self.physical_batch = physical_batch or min(512, max(1, _HELD_VALUES // size))
        self._apart = False
        self._unchecked = set(trainable(model))
        with _hooked(model):
            pass  # Opacus refuses the layers that it does not know, here rather than in a round.

    def clipped_sum(self, x: Any, y: Any, clip_norm: float, *, seed: int | None = None) -> ClippedSum:
        """The sum over a batch of gradients clipped to `clip_norm` each.

        Computes ``sum_i g_i * min(1, C / ||g_i||)``, with the norm over all parameters.

        Args:
            x: Inputs, samples along the first axis; an array or a tensor.
            y: Targets, as many.
            clip_norm: Bound C, finite and > 0.
            seed: Seed of what the model draws itself, below 2**64; the operating system's by default.

        Returns:
            The sum, which is private until it is noised.

        Raises:
            PrivacyParameterError: If `clip_norm` is none.
            UnsupportedLayer: If samples mix, the model keeps something of them, or it uses a parameter
                outside of the layer that owns it.
            ValueError: If x and y differ in length, or `loss_fn` returns no loss a sample.

        References:
            Abadi et al. (2016), https://arxiv.org/abs/1607.00133, Algorithm 1.
        """
        import torch

        verify_clip_norm(clip_norm)
        if len(x) != len(y):
            raise ValueError(f"Expected as many inputs as targets, got {len(x)} and {len(y)}.")
        verify_separable(self.model, _REPLACEMENTS)  # again: a frozen layer may have left evaluation mode
        params = trainable(self.model)
        device = next(iter(params.values())).device
        total = {n: torch.zeros(p.shape, dtype=torch.float64, device=device) for n, p in params.items()}
        nonfinite = 0
        if len(y) > 0:
            with (
                kept_state(self.model),
                own_randomness(device, seed),
                _hooked(self.model) as hooked,
                _usable(self.model),
                _own_grads(params),
            ):
                for low in range(0, len(y), self.physical_batch):
                    chunk = slice(low, low + self.physical_batch)
                    samples = self._per_sample(hooked, params, x[chunk], y[chunk])
                    nonfinite += _add_clipped(total, samples, clip_norm)
        values = {name: value.numpy(force=True) for name, value in total.items()}
        return ClippedSum(values, clip_norm, len(y), nonfinite)

    def _per_sample(
        self, hooked: torch.nn.Module, params: dict[str, torch.nn.Parameter], x: Any, y: Any
    ) -> dict[str, torch.Tensor]:
        """Gradients of one chunk's samples, shape ``(samples, *parameter)``, without unused parameters."""
        import torch

        like = next(iter(params.values()))
        x, y = as_batch(x, like), as_batch(y, like)
        if not self._apart:
            self._apart = verify_apart(self.model, self.loss_fn, x, y)
        with warnings.catch_warnings(), torch.enable_grad():
            # torch says so of every first layer, whose inputs are data; Opacus asks for no input gradients.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            per_sample_losses(self.loss_fn, hooked(x), y).sum().backward()  # type: ignore[no-untyped-call]
        samples = {}
        for name, p in params.items():
            found = p.grad_sample  # type: ignore[attr-defined]  # put there by Opacus
            if found is not None and (not isinstance(found, torch.Tensor) or len(found) != len(y)):
                raise UnsupportedLayer(
                    f"Expected layer {name.rpartition('.')[0]!r} to take one entry a sample along the first "
                    "axis, got another number. Keep samples along the first axis, or use LoopClipper."
                )
            if found is not None:
                samples[name] = found
        for layer in self.model.modules():
            if isinstance(layer, torch.nn.Embedding) and layer.padding_idx is not None:
                # torch keeps this row as it is; Opacus does not know of it.
                for name in [name for name in samples if params[name] is layer.weight]:
                    samples[name][:, layer.padding_idx] = 0
        if self._unchecked:
            self._unchecked -= _verify_complete({n: params[n] for n in self._unchecked}, samples)
        for p in params.values():
            p.grad = p.grad_sample = None  # type: ignore[attr-defined]
        return samples


def _verify_complete(params: dict[str, torch.nn.Parameter], samples: dict[str, torch.Tensor]) -> set[str]:
    """Raise unless per-sample gradients add up to the batch's; the parameters for which that was seen.

    A parameter that the model uses outside of the layer that owns it escapes Opacus's hooks, and with them
    its share of the gradient. Where the gradient is zero or not finite, nothing can be seen.
    """
    seen = set()
    # Where layers cancel each other's effect (a norm after a scale), a gradient is rounding alone.
    rounding = 1e-5 * max((float(g.double().abs().sum(0).norm()) for g in samples.values()), default=0.0)
    for name, p in params.items():
        if p.grad is None or not bool(p.grad.isfinite().all()) or not bool(p.grad.any()):
            continue
        found = samples.get(name, p.grad.new_zeros((0, *p.shape))).double()
        scale = float(found.abs().sum(0).norm()) + float(p.grad.norm())
        if float((found.sum(0) - p.grad.double()).norm()) > 1e-3 * scale + rounding:
            raise UnsupportedLayer(
                f"Expected parameter {name!r} to be used through its own layer only; Opacus sees a part of "
                "its gradient. Call the layer instead of using its parameter, or use LoopClipper."
            )
        seen.add(name)
    return seen


def _add_clipped(total: dict[str, torch.Tensor], samples: dict[str, torch.Tensor], clip_norm: float) -> int:
    """Add the clipped gradients of a chunk; returns how many were not finite."""
    import torch

    if not samples:
        return 0
    by_parameter = [
        torch.linalg.vector_norm(g.flatten(1), dim=1, dtype=torch.float64) for g in samples.values()
    ]
    norms = torch.linalg.vector_norm(torch.stack(by_parameter), dim=0)
    finite = norms.isfinite()
    bound = clip_norm * MARGIN
    factors = torch.where(finite, bound / norms.clamp(min=bound), 0.0)
    for name, g in samples.items():
        # Zero times NaN is NaN: what is not finite is taken out, not scaled.
        kept = g.double().flatten(1) if bool(finite.all()) else g.double().flatten(1)[finite]
        total[name] += (factors[finite] @ kept).reshape(g.shape[1:])
    return int((~finite).sum())


@contextmanager
def _hooked(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """The model under Opacus's hooks, which are gone afterwards."""
    with warnings.catch_warnings():
        # Opacus and what it imports warn about themselves.
        warnings.simplefilter("ignore")
        from opacus.grad_sample import GradSampleModule
    try:
        hooked = GradSampleModule(model, loss_reduction="sum")
    except NotImplementedError as error:  # what Opacus raises at a layer that it does not know
        raise UnsupportedLayer(
            f"Expected layers that Opacus takes per-sample gradients of, got others: {error}. "
            "Replace the layer, or use LoopClipper."
        ) from error
    try:
        yield hooked
    finally:
        hooked.to_standard_module()
        for layer in model.modules():
            # Opacus leaves these behind, full ones where a call failed half-way.
            for name in ("activations", "max_batch_len"):
                layer.__dict__.pop(name, None)


@contextmanager
def _usable(model: torch.nn.Module) -> Iterator[None]:
    """The model as Opacus can use it; then each layer as it was.

    Opacus looks at layers in training mode alone, and torch lets nothing change a hooked layer's output in
    place. Layers without trainable parameters, such as dropout, stay in the mode that the caller chose.
    """
    owners = {m for m in model.modules() if any(p.requires_grad for p in m.parameters(recurse=False))}
    modes = {layer: layer.training for layer in owners}
    for layer in owners:
        layer.training = True
    try:
        with not_in_place(model):
            yield
    finally:
        for layer, mode in modes.items():
            layer.training = mode


@contextmanager
def _own_grads(params: dict[str, torch.nn.Parameter]) -> Iterator[None]:
    """The gradients that the caller keeps in the parameters, put aside and back."""
    before = {name: p.grad for name, p in params.items()}
    for p in params.values():
        p.grad = None
    try:
        yield
    finally:
        for name, p in params.items():
            p.grad = before[name]
