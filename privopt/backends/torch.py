"""Flat buffers of torch (CPU or any device): part of floor 2 (vectors), loaded when a tensor is seen."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .. import summation
from . import named_backend
from .common import verify_dtype, verify_writable

__all__ = ["BACKEND", "TorchBackend"]

Array = torch.Tensor

UNARY: dict[str, Callable[[Array], Array]] = {
    "sqrt": lambda x: _sqrt(x),
    # Defined on complex numbers too; a NaN stays one, as in numpy.
    "sign": lambda x: torch.where(torch.isnan(x), x, torch.sgn(x)),
    "abs": torch.abs,
    "exp": torch.exp,
    "log": torch.log,
    "isfinite": torch.isfinite,
    "neg": torch.neg,
}
BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "pow": operator.pow,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "eq": operator.eq,
    "ne": operator.ne,
}
_BOUNDS = {
    "minimum": ("max", torch.minimum, np.minimum),
    "maximum": ("min", torch.maximum, np.maximum),
}


def _dtype(name: str) -> torch.dtype:
    kind = getattr(torch, name, None)
    if not isinstance(kind, torch.dtype):
        raise TypeError(f"Expected a dtype that torch has, got {name!r}.")
    return kind


def _representable(value: Any, kind: torch.dtype) -> Any:
    """A number as a dtype rounds it: infinite beyond the range, where torch would raise."""
    if kind.is_floating_point and abs(value) > torch.finfo(kind).max:
        return math.copysign(math.inf, value)
    return value


def _sqrt(array: Array) -> Array:
    # torch's own on a CPU is off in the last bit now and then; every other framework rounds correctly.
    if array.device.type == "cpu" and array.dtype in (torch.float32, torch.float64):
        with np.errstate(invalid="ignore"):
            return torch.from_numpy(np.sqrt(_of_numpy(array)))
    return torch.sqrt(array)


def _plain(value: Any) -> bool:
    """Whether numpy computes the same with it: numbers, and floats on a CPU."""
    if not isinstance(value, torch.Tensor):
        return True
    return value.device.type == "cpu" and value.dtype in (torch.float32, torch.float64)


def _of_numpy(value: Any) -> Any:
    return value.detach().numpy() if isinstance(value, torch.Tensor) else value


class TorchBackend:
    """The operations of `privopt.backends.Backend` on torch tensors, outside autograd."""

    name = "torch"

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return named_backend, (self.name,)  # there is one of each; copies are it

    def is_array(self, value: object) -> bool:
        return isinstance(value, torch.Tensor)

    def describe(self, array: Array) -> tuple[tuple[int, ...], str, str]:
        dtype = str(array.dtype).removeprefix("torch.")
        verify_dtype(dtype, self.name)
        if array.layout is not torch.strided:
            raise TypeError(
                f"Expected a dense tensor, got one of layout {array.layout}. Make it dense first."
            )
        return tuple(array.shape), dtype, str(array.device)

    def pack(self, arrays: Sequence[Array], dtype: str, device: str, out: Array | None = None) -> Array:
        with torch.no_grad():
            if not arrays:
                return torch.empty(0, dtype=_dtype(dtype), device=device)
            if out is None and device == "cpu" and dtype in ("float32", "float64"):
                # Numpy asks the system for large pages, which torch does not: passes over them are quicker.
                out = torch.from_numpy(np.empty(sum(a.numel() for a in arrays), dtype))
            return torch.cat([a if a.dim() == 1 else a.reshape(-1) for a in arrays], out=out)

    def view(self, buffer: Array, start: int, stop: int, shape: tuple[int, ...]) -> Array:
        return buffer[start:stop].view(shape)

    def full(self, size: int, value: float, dtype: str, device: str) -> Array:
        kind = _dtype(dtype)
        if device == "cpu" and dtype in ("float32", "float64"):
            return torch.from_numpy(np.full(size, _representable(value, kind), dtype))
        return torch.full((size,), _representable(value, kind), dtype=kind, device=device)

    def copy(self, buffer: Array) -> Array:
        return buffer.clone()

    def assign(self, target: Array, source: Array) -> Array:
        if source.dtype != target.dtype:
            verify_writable(
                str(source.dtype).removeprefix("torch."), str(target.dtype).removeprefix("torch.")
            )
        return target.copy_(source)

    def cast(self, buffer: Array, dtype: str) -> Array:
        return buffer.to(_dtype(dtype))

    def to_numpy(self, buffer: Array) -> npt.NDArray[Any]:
        buffer = buffer.detach().cpu()
        result: npt.NDArray[Any] = (buffer.float() if buffer.dtype == torch.bfloat16 else buffer).numpy()
        return result

    def from_numpy(self, array: npt.NDArray[Any], dtype: str, device: str) -> Array:
        # A copy: numpy arrays may be read-only (safetensors, wire bytes), which torch cannot express.
        return torch.from_numpy(np.array(array).reshape(-1)).to(device=device, dtype=_dtype(dtype))

    def unary(self, operation: str, buffer: Array) -> Array:
        return UNARY[operation](buffer)

    def binary(self, operation: str, left: Any, right: Any) -> Array:
        result: Array
        if operation in _BOUNDS:
            scalar, both, by_numpy = _BOUNDS[operation]
            if all(map(_plain, (left, right))):
                # Of 0 and -0, torch's own takes one or the other by an entry's place in the array.
                return torch.from_numpy(by_numpy(*map(_of_numpy, (left, right))))
            if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
                result = both(left, right)
            else:
                array, bound = (left, right) if isinstance(left, torch.Tensor) else (right, left)
                result = torch.clamp(array, **{scalar: _representable(bound, array.dtype)})
        elif operation == "pow" and isinstance(right, int | float) and right == 0.5:
            result = _sqrt(left) if left.is_floating_point() else torch.pow(left, 0.5)
        else:
            if operation == "div" and not isinstance(left, torch.Tensor) and right.is_floating_point():
                # torch takes the reciprocal and multiplies: two roundings where one is due.
                left = torch.tensor(left, dtype=right.dtype, device=right.device)
            result = BINARY[operation](left, right)
        return result

    def where(self, condition: Array, left: Any, right: Any) -> Array:
        kind = next(side.dtype for side in (left, right) if isinstance(side, torch.Tensor))
        a, b = (s if isinstance(s, torch.Tensor) else _representable(s, kind) for s in (left, right))
        return torch.where(condition.bool(), a, b)

    def sum(self, buffer: Array) -> float:
        if buffer.device.type == "cpu":
            return summation.total(self.to_numpy(buffer))
        return float(buffer.sum(dtype=torch.float64))

    def dot(self, left: Array, right: Array) -> float:
        if left.device.type == "cpu":
            ours = self.to_numpy(left)
            return summation.dot(ours, ours if right is left else self.to_numpy(right))
        return float(self._segment(left, right))

    def segment_dots(
        self, left: Array, right: Array | None, starts: Sequence[int]
    ) -> npt.NDArray[np.float64]:
        if left.device.type == "cpu":
            ours = self.to_numpy(left)
            theirs = None if right is None else ours if right is left else self.to_numpy(right)
            return summation.segment_dots(ours, theirs, starts)
        sums = []
        for a, b in zip(starts, [*starts[1:], left.numel()], strict=True):
            part = left[a:b]
            other = None if right is None else part if right is left else right[a:b]
            sums.append(self._segment(part, other))
        return torch.stack(sums).cpu().numpy() if sums else np.zeros(0)

    @staticmethod
    def _segment(left: Array, right: Array | None) -> Array:
        if right is None:
            return left.sum(dtype=torch.float64)
        if right is left:
            norm: Array = torch.linalg.vector_norm(left, dtype=None if left.is_complex() else torch.float64)
            return norm * norm
        if left.is_complex():
            left, right = torch.view_as_real(left), torch.view_as_real(right)
        return (left.to(torch.float64) * right).sum()

    def repeat(self, values: npt.NDArray[np.float64], sizes: Sequence[int], dtype: str, device: str) -> Array:
        each = torch.from_numpy(values).to(device=device, dtype=_dtype(dtype))
        return torch.repeat_interleave(each, torch.tensor(sizes, device=device))


BACKEND = TorchBackend()
