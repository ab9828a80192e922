"""What a Vector asks of an array framework; each framework is one file, loaded when its arrays are seen.

To add a framework: write ``backends/<module>.py`` with a `Backend` named ``BACKEND`` and name the
top-level module of its arrays in `_FILES`.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["Backend", "backend_of", "named_backend"]

Array = Any  # an array of whichever framework; only its backend looks inside


class Backend(Protocol):
    """The operations on flat buffers that a Vector is made of.

    Every function takes and returns 1-D arrays of the backend's framework, keeps their
    device, and treats Python scalars as weakly typed (float32 times 2.0 stays float32). Integers
    combined with a fraction give a float: float64 in numpy and tensorflow, the default float in torch
    and jax. Elementwise operations on floats may be called under the framework's compiler.
    """

    name: str

    def is_array(self, value: object) -> bool:
        """Whether the value is an array of this framework."""

    def describe(self, array: Array) -> tuple[tuple[int, ...], str, str]:
        """Shape, dtype name (numpy's spelling, or ``bfloat16``) and device name."""

    def pack(self, arrays: Sequence[Array], dtype: str, device: str, out: Array | None = None) -> Array:
        """Copy arrays of one dtype and device into one flat buffer: `out`'s memory, or new."""

    def view(self, buffer: Array, start: int, stop: int, shape: tuple[int, ...]) -> Array:
        """A window on the buffer that shares its memory; a copy where arrays cannot be written."""

    def full(self, size: int, value: float, dtype: str, device: str) -> Array:
        """A new flat buffer."""

    def copy(self, buffer: Array) -> Array:
        """A new flat buffer with the same values."""

    def assign(self, target: Array, source: Array) -> Array:
        """Write the source's values into the target's memory and return it.

        A framework whose arrays cannot be written returns a new one, with the target's dtype and device.
        """

    def cast(self, buffer: Array, dtype: str) -> Array:
        """The same values in another dtype."""

    def to_numpy(self, buffer: Array) -> npt.NDArray[Any]:
        """The values as a numpy array (bfloat16 as float32, which holds each exactly)."""

    def from_numpy(self, array: npt.NDArray[Any], dtype: str, device: str) -> Array:
        """A buffer of the given dtype and device with these values."""

    def unary(self, operation: str, buffer: Array) -> Array:
        """``sqrt``, ``sign``, ``abs``, ``exp``, ``log``, ``isfinite`` or ``neg``."""

    def binary(self, operation: str, left: Array, right: Array) -> Array:
        """``add sub mul div pow minimum maximum lt le gt ge eq ne``; either side may be a scalar."""

    def where(self, condition: Array, left: Array, right: Array) -> Array:
        """Elementwise choice; either choice may be a scalar."""

    def sum(self, buffer: Array) -> float:
        """Sum of all entries, in float64 (on a CPU in the order of `privopt.summation`)."""

    def dot(self, left: Array, right: Array) -> float:
        """Inner product, in float64; complex numbers count as pairs of reals."""

    def segment_dots(
        self, left: Array, right: Array | None, starts: Sequence[int]
    ) -> npt.NDArray[np.float64]:
        """`dot` (or `sum`, without `right`) of each segment from `starts`; the last ends the buffer."""

    def repeat(self, values: npt.NDArray[np.float64], sizes: Sequence[int], dtype: str, device: str) -> Array:
        """Each value as often as its segment is long."""


# Top-level module of an array's type -> the file of this folder that handles it.
_FILES = {
    "numpy": "numpy",
    "torch": "torch",
    "jax": "jax",
    "jaxlib": "jax",
    "tensorflow": "tensorflow",
}


def named_backend(name: str) -> Backend:
    """The backend of a framework by name, imported on first use.

    Raises:
        ValueError: If no file of this folder handles the framework.
        ModuleNotFoundError: If the framework is not installed; the message says how to.
    """
    if name not in _FILES.values():
        raise ValueError(f"Expected one of the frameworks {sorted(set(_FILES.values()))}, got {name!r}.")
    try:
        backend: Backend = importlib.import_module(f"{__name__}.{name}").BACKEND
    except ModuleNotFoundError as error:
        if error.name != name:
            raise  # the framework is there, and something that it needs is not
        raise ModuleNotFoundError(
            f"Expected {name} to be installed, got an environment without it. "
            f"Run: pip install privopt[{name}]",
            name=name,
        ) from error
    return backend


def backend_of(array: object) -> Backend:
    """The backend that handles an array, found without importing any framework that is not in use.

    Raises:
        TypeError: If the value is no array of a supported framework.
    """
    for kind in type(array).__mro__:
        name = _FILES.get(kind.__module__.partition(".")[0])
        if name is not None:
            backend = named_backend(name)
            if backend.is_array(array):
                return backend
    *others, last = sorted(set(_FILES.values()))
    raise TypeError(f"Expected an array of {', '.join(others)} or {last}, got {type(array).__name__}.")
