"""Models and gradients to try plug-ins on: the same numbers in every framework and dtype."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import unittest
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import numpy.typing as npt

from ..vector import Vector

__all__ = ["DTYPES", "FRAMEWORKS", "LARGE", "SEVERAL", "SHAPES", "Shapes", "gradients", "make", "precise"]

Shapes = Mapping[str, tuple[int, ...]]

FRAMEWORKS = ("numpy", "torch", "jax", "tensorflow")
DTYPES = ("float16", "bfloat16", "float32", "float64")

SEVERAL: Shapes = {"w": (3, 2), "b": (3,), "s": (), "e": (0, 2)}
LARGE: Shapes = {"w": (129, 128), "b": (7,), "s": ()}
"""More entries than `privopt.executors.SMALL`, and than one block: steps of this size are recorded."""
SHAPES: Mapping[str, Shapes] = {
    "0-d": {"s": ()},
    "empty": {"e": (0,)},
    "one axis": {"v": (5,)},
    "two axes": {"w": (3, 2)},
    "several": SEVERAL,
}


@functools.lru_cache(maxsize=64)
def _numbers(seed: int, shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> dict[str, npt.NDArray[Any]]:
    rng = np.random.default_rng(seed)
    drawn = {}
    for name, shape in shapes:
        # Away from zero, so that neither squares nor their roots leave the range of float16.
        drawn[name] = rng.choice([-1.0, 1.0], shape) * rng.uniform(0.25, 2.0, shape)
    return drawn


def gradients(
    seed: int, shapes: Shapes = SEVERAL, dtype: str = "float64", framework: str = "numpy"
) -> Vector:
    """Made-up gradients (or weights): magnitudes between 1/4 and 2, the same ones for the same seed."""
    return make(framework, _numbers(seed, tuple(shapes.items())), dtype)


def make(framework: str, arrays: Mapping[str, npt.NDArray[Any]], dtype: str) -> Vector:
    """A Vector of a framework's arrays.

    Raises:
        unittest.SkipTest: If the framework is not installed, or has no such dtype.
    """
    if framework == "numpy":
        if dtype == "bfloat16":
            raise unittest.SkipTest("numpy has no bfloat16")
        return Vector.build({name: np.array(a, dtype) for name, a in arrays.items()})
    if importlib.util.find_spec(framework) is None:
        raise unittest.SkipTest(f"{framework} is not installed")
    module: Any = importlib.import_module(framework)
    if framework == "torch":
        kind = getattr(module, dtype)
        return Vector.build({name: module.from_numpy(np.array(a)).to(kind) for name, a in arrays.items()})
    if framework == "jax":
        with precise(framework, dtype):
            return Vector.build({name: module.numpy.array(a, dtype) for name, a in arrays.items()})
    return Vector.build(
        {name: module.cast(module.constant(np.array(a)), dtype) for name, a in arrays.items()}
    )


def precise(framework: str, dtype: str) -> AbstractContextManager[Any]:
    """Where the framework has 64-bit numbers: everywhere, but in jax only on demand."""
    if framework != "jax" or dtype != "float64":
        return contextlib.nullcontext()
    if importlib.util.find_spec("jax") is None:
        raise unittest.SkipTest("jax is not installed")
    jax: Any = importlib.import_module("jax")
    context: AbstractContextManager[Any] = jax.enable_x64(True)
    return context
