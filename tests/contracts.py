"""What many tests of plug-ins share. The contract that all of them keep is `privopt.testing`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from privopt import Vector
from privopt.plugin import Plugin
from privopt.testing import run_once as run
from privopt.testing import same_state as same_state


def gradients(seed: int, shapes: dict[str, tuple[int, ...]], dtype: str = "float64") -> Vector:
    rng = np.random.default_rng(seed)
    return Vector.build({k: np.asarray(rng.standard_normal(s), dtype) for k, s in shapes.items()})


def assert_equals_reference(
    plugin: Plugin, reference: Callable[[np.ndarray, np.ndarray, int], np.ndarray], steps: int = 20
) -> None:
    """`reference(gradient, weights, step)` is a slow version from the paper, with its own memory."""
    shapes = {"w": (4, 3), "b": (5,)}
    weights = gradients(1000, shapes)
    for step in range(1, steps + 1):
        grads = gradients(step, shapes)
        out = run(plugin, grads, weights).flatten()
        np.testing.assert_allclose(
            out, reference(grads.flatten(), weights.flatten(), step), rtol=1e-12, atol=1e-12
        )
