"""Arrays of every framework, by name, for tests that run on all of them."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest

from privopt import Vector

FRAMEWORKS = ["numpy", "torch", "jax", "tensorflow"]


def array(framework: str, values: np.ndarray, dtype: str | None = None) -> Any:
    """The values as an array of the framework; the test is skipped where it is not installed."""
    dtype = dtype or values.dtype.name
    if framework == "numpy":
        return np.array(values, dtype)
    module = pytest.importorskip(framework)
    if framework == "torch":
        return module.from_numpy(np.array(values)).to(getattr(module, dtype))
    if framework == "jax":
        return module.numpy.array(values, dtype)
    return module.cast(module.constant(np.array(values)), dtype)


def make(framework: str, arrays: dict[str, np.ndarray], dtype: str | None = None) -> Vector:
    return Vector.build({name: array(framework, values, dtype) for name, values in arrays.items()})


def values(vector: Vector) -> dict[str, np.ndarray]:
    """The tensors as numpy arrays (bfloat16 as float32)."""
    return {name: np.asarray(a) for name, a in vector.to_numpy().coefs.items()}


def wide(framework: str) -> contextlib.AbstractContextManager[Any]:
    """Where the framework has 64-bit numbers: everywhere, but in jax only on demand."""
    if framework != "jax":
        return contextlib.nullcontext()
    pytest.importorskip("jax")
    from privopt.backends.jax import _enable_x64

    return _enable_x64()
