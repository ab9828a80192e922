"""Which engine clips a model: the fastest that can: floor 3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import UnsupportedLayer
from .base import ClippedSum, Clipper
from .bookkeeping import BookkeepingClipper, NotCovered
from .loop import LoopClipper
from .opacus import OpacusClipper
from .torch_model import LossFn, trainable, verify_separable
from .vmap import VmapClipper

if TYPE_CHECKING:
    import torch

__all__ = ["ENGINES", "AutoClipper", "make_clipper"]

ENGINES: dict[str, Any] = {
    "bookkeeping": BookkeepingClipper,
    "vmap": VmapClipper,
    "opacus": OpacusClipper,
    "loop": LoopClipper,
}
"""Engines by name, in the order in which `auto` tries them."""


def make_clipper(model: torch.nn.Module, loss_fn: LossFn | None = None, engine: str = "auto") -> Clipper:
    """A clipper for a model.

    Args:
        model: The model.
        loss_fn: Maps outputs and targets of a batch to one loss a sample; cross-entropy by default.
        engine: One of `ENGINES`, or ``auto`` for the first of them that can clip the model.

    Raises:
        UnsupportedLayer: If a layer mixes samples, or the named engine cannot take the model.
        ValueError: If there is no such engine, or nothing in the model is trainable.
    """
    if engine == "auto":
        return AutoClipper(model, loss_fn)
    if engine not in ENGINES:
        raise ValueError(f"Expected an engine of {['auto', *ENGINES]}, got engine={engine!r}.")
    made: Clipper = ENGINES[engine](model, loss_fn)
    return made


class AutoClipper:
    """Clips by the first engine that can; what none may do, such as samples that mix, is refused.

    Some limits show at the first batch alone; the next engine then takes that batch.

    Args:
        model: The model.
        loss_fn: Maps outputs and targets of a batch to one loss a sample; cross-entropy by default.

    Attributes:
        engine: Name of the engine in use.

    Raises:
        UnsupportedLayer: If a layer mixes samples.
        ValueError: If nothing in the model is trainable.
    """

    def __init__(self, model: torch.nn.Module, loss_fn: LossFn | None = None) -> None:
        verify_separable(model)
        trainable(model)
        self.model = model
        self.loss_fn = loss_fn
        self.engine, self._clipper = self._first(list(ENGINES))

    def clipped_sum(self, x: Any, y: Any, clip_norm: float, *, seed: int | None = None) -> ClippedSum:
        """The sum over a batch of gradients clipped to `clip_norm` each; see `OpacusClipper.clipped_sum`."""
        engine, clipper = self.engine, self._clipper
        while True:
            try:
                found = clipper.clipped_sum(x, y, clip_norm, seed=seed)
            except (NotCovered, RuntimeError):  # the second is what torch and Opacus raise at their limits
                left = list(ENGINES)[list(ENGINES).index(engine) + 1 :]
                if not left:
                    raise
                engine, clipper = self._first(left)
            else:
                # Kept once it has worked: a batch that no engine can take says nothing of engines.
                self.engine, self._clipper = engine, clipper
                return found

    def _first(self, names: Sequence[str]) -> tuple[str, Clipper]:
        """The first engine that takes the model; the last of them takes every one."""
        for name in names[:-1]:
            try:
                return name, make_clipper(self.model, self.loss_fn, name)
            except UnsupportedLayer:
                continue
        return names[-1], make_clipper(self.model, self.loss_fn, names[-1])
