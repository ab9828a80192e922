"""Noise added inside the chain: floor 4.

In a private run the noise is drawn before the chain, on a clipped sum whose sensitivity is known
(package `dp`). A noise module here sees gradients of unknown sensitivity, so what it adds is
reported as unpriced and lowers no epsilon.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

import dp
from dp.random import Source, secure_source

from ..plugin import OptiModule, state
from ..vector import Vector

__all__ = ["GaussianNoise", "LaplaceNoise", "NoiseModule"]


BLOCK = 1 << 16
"""Entries drawn at a time."""


class NoiseModule(OptiModule, register=False):
    """Base of modules that add random noise: a subclass implements `draw`.

    Args:
        source: Where randomness comes from (keyword only; never part of the config). The operating
            system's generator unless a test passes `dp.random.insecure_source`.

    Guarantees:
        - The source appears in no config, state or repr.
        - Each call of `run` uses a stream of its own, numbered by the state `draws`, so a run that
          stops and resumes with an insecure source draws what it would have drawn.
    """

    name = "noise"
    source: dataclasses.InitVar[Source | None] = dataclasses.field(default=None, kw_only=True)
    draws: int = state(0)

    def __post_init__(self, source: Source | None = None) -> None:
        super().__post_init__()
        self._source = source if source is not None else secure_source()

    def run(self, gradients: Vector) -> Vector:
        # By place as well: two modules of one optimizer must not draw the same from one insecure source.
        label = f"{self.name}/{self._place}/{self.draws}"
        self.draws += 1
        stream, size = self._source.stream(label), gradients.size
        # Drawn in float64, block by block, and kept no wider than the gradients.
        wide = any(block.dtype in ("float64", "complex128") for block in gradients.layout.blocks)
        noise = np.empty(size, np.float64 if wide else np.float32)
        for start in range(0, size, BLOCK):
            stop = min(start + BLOCK, size)
            noise[start:stop] = self.draw(stop - start, stream)
        return gradients + gradients.unflatten(noise)

    def draw(self, size: int, stream: Any) -> Any:
        """Return `size` independent draws as a float64 array; called for each block, on one stream."""
        raise TypeError(f"Expected {type(self).__name__} to define draw(self, size, stream).")

    @property
    def event(self) -> dp.events.Unpriced:
        """What the noise is worth by itself: nothing that can be priced."""
        return dp.events.Unpriced(f"{self.name} in the chain: the sensitivity of its input is not known")


class GaussianNoise(NoiseModule):
    """Add independent Gaussian noise of a fixed standard deviation to every entry.

    Args:
        std: Standard deviation, gradient units, >= 0.
        source: See `NoiseModule`.
    """

    name = "gaussian-noise"
    std: float = 1.0

    def __post_init__(self, source: Source | None = None) -> None:
        super().__post_init__(source)
        self._expect(self.std >= 0, "std >= 0", std=self.std)

    def draw(self, size: int, stream: Any) -> Any:
        return dp.noise.gaussian(size, self.std, stream)


class LaplaceNoise(NoiseModule):
    """Add independent Laplace noise of a fixed scale to every entry; its standard deviation is 1.414 scale.

    Args:
        scale: Mean of the noise's absolute value, gradient units, >= 0.
        source: See `NoiseModule`.
    """

    name = "laplace-noise"
    scale: float = 1.0

    def __post_init__(self, source: Source | None = None) -> None:
        super().__post_init__(source)
        self._expect(self.scale >= 0, "scale >= 0", scale=self.scale)

    def draw(self, size: int, stream: Any) -> Any:
        return dp.noise.laplace(size, self.scale, stream)
