"""Models' shapes and values, and the proof that two sides take the same steps: for `benchmarks.optimizer`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .harness import Disagreement

__all__ = ["SHAPES", "TOLERANCE", "Array", "Shape", "Step", "agree", "resnet18", "tensors"]

Shape = tuple[int, ...]
Array = npt.NDArray[np.float32]

TOLERANCE = 1e-4
"""How far the two sides may be apart after three steps, as a share of the largest change of a weight."""


def resnet18() -> list[Shape]:
    """The 62 parameter tensors of ResNet-18 for 1,000 classes (He et al. 2016), 11,689,512 numbers."""
    shapes: list[Shape] = [(64, 3, 7, 7), (64,), (64,)]
    for width, before in ((64, 64), (128, 64), (256, 128), (512, 256)):
        for block in range(2):
            inside = before if block == 0 else width
            shapes += [(width, inside, 3, 3), (width,), (width,), (width, width, 3, 3), (width,), (width,)]
            if inside != width:
                shapes += [(width, inside, 1, 1), (width,), (width,)]
    return [*shapes, (1000, 512), (1000,)]


SHAPES: dict[str, list[Shape]] = {
    "1x10M": [(10_000_000,)],
    "ResNet-18": resnet18(),
    "200x5k": [(5_000,)] * 200,
}


def tensors(shapes: Sequence[Shape], scale: float, seed: int) -> dict[str, Array]:
    """Normal values by tensor name, float32, the same for the same seed."""
    rng = np.random.default_rng(seed)
    return {
        f"t{i:04}": np.asarray(rng.standard_normal(shape, np.float32) * np.float32(scale))
        for i, shape in enumerate(shapes)
    }


class Step(Protocol):
    """One side of a comparison: ours or a peer, with parameters of its own."""

    name: str

    def load(self, gradients: Mapping[str, Array]) -> None:
        """Take the gradients of the next step."""

    def step(self) -> object:
        """Make one step with the gradients that were loaded."""

    def weights(self) -> Mapping[str, Array]:
        """The weights as they are now."""


def agree(ours: Step, peer: Step, shapes: Sequence[Shape], steps: int = 3) -> None:
    """Make the same steps on both sides and raise unless the weights agree within `TOLERANCE`.

    Raises:
        Disagreement: If they do not; names the tensor.
    """
    before = {name: np.array(a) for name, a in peer.weights().items()}
    for seed in range(1, steps + 1):
        gradients = tensors(shapes, 0.1, seed)
        for side in (ours, peer):
            side.load(gradients)
            side.step()
    mine, theirs = ours.weights(), peer.weights()
    moved = max(_largest(theirs[name], before[name]) for name in before)
    if moved == 0:
        raise Disagreement("the peer's weights did not move")
    for name in before:
        apart = _largest(mine[name], theirs[name])
        if not apart <= TOLERANCE * moved:
            raise Disagreement(f"{name}: {apart:.3g} apart after {steps} steps that change up to {moved:.3g}")


def _largest(a: Any, b: Any) -> float:
    return float(np.max(np.abs(np.asarray(a) - np.asarray(b)), initial=0.0))
