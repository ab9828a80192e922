"""What a client trains: a model bound to one flat buffer, and the data that never leaves: floor 6."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

import dp

from ..vector import Vector
from .privacy import PrivacyPlan

if TYPE_CHECKING:
    import torch

__all__ = ["Problem", "TorchProblem"]

Features = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


class Problem(Protocol):
    """A loss over a client's samples, as a function of weights."""

    @property
    def weights(self) -> Vector:
        """The model's parameters; assigning into them changes the model."""

    @property
    def num_samples(self) -> int:
        """Number of samples of the client, declared public."""

    def gradient(self, indices: npt.NDArray[np.int64], seed: int = 0) -> tuple[Vector, float]:
        """Gradient and value of the mean loss over the given samples, at the current weights.

        What the model draws itself (dropout) follows `seed` alone, so that a round can be done again.
        """

    def private_gradient(self, plan: PrivacyPlan) -> dp.PrivateGradient:
        """What draws this problem's clipped and noised gradients, for a private run."""

    def noised_gradient(self, draw: Mapping[str, npt.NDArray[Any]]) -> Vector:
        """A private gradient, computed elsewhere as arrays by name, as a Vector like the weights."""


class TorchProblem:
    """A torch classifier and its samples.

    The parameters become views of one buffer, so a step on `weights` moves the model.

    Args:
        model: Maps inputs to class scores; its state must be its parameters alone.
        x: Inputs, shape ``(n, ...)``.
        y: Classes, shape ``(n,)``.

    Raises:
        ValueError: If the model has buffers (running statistics are not summed under masks) or no
            trainable parameter, if x and y differ in length, or a label is none of the model's classes.
    """

    def __init__(self, model: torch.nn.Module, x: Features, y: Labels) -> None:
        import torch

        if len(x) != len(y):
            raise ValueError(f"Expected as many inputs as labels, got {len(x)} and {len(y)}.")
        buffers = [name for name, _ in model.named_buffers()]
        if buffers:
            raise ValueError(
                f"Expected a model whose state is its parameters, got the buffers {buffers}. Layers with "
                "running statistics (BatchNorm) mix samples: replace them by GroupNorm or LayerNorm."
            )
        self.model = model
        self._parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        if not self._parameters:
            raise ValueError("Expected a model with trainable parameters, got none.")
        self.weights = Vector.build(self._parameters)
        for name, view in self.weights.coefs.items():
            self._parameters[name].data = view
        self._on_cpu = all(p.device.type == "cpu" for p in self._parameters.values())
        self.x = torch.from_numpy(np.ascontiguousarray(x))
        self.y = torch.from_numpy(np.ascontiguousarray(y))
        self._verify_labels()

    def _verify_labels(self) -> None:
        """Before a round samples them: torch would raise in the middle of one, and tell the label."""
        import torch

        if len(self.y) == 0:
            return
        with torch.no_grad(), torch.random.fork_rng([]):
            # Zeros, so that nothing here depends on rows; two, for layers that want more than one.
            classes = self.model(torch.zeros((2, *self.x.shape[1:]), dtype=self.x.dtype)).shape[1]
        if bool(((self.y < 0) | (self.y >= classes)).any()):
            raise ValueError(
                f"Expected labels from 0 to {classes - 1}, as the model scores {classes} classes, got one "
                "outside. Number the classes from 0 (data.classes lists them), or give the model more scores."
            )

    @property
    def num_samples(self) -> int:
        """Number of samples."""
        return len(self.y)

    def gradient(self, indices: npt.NDArray[np.int64], seed: int = 0) -> tuple[Vector, float]:
        """Gradient and value of the mean cross-entropy; zeros for no samples."""
        import torch

        if len(indices) == 0:
            return self.weights.full_like(0.0), 0.0
        chosen = torch.from_numpy(indices)
        # Off the CPU every generator is seeded; on it the one that is used, at a twentieth of the time.
        with torch.random.fork_rng([] if self._on_cpu else None):
            (torch.default_generator.manual_seed if self._on_cpu else torch.manual_seed)(seed)
            loss = torch.nn.functional.cross_entropy(self.model(self.x[chosen]), self.y[chosen])
        grads = torch.autograd.grad(loss, list(self._parameters.values()))
        return Vector.build(dict(zip(self._parameters, grads, strict=True))), loss.item()

    def private_gradient(self, plan: PrivacyPlan) -> dp.PrivateGradient:
        """Poisson batches of this client's samples, clipped per sample by Opacus, noised on a lattice."""
        return dp.PrivateGradient(
            dp.OpacusClipper(self.model),
            self.x.numpy(),
            self.y.numpy(),
            sampler=dp.PoissonSampler(self.num_samples, plan.sample_rate),
            clip_norm=plan.clip_norm,
            noise_multiplier=plan.noise_multiplier,
        )

    def noised_gradient(self, draw: Mapping[str, npt.NDArray[Any]]) -> Vector:
        """The arrays of `dp.PrivateGradient.draw` in the order, dtype and place of the weights."""
        ordered = {name: draw[name] for name in self.weights.layout.names}
        return Vector.build(ordered).to(self.weights)

    def evaluate(self, x: Features, y: Labels) -> tuple[float, float]:
        """Accuracy and mean loss on public samples."""
        import torch

        with torch.no_grad():
            scores = self.model(torch.from_numpy(np.ascontiguousarray(x)))
            target = torch.from_numpy(np.ascontiguousarray(y))
            loss = torch.nn.functional.cross_entropy(scores, target)
            return (scores.argmax(1) == target).double().mean().item(), loss.item()
