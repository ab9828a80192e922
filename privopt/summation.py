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
_PIECE = 32 * CHUNK
"""Entries held in float64 at a time: they stay in cache."""
_GROUP = 16 * _PIECE
"""Entries whose lanes are folded together: a few calls for many chunks."""
_FOLDED = 1 << 16
"""Lanes of rows that are folded together."""

Floats = npt.NDArray[np.float64]
Array = npt.NDArray[Any]


def total(values: Array) -> float:
    """Sum of all entries.

    Raises:
        TypeError: If they are complex; a sum is a real number here.
    """
    if values.dtype.kind == "c":
        raise TypeError(f"Expected real numbers to sum, got {values.dtype}. Sum real and imaginary parts.")
    return _short(values, None) if values.size <= CHUNK else in_order(chunk_sums(values))


def dot(left: Array, right: Array) -> float:
    """Inner product; complex numbers count as pairs of reals."""
    left, right = _reals(left, right)
    return _short(left, right) if left.size <= CHUNK else in_order(chunk_sums(left, right))


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
            ours = left[span]
            theirs = None if right is None else ours if right is left else right[span]
            sums[first:last] = _rows(ours, theirs, count)
        first = last
    return sums


def in_order(parts: Floats) -> float:
    """The parts added one after the other."""
    return float(np.add.accumulate(parts)[-1]) if parts.size else 0.0


def chunk_sums(left: Array, right: Array | None = None) -> Floats:
    """The sum of each chunk of one long array, or of its product with another."""
    size = left.size
    found = np.empty(-(-size // CHUNK))
    add_up = _Lanes(min(size, _PIECE), left, right)
    for start in range(0, size, _GROUP):
        stop = min(start + _GROUP, size)
        lanes = np.empty((-(-(stop - start) // CHUNK), LANES))
        for a in range(start, stop, _PIECE):
            first, many = (a - start) // CHUNK, min(_PIECE, stop - a)
            add_up(a, 1, many, lanes[None, first : first - (-many // CHUNK)])
        found[start // CHUNK : -(-stop // CHUNK)] = _folded(lanes.T.copy())
    return found


def _short(left: Array, right: Array | None) -> float:
    """The same for one chunk, with fewer calls."""
    size = left.size
    wide = np.empty(size + -size % LANES)
    with np.errstate(over="ignore", invalid="ignore"):
        if right is None:
            wide[:size] = left
        else:
            np.multiply(left, right, out=wide[:size], dtype=np.float64)
        wide[size:] = 0.0  # zeros change no sum, and every lane then has as many entries
        lanes = np.add.reduce(wide.reshape(-1, LANES), axis=0)
    return float(_folded(lanes))


def _rows(left: Array, right: Array | None, count: int) -> Floats:
    """The sum of each of so many rows of one length."""
    size = left.size // count
    sums = np.empty(count)
    if size > _PIECE:
        for k in range(count):
            row = left[k * size : (k + 1) * size]
            other = None if right is None else row if right is left else right[k * size : (k + 1) * size]
            sums[k] = in_order(chunk_sums(row, other))
        return sums
    batch = min(count, _PIECE // size)
    add_up = _Lanes(batch * (size + LANES), left, right)
    if size <= LANES:
        for a in range(0, count, batch):
            rows = min(batch, count - a)
            sums[a : a + rows] = _folded(add_up.products(a * size, rows, size).T.copy())
        return sums
    chunks = -(-size // CHUNK)
    group = max(1, _FOLDED // (chunks * LANES * batch)) * batch
    for start in range(0, count, group):
        stop = min(start + group, count)
        lanes = np.empty((stop - start, chunks, LANES))
        for a in range(start, stop, batch):
            rows = min(batch, stop - a)
            add_up(a * size, rows, size, lanes[a - start : a - start + rows])
        parts = _folded(lanes.reshape(-1, LANES).T.copy()).reshape(-1, chunks)
        sums[start:stop] = np.add.accumulate(parts, axis=1)[:, -1]
    return sums


class _Lanes:
    """Adds up lanes, in memory that is used again for every piece: to get new memory costs as much as to add.

    Args:
        size: Entries of the largest piece, each row of it with room for `LANES` more.
        left: What is added up: its entries or, with `right`, the products.
        right: The other factors.
    """

    def __init__(self, size: int, left: Array, right: Array | None) -> None:
        self._left, self._right = left, right
        self._memory = np.empty((1 if right is None or right is left else 2, size + LANES))
        # Products of short floats are exact in float64: it does not matter whether they are rounded.
        self._exact = right is not None and _is_short(left) and _is_short(right)

    def __call__(self, start: int, rows: int, size: int, lanes: Floats) -> None:
        """Write the lanes of each row's chunks, shape ``(rows, chunks, LANES)``."""
        whole = size // CHUNK
        if whole:
            self._add(start, rows, size, slice(0, whole * CHUNK), lanes[:, :whole])
        if size % CHUNK:
            self._add(start, rows, size, slice(whole * CHUNK, size), lanes[:, whole:])

    def products(self, start: int, rows: int, size: int) -> Floats:
        """What is added up, in float64, shape ``(rows, size)``."""
        ours, theirs = self._factors(start, rows, size, slice(0, size), size)
        return ours if theirs is None else _multiplied(ours, theirs)

    def _add(self, start: int, rows: int, size: int, part: slice, lanes: Floats) -> None:
        width = part.stop - part.start
        ours, theirs = self._factors(start, rows, size, part, width + -width % LANES)
        shape = rows, lanes.shape[1], -1, LANES
        if theirs is not None and self._exact:
            np.einsum("rcij,rcij->rcj", ours.reshape(shape), theirs.reshape(shape), out=lanes)
        else:
            products = ours if theirs is None else _multiplied(ours, theirs)
            np.einsum("rcij->rcj", products.reshape(shape), out=lanes)

    def _factors(
        self, start: int, rows: int, size: int, part: slice, padded: int
    ) -> tuple[Floats, Floats | None]:
        """A part of each row in float64, with zeros, which change no sum, up to a round of all lanes."""
        wide = []
        for memory, side in zip(self._memory, (self._left, self._right), strict=False):
            table = memory[: rows * padded].reshape(rows, padded)
            entries = side[start : start + rows * size].reshape(rows, size)[:, part]  # type: ignore[index]
            width = entries.shape[1]
            table[:, :width] = entries
            if padded > width:
                table[:, width:] = 0.0
            wide.append(table)
        return wide[0], None if self._right is None else wide[-1]


def _is_short(array: Array) -> bool:
    return array.dtype.kind == "f" and array.dtype.itemsize <= 4


def _multiplied(left: Floats, right: Floats) -> Floats:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.multiply(left, right, out=left)


def _folded(lanes: Floats) -> Any:
    """The sum of up to `LANES` lanes (or rows of lanes): the second half is added to the first, and so on."""
    count, half = len(lanes), LANES // 2
    with np.errstate(over="ignore", invalid="ignore"):
        while half:
            if count > half:
                lanes[: count - half] += lanes[half:count]
                count = half
            half //= 2
        return lanes[0] + 0.0  # a lane without entries is 0.0


def _reals(left: Array, right: Array) -> tuple[Array, Array]:
    if left.dtype.kind == "c" or right.dtype.kind == "c":
        if left.dtype.kind != right.dtype.kind:
            raise TypeError(f"Expected two complex or two real arrays, got {left.dtype} and {right.dtype}.")
        same = left is right
        left = np.ascontiguousarray(left).view(left.real.dtype)
        right = left if same else np.ascontiguousarray(right).view(right.real.dtype)
    return left, right
