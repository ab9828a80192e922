"""Models' shapes, and one optimizer step on them by us and by each peer: what `benchmarks.optimizer` times.

A peer is a class with parameters of its own. `load` gives it gradients, `step` makes one step, and
`weights` reads what the step arrived at, so that every comparison first proves that both sides did the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from privopt import Optimizer, Vector

__all__ = ["SHAPES", "Flat", "Step", "TorchFused", "agree", "resnet18", "tensors"]

Shape = tuple[int, ...]
Array = npt.NDArray[np.float32]

# The chain of every Adam case: global clipping, Adam, learning rate, decoupled decay, with torch's defaults.
MAX_NORM, LRATE, BETAS, EPS, DECAY = 1.0, 1e-3, (0.9, 0.999), 1e-8, 1e-2
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
    """One side of a comparison."""

    def load(self, gradients: Mapping[str, Array]) -> None:
        """Take the gradients of the next step."""

    def step(self) -> object:
        """Make one step with the gradients that were loaded."""

    def weights(self) -> Mapping[str, Array]:
        """The weights as they are now."""


def adam_chain() -> Optimizer:
    """Clip, Adam, learning rate, decay: `torch.optim.AdamW` after `clip_grad_norm_`, as privopt has it."""
    return Optimizer(
        lrate=LRATE,
        w_decay=LRATE * DECAY,  # torch multiplies the decay by the rate, we do not
        modules=[
            ("l2-global-clipping", {"max_norm": MAX_NORM}),
            ("adam", {"beta_1": BETAS[0], "beta_2": BETAS[1], "eps": EPS}),
        ],
    )


class Flat:
    """Ours, weights and gradients each in one flat buffer of torch."""

    def __init__(self, weights: Mapping[str, Array], optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.params = Vector.build({name: torch.from_numpy(a.copy()) for name, a in weights.items()})
        self.grads = self.params.full_like(0.0)

    def load(self, gradients: Mapping[str, Array]) -> None:
        for name, view in self.grads.coefs.items():
            view.copy_(torch.from_numpy(gradients[name]))

    def step(self) -> None:
        self.optimizer.step(self.grads, self.params)

    def weights(self) -> dict[str, Array]:
        return {name: view.numpy() for name, view in self.params.coefs.items()}


class TorchFused:
    """torch's `clip_grad_norm_` and fused AdamW on parameters that each have a `.grad`."""

    name = "torch fused"

    def __init__(self, weights: Mapping[str, Array]) -> None:
        self.params = {n: torch.nn.Parameter(torch.from_numpy(a.copy())) for n, a in weights.items()}
        self._list = list(self.params.values())
        self.optimizer = torch.optim.AdamW(
            self._list, lr=LRATE, betas=BETAS, eps=EPS, weight_decay=DECAY, fused=True
        )

    def load(self, gradients: Mapping[str, Array]) -> None:
        for name, param in self.params.items():
            param.grad = torch.from_numpy(gradients[name].copy())

    def step(self) -> None:
        torch.nn.utils.clip_grad_norm_(self._list, MAX_NORM)
        self.optimizer.step()

    def weights(self) -> dict[str, Array]:
        return {name: param.detach().numpy() for name, param in self.params.items()}


def agree(ours: Step, peer: Step, shapes: Sequence[Shape], steps: int = 3) -> None:
    """Make the same steps on both sides and raise unless the weights agree within `TOLERANCE`.

    Raises:
        AssertionError: If they do not; names the tensor.
    """
    before = {name: np.array(a) for name, a in peer.weights().items()}
    for seed in range(1, steps + 1):
        gradients = tensors(shapes, 0.1, seed)
        for side in (ours, peer):
            side.load(gradients)
            side.step()
    mine, theirs = ours.weights(), peer.weights()
    moved = max(_largest(theirs[name], before[name]) for name in before)
    assert moved > 0, "the peer's weights did not move"
    for name in before:
        apart = _largest(mine[name], theirs[name])
        assert apart <= TOLERANCE * moved, (
            f"{name}: {apart:.3g} apart after {steps} steps, the largest change is {moved:.3g}"
        )


def _largest(a: Any, b: Any) -> float:
    return float(np.max(np.abs(np.asarray(a) - np.asarray(b)), initial=0.0))
