"""Compiles a program into one loop over memory: every leaf is read once and every output written once.

The code is spelled by `loops` (passes) and `sums` (norms and sums in the order of `privopt.summation`),
compiled by `kernels` and run by `threads`. Its results equal eager's bit for bit.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..backends import Backend
from ..layout import Block
from ..summation import CHUNK
from . import loops, sums
from .kernels import Kernel, compiled
from .passes import Pass
from .threads import together

__all__ = ["run", "segment_products", "sum_products"]

Array = npt.NDArray[Any]
PIECE = 1 << 16
"""Entries that a thread takes at a time: enough that taking one costs nothing."""
CHUNKS = 16
"""Chunks of a sum that a thread takes at a time: as many entries."""


# ---- passes -----------------------------------------------------------------------------------------------


def run(job: Pass) -> list[Any] | None:
    """Compute the outputs into their targets (new arrays where there is none).

    Returns None, and has done nothing, where memory is not plain: an array's entries lie apart, or a target
    lies across another array.
    """
    program = job.program
    by_numpy = job.backend.name == "numpy"
    arrays = list(job.arrays)
    places = {id(array): k for k, array in enumerate(arrays)}
    targets: list[Any] = []
    shared = []
    for node, target in zip(program.outputs, job.into, strict=True):
        if target is None:
            # Numpy asks the system for large pages, which torch does not.
            target = np.empty(job.size, program.dtypes[node])
            target = target if by_numpy else sys.modules["torch"].from_numpy(target)
        place = places.get(id(target), -1)
        shared.append(place)
        if place < 0:
            arrays.append(target)
        targets.append(target)
    addresses = [_address(array, by_numpy) for array in arrays]
    kernels = program.kernels
    overwritten = tuple(shared)
    placed = overwritten, addresses
    if placed != kernels.get("plain"):
        if not _plain(arrays, addresses, len(job.arrays), shared):
            return None
        kernels["plain"] = placed
    made = kernels.get(overwritten)
    if made is None:
        (kernel,) = compiled(loops.source(program, overwritten), "kernel")
        fields = ctypes.c_int64 * (loops.ARRAYS + len(addresses))
        made = kernels[overwritten] = kernel, fields
    kernel, fields = made
    numbers = (ctypes.c_double * len(job.scalars))(*job.scalars)
    segments = bounds = points = 0
    rows = None
    if program.segmented:
        rows = np.array(job.points, np.float64)
        segments, bounds, points = len(job.bounds) - 1, job.bounds.ctypes.data, rows.ctypes.data
    together(
        kernel,
        fields(0, job.size, PIECE, ctypes.addressof(numbers), bounds, points, segments, *addresses),
        -(-job.size // PIECE),
        (arrays, numbers, rows, job.bounds),
    )
    return targets


def _address(array: Any, by_numpy: bool) -> int:
    """Where an array's entries lie; 0 if not one after the other, each at a multiple of its size."""
    if by_numpy:
        plain, address, size = array.flags.c_contiguous, array.ctypes.data, array.itemsize
    else:
        plain, address, size = array.is_contiguous(), array.data_ptr(), array.element_size()
    return int(address) if plain and address % size == 0 else 0


def _plain(arrays: Sequence[Any], addresses: Sequence[int], leaves: int, shared: Sequence[int]) -> bool:
    """Whether no array lies apart and no target lies across another array.

    An array may lie exactly where another does: in each turn all entries are read before any is written.
    """
    if 0 in addresses:
        return False
    spans = [(a, a + x.shape[0] * x.dtype.itemsize) for a, x in zip(addresses, arrays, strict=True)]
    written = {*range(leaves, len(arrays)), *(k for k in shared if k >= 0)}
    if len({addresses[k] for k in written}) < len(shared):
        return False  # two outputs in one place
    return not any(
        spans[k][0] < stop and start < spans[k][1]
        for k in written
        for start, stop in spans
        if (start, stop) != spans[k]
    )


# ---- sums -------------------------------------------------------------------------------------------------


def sum_products(backend: Backend, left: Any, right: Any | None, where: Block) -> float | None:
    """Inner product of two arrays (or the sum of one), as `privopt.summation` gives it.

    Returns None where an array's memory is not plain.
    """
    total = ctypes.c_double()
    done = _sum(backend, left, right, where, _chunks(where.size), ctypes.addressof(total))
    return total.value if done else None


def segment_products(
    backend: Backend, left: Any, right: Any | None, starts: Sequence[int], where: Block
) -> npt.NDArray[np.float64] | None:
    """The same for each segment that begins at `starts`."""
    sums = np.empty(len(starts))
    chunks = _chunks_of_segments(_Itself(starts), where.size)
    return sums if _sum(backend, left, right, where, chunks, sums.ctypes.data) else None


class _Chunks:
    """Where the chunks of a sum begin and end, and how many each segment has; with what C wants to know."""

    def __init__(
        self, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]
    ) -> None:
        self._kept = starts, ends, counts
        self.number = len(starts)
        self.segments = len(counts)
        self.addresses = [int(array.ctypes.data) for array in self._kept]
        self.parts = ctypes.c_double * len(starts)


@functools.lru_cache(maxsize=256)
def _chunks(size: int) -> _Chunks:
    starts = np.arange(0, size, CHUNK)
    return _Chunks(starts, np.minimum(starts + CHUNK, size), np.array([len(starts)]))


class _Itself:
    """A list as a key: a layout hands out the same one each time, and a million numbers take long to hash."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self.numbers = numbers

    def __hash__(self) -> int:
        return id(self.numbers)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and self.numbers is other.numbers


@functools.lru_cache(maxsize=64)
def _chunks_of_segments(starts: _Itself, size: int) -> _Chunks:
    bounds = np.array([*starts.numbers, size], np.int64)
    counts = -(-np.diff(bounds) // CHUNK)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    begins = np.repeat(bounds[:-1], counts) + within * CHUNK
    return _Chunks(begins, np.minimum(begins + CHUNK, np.repeat(bounds[1:], counts)), counts)


def _sum(backend: Backend, left: Any, right: Any | None, where: Block, chunks: _Chunks, sums: int) -> bool:
    """Write the sum of each segment to an address."""
    by_numpy = backend.name == "numpy"
    one = _address(left, by_numpy)
    other = one if right is None or right is left else _address(right, by_numpy)
    if not (one and other):
        return False
    kind = "none" if right is None else "square" if right is left else "product"
    kernel, in_order = _sums_kernels(where.dtype, kind)
    parts = chunks.parts()
    starts, ends, counts = chunks.addresses
    place = ctypes.addressof(parts)
    job = (ctypes.c_int64 * 8)(0, chunks.number, CHUNKS, starts, ends, place, one, other)
    together(kernel, job, -(-chunks.number // CHUNKS), (left, right, chunks, parts))
    in_order.call((ctypes.c_int64 * 4)(chunks.segments, place, counts, sums))
    return True


@functools.cache
def _sums_kernels(dtype: str, kind: str) -> tuple[Kernel, Kernel]:
    kernel, in_order = compiled(sums.source(dtype, kind) + sums.IN_ORDER, "sums", "in_order")
    return kernel, in_order
