"""Runs a program in blocks with the framework's own operations: what is in between stays in cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..backends import Array, Backend
from ..expression import BINARY, UNARY, Program, nodes_of
from .passes import Pass
from .threads import in_parallel

__all__ = ["interpret", "run"]

BLOCK = 1 << 16
"""Entries of a block: small enough for caches, large enough that threads do not queue for the interpreter."""


def run(job: Pass) -> list[Array]:
    """Write every output into its target (a new array where there is none)."""
    backend = job.backend
    targets = [
        backend.full(job.size, 0, job.program.dtypes[node], job.device) if target is None else target
        for node, target in zip(job.program.outputs, job.into, strict=True)
    ]

    def part(start: int, stop: int) -> None:
        for a in range(start, stop, BLOCK):
            b = min(a + BLOCK, stop)
            with np.errstate(all="ignore"):
                results = interpret(job, a, b)
            for target, result in zip(targets, results, strict=True):
                backend.assign(backend.view(target, a, b, (b - a,)), result)

    if backend.name == "numpy":
        in_parallel(part, job.size, 4 * BLOCK)
    else:
        part(0, job.size)
    return targets


def interpret(job: Pass, start: int, stop: int) -> list[Array]:
    """The outputs' entries from `start` to `stop`, as new arrays (none shares memory with a leaf)."""
    backend, program = job.backend, job.program
    size = stop - start
    values: dict[int, Any] = {}
    last = program.kernels.get("last uses")
    if last is None:
        last = program.kernels["last uses"] = _last_uses(program)
    for node, (op, *operands) in enumerate(program.code):
        if op in UNARY or op in BINARY or op == "where":
            inputs = [values[x] if x >= 0 else job.scalars[-1 - x] for x in map(int, operands)]
            if op in UNARY:
                values[node] = backend.unary(str(op), *inputs)
            elif op in BINARY:
                values[node] = backend.binary(str(op), *inputs)
            else:
                values[node] = backend.where(*inputs)
        elif op == "leaf":
            whole = job.arrays[int(operands[0])]
            values[node] = whole if size == job.size else backend.view(whole, start, stop, (size,))
        elif op == "cast":
            values[node] = backend.cast(values[int(operands[0])], program.dtypes[node])
        elif op == "fill":
            number = job.scalars[-1 - int(operands[0])]
            values[node] = backend.full(size, number, program.dtypes[node], job.device)
        else:
            point = job.points[int(operands[0])]
            values[node] = _spread(backend, job, point, start, stop, program.dtypes[node])
        for spent in last[node]:
            del values[spent]
    # A leaf that is kept as it is (two states that change places) is read before any target is written.
    given = {node for node, (op, *_) in enumerate(program.code) if op in ("leaf", "cast")}
    results = []
    for node in program.outputs:
        results.append(backend.copy(values[node]) if node in given else values[node])
        given.add(node)  # two outputs of one value do not share it
    return results


def _last_uses(program: Program) -> tuple[tuple[int, ...], ...]:
    last = dict(enumerate(range(len(program.code))))
    for node, instruction in enumerate(program.code):
        for operand in nodes_of(instruction):
            last[operand] = node
    spent: list[list[int]] = [[] for _ in program.code]
    for node, user in last.items():
        if node not in program.outputs:
            spent[user].append(node)
    return tuple(map(tuple, spent))


def _spread(backend: Backend, job: Pass, point: Any, start: int, stop: int, dtype: str) -> Array:
    first = int(np.searchsorted(job.bounds, start, side="right")) - 1
    end = int(np.searchsorted(job.bounds, stop, side="left"))
    cuts = np.clip(job.bounds[first : end + 1], start, stop)
    sizes: Sequence[int] = np.diff(cuts).tolist()
    return backend.repeat(np.asarray(point[first:end], np.float64), sizes, dtype, job.device)
