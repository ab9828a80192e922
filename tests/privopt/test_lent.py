"""Steps on frameworks whose arrays cannot be written: compiled code in memory that they are lent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from privopt import Optimizer, OptiModule, Vector
from privopt.executors import executor
from tests.privopt.frameworks import make

SIZE = 40_000
FRAMEWORKS = ["jax", "tensorflow"]


def draw(seed: int, scale: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes: dict[str, Any] = {"w": (150, 200), "v": (SIZE - 30_001,), "b": ()}
    return {name: (scale * rng.standard_normal(s)).astype(np.float32) for name, s in shapes.items()}


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_sums_inside_a_step_have_the_bits_of_numpys(framework: str) -> None:
    found: dict[str, Any] = {}

    class Summing(OptiModule):
        name = f"summing-on-{framework}"

        def run(self, gradients: Vector) -> Vector:
            tensors = gradients.norms().values.tolist()
            found[gradients.framework] = [gradients.norm(), gradients.sum(), *tensors]
            return gradients

    for kind in ("numpy", framework):
        with executor("eager" if kind == "numpy" else "auto"):
            Optimizer(lrate=0.1, modules=[Summing()]).step(make(kind, draw(0)), make(kind, draw(1)))
    assert found[framework] == found["numpy"]
