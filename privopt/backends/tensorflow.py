"""Flat buffers of tensorflow: part of floor 2 (vectors), loaded when a tensor of it is seen.

Tensors cannot be written. In-place forms bind the Vector to new buffers, and `coefs` are tensors of
their own: those taken before a change keep the values they had. A `tf.Variable` is packed by value;
gradients that arrive as `tf.IndexedSlices` (of embeddings) are packed dense.

Promotion is numpy's: a Python scalar never changes a floating dtype, and integers times 2.0 are float64.
What tensorflow has no kernel for (most arithmetic on booleans and integers) is computed by numpy on the
host. tensorflow flushes subnormal numbers to zero on CPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes  # a dependency of tensorflow's: bfloat16 for numpy
import numpy as np
import numpy.typing as npt
import tensorflow as tf  # type: ignore[import-untyped,import-not-found,unused-ignore]  # publishes no types

from .. import summation
from . import named_backend
from .common import DTYPES, kind, runs, verify_dtype, verify_writable
from .numpy import BACKEND as NUMPY

__all__ = ["BACKEND", "TensorflowBackend"]

Array = Any  # tf.Tensor, which is untyped

_LOCAL = "/job:localhost/replica:0/task:0/device:"
UNARY: dict[str, Callable[[Array], Array]] = {
    "sqrt": tf.sqrt,
    "sign": tf.sign,
    "abs": tf.abs,
    "exp": tf.exp,
    "log": tf.math.log,
    "isfinite": tf.math.is_finite,
    "neg": tf.negative,
}
BINARY: dict[str, Callable[[Array, Array], Array]] = {
    "add": tf.add,
    "sub": tf.subtract,
    "mul": tf.multiply,
    "div": tf.truediv,
    "pow": tf.pow,
    "minimum": tf.minimum,
    "maximum": tf.maximum,
    "lt": tf.less,
    "le": tf.less_equal,
    "gt": tf.greater,
    "ge": tf.greater_equal,
    "eq": tf.equal,
    "ne": tf.not_equal,
}
# numpy's own short cuts: Eigen's general power is less exact than these.
_POWERS: dict[float, Callable[[Array], Array]] = {
    -1.0: tf.math.reciprocal,
    0.5: tf.sqrt,
    1.0: tf.identity,
    2.0: lambda x: x * x,
}


def _dtype(name: str) -> np.dtype[Any]:
    if name not in DTYPES:
        raise TypeError(f"Expected a dtype among {sorted(DTYPES)}, got {name!r}.")
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def _on(device: str) -> Any:
    kind_of, _, index = device.partition(":")
    return tf.device(device if "/" in device else f"{_LOCAL}{kind_of.upper()}:{index or 0}")


def _on_cpu(tensor: Array) -> bool:
    return "CPU" in tensor.device


def _tensor(array: Any) -> Array:
    """The eager tensor in what tensorflow or Keras hands out: variables and slices included."""
    if isinstance(array, tf.IndexedSlices):
        if array.dense_shape is None:
            raise TypeError("Expected tf.IndexedSlices with a dense_shape, got some without.")
        return tf.math.unsorted_segment_sum(array.values, array.indices, array.dense_shape[0])
    if isinstance(array, tf.Tensor):
        if not hasattr(array, "numpy"):
            raise TypeError(
                "Expected an eager tensor, got a symbolic one. Build Vectors outside tf.function, from "
                "what it returns."
            )
        return array
    if isinstance(array, tf.RaggedTensor | tf.SparseTensor):
        raise TypeError(f"Expected a dense tensor, got a {type(array).__name__}. Make it dense first.")
    return tf.convert_to_tensor(array)


class TensorflowBackend:
    """The operations of `privopt.backends.Backend` on eager tensors."""

    name = "tensorflow"

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return named_backend, (self.name,)  # there is one of each; copies are it

    def is_array(self, value: object) -> bool:
        return bool(tf.is_tensor(value))

    def describe(self, array: Array) -> tuple[tuple[int, ...], str, str]:
        tensor = _tensor(array)
        verify_dtype(tensor.dtype.name, self.name)
        # As numpy and torch spell devices, so that layouts agree: cpu, cpu:1, gpu:0.
        device = tensor.device.removeprefix(_LOCAL)
        short = device if "/" in device else device.lower().replace("cpu:0", "cpu")
        return tuple(tensor.shape), tensor.dtype.name, short

    def pack(self, arrays: Sequence[Array], dtype: str, device: str, out: Array | None = None) -> Array:
        with _on(device):
            if not arrays:
                return tf.zeros([0], dtype)
            flat = [tf.reshape(_tensor(a), [-1]) for a in arrays]
            return tf.concat(flat, 0) if len(flat) > 1 else tf.identity(flat[0])

    def view(self, buffer: Array, start: int, stop: int, shape: tuple[int, ...]) -> Array:
        """A tensor of its own with the window's values: tensorflow shares no memory between tensors."""
        with tf.device(buffer.device):
            return tf.reshape(buffer[start:stop], shape)

    def full(self, size: int, value: float, dtype: str, device: str) -> Array:
        with _on(device):
            return tf.fill([size], tf.constant(np.asarray(value).astype(_dtype(dtype))))

    def copy(self, buffer: Array) -> Array:
        with tf.device(buffer.device):
            return tf.identity(buffer)

    def assign(self, target: Array, source: Array) -> Array:
        verify_writable(source.dtype.name, target.dtype.name)
        with tf.device(target.device):
            return tf.identity(tf.cast(source, target.dtype))

    def cast(self, buffer: Array, dtype: str) -> Array:
        with tf.device(buffer.device):
            return tf.cast(buffer, _dtype(dtype))

    def to_numpy(self, buffer: Array) -> npt.NDArray[Any]:
        values = np.asarray(buffer)
        if buffer.dtype == tf.bfloat16:
            return values.astype(np.float32)
        # The tensor's own memory on a CPU, which others may share.
        values.flags.writeable = False
        return values

    def from_numpy(self, array: npt.NDArray[Any], dtype: str, device: str) -> Array:
        with _on(device):
            # A copy, lest tensorflow keep memory that is written to later.
            return tf.constant(np.array(array.reshape(-1), _dtype(dtype)))

    def lend(self, arrays: Sequence[npt.NDArray[Any]], device: str) -> list[Array]:
        """Tensors in numpy's memory, where tensorflow can take it: nothing writes there while one lives."""
        with _on(device):
            return [
                # Not from numpy itself, which tensorflow copies.
                tf.experimental.dlpack.from_dlpack(array.__dlpack__())
                if array.dtype.kind == "f"
                else tf.constant(array)
                for array in arrays
            ]

    def unary(self, operation: str, buffer: Array) -> Array:
        own = kind(buffer.dtype.name)
        if own == "f" or (own == "c" and operation != "isfinite"):
            with tf.device(buffer.device):
                return UNARY[operation](buffer)
        return self._by_numpy(NUMPY.unary(operation, self.to_numpy(buffer)), buffer)

    def binary(self, operation: str, left: Any, right: Any) -> Array:
        array = left if isinstance(left, tf.Tensor) else right
        common = _common(left, right)
        if kind(common) not in "fc":
            return self._by_numpy(NUMPY.binary(operation, *map(self._plain, (left, right))), array)
        with tf.device(array.device):
            left = _as(left, common)
            if operation == "pow" and isinstance(right, int | float):
                short = _POWERS.get(float(right))
                if short is not None:
                    return short(left)
            return BINARY[operation](left, _as(right, common))

    def where(self, condition: Array, left: Any, right: Any) -> Array:
        with tf.device(condition.device):
            common = _common(left, right)
            return tf.where(tf.cast(condition, tf.bool), _as(left, common), _as(right, common))

    def _plain(self, value: Any) -> Any:
        return self.to_numpy(value) if isinstance(value, tf.Tensor) else value

    def _by_numpy(self, result: npt.NDArray[Any], like: Array) -> Array:
        with tf.device(like.device):
            return tf.constant(result)

    def sum(self, buffer: Array) -> float:
        if _on_cpu(buffer) or kind(buffer.dtype.name) == "c":
            return summation.total(self.to_numpy(buffer))
        return float(_device_sums(buffer, None, [0])[0])

    def dot(self, left: Array, right: Array) -> float:
        if _on_cpu(left):
            return summation.dot(*self._both(left, right))
        return float(_device_sums(left, right, [0])[0])

    def segment_dots(
        self, left: Array, right: Array | None, starts: Sequence[int]
    ) -> npt.NDArray[np.float64]:
        if _on_cpu(left):
            if right is None:
                return summation.segment_dots(self.to_numpy(left), None, starts)
            return summation.segment_dots(*self._both(left, right), starts)
        return _device_sums(left, right, starts)

    def _both(self, left: Array, right: Array) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        ours = self.to_numpy(left)
        return ours, ours if right is left else self.to_numpy(right)

    def repeat(self, values: npt.NDArray[np.float64], sizes: Sequence[int], dtype: str, device: str) -> Array:
        with _on(device):
            return tf.repeat(tf.constant(values.astype(_dtype(dtype))), np.asarray(sizes, np.int64))


def _common(left: Any, right: Any) -> str:
    """The dtype in which an operation is done: numpy's choice, with bfloat16 among the floats."""
    tensors = [side.dtype.name for side in (left, right) if isinstance(side, tf.Tensor)]
    names = sorted(set(tensors))
    if "bfloat16" in names:
        others = [n for n in names if n != "bfloat16" and kind(n) in "fc"]
        # With another float, float32 holds the values of both; with integers it stays as it is.
        return np.result_type(*others, "float32").name if others else "bfloat16"
    scalars = [side for side in (left, right) if not isinstance(side, tf.Tensor)]
    return np.result_type(*map(np.dtype, names), *scalars).name


def _as(value: Any, dtype: str) -> Array:
    if isinstance(value, tf.Tensor):
        return tf.cast(value, dtype)
    return tf.constant(int(value) if isinstance(value, bool) else value, dtype)


def _device_sums(left: Array, right: Array | None, starts: Sequence[int]) -> npt.NDArray[np.float64]:
    with tf.device(left.device):
        if left.dtype.is_complex and right is not None:
            reals = _device_sums(tf.math.real(left), tf.math.real(right), starts)
            return reals + _device_sums(tf.math.imag(left), tf.math.imag(right), starts)
        wide = tf.cast(left, tf.float64)
        wide = wide if right is None else wide * tf.cast(right, tf.float64)
        parts = [
            tf.reduce_sum(tf.reshape(wide[start : start + count * size], [count, size]), axis=1)
            for start, count, size in runs(starts, left.shape[0])
        ]
        values: npt.NDArray[np.float64] = tf.concat([*parts, tf.zeros([0], tf.float64)], 0).numpy()
        return values


BACKEND = TensorflowBackend()
