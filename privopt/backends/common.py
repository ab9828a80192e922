"""What the frameworks with immutable arrays share.

Contents: dtypes by name (`DTYPES`, `kind`), runs of equal segments (`runs`), memory that is lent to a
framework (`aligned`, `lent_memory`, `entries`, `address`).
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "DTYPES",
    "Memory",
    "address",
    "aligned",
    "entries",
    "kind",
    "lent_memory",
    "runs",
    "verify_dtype",
    "verify_writable",
]

DTYPES = frozenset(
    {
        *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("float16", "bfloat16", "float32", "float64", "complex64", "complex128"),
    }
)
_KINDS = "buifc"  # in the order in which values may be written without changing their kind


def kind(dtype: str) -> str:
    """Numpy's letter for booleans, unsigned and signed integers, floats and complex numbers."""
    return "f" if dtype == "bfloat16" else np.dtype(dtype).kind


def verify_dtype(dtype: str, framework: str) -> None:
    """Raise unless a Vector can hold this dtype of a framework."""
    if dtype not in DTYPES:
        raise TypeError(f"Expected numbers, got a {framework} array of dtype {dtype}.")


def verify_writable(source: str, target: str) -> None:
    """Raise where writing would change the kind of number, as numpy does in place."""
    if _KINDS.index(kind(source)) > _KINDS.index(kind(target)):
        raise TypeError(
            f"Expected values that fit into {target}, got {source}. Convert with .astype({source!r}) first."
        )


def runs(starts: Sequence[int], end: int) -> Iterator[tuple[int, int, int]]:
    """Segments of one length that follow one another, as (start, count, size)."""
    bounds = [*starts, end]
    first = 0
    for i in range(1, len(starts) + 1):
        size = bounds[first + 1] - bounds[first]
        if i == len(starts) or bounds[i + 1] - bounds[i] != size:
            yield bounds[first], i - first, size
            first = i


# ---- memory that is lent -----------------------------------------------------------------------------------

Memory = npt.NDArray[np.uint8]
"""Bytes to which everything refers that can reach them: numpy's views do, and so does who was handed one."""

ALIGNMENT = 64
"""Where XLA and Eigen want an array to begin, so that they take its memory instead of a copy."""
_MEMORIES: weakref.WeakValueDictionary[int, Memory] = weakref.WeakValueDictionary()


def aligned(size: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """A new array that frameworks can take without copying."""
    memory = np.empty(size * dtype.itemsize + ALIGNMENT, np.uint8)
    _MEMORIES[address(memory) + -address(memory) % ALIGNMENT] = memory
    return entries(memory, dtype)


def entries(memory: Memory, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """The array in memory that `aligned` gave."""
    start = -address(memory) % ALIGNMENT
    return memory[start : start + memory.size - ALIGNMENT].view(dtype)


def lent_memory(values: npt.NDArray[Any]) -> Memory | None:
    """The memory from `aligned` that exactly these values fill, if it is such."""
    memory = _MEMORIES.get(address(values))
    return memory if memory is not None and memory.size == values.nbytes + ALIGNMENT else None


def address(array: npt.NDArray[Any]) -> int:
    """Where an array's first entry lies."""
    where: int = array.__array_interface__["data"][0]
    return where
