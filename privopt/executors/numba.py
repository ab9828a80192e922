"""Compiles a program into one loop over memory: every leaf is read once and every output written once.

Contents: passes (`run`), sums in the order of `privopt.summation`, code generation (`source`).
The generated code is spelled from a fixed table of operations; numbers are its parameters. It uses no
reordering and no contraction, so its results equal eager's bit for bit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..expression import Program
from ..summation import CHUNK, LANES
from .kernels import compiled
from .passes import Pass
from .threads import in_parallel

__all__ = ["run", "segment_products", "source", "sum_products"]

Array = npt.NDArray[Any]
PIECE = 1 << 18
"""Entries that a thread takes at a time: enough that taking one costs nothing."""
LEAST = 1 << 16
"""Fewest entries worth waking another thread for."""


def run(job: Pass) -> list[Array]:
    """Compute the outputs into their targets (new arrays where there is none)."""
    program = job.program
    targets = [
        np.empty(job.size, program.dtypes[node]) if target is None else target
        for node, target in zip(program.outputs, job.into, strict=True)
    ]
    # An array that is read and written is passed once: the compiler is told that arrays do not overlap.
    places = {id(array): k for k, array in enumerate(job.arrays)}
    if len(places) < len(job.arrays):
        return _run_without_twins(job, targets)
    shared = tuple(places.get(id(target), -1) for target in targets)
    arrays = [*job.arrays, *(t for t, k in zip(targets, shared, strict=True) if k < 0)]
    kernel = program.kernels.get(shared)
    if kernel is None:
        kernel = program.kernels[shared] = compiled(source(program, shared))
    narrow = np.array(job.scalars, np.float64)
    with np.errstate(over="ignore"):
        numbers = (narrow.astype(np.float32), narrow)
    if program.segmented:
        points = np.asarray(job.points, np.float64)
        bounds = job.bounds

        def part(start: int, stop: int) -> None:
            first = int(np.searchsorted(bounds, start, side="right")) - 1
            kernel(start, stop, *numbers, first, bounds, points, *arrays)
    else:

        def part(start: int, stop: int) -> None:
            kernel(start, stop, *numbers, *arrays)

    in_parallel(part, job.size, _piece(job.size))
    return targets


def _piece(size: int) -> int:
    return max(LEAST, min(PIECE, -(-size // 2)))


def _run_without_twins(job: Pass, targets: list[Array]) -> list[Array]:
    """The same where one array is two leaves: read a copy for the second."""
    seen: set[int] = set()
    arrays = []
    for array in job.arrays:
        arrays.append(array.copy() if id(array) in seen else array)
        seen.add(id(array))
    return run(
        Pass(
            job.backend,
            job.program,
            arrays,
            job.scalars,
            job.points,
            job.bounds,
            targets,
            job.size,
            job.device,
        )
    )


# ---- sums -----------------------------------------------------------------------------------------------


def sum_products(left: Array, right: Array | None) -> float:
    """Inner product of two arrays (or the sum of one), as `privopt.summation` gives it."""
    starts = np.arange(0, left.size, CHUNK)
    parts = _chunk_sums(left, right, starts, np.minimum(starts + CHUNK, left.size))
    return float(_in_order(parts)) if parts.size else 0.0


def segment_products(left: Array, right: Array | None, starts: Sequence[int]) -> npt.NDArray[np.float64]:
    """The same for each segment that begins at `starts`."""
    bounds = np.append(np.asarray(starts, np.int64), left.size)
    chunks = -(-np.diff(bounds) // CHUNK)
    firsts = np.cumsum(chunks) - chunks
    within = np.arange(chunks.sum()) - np.repeat(firsts, chunks)
    begins = np.repeat(bounds[:-1], chunks) + within * CHUNK
    ends = np.minimum(begins + CHUNK, np.repeat(bounds[1:], chunks))
    sums = np.zeros(len(chunks))
    _add_segments()(_chunk_sums(left, right, begins, ends), firsts, chunks, sums)
    return sums


def _in_order(parts: npt.NDArray[np.float64]) -> float:
    return float(np.add.accumulate(parts)[-1])


def _chunk_sums(left: Array, right: Array | None, starts: Any, ends: Any) -> npt.NDArray[np.float64]:
    parts = np.empty(len(starts))
    kernel = _sums_kernel("none" if right is None else "square" if right is left else "product")
    arrays = (left,) if right is None or right is left else (left, right)

    def part(start: int, stop: int) -> None:
        kernel(start, stop, starts, ends, np.empty(LANES), parts, *arrays)

    in_parallel(part, len(starts), max(16, min(64, -(-len(starts) // 2))))
    return parts


_ROWS = 8
"""Rows of lanes added at a time: a lane's sum stays in a register for as long."""

_TERMS = {
    "none": ("x", "np.float64({x})"),
    "square": ("x", "np.float64({x}) * np.float64({x})"),
    "product": ("x, y", "np.float64({x}) * np.float64({y})"),
}


@functools.cache
def _sums_kernel(kind: str) -> Callable[..., None]:
    names, term = _TERMS[kind]
    arrays = names.split(", ")

    def at(index: str, suffix: str = "") -> str:
        return term.format(**{name: f"{name}{suffix}[{index}]" for name in arrays})

    step = _ROWS * LANES
    return compiled(
        _lines(
            f"def kernel(first, last, starts, ends, lanes, parts, {', '.join(f'all_{a}' for a in arrays)}):",
            1, "for chunk in range(first, last):",
            2, "start, end = starts[chunk], ends[chunk]",
            *(f"{a} = all_{a}[start:end]" for a in arrays),
            "size = end - start",
            f"for lane in range({LANES}):",
            3, "lanes[lane] = 0.0",
            2, f"for block in range(size // {step}):",
            3, *(f"{a}_ = {a}[block * {step} : (block + 1) * {step}]" for a in arrays),
            f"for lane in range({LANES}):",
            4, "total = lanes[lane]",
            *(f"total += {at(f'{row * LANES} + lane', '_')}" for row in range(_ROWS)),
            "lanes[lane] = total",
            2, f"for i in range(size // {step} * {step}, size):",
            3, f"lanes[i % {LANES}] += {at('i')}",
            2, f"half = {LANES // 2}",
            "while half > 0:",
            3, "for lane in range(half):",
            4, "lanes[lane] += lanes[lane + half]",
            3, "half //= 2",
            2, "parts[chunk] = lanes[0]",
        )
    )  # fmt: skip


@functools.cache
def _add_segments() -> Callable[..., None]:
    return compiled("""\
def kernel(parts, firsts, counts, sums):
    for segment in range(len(firsts)):
        if counts[segment] > 0:
            total = parts[firsts[segment]]
            for k in range(1, counts[segment]):
                total += parts[firsts[segment] + k]
            sums[segment] = total
""")


# ---- code generation --------------------------------------------------------------------------------------

_ARITHMETIC = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
_COMPARISONS = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}
_CASTS = {"float32": "np.float32", "float64": "np.float64", "bool": "np.bool_"}


def source(program: Program, shared: tuple[int, ...]) -> str:
    """The loop as Python text for numba.

    Args:
        program: What to compute; dtypes float32, float64 and bool.
        shared: For each output the leaf whose array it overwrites, or -1.
    """
    count = 1 + max((int(args[0]) for op, *args in program.code if op == "leaf"), default=-1)
    arrays = [f"x{k}" for k in range(count)]
    fresh = [f"o{k}" for k, leaf in enumerate(shared) if leaf < 0]
    targets = [f"x{leaf}" if leaf >= 0 else f"o{k}" for k, leaf in enumerate(shared)]
    numbers: dict[str, str] = {}
    spreads: dict[str, str] = {}
    body = [f"v{node} = {_spelled(program, node, numbers, spreads)}" for node in range(len(program.code))]
    # All reads come before all writes, so arrays may change places.
    body += [f"{t}[i] = v{node}" for t, node in zip(targets, program.outputs, strict=True)]
    names = ", ".join(arrays + fresh)
    before = [f"{name} = {value}" for name, value in numbers.items()]
    if not program.segmented:
        return _lines(
            f"def kernel(start, stop, narrow, wide, {names}):",
            1, *before,
            *(f"{a} = {a}[start:stop]" for a in arrays + fresh),
            # From 0: an index that could be negative keeps the loop from being vectorized.
            "for i in range(stop - start):",
            2, *body,
        )  # fmt: skip
    return _lines(
        f"def kernel(start, stop, narrow, wide, segment, bounds, points, {names}):",
        1, *before,
        "at = start",
        "while at < stop:",
        2, "end = min(bounds[segment + 1], stop)",
        *(f"{name} = {value}" for name, value in spreads.items()),
        *(f"{a}_ = {a}[at:end]" for a in arrays + fresh),
        "for i in range(end - at):",
        3, *(_within(line, arrays + fresh) for line in body),
        2, "at = end", "segment += 1",
    )  # fmt: skip


def _lines(*parts: str | int) -> str:
    depth, lines = 0, []
    for part in parts:
        if isinstance(part, int):
            depth = part
        else:
            lines.append("    " * depth + part)
    return "\n".join(lines) + "\n"


def _within(line: str, arrays: Sequence[str]) -> str:
    for array in arrays:
        line = line.replace(f"{array}[i]", f"{array}_[i]")
    return line


def _spelled(program: Program, node: int, numbers: dict[str, str], spreads: dict[str, str]) -> str:
    op, *operands = program.code[node]
    dtype = program.dtypes[node]

    def value(operand: str | int, kind: str) -> str:
        """An operand as a `kind`."""
        k = int(operand)
        if k < 0:
            wide = kind != "float32"
            name = f"{'d' if wide else 'f'}{-1 - k}"
            numbers[name] = f"{'wide' if wide else 'narrow'}[{-1 - k}]"
            return name
        return f"v{k}" if program.dtypes[k] == kind else f"{_CASTS[kind]}(v{k})"

    if op == "leaf":
        return f"x{operands[0]}[i]"
    if op == "spread":
        name = f"p{operands[0]}_{dtype}"
        spreads[name] = f"{_CASTS[dtype]}(points[{operands[0]}, segment])"
        return name
    if op == "fill":
        return f"{_CASTS[dtype]}({value(operands[0], dtype)})"
    if op == "cast":
        return f"{_CASTS[dtype]}(v{operands[0]})"
    if op == "where":
        condition = f"v{operands[0]}" + ("" if program.dtypes[int(operands[0])] == "bool" else " != 0")
        return f"{value(operands[1], dtype)} if {condition} else {value(operands[2], dtype)}"
    if op in _COMPARISONS:
        kinds = {program.dtypes[int(x)] for x in operands if int(x) >= 0}
        kind = "float64" if "float64" in kinds else "float32" if "float32" in kinds else "float64"
        left, right = (value(x, kind) for x in operands)
        return f"{left} {_COMPARISONS[str(op)]} {right}"
    if op == "isfinite":
        return f"abs(v{operands[0]}) < np.inf"
    left = value(operands[0], dtype)
    if op in _ARITHMETIC:
        return f"{left} {_ARITHMETIC[str(op)]} {value(operands[1], dtype)}"
    if op in ("minimum", "maximum"):
        right = value(operands[1], dtype)
        # A NaN on either side is the result.
        return (
            f"{left} if ({left} {'<' if op == 'minimum' else '>'} {right} or {left} != {left}) else {right}"
        )
    if op == "sign":
        one, zero = f"{_CASTS[dtype]}(1)", f"{_CASTS[dtype]}(0)"
        return f"{one} if {left} > 0 else (-{one} if {left} < 0 else ({zero} if {left} == 0 else {left}))"
    return {"neg": f"-{left}", "abs": f"abs({left})", "sqrt": f"math.sqrt({left})"}[str(op)]
