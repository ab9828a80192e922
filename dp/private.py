"""One step of private gradient descent: sample, clip, add noise, divide by the expected batch: floor 5."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .clipping import Clipper
from .clipping.base import verify_clip_norm
from .events import Event, Gaussian, Poisson
from .noise import release
from .random import Source, Stream, secure_source
from .sampling import PoissonSampler

__all__ = ["PrivateGradient"]


class PrivateGradient:
    """Draws noised mean gradients of one dataset; everything that leaves it is priced by `event`.

    Guarantees:
        - What `draw` returns is a function of a Poisson-sampled Gaussian mechanism: noise of std z·C on the
          sum of clipped gradients over all parameters jointly, on a lattice, divided by the expected batch
          size, a public constant. The size that was drawn is told to nobody.
        - An empty batch is noised like any other.
        - Batch, noise and what the model itself draws (dropout) come from one stream, which no other draw
          uses.

    Whoever draws reserves `event` in a ledger first; the object does not know the ledger.

    Args:
        clipper: Computes clipped sums for the model.
        x: Inputs, samples along the first axis.
        y: Targets, as many.
        sampler: Draws batches; made for as many samples.
        clip_norm: Bound C on the norm of one sample's gradient.
        noise_multiplier: Noise std over C.
        source: Randomness of draws that bring no stream; the operating system's by default.

    Raises:
        PrivacyParameterError: If `clip_norm` or `noise_multiplier` is out of range.
        ValueError: If the data's length is not the sampler's.

    References:
        Abadi et al. (2016), https://arxiv.org/abs/1607.00133, Algorithm 1.
    """

    def __init__(
        self,
        clipper: Clipper,
        x: Any,
        y: Any,
        *,
        sampler: PoissonSampler,
        clip_norm: float,
        noise_multiplier: float,
        source: Source | None = None,
    ) -> None:
        if not len(x) == len(y) == sampler.num_samples:
            raise ValueError(
                f"Expected {sampler.num_samples} inputs and targets, as the sampler was made for, "
                f"got {len(x)} and {len(y)}."
            )
        verify_clip_norm(clip_norm)
        self.clipper = clipper
        self.sampler = sampler
        self.clip_norm = clip_norm
        self.noise_multiplier = Gaussian(noise_multiplier).noise_multiplier
        self._x = x
        self._y = y
        self._source = source or secure_source()
        self._draws = 0

    def __repr__(self) -> str:
        return f"PrivateGradient({self.event}, clip_norm={self.clip_norm:g})"

    @property
    def event(self) -> Poisson:
        """What one draw costs."""
        return self.sampler.event(Gaussian(self.noise_multiplier))

    @property
    def step_event(self) -> Event:
        """The same as `event`: a draw is a step."""
        return self.event

    def draw(self, stream: Stream | None = None) -> dict[str, npt.NDArray[np.float64]]:
        """Sample a batch and release its noised mean gradient.

        Args:
            stream: Randomness of this draw alone; one of the source's own by default.

        Returns:
            The gradient by parameter, in the model's order.

        Raises:
            UnsupportedLayer: If the model's gradients cannot be taken per sample.
        """
        if stream is None:
            stream = self._source.stream(f"private-gradient/{self._draws}")
            self._draws += 1
        batch = self.sampler.draw(stream)
        seed = int(stream.uint64(1)[0])
        clipped = self.clipper.clipped_sum(self._x[batch], self._y[batch], self.clip_norm, seed=seed)
        released = release(clipped.flatten(), self.clip_norm, self.noise_multiplier, stream)
        return clipped.unflatten(released.values / self.sampler.expected_batch_size)
