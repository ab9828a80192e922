"""Clipping without per-sample gradients: one forward and one backward pass, norms by layer: floor 3.

A layer's gradient is a function of its input and of its output's gradient. Both are kept; the norms of all
samples follow from them, then the weighted sum, so that the backward pass is not run again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

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

    from .layers import Rule, Share

__all__ = ["BookkeepingClipper", "NotCovered"]

_PHYSICAL_BATCH = 512
_HELD_VALUES = 2**22
"""Per-sample gradients of a parameter used more than once that are held at a time, in values."""


class NotCovered(UnsupportedLayer):
    """A model that this engine cannot clip, though another may."""


@dataclass(frozen=True)
class _Call:
    """One call of a layer: its input, as it was, and the place of its output in the graph."""

    name: str
    layer: torch.nn.Module
    rule: Rule
    a: torch.Tensor
    version: int
    edge: Any


class BookkeepingClipper:
    """Clips per-sample gradients of a torch model, jointly over all trainable parameters, at a step's cost.

    Guarantees:
        - Each sample's share of the sum has an L2 norm of at most C over all parameters together, but for the
          rounding of the model's matrix products; factors aim 8 machine epsilons (1e-6 for float32) below C
          for it. Norms add up in float64, and so do the sums of chunks.
        - Otherwise as `OpacusClipper`: NaN and infinities, empty batches, parameters that are not reached,
          the model's state and mode, randomness, and the checks of the first batches.

    Layers with a rule (`dp.clipping.layers.RULES`) may own trainable parameters; others may enter theirs.

    Args:
        model: The model.
        loss_fn: Maps outputs and targets of a batch to one loss a sample; cross-entropy by default.
        physical_batch: Most samples that go through the model at once.

    Raises:
        UnsupportedLayer: If a layer mixes samples, or trains parameters and has no rule.
        ValueError: If nothing in the model is trainable, or `physical_batch` is less than 1.

    References:
        "Differentially private optimization on large model at small cost" (2023),
        https://arxiv.org/abs/2210.00038.
    """

    def __init__(
        self, model: torch.nn.Module, loss_fn: LossFn | None = None, *, physical_batch: int = _PHYSICAL_BATCH
    ) -> None:
        if physical_batch < 1:
            raise ValueError(f"Expected physical_batch >= 1, got physical_batch={physical_batch}.")
        verify_separable(model)
        self._unchecked = set(trainable(model))
        _verify_rules(model)
        self.model = model
        self.loss_fn = loss_fn
        self.physical_batch = physical_batch
        self._apart = False
        self._first_axis = False

    def clipped_sum(self, x: Any, y: Any, clip_norm: float, *, seed: int | None = None) -> ClippedSum:
        """The sum over a batch of gradients clipped to `clip_norm` each; see `OpacusClipper.clipped_sum`."""
        import torch

        verify_clip_norm(clip_norm)
        if len(x) != len(y):
            raise ValueError(f"Expected as many inputs as targets, got {len(x)} and {len(y)}.")
        verify_separable(self.model)  # again: a frozen layer may have left evaluation mode
        params = trainable(self.model)
        like = next(iter(params.values()))
        total: dict[str, torch.Tensor] = {}
        nonfinite = 0
        if len(y) > 0:
            with kept_state(self.model), own_randomness(like.device, seed), torch.enable_grad():
                for low in range(0, len(y), self.physical_batch):
                    chunk = slice(low, low + self.physical_batch)
                    nonfinite += self._add(
                        total, params, as_batch(x[chunk], like), as_batch(y[chunk], like), clip_norm
                    )
        values = {
            name: total[name].numpy(force=True) if name in total else np.zeros(tuple(p.shape))
            for name, p in params.items()
        }
        return ClippedSum(values, clip_norm, len(y), nonfinite)

    def _add(
        self,
        total: dict[str, torch.Tensor],
        params: dict[str, torch.nn.Parameter],
        x: torch.Tensor,
        y: torch.Tensor,
        clip_norm: float,
    ) -> int:
        """Add the clipped gradients of a chunk; returns how many were not finite."""
        import torch

        if not self._apart:
            self._apart = verify_apart(self.model, self.loss_fn, x, y)
        if not self._first_axis:
            self._shares(params, x[:1], y[:1], ())  # one sample alone shows a first axis of positions
            self._first_axis = True
        shares = self._shares(params, x, y, sorted(self._unchecked))
        norms = torch.zeros(len(y), dtype=torch.float64, device=x.device)
        for name, found in shares.items():
            norms += _squared_norms(found, params[name])
        norms = norms.sqrt()
        finite = norms.isfinite()
        if not bool(finite.all()):
            # Zero times NaN is NaN: the others go through the model again by themselves.
            rest = self._add(total, params, x[finite], y[finite], clip_norm) if bool(finite.any()) else 0
            return int((~finite).sum()) + rest
        bound = clip_norm * min(MARGIN, 1 - 8 * torch.finfo(next(iter(params.values())).dtype).eps)
        factors = bound / norms.clamp(min=bound)
        for name, found in shares.items():
            for share in found:
                part = share.weighted(factors)
                if name in total:
                    total[name] += part
                else:
                    total[name] = part.double()
        return 0

    def _shares(
        self, params: dict[str, torch.nn.Parameter], x: torch.Tensor, y: torch.Tensor, check: Sequence[str]
    ) -> dict[str, list[Share]]:
        """What a chunk's samples add to each parameter's gradient, one share for each use of it.

        That they add up to the whole is verified for the parameters named in `check`.
        """
        import torch

        with _recorded(self.model) as calls, not_in_place(self.model):
            losses = per_sample_losses(self.loss_fn, self.model(x), y)
        if not losses.requires_grad:
            return {}
        loss, edges = losses.sum(), [call.edge for call in calls]
        grads: Sequence[torch.Tensor | None] = (
            torch.autograd.grad(loss, edges, allow_unused=True, retain_graph=bool(check)) if edges else ()
        )
        names = {p: name for name, p in params.items()}
        shares: dict[str, list[Share]] = {}
        for call, b in zip(calls, grads, strict=True):
            if b is None:
                continue
            _verify_call(call, b, len(y))
            for own, share in call.rule.shares(call.layer, call.a, b).items():
                name = names.get(getattr(call.layer, own))
                if name is not None:
                    shares.setdefault(name, []).append(share)
        if check:
            whole = torch.autograd.grad(loss, [params[name] for name in check], allow_unused=True)
            expected = {n: g for n, g in zip(check, whole, strict=True) if g is not None}
            self._unchecked -= _verify_complete(expected, shares, len(y))
        return shares


def _verify_rules(model: torch.nn.Module) -> dict[str, Rule]:
    """The rule of each layer that trains parameters; raises NotCovered for the first that has none."""
    from .layers import rule_of

    rules: dict[str, Rule] = {}
    for name, layer in model.named_modules():
        own = [n for n, p in layer.named_parameters(recurse=False) if p.requires_grad]
        if not own:
            continue
        rule, reason = rule_of(layer), ""
        if rule is not None and set(own) <= set(rule.parameters) and not (reason := rule.refusal(layer)):
            rules[name] = rule
        else:
            reason = "there is none for its class" if rule is None else reason or f"it trains {own}"
            raise NotCovered(
                f"Expected layers with a rule for book-keeping, got {type(layer).__name__} at "
                f"{name or 'the top'!r}: {reason}. Use make_clipper(model), which takes another engine, or "
                "enter a rule in dp.clipping.layers.RULES."
            )
    return rules


@contextmanager
def _recorded(model: torch.nn.Module) -> Iterator[list[_Call]]:
    """The calls of trainable layers, in order, while the block runs."""
    import torch

    calls: list[_Call] = []

    def recorder(name: str, rule: Rule) -> Any:
        def record(layer: torch.nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            given = [*args, *kwargs.values()]
            if not isinstance(out, torch.Tensor) or len(given) != 1 or not isinstance(given[0], torch.Tensor):
                raise NotCovered(
                    f"Expected layer {name!r} to map one tensor to another, got {len(given)} inputs."
                    " Use make_clipper(model), which takes another engine."
                )
            if out.requires_grad:
                # The place in the graph, not the output: what follows may change that in place.
                edge = torch.autograd.graph.get_gradient_edge(out)
                calls.append(_Call(name, layer, rule, given[0].detach(), given[0]._version, edge))

        return record

    handles = [
        model.get_submodule(name).register_forward_hook(recorder(name, rule), prepend=True, with_kwargs=True)
        for name, rule in _verify_rules(model).items()
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _verify_call(call: _Call, b: torch.Tensor, samples: int) -> None:
    """Raise NotCovered if samples do not lie along the first axis, or the input has changed since."""
    if b.dim() < 2 or len(call.a) != samples or len(b) != samples:
        raise NotCovered(
            f"Expected layer {call.name!r} to take one entry a sample along the first axis, got another "
            "number. Keep samples along the first axis, or use make_clipper(model)."
        )
    if call.a._version != call.version:
        raise NotCovered(
            f"Expected the input of layer {call.name!r} to stay as it was, got one that is changed in place "
            "later. Do not change it in place, or use make_clipper(model)."
        )


def _squared_norms(found: list[Share], parameter: torch.nn.Parameter) -> torch.Tensor:
    """Squared norms of one parameter's gradients, whose shares are added first: their norms do not add."""
    import torch

    first, *others = found
    if not others:
        return first.squared_norms()
    n = len(first.squared_norms())
    step = max(1, _HELD_VALUES // parameter.numel())
    parts = []
    for low in range(0, n, step):
        high = min(n, low + step)
        grads = first.per_sample(low, high)
        for share in others:
            grads = grads + share.per_sample(low, high)
        parts.append(torch.linalg.vector_norm(grads.flatten(1), dim=1, dtype=torch.float64).square())
    return torch.cat(parts)


def _verify_complete(grads: dict[str, torch.Tensor], shares: dict[str, list[Share]], n: int) -> set[str]:
    """Raise unless the shares add up to the batch's gradients; the parameters for which that was seen.

    A parameter that the model uses outside of the layer that owns it escapes the hooks. Where the gradient
    is zero or not finite, nothing can be seen.
    """
    import torch

    seen: set[str] = set()
    sizes = {
        name: sum(float(share.squared_norms().sqrt().sum()) for share in found)
        for name, found in shares.items()
    }
    # Where layers cancel each other's effect (a norm after a scale), a gradient is rounding alone.
    rounding = 1e-5 * max(sizes.values(), default=0.0)
    if not all(math.isfinite(size) for size in sizes.values()):
        return seen
    for name, grad in grads.items():
        if not bool(grad.isfinite().all()) or not bool(grad.any()):
            continue
        ones = torch.ones(n, dtype=torch.float64, device=grad.device)
        found = torch.zeros(grad.shape, dtype=torch.float64, device=grad.device)
        for share in shares.get(name, []):
            found += share.weighted(ones)
        tolerance = 1e-4 * sizes.get(name, 0.0) + 1e-3 * float(grad.norm())
        if not float((found - grad.double()).norm()) <= tolerance + rounding:
            raise NotCovered(
                f"Expected parameter {name!r} to be used through its own layer only; book-keeping sees a "
                "part of its gradient. Call the layer instead of using its parameter, or use "
                "make_clipper(model)."
            )
        seen.add(name)
    return seen
