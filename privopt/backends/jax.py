"""Flat buffers of jax: part of floor 2 (vectors), loaded when a jax array is seen.

jax arrays cannot be written. In-place forms bind the Vector to new buffers, and `coefs` are arrays of
their own: those taken before a change keep the values they had.

Promotion is jax's: a Python scalar never changes a floating dtype, and integers combined with
fractions give jax's default float (float64 where x64 is on, as in numpy, and float32 where it is off).
Without x64, jax has no 64-bit numbers: asking for them (a state that was saved in float64, say) raises
instead of losing digits. XLA flushes subnormal numbers to zero on CPUs.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from .. import summation
from . import named_backend
from .common import DTYPES, aligned, kind, runs, verify_dtype, verify_writable

__all__ = ["BACKEND", "JaxBackend"]

Array = jax.Array

UNARY: dict[str, Callable[[Array], Array]] = {
    "sqrt": jnp.sqrt,
    "sign": jnp.sign,
    "abs": jnp.abs,
    "exp": jnp.exp,
    "log": jnp.log,
    "isfinite": jnp.isfinite,
    "neg": operator.neg,
}
BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "pow": operator.pow,
    "minimum": jnp.minimum,
    "maximum": jnp.maximum,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "eq": operator.eq,
    "ne": operator.ne,
}
# numpy's own short cuts: XLA's general power is less exact than these.
_POWERS: dict[float, Callable[[Array], Array]] = {
    -1.0: lambda x: 1.0 / x,
    0.5: jnp.sqrt,
    1.0: lambda x: x,
    2.0: lambda x: x * x,
}


def _dtype(name: str) -> np.dtype[Any]:
    if name not in DTYPES:
        raise TypeError(f"Expected a dtype among {sorted(DTYPES)}, got {name!r}.")
    wanted = jnp.dtype(name)
    if jax.dtypes.canonicalize_dtype(wanted) != wanted:
        raise TypeError(
            f"Expected a dtype that jax has with 64-bit numbers switched off, got {name!r}. Either run "
            'jax.config.update("jax_enable_x64", True) when the program starts, or convert the values '
            f"on purpose: .astype({jax.dtypes.canonicalize_dtype(wanted).name!r})."
        )
    return wanted


def _device(name: str) -> jax.Device:
    platform, _, index = name.partition(":")
    devices = jax.local_devices(backend=platform)
    return next(d for d in devices if d.id == int(index)) if index else devices[0]


def _on_cpu(array: Array) -> bool:
    return bool(next(iter(array.devices())).platform == "cpu")


def _put(array: npt.NDArray[Any], device: str) -> Array:
    """Hand over a numpy array that nothing else will write to: jax may keep its memory."""
    return _put_all([array], device)[0]


def _put_all(arrays: list[npt.NDArray[Any]], device: str) -> list[Array]:
    where: jax.Device | None = _device(device)
    if where is jax.local_devices()[0] and getattr(jax.config, "jax_default_device", None) is None:
        where = None  # uncommitted, as jax leaves new arrays on its default device: free to follow others
    result: list[Array] = jax.device_put(arrays, where)
    return result


class JaxBackend:
    """The operations of `privopt.backends.Backend` on concrete jax arrays, each on one device."""

    name = "jax"

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return named_backend, (self.name,)  # there is one of each; copies are it

    def is_array(self, value: object) -> bool:
        return isinstance(value, jax.Array)

    def describe(self, array: Array) -> tuple[tuple[int, ...], str, str]:
        if isinstance(array, jax.core.Tracer):
            raise TypeError(
                "Expected a concrete jax array, got a tracer. Build Vectors outside jit, grad and vmap, "
                "from what the transformed function returns."
            )
        verify_dtype(str(array.dtype), self.name)
        if len(array.devices()) != 1:
            raise TypeError(
                f"Expected a jax array on one device, got one on {len(array.devices())} devices. "
                "Gather it with jax.device_put(array, device) first."
            )
        device = next(iter(array.devices()))
        # The first CPU has no number, as in numpy and torch, so that layouts agree.
        first = device.platform == "cpu" and device is jax.local_devices(backend="cpu")[0]
        return array.shape, array.dtype.name, "cpu" if first else f"{device.platform}:{device.id}"

    def pack(self, arrays: Sequence[Array], dtype: str, device: str, out: Array | None = None) -> Array:
        if not arrays or all(map(_on_cpu, arrays)):
            # Through numpy's zero-copy views: XLA would compile a concatenation for every new model.
            packed = aligned(sum(a.size for a in arrays), _dtype(dtype))
            start = 0
            for array in arrays:
                packed[start : start + array.size] = np.asarray(array).reshape(-1)
                start += array.size
            return _put(packed, device)
        return jnp.concatenate([a.reshape(-1) for a in arrays], dtype=_dtype(dtype)).copy()

    def view(self, buffer: Array, start: int, stop: int, shape: tuple[int, ...]) -> Array:
        """An array of its own with the window's values: jax shares no memory between arrays."""
        if _on_cpu(buffer):
            # Through numpy again: XLA would compile a slice for every size of tensor.
            return _put(np.asarray(buffer)[start:stop].reshape(shape), self.describe(buffer)[2])
        return jax.lax.dynamic_slice(buffer, (start,), (stop - start,)).reshape(shape)

    def full(self, size: int, value: float, dtype: str, device: str) -> Array:
        return _put(np.full(size, value, _dtype(dtype)), device)

    def copy(self, buffer: Array) -> Array:
        # Memory of its own even so: the other buffer may be donated to a compiled function.
        return jnp.array(buffer, copy=True)

    def assign(self, target: Array, source: Array) -> Array:
        verify_writable(source.dtype.name, target.dtype.name)
        source = source.astype(target.dtype)
        return source if source.devices() == target.devices() else jax.device_put(source, target.sharding)

    def cast(self, buffer: Array, dtype: str) -> Array:
        return buffer.astype(_dtype(dtype))

    def to_numpy(self, buffer: Array) -> npt.NDArray[Any]:
        values: npt.NDArray[Any] = np.asarray(buffer)
        return values.astype(np.float32) if buffer.dtype == jnp.bfloat16 else values

    def from_numpy(self, array: npt.NDArray[Any], dtype: str, device: str) -> Array:
        return _put(np.array(array.reshape(-1), _dtype(dtype)), device)

    def lend(self, arrays: Sequence[npt.NDArray[Any]], device: str) -> list[Array]:
        """Arrays in numpy's memory, where jax can take it: nothing writes there while one of them lives."""
        # What was computed from float64 is float64, even if it was switched off since.
        wide = any(array.dtype == np.float64 for array in arrays)
        # No transfer, whatever a user forbids: the memory stays where it is.
        with jax.transfer_guard_host_to_device("allow"), _enable_x64() if wide else contextlib.nullcontext():
            return _put_all(list(arrays), device)

    def unary(self, operation: str, buffer: Array) -> Array:
        return _strong(UNARY[operation](buffer))

    def binary(self, operation: str, left: Any, right: Any) -> Array:
        if operation == "pow" and isinstance(right, int | float) and kind(left.dtype.name) in "fc":
            short = _POWERS.get(float(right))
            if short is not None:
                return _strong(short(left))
        return _strong(BINARY[operation](left, right))

    def where(self, condition: Array, left: Any, right: Any) -> Array:
        return _strong(jnp.where(condition, left, right))

    def sum(self, buffer: Array) -> float:
        if _on_cpu(buffer) or kind(buffer.dtype.name) == "c":
            return summation.total(self.to_numpy(buffer))
        return float(_device_sums(buffer, None, (0,))[0])

    def dot(self, left: Array, right: Array) -> float:
        if _on_cpu(left):
            return summation.dot(*self._both(left, right))
        return float(_device_sums(left, right, (0,))[0])

    def segment_dots(
        self, left: Array, right: Array | None, starts: Sequence[int]
    ) -> npt.NDArray[np.float64]:
        if _on_cpu(left):
            if right is None:
                return summation.segment_dots(self.to_numpy(left), None, starts)
            return summation.segment_dots(*self._both(left, right), starts)
        return _device_sums(left, right, tuple(starts))

    def _both(self, left: Array, right: Array) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        ours = self.to_numpy(left)
        return ours, ours if right is left else self.to_numpy(right)

    def repeat(self, values: npt.NDArray[np.float64], sizes: Sequence[int], dtype: str, device: str) -> Array:
        return _put(np.repeat(values.astype(_dtype(dtype)), sizes), device)


def _strong(array: Array) -> Array:
    """The same array with a dtype that counts: integers times 2.0 are only weakly floats in jax."""
    strong: Array = jax.lax.convert_element_type(array, array.dtype) if array.weak_type else array
    return strong


def _enable_x64() -> contextlib.AbstractContextManager[Any]:
    # Newer releases have it at the top, older ones among the experiments.
    owner: Any = jax if hasattr(jax, "enable_x64") else importlib.import_module("jax.experimental")
    context: contextlib.AbstractContextManager[Any] = owner.enable_x64(True)
    return context


def _device_sums(left: Array, right: Array | None, starts: tuple[int, ...]) -> npt.NDArray[np.float64]:
    # float64 for this one sum, whatever the program chose: norms and dots are float64 everywhere.
    with _enable_x64():
        sums: npt.NDArray[np.float64] = np.asarray(_segment_sums(left, right, starts))
    return sums


@functools.partial(jax.jit, static_argnums=2)
def _segment_sums(left: Array, right: Array | None, starts: tuple[int, ...]) -> Array:
    if jnp.iscomplexobj(left) and right is not None:
        pairs = [(left.real, right.real), (left.imag, right.imag)]
        return jnp.add(*(_segment_sums(a, b, starts) for a, b in pairs))
    wide = left.astype(jnp.float64)
    wide = wide if right is None else wide * right.astype(jnp.float64)
    parts = [
        wide[start : start + count * size].reshape(count, size).sum(axis=1)
        for start, count, size in runs(starts, left.size)
    ]
    return jnp.concatenate([*parts, jnp.zeros(0)])


BACKEND = JaxBackend()
