"""Runs a program in blocks with the framework's own operations: what is in between stays in cache.

On numpy a program becomes a list of calls that write into memory which is there already: an operand that is
not read again, or the target itself where nothing later in the block reads what it held.
"""

from __future__ import annotations

import functools
import operator
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import summation
from ..backends import Array, Backend, named_backend
from ..expression import BINARY, UNARY, Program, nodes_of
from .passes import Pass
from .threads import in_parallel

__all__ = ["interpret", "run", "sum_products"]

BLOCK = 1 << 18
"""Entries of a block: small enough for the last cache, large enough that threads seldom wait for each other,
which they do where two need the interpreter at once."""
SHARE = 1 << 19
"""Entries that a thread adds up at a time; whole chunks of `summation`."""


def run(job: Pass) -> list[Array]:
    """Write every output into its target (a new array where there is none)."""
    if job.backend.name == "numpy":
        return _run_numpy(job)
    backend = job.backend
    targets = [
        backend.full(job.size, 0, job.program.dtypes[node], job.device) if target is None else target
        for node, target in zip(job.program.outputs, job.into, strict=True)
    ]
    for a in range(0, job.size, BLOCK):
        b = min(a + BLOCK, job.size)
        for target, result in zip(targets, interpret(job, a, b), strict=True):
            backend.assign(backend.view(target, a, b, (b - a,)), result)
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


def sum_products(left: npt.NDArray[Any], right: npt.NDArray[Any] | None) -> float:
    """`summation.dot` of real arrays, or `summation.total`, by several threads: the same bits."""
    if left.size <= SHARE:
        return summation.total(left) if right is None else summation.dot(left, right)
    sums = np.empty(-(-left.size // summation.CHUNK))

    def part(start: int, stop: int) -> None:
        ours = left[start:stop]
        theirs = None if right is None else ours if right is left else right[start:stop]
        first = start // summation.CHUNK
        found = summation.chunk_sums(ours, theirs)
        sums[first : first + len(found)] = found

    in_parallel(part, left.size, SHARE)
    return summation.in_order(sums)


# ---- numpy ------------------------------------------------------------------------------------------------


def _run_numpy(job: Pass) -> list[Array]:
    program = job.program
    targets = [
        np.empty(job.size, program.dtypes[node]) if target is None else target
        for node, target in zip(program.outputs, job.into, strict=True)
    ]
    plan = _planned(job, targets)
    constants = plan.constants(job)

    def part(start: int, stop: int) -> None:
        with np.errstate(all="ignore"):
            plan.run(job, targets, constants, start, stop)

    in_parallel(part, job.size, BLOCK)
    return targets


def _planned(job: Pass, targets: Sequence[Array]) -> _Plan:
    """The plan of a program for arrays that are the same ones in the same places."""
    seen: dict[int, int] = {}
    places = tuple(seen.setdefault(id(a), len(seen)) for a in [*job.arrays, *targets])
    found: _Plan | None = job.program.kernels.get(("blocked", places))
    if found is None:
        found = job.program.kernels["blocked", places] = _Planner(job.program, places).plan()
    return found


Step = tuple[Callable[..., Any], Callable[[Any], Any], int | None]


@dataclass
class _Plan:
    """Calls on registers: views of leaves and targets, numbers, and memory in between.

    Attributes:
        registers: How many there are.
        leaves: Register and position of each array that is read.
        targets: Register and position of each output.
        numbers: Register, position and dtype of each number; without dtype it is passed as it is.
        fills: Register, position of the number and dtype of each constant array.
        spreads: Register, position and dtype of numbers by segment; whether one may stand for many.
        slots: Register and dtype of memory in between.
        steps: Function, what gets its operands, and the register of its result unless it writes it itself.
    """

    registers: int = 0
    leaves: list[tuple[int, int]] = field(default_factory=list)
    targets: list[tuple[int, int]] = field(default_factory=list)
    numbers: list[tuple[int, int, str | None]] = field(default_factory=list)
    fills: list[tuple[int, int, str]] = field(default_factory=list)
    spreads: list[tuple[int, int, str, bool]] = field(default_factory=list)
    slots: list[tuple[int, str]] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)

    def constants(self, job: Pass) -> list[Any]:
        """Registers with all numbers of a pass in them."""
        r: list[Any] = [None] * self.registers
        with np.errstate(all="ignore"):
            for at, k, dtype in self.numbers:
                r[at] = job.scalars[k] if dtype is None else np.asarray(job.scalars[k], dtype)
        return r

    def run(self, job: Pass, targets: Sequence[Array], constants: list[Any], start: int, stop: int) -> None:
        """Compute the entries of one block."""
        r = constants.copy()
        for (at, _), memory in zip(self.slots, _scratch(self.slots, stop - start), strict=True):
            r[at] = memory
        for at, k, dtype in self.fills:
            r[at] = np.full(stop - start, job.scalars[k], dtype)
        for at, k in self.leaves:
            r[at] = job.arrays[k][start:stop]
        for at, k in self.targets:
            r[at] = targets[k][start:stop]
        for at, k, dtype, one in self.spreads:
            r[at] = _segments(job, k, start, stop, dtype, one)
        for function, operands, result in self.steps:
            if result is None:
                function(*operands(r))
            else:
                r[result] = function(*operands(r))


class _Scratch(threading.local):
    """Memory in between, one for each thread and kept: new memory costs more than an operation on it."""

    memory: npt.NDArray[np.uint8] = np.empty(0, np.uint8)


_kept = _Scratch()
_GAP = 64 * 17
"""Bytes between slots: blocks at equal distances would compete for the same places in the cache."""


def _scratch(slots: Sequence[tuple[int, str]], size: int) -> list[npt.NDArray[Any]]:
    spans = [_GAP + 64 * (-(-size * np.dtype(dtype).itemsize // 64)) for _, dtype in slots]
    total = sum(spans) + 64
    if _kept.memory.size < total:
        _kept.memory = np.empty(total, np.uint8)
    start = -_kept.memory.ctypes.data % 64
    found = []
    for (_, dtype), span in zip(slots, spans, strict=True):
        found.append(_kept.memory[start : start + size * np.dtype(dtype).itemsize].view(dtype))
        start += span
    return found


def _segments(job: Pass, k: int, start: int, stop: int, dtype: str, one: bool) -> Array:
    """A number for each entry; a single one where it is the same for all and `one` allows it."""
    first = int(np.searchsorted(job.bounds, start, side="right")) - 1
    end = int(np.searchsorted(job.bounds, stop, side="left"))
    values = job.points[k][first:end].astype(dtype)
    if one and end - first == 1:
        return values[0]
    return np.repeat(values, np.diff(np.clip(job.bounds[first : end + 1], start, stop)))


# ---- planning ---------------------------------------------------------------------------------------------


def _minimum(left: Any, right: Any, out: Array) -> None:
    np.minimum(left, right, out=out)


def _maximum(left: Any, right: Any, out: Array) -> None:
    np.maximum(left, right, out=out)


_EXACT: dict[str, Callable[..., Any]] = {
    "sqrt": np.sqrt,
    "sign": np.sign,
    "abs": np.abs,
    "isfinite": np.isfinite,
    "neg": np.negative,
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.true_divide,
    "minimum": _minimum,
    "maximum": _maximum,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "ne": np.not_equal,
}
"""Operations that take their output last, and that round each entry by itself, wherever it lies."""

_WHOLE = {"float32": "int32", "float64": "int64"}
"""Integers as long as a float: choosing by their bits takes the same time whatever the condition is."""


def _cast(values: Array, out: Array) -> None:
    np.copyto(out, values, casting="unsafe")


def _chosen(condition: Array, then: Array, otherwise: Array, out: Array, mask: Array) -> None:
    """``np.where``, which on a condition that has no pattern waits for the processor's wrong guesses."""
    kind = mask.dtype
    bits, others = out.view(kind), otherwise.view(kind)
    np.copyto(mask, condition)
    np.bitwise_xor(then.view(kind), others, bits)
    np.multiply(bits, mask, bits)
    np.bitwise_xor(bits, others, bits)


class _Planner:
    """Turns a program into a plan.

    Args:
        program: What to compute.
        places: For each array and then each target a number: equal ones are one array.
    """

    def __init__(self, program: Program, places: Sequence[int]) -> None:
        self.code, self.dtypes, self.outputs = program.code, program.dtypes, program.outputs
        leaves = len(places) - len(program.outputs)
        self.places, self.into = places[:leaves], places[leaves:]
        self.made = _Plan()
        self.at: dict[int, int] = {}
        """Register of each node."""
        self.numbers: dict[tuple[int, str | None], int] = {}
        self.free: dict[str, list[int]] = {}
        self.owned: dict[int, str] = {}
        """Registers in between, with their dtypes."""
        self.roots = self._roots()
        self.users: list[list[int]] = [[] for _ in self.code]
        for node, instruction in enumerate(self.code):
            for operand in nodes_of(instruction):
                self.users[self.roots[operand]].append(node)
        for node in self.outputs:
            self.users[self.roots[node]].append(len(self.code))

    def _roots(self) -> list[int]:
        """For each node the one that it is a copy of: a cast to its own dtype changes nothing."""
        roots: list[int] = []
        for node, (op, *operands) in enumerate(self.code):
            source = int(operands[0]) if op == "cast" else node
            roots.append(
                roots[source] if source != node and self.dtypes[source] == self.dtypes[node] else node
            )
        return roots

    def plan(self) -> _Plan:
        """The calls, in the program's order, then what is left to copy into targets."""
        direct: dict[int, int] = {}
        for node, (op, *operands) in enumerate(self.code):
            if self.roots[node] != node:
                continue
            inputs = [int(x) for x in operands]
            if op == "leaf":
                self.at[node] = self._new()
                self.made.leaves.append((self.at[node], inputs[0]))
            elif op == "spread":
                self.at[node] = self._new()
                self.made.spreads.append(
                    (self.at[node], inputs[0], self.dtypes[node], self._may_be_one(node))
                )
            elif op == "fill":
                self.at[node] = self._fill(node, -1 - inputs[0])
            else:
                self._operation(node, str(op), inputs, direct)
        self._copies(direct)
        return self.made

    # ---- registers -------------------------------------------------------------------------------------

    def _new(self) -> int:
        self.made.registers += 1
        return self.made.registers - 1

    def _number(self, k: int, dtype: str | None) -> int:
        found = self.numbers.get((k, dtype))
        if found is None:
            found = self.numbers[k, dtype] = self._new()
            self.made.numbers.append((found, k, dtype))
        return found

    def _fill(self, node: int, k: int) -> int:
        if self._may_be_one(node):
            return self._number(k, self.dtypes[node])
        self.made.fills.append((self._new(), k, self.dtypes[node]))
        return self.made.fills[-1][0]

    def _may_be_one(self, node: int) -> bool:
        """Whether one number may stand for an array: whoever reads it spreads it."""
        return all(user < len(self.code) and self.code[user][0] in _EXACT for user in self.users[node])

    def _slot(self, dtype: str) -> int:
        free = self.free.setdefault(dtype, [])
        if free:
            return free.pop()
        register = self._new()
        self.owned[register] = dtype
        self.made.slots.append((register, dtype))
        return register

    def _release(self, nodes: Sequence[int], user: int) -> None:
        for node in {self.roots[x] for x in nodes if x >= 0}:
            register = self.at[node]
            if register in self.owned and max(self.users[node]) <= user:
                self.free[self.owned[register]].append(register)

    # ---- steps -----------------------------------------------------------------------------------------

    def _operation(self, node: int, op: str, inputs: list[int], direct: dict[int, int]) -> None:
        if op in _EXACT or op == "cast":
            function = _cast if op == "cast" else _EXACT[op]
            registers = self._operands(inputs)
            # What is read for the last time here may be written: each entry is read before it is.
            self._release(inputs, node)
            self.at[node] = self._target(node, node, direct)
            self._step(function, [*registers, self.at[node]])
        elif op == "where" and self._is_plain(node, inputs):
            registers = [self.at[self.roots[inputs[0]]], *self._operands(inputs[1:], self.dtypes[node])]
            self.at[node] = self._target(node, node - 1, direct)
            mask = self._slot(_WHOLE[self.dtypes[node]])
            self._step(_chosen, [*registers, self.at[node], mask])
            self.free[self.owned[mask]].append(mask)
            self._release(inputs, node)
        else:
            # What needs whole arrays, or a dtype of its own, gets new memory from numpy.
            backend_operation = np.where if op == "where" else functools.partial(_computed, op)
            self.at[node] = self._new()
            self._step(backend_operation, self._operands(inputs), self.at[node])
            self._release(inputs, node)

    def _operands(self, inputs: Sequence[int], dtype: str | None = None) -> list[int]:
        if dtype is None:
            # A number counts as one of the array's dtype; to integers it is given as it is.
            kinds = {self.dtypes[x] for x in inputs if x >= 0}
            dtype = next(iter(kinds & {"float16", "float32", "float64"}), None) if len(kinds) == 1 else None
        return [self.at[self.roots[x]] if x >= 0 else self._number(-1 - x, dtype) for x in inputs]

    def _is_plain(self, node: int, inputs: Sequence[int]) -> bool:
        kind = self.dtypes[node]
        return (
            kind in _WHOLE
            and self.dtypes[inputs[0]] == "bool"
            and all(x < 0 or self.dtypes[x] == kind for x in inputs[1:])
        )

    def _target(self, node: int, until: int, direct: dict[int, int]) -> int:
        """A register to write a node into: a target's, where nothing after `until` reads what it holds."""
        for k, output in enumerate(self.outputs):
            if self.roots[output] == node and self._last_read(self.into[k]) <= until:
                direct[k] = register = self._new()
                self.made.targets.append((register, k))
                return register
        return self._slot(self.dtypes[node])

    def _last_read(self, place: int) -> int:
        """The last node that reads an array's own values."""
        leaves = [
            k for k, (op, *x) in enumerate(self.code) if op == "leaf" and self.places[int(x[0])] == place
        ]
        return max((user for leaf in leaves for user in self.users[leaf]), default=-1)

    def _step(
        self, function: Callable[..., Any], registers: Sequence[int], result: int | None = None
    ) -> None:
        one = registers[0]
        operands = operator.itemgetter(*registers) if len(registers) > 1 else lambda r: (r[one],)
        self.made.steps.append((function, operands, result))

    def _copies(self, direct: dict[int, int]) -> None:
        """Write the other outputs, after a copy of each leaf that one of these writes changes."""
        sources: list[tuple[int, int]] = []
        for k, output in enumerate(self.outputs):
            if k in direct:
                continue
            node = self.roots[output]
            register = self.at[node]
            if self.code[node][0] == "leaf" and self.places[int(self.code[node][1])] in self.into:
                kept = self._slot(self.dtypes[node])
                self._step(_cast, [register, kept])
                register = kept
            sources.append((register, k))
        for register, k in sources:
            target = self._new()
            self.made.targets.append((target, k))
            self._step(_cast, [register, target])


def _computed(op: str, *operands: Any) -> Array:
    backend = named_backend("numpy")
    return backend.unary(op, *operands) if op in UNARY else backend.binary(op, *operands)
