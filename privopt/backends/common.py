"""What the frameworks with immutable arrays share: dtypes by name, and runs of equal segments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

__all__ = ["DTYPES", "kind", "runs", "verify_dtype", "verify_writable"]

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
