"""Sums in one fixed order: part of floor 2, so that every executor and thread count gives the same bits.

Entries are cut into chunks of `CHUNK`. In a chunk, entry i is added to lane ``i % LANES`` in order; the
lanes are folded in halves; the chunks' sums are added in order. Everything is float64. The llvm executor
follows the same order in compiled code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["CHUNK", "LANES", "chunk_sums", "dot", "in_order", "segment_dots", "total"]

CHUNK = 4096
LANES = 32
_PIECE = 8 * CHUNK
"""Entries held in float64 at a time: they stay in cache."""

Floats = npt.NDArray[np.float64]
Array = npt.NDArray[Any]


def total(values: Array) -> float:
    """Sum of all entries.

    Raises:
        TypeError: If they are complex; a sum is a real number here.
    """
    if values.dtype.kind == "c":
        raise TypeError(f"Expected real numbers to sum, got {values.dtype}. Sum real and imaginary parts.")
    return in_order(chunk_sums(values))


def dot(left: Array, right: Array) -> float:
    """Inner product; complex numbers count as pairs of reals."""
    return in_order(chunk_sums(*_reals(left, right)))


def segment_dots(left: Array, right: Array | None, starts: Sequence[int]) -> Floats:
    """`dot` (or `total`, where `right` is None) of each segment from `starts`; the last ends the array.

    Segments of one length that follow one another are summed together, which costs one pass.
    """
    if right is not None:
        scale = 2 if left.dtype.kind == "c" else 1
        left, right = _reals(left, right)
        starts = [scale * start for start in starts]
    bounds = np.append(np.asarray(starts, np.int64), left.size)
    sizes = np.diff(bounds)
    sums = np.zeros(len(sizes))
    first = 0
    for last in [*(np.flatnonzero(np.diff(sizes)) + 1).tolist(), len(sizes)]:
        size, count = int(sizes[first]) if len(sizes) else 0, last - first
        if size and count:
            span = slice(bounds[first], bounds[last])
            rows = left[span].reshape(count, size)
            others = None if right is None else rows if right is left else right[span].reshape(count, size)
            sums[first:last] = _rows(rows, others)
        first = last
    return sums


def in_order(parts: Floats) -> float:
    """The parts added one after the other."""
    return float(np.add.accumulate(parts)[-1]) if parts.size else 0.0


def chunk_sums(left: Array, right: Array | None = None) -> Floats:
    """The sum of each chunk of one long array, or of its product with another."""
    pieces = []
    for a in range(0, left.size, _PIECE):
        piece = left[a : a + _PIECE]
        other = None if right is None else piece if right is left else right[a : a + _PIECE]
        pieces.append(_folded(_products(piece, other)[None])[0])
    return np.concatenate(pieces) if pieces else np.zeros(0)


def _rows(left: Array, right: Array | None) -> Floats:
    count, size = left.shape
    if size > _PIECE:
        return np.array(
            [
                in_order(chunk_sums(row, None if right is None else row if right is left else right[k]))
                for k, row in enumerate(left)
            ]
        )
    sums = np.empty(count)
    batch = max(1, _PIECE // size)
    for a in range(0, count, batch):
        piece = left[a : a + batch]
        other = None if right is None else piece if right is left else right[a : a + batch]
        parts = _folded(_products(piece, other))
        sums[a : a + batch] = np.add.accumulate(parts, axis=1)[:, -1]
    return sums


def _products(left: Array, right: Array | None) -> Floats:
    wide = left.astype(np.float64)
    if right is not None:
        with np.errstate(over="ignore", invalid="ignore"):
            wide *= wide if right is left else right
    return wide


def _folded(products: Floats) -> Floats:
    """Chunk sums of each row, shape ``(rows, chunks)``."""
    rows, size = products.shape
    unit = CHUNK if size > CHUNK else LANES
    if size % unit:
        # Zeros change no sum, and every lane then has as many entries.
        padded = np.zeros((rows, size + -size % unit))
        padded[:, :size] = products
        products = padded
    with np.errstate(over="ignore", invalid="ignore"):
        lanes = np.add.reduce(products.reshape(rows, -(-size // CHUNK), -1, LANES), axis=2)
        half = LANES // 2
        while half:
            lanes = lanes[..., :half] + lanes[..., half : 2 * half]
            half //= 2
    folded: Floats = lanes[..., 0]
    return folded


def _reals(left: Array, right: Array) -> tuple[Array, Array]:
    if left.dtype.kind == "c" or right.dtype.kind == "c":
        if left.dtype.kind != right.dtype.kind:
            raise TypeError(f"Expected two complex or two real arrays, got {left.dtype} and {right.dtype}.")
        same = left is right
        left = np.ascontiguousarray(left).view(left.real.dtype)
        right = left if same else np.ascontiguousarray(right).view(right.real.dtype)
    return left, right
