"""Flat buffers of numpy: part of floor 2 (vectors), the one framework that is always there."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import summation
from . import named_backend

__all__ = ["BACKEND", "NumpyBackend"]

Array = npt.NDArray[Any]

_UNARY: dict[str, Callable[[Array], Array]] = {
    "sqrt": np.sqrt,
    "sign": np.sign,
    "abs": np.abs,
    "exp": np.exp,
    "log": np.log,
    "isfinite": np.isfinite,
    "neg": np.negative,
}
_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "pow": operator.pow,
    "minimum": np.minimum,
    "maximum": np.maximum,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "eq": operator.eq,
    "ne": operator.ne,
}


class NumpyBackend:
    """The operations of `privopt.backends.Backend` on numpy arrays."""

    name = "numpy"

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return named_backend, (self.name,)  # there is one of each; copies are it

    def is_array(self, value: object) -> bool:
        return isinstance(value, np.ndarray | np.generic)

    def describe(self, array: Array) -> tuple[tuple[int, ...], str, str]:
        if array.dtype.kind not in "bfiuc":
            raise TypeError(f"Expected numbers, got an array of dtype {array.dtype}.")
        return array.shape, array.dtype.name, "cpu"

    def pack(self, arrays: Sequence[Array], dtype: str, device: str, out: Array | None = None) -> Array:
        if out is None:
            out = np.empty(sum(a.size for a in arrays), dtype)
        start = 0
        for array in arrays:
            out[start : start + array.size] = np.reshape(array, -1)
            start += array.size
        return out

    def view(self, buffer: Array, start: int, stop: int, shape: tuple[int, ...]) -> Array:
        return buffer[start:stop].reshape(shape)

    def full(self, size: int, value: float, dtype: str, device: str) -> Array:
        return np.full(size, value, dtype)

    def copy(self, buffer: Array) -> Array:
        return buffer.copy()

    def assign(self, target: Array, source: Array) -> Array:
        np.copyto(target, source, casting="same_kind")
        return target

    def cast(self, buffer: Array, dtype: str) -> Array:
        return buffer.astype(dtype, copy=False)

    def to_numpy(self, buffer: Array) -> Array:
        return buffer

    def from_numpy(self, array: Array, dtype: str, device: str) -> Array:
        return np.array(array.reshape(-1), dtype="float32" if dtype == "bfloat16" else dtype)

    def unary(self, operation: str, buffer: Array) -> Array:
        return _UNARY[operation](buffer)

    def binary(self, operation: str, left: Any, right: Any) -> Array:
        result: Array = _BINARY[operation](left, right)
        return result

    def where(self, condition: Array, left: Any, right: Any) -> Array:
        chosen: Array = np.where(condition, left, right)
        return chosen

    def sum(self, buffer: Array) -> float:
        return summation.total(buffer)

    def dot(self, left: Array, right: Array) -> float:
        return summation.dot(left, right)

    def segment_dots(
        self, left: Array, right: Array | None, starts: Sequence[int]
    ) -> npt.NDArray[np.float64]:
        return summation.segment_dots(left, right, starts)

    def repeat(self, values: npt.NDArray[np.float64], sizes: Sequence[int], dtype: str, device: str) -> Array:
        return np.repeat(values.astype(dtype), sizes)


BACKEND = NumpyBackend()
