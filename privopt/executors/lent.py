"""Runs compiled code for frameworks whose arrays cannot be written: jax's and tensorflow's on a CPU.

Results are computed in numpy's memory, of which the framework makes its arrays without copying. It is
*lent*: the framework refers to it for as long as anybody can see the values, be it through another array, a
view of numpy's, or a computation that is still under way. So where a target lets go of its array and nothing
refers to the memory any more, it is written again: a step needs no new memory, and no array changes that
anybody holds.
"""

from __future__ import annotations

import dataclasses
import gc
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from ..backends import Array, named_backend
from ..backends.common import Memory, address, aligned, entries, lent_memory
from .passes import Pass

__all__ = ["run"]


@dataclasses.dataclass(slots=True)
class _Taken:
    """What an output's target let go of."""

    output: int
    memory: Memory
    leaves: list[int]
    """Which of the job's arrays it was, too."""

    def is_free(self) -> bool:
        """Whether nothing else refers to the memory."""
        return sys.getrefcount(self.memory) == 2  # here, and as the argument of the call


def run(job: Pass, compiled: Callable[[Pass], list[Array] | None]) -> list[Array] | None:
    """Compute the outputs with what runs passes of numpy arrays; None, and all is as it was, where it cannot.

    Targets whose memory was written are left with numpy arrays: the caller gives them the results.
    """
    backend: Any = job.backend
    taken: list[_Taken] = []
    try:
        for output in range(len(job.targets)):
            _let_go(job, output, taken)
        _take(job, taken)
        work = _of_numpy(job)
        # Lent before anything is computed: once memory was written, nothing is left that could fail.
        lent: list[Array] = backend.lend(work.into, job.device)
        if _in_place(job, lent, work.into) and compiled(work) is not None:
            return lent
    except BaseException:
        _give_back(job, taken)
        raise
    _give_back(job, taken)
    return None


def _let_go(job: Pass, output: int, taken: list[_Taken]) -> None:
    """Part a target from its array, if the array lies in lent memory and nobody else seems to hold it."""
    target = job.targets[output]
    # With several blocks, one would be written already when the next one fails: these get new memory.
    if target is None or len(target.buffers) != 1:
        return
    array = target.buffers[0]
    leaves = [k for k, other in enumerate(job.arrays) if other is array]
    # Beside the job's lists there are the Vector and its tuple, the name here, and the argument of the call.
    if sys.getrefcount(target.buffers) > 2 or sys.getrefcount(array) > 4 + len(leaves):
        return
    memory = lent_memory(job.backend.to_numpy(array))
    if memory is not None:
        taken.append(_Taken(output, memory, leaves))
        _hand_out(job, taken[-1], None)


def _take(job: Pass, taken: list[_Taken]) -> None:
    """Give each target its memory to write to, or its array back if something does refer to the memory."""
    if not all(one.is_free() for one in taken):
        gc.collect(0)  # it is then that jax lets go of what its arrays referred to
    for one in taken:
        if one.is_free():
            _hand_out(job, one, _entries(job, one))
        else:
            _give_back(job, [one])


def _give_back(job: Pass, taken: list[_Taken]) -> None:
    """Make the framework's arrays of the memory again."""
    backend: Any = job.backend
    for one in taken:
        _hand_out(job, one, backend.lend([_entries(job, one)], job.device)[0])


def _in_place(job: Pass, lent: list[Array], memory: list[Any]) -> bool:
    """Whether the framework took the memory itself, not a copy."""
    pairs = zip(lent, memory, strict=True)
    return all(address(job.backend.to_numpy(array)) == address(own) for array, own in pairs)


def _hand_out(job: Pass, one: _Taken, array: Array | None) -> None:
    """Put an array where the target's was."""
    job.targets[one.output].buffers = () if array is None else (array,)
    job.into[one.output] = array
    for leaf in one.leaves:
        job.arrays[leaf] = array


def _entries(job: Pass, one: _Taken) -> Array:
    return entries(one.memory, _dtype(job, one.output))


def _dtype(job: Pass, output: int) -> np.dtype[Any]:
    return np.dtype(job.program.dtypes[job.program.outputs[output]])


def _of_numpy(job: Pass) -> Pass:
    """The same pass on numpy's views; what has no memory to be written gets some."""
    views: dict[int, Array] = {}

    def view(array: Array) -> Array:
        if isinstance(array, np.ndarray):
            return array
        if id(array) not in views:
            views[id(array)] = job.backend.to_numpy(array)
        return views[id(array)]

    return dataclasses.replace(
        job,
        backend=named_backend("numpy"),
        arrays=[view(array) for array in job.arrays],
        into=[
            target if isinstance(target, np.ndarray) else aligned(job.size, _dtype(job, output))
            for output, target in enumerate(job.into)
        ],
        targets=(),
    )
