"""Compiles a program into one loop over memory: every leaf is read once and every output written once.

Contents: passes (`run`), sums in the order of `privopt.summation`, code generation (`source`, `sums_source`).
The code is LLVM's own language, spelled from a fixed table of operations; numbers are its parameters. It asks
for no reordering and no contraction, so its results equal eager's bit for bit.
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
from ..expression import Program
from ..layout import Block
from ..summation import CHUNK, LANES
from .kernels import Kernel, compiled
from .passes import Pass
from .threads import together

__all__ = ["run", "segment_products", "source", "sum_products", "sums_source"]

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
            target = target if by_numpy else torch_of(target)
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
        (kernel,) = compiled(source(program, overwritten), "kernel")
        fields = ctypes.c_int64 * (_ARRAYS + len(addresses))
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


def torch_of(array: Array) -> Any:
    """A torch tensor in an array's memory."""
    return sys.modules["torch"].from_numpy(array)


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
    kernel, in_order = compiled(sums_source(dtype, kind) + IN_ORDER, "sums", "in_order")
    return kernel, in_order


# ---- code generation --------------------------------------------------------------------------------------

# What a kernel is given: one array of 64-bit numbers, mostly addresses. The first is the next entry that no
# thread has taken yet.
_NEXT, _SIZE, _PIECE, _NUMBERS, _BOUNDS, _POINTS, _SEGMENTS, _ARRAYS = range(8)

_TYPES = {"float32": "float", "float64": "double", "bool": "i1"}
_BYTES = {"float32": 4, "float64": 8, "bool": 1}
_ARITHMETIC = {"add": "fadd", "sub": "fsub", "mul": "fmul", "div": "fdiv"}
# Ordered but for "ne": a NaN differs from everything and is in no order.
_COMPARISONS = {"lt": "olt", "le": "ole", "gt": "ogt", "ge": "oge", "eq": "oeq", "ne": "une"}


def source(program: Program, shared: tuple[int, ...]) -> str:
    """The loop in LLVM's language.

    Args:
        program: What to compute; dtypes float32, float64 and bool.
        shared: For each output the leaf whose array it overwrites, or -1.
    """
    return _Loop(program, shared).text()


class _Loop:
    """Spells the kernel of one program.

    Entries are computed some at a time (`width`, what 64 bytes hold) and what is left one at a time. In each
    turn all reads come before all writes, so arrays may change places.
    """

    def __init__(self, program: Program, shared: tuple[int, ...]) -> None:
        self.program = program
        self.width = 8 if "float64" in program.dtypes else 16
        self.lines: list[str] = []
        self.numbers: set[tuple[int, str]] = set()
        self.spreads: set[tuple[int, str]] = set()
        self._temporaries = 0
        leaves = [int(x[0]) for op, *x in program.code if op == "leaf"]
        kinds = {int(x[0]): program.dtypes[n] for n, (op, *x) in enumerate(program.code) if op == "leaf"}
        self.arrays = [kinds.get(k, "float32") for k in range(1 + max(leaves, default=-1))]
        self.targets = []
        for node, leaf in zip(program.outputs, shared, strict=True):
            if leaf < 0:
                leaf = len(self.arrays)
                self.arrays.append(program.dtypes[node])
            self.targets.append(leaf)

    def text(self) -> str:
        bodies = {width: self._body(width) for width in (self.width, 1)}
        self.lines = []
        put = self.lines.append
        put("define void @kernel(ptr %job) {")
        put("entry:")
        for name, place in (
            ("size", _SIZE), ("piece", _PIECE), ("numbers", _NUMBERS), ("bounds", _BOUNDS),
            ("points", _POINTS), ("segments", _SEGMENTS),
            *((f"a{k}", _ARRAYS + k) for k in range(len(self.arrays))),
        ):  # fmt: skip
            kind = "i64" if name in ("size", "piece", "segments") else "ptr"
            put(f"  %{name}.at = getelementptr i64, ptr %job, i64 {place}")
            put(f"  %{name} = load {kind}, ptr %{name}.at, align 8")
        for number in sorted({k for k, _ in self.numbers}):
            put(f"  %n{number}.at = getelementptr double, ptr %numbers, i64 {number}")
            put(f"  %n{number}.float64 = load double, ptr %n{number}.at, align 8")
            put(f"  %n{number}.float32 = fptrunc double %n{number}.float64 to float")
        for number, dtype in sorted(self.numbers):
            self._splat(f"n{number}.{dtype}", dtype)
        put("  br label %take")
        put("take:")
        put("  %start = atomicrmw add ptr %job, i64 %piece monotonic")
        put("  %over = icmp sge i64 %start, %size")
        put("  br i1 %over, label %done, label %taken")
        put("taken:")
        put("  %far = add i64 %start, %piece")
        put("  %short = icmp slt i64 %far, %size")
        put("  %stop = select i1 %short, i64 %far, i64 %size")
        if self.program.segmented:
            self._search()
            before = "searched"
        else:
            put("  br label %span")
            before = "taken"
        put("span:")
        put(f"  %from = phi i64 [ %start, %{before} ], [ %to, %spanned ]")
        if self.program.segmented:
            put("  %segment = phi i64 [ %first, %searched ], [ %following, %spanned ]")
            put("  %following = add i64 %segment, 1")
            put("  %bound.at = getelementptr i64, ptr %bounds, i64 %following")
            put("  %bound = load i64, ptr %bound.at, align 8")
            put("  %within = icmp slt i64 %bound, %stop")
            put("  %to = select i1 %within, i64 %bound, i64 %stop")
            for k in sorted({k for k, _ in self.spreads}):
                put(f"  %p{k}.row = mul i64 %segments, {k}")
                put(f"  %p{k}.place = add i64 %p{k}.row, %segment")
                put(f"  %p{k}.at = getelementptr double, ptr %points, i64 %p{k}.place")
                put(f"  %p{k}.float64 = load double, ptr %p{k}.at, align 8")
                put(f"  %p{k}.float32 = fptrunc double %p{k}.float64 to float")
            for k, dtype in sorted(self.spreads):
                self._splat(f"p{k}.{dtype}", dtype)
        else:
            put("  %to = add i64 %stop, 0")
        put(f"  %last = sub i64 %to, {self.width}")
        put("  br label %wide")
        self._turns("wide", self.width, "%from", "span", "%i.wide.then", "sle", "%last", bodies, "one")
        self._turns("one", 1, "%i.wide", "wide", "%i.one.then", "slt", "%to", bodies, "spanned")
        put("spanned:")
        if self.program.segmented:
            put("  %more = icmp slt i64 %to, %stop")
            put("  br i1 %more, label %span, label %take")
        else:
            put("  br i1 false, label %span, label %take")
        put("done:")
        put("  ret void")
        put("}")
        kinds = [f"<{self.width} x {t}>" for t in ("float", "double")] + ["float", "double"]
        for kind in kinds:
            for name in ("sqrt", "fabs"):
                put(f"declare {kind} @llvm.{name}.{_suffix(kind)}({kind})")
        return "\n".join(self.lines) + "\n"

    def _turns(
        self, label: str, width: int, first: str, before: str, then: str, order: str, end: str,
        bodies: dict[int, list[str]], after: str,
    ) -> None:  # fmt: skip
        put = self.lines.append
        put(f"{label}:")
        put(f"  %i.{label} = phi i64 [ {first}, %{before} ], [ {then}, %{label}.body ]")
        put(f"  %go.{label} = icmp {order} i64 %i.{label}, {end}")
        put(f"  br i1 %go.{label}, label %{label}.body, label %{after}")
        put(f"{label}.body:")
        self.lines += bodies[width]
        put(f"  {then} = add i64 %i.{label}, {width}")
        put(f"  br label %{label}")

    def _search(self) -> None:
        """The segment of an entry: the last that begins at or before it."""
        self.lines += [
            "  br label %search",
            "search:",
            "  %low = phi i64 [ 0, %taken ], [ %low.then, %halve ]",
            "  %high = phi i64 [ %segments, %taken ], [ %high.then, %halve ]",
            "  %gap = sub i64 %high, %low",
            "  %far.apart = icmp sgt i64 %gap, 1",
            "  br i1 %far.apart, label %halve, label %searched",
            "halve:",
            "  %half = lshr i64 %gap, 1",
            "  %middle = add i64 %low, %half",
            "  %middle.at = getelementptr i64, ptr %bounds, i64 %middle",
            "  %begins = load i64, ptr %middle.at, align 8",
            "  %reached = icmp sle i64 %begins, %start",
            "  %low.then = select i1 %reached, i64 %middle, i64 %low",
            "  %high.then = select i1 %reached, i64 %high, i64 %middle",
            "  br label %search",
            "searched:",
            "  %first = add i64 %low, 0",
            "  br label %span",
        ]

    def _splat(self, name: str, dtype: str) -> None:
        kind, vector = _TYPES[dtype], f"<{self.width} x {_TYPES[dtype]}>"
        self.lines += [
            f"  %{name}.one = insertelement {vector} poison, {kind} %{name}, i32 0",
            f"  %{name}.wide = shufflevector {vector} %{name}.one, {vector} poison, "
            f"<{self.width} x i32> zeroinitializer",
        ]

    # ---- one turn --------------------------------------------------------------------------------------

    def _body(self, width: int) -> list[str]:
        self.lines = []
        self.at = "wide" if width > 1 else "one"
        self.count = width
        values: list[str] = []
        for node in range(len(self.program.code)):
            values.append(self._node(node, values))
        for array, node in zip(self.targets, self.program.outputs, strict=True):
            dtype, value = self.program.dtypes[node], values[node]
            place = self._place(array, dtype)
            if dtype == "bool":
                value = self._new(f"zext {self._type('bool')} {value} to {self._vector('i8')}")
                kind = self._vector("i8")
            else:
                kind = self._type(dtype)
            self.lines.append(f"  store {kind} {value}, ptr {place}, align {_BYTES[dtype]}")
        return self.lines

    def _node(self, node: int, values: list[str]) -> str:
        op, *operands = self.program.code[node]
        dtype = self.program.dtypes[node]

        def value(operand: str | int, kind: str) -> str:
            """An operand as a `kind`."""
            k = int(operand)
            if k < 0:
                return self._number(-1 - k, kind)
            return self._cast(values[k], self.program.dtypes[k], kind)

        if op == "leaf":
            return self._load(int(operands[0]), dtype)
        if op == "spread":
            self.spreads.add((int(operands[0]), dtype))
            return f"%p{operands[0]}.{dtype}" + (".wide" if self.count > 1 else "")
        if op == "fill":
            return value(operands[0], dtype)
        if op == "cast":
            return value(operands[0], dtype)
        if op == "where":
            condition = value(operands[0], "bool")
            return self._select(condition, value(operands[1], dtype), value(operands[2], dtype), dtype)
        if op in _COMPARISONS:
            kinds = {self.program.dtypes[int(x)] for x in operands if int(x) >= 0}
            kind = "float32" if "float32" in kinds and "float64" not in kinds else "float64"
            left, right = (value(x, kind) for x in operands)
            return self._compare(_COMPARISONS[str(op)], left, right, kind)
        if op == "isfinite":
            kind = self.program.dtypes[int(operands[0])]
            kind = "float64" if kind == "bool" else kind
            size = self._call("fabs", value(operands[0], kind), kind)
            return self._compare("olt", size, self._constant("0x7FF0000000000000", kind), kind)
        left = value(operands[0], dtype)
        if op in _ARITHMETIC:
            right = value(operands[1], dtype)
            return self._new(f"{_ARITHMETIC[str(op)]} {self._type(dtype)} {left}, {right}")
        if op in ("minimum", "maximum"):
            right = value(operands[1], dtype)
            # A NaN on either side is the result.
            better = self._compare("olt" if op == "minimum" else "ogt", left, right, dtype)
            strange = self._compare("uno", left, left, dtype)
            first = self._new(f"or {self._type('bool')} {better}, {strange}")
            return self._select(first, left, right, dtype)
        if op == "sign":
            zero, one, minus = (self._constant(x, dtype) for x in ("0.0", "1.0", "-1.0"))
            level = self._select(self._compare("oeq", left, zero, dtype), zero, left, dtype)
            lower = self._select(self._compare("olt", left, zero, dtype), minus, level, dtype)
            return self._select(self._compare("ogt", left, zero, dtype), one, lower, dtype)
        if op == "neg":
            return self._new(f"fneg {self._type(dtype)} {left}")
        return self._call({"abs": "fabs", "sqrt": "sqrt"}[str(op)], left, dtype)

    def _new(self, expression: str) -> str:
        self._temporaries += 1
        name = f"%t{self._temporaries}"
        self.lines.append(f"  {name} = {expression}")
        return name

    def _type(self, dtype: str) -> str:
        return self._vector(_TYPES[dtype])

    def _vector(self, kind: str) -> str:
        return f"<{self.count} x {kind}>" if self.count > 1 else kind

    def _number(self, number: int, dtype: str) -> str:
        if dtype == "bool":
            wide = self._number(number, "float64")
            return self._compare("une", wide, self._constant("0.0", "float64"), "float64")
        self.numbers.add((number, dtype))
        return f"%n{number}.{dtype}" + (".wide" if self.count > 1 else "")

    def _constant(self, value: str, dtype: str) -> str:
        kind = _TYPES[dtype]
        return f"<{', '.join([f'{kind} {value}'] * self.count)}>" if self.count > 1 else value

    def _place(self, array: int, dtype: str) -> str:
        memory = "i8" if dtype == "bool" else _TYPES[dtype]
        return self._new(f"getelementptr {memory}, ptr %a{array}, i64 %i.{self.at}")

    def _load(self, array: int, dtype: str) -> str:
        place = self._place(array, dtype)
        if dtype != "bool":
            return self._new(f"load {self._type(dtype)}, ptr {place}, align {_BYTES[dtype]}")
        kind = self._vector("i8")
        stored = self._new(f"load {kind}, ptr {place}, align 1")
        return self._new(f"icmp ne {kind} {stored}, {'zeroinitializer' if self.count > 1 else '0'}")

    def _cast(self, value: str, source: str, target: str) -> str:
        if source == target:
            return value
        if target == "bool":
            return self._compare("une", value, self._constant("0.0", source), source)
        verb = "uitofp" if source == "bool" else "fpext" if target == "float64" else "fptrunc"
        return self._new(f"{verb} {self._type(source)} {value} to {self._type(target)}")

    def _compare(self, how: str, left: str, right: str, dtype: str) -> str:
        if dtype == "bool":
            left, right, dtype = (*(self._cast(x, "bool", "float32") for x in (left, right)), "float32")
        return self._new(f"fcmp {how} {self._type(dtype)} {left}, {right}")

    def _select(self, condition: str, then: str, otherwise: str, dtype: str) -> str:
        kind = self._type(dtype)
        return self._new(f"select {self._type('bool')} {condition}, {kind} {then}, {kind} {otherwise}")

    def _call(self, name: str, value: str, dtype: str) -> str:
        kind = self._type(dtype)
        return self._new(f"call {kind} @llvm.{name}.{_suffix(kind)}({kind} {value})")


def _suffix(kind: str) -> str:
    """How LLVM names the type of an intrinsic function."""
    scalar = "f32" if "float" in kind else "f64"
    return f"v{kind[1 : kind.index(' ')]}{scalar}" if kind.startswith("<") else scalar


# What the kernel of a sum is given.
_CHUNKS, _TAKEN, _STARTS, _ENDS, _PARTS, _LEFT, _RIGHT = range(1, 8)


@functools.cache
def sums_source(dtype: str, kind: str) -> str:
    """The sums of chunks in LLVM's language, lane by lane as `privopt.summation` defines them.

    A chunk's last row of lanes is filled with zeros, which change no sum.

    Args:
        dtype: Of the arrays: float32 or float64.
        kind: ``"none"`` for a sum, ``"square"`` and ``"product"`` for inner products.
    """
    lanes, entry = f"<{LANES} x double>", _TYPES[dtype]
    row, size = f"<{LANES} x {entry}>", _BYTES[dtype]
    sides = ("left", "right") if kind == "product" else ("left",)
    lines = [
        "define void @sums(ptr %job) {",
        "entry:",
        *_fields(("chunks", "i64", _CHUNKS), ("piece", "i64", _TAKEN), ("starts", "ptr", _STARTS)),
        *_fields(("ends", "ptr", _ENDS), ("parts", "ptr", _PARTS)),
        *_fields(*((side, "ptr", _LEFT if side == "left" else _RIGHT) for side in sides)),
        *(f"  %{side}.filled = alloca {row}, align 64" for side in sides),
        "  br label %take",
        "take:",
        "  %first = atomicrmw add ptr %job, i64 %piece monotonic",
        "  %over = icmp sge i64 %first, %chunks",
        "  br i1 %over, label %done, label %taken",
        "taken:",
        "  %far = add i64 %first, %piece",
        "  %short = icmp slt i64 %far, %chunks",
        "  %last = select i1 %short, i64 %far, i64 %chunks",
        "  br label %next",
        "next:",
        "  %chunk = phi i64 [ %first, %taken ], [ %chunk.then, %folded ]",
        "  %some = icmp slt i64 %chunk, %last",
        "  br i1 %some, label %chosen, label %take",
        "chosen:",
        "  %start.at = getelementptr i64, ptr %starts, i64 %chunk",
        "  %start = load i64, ptr %start.at, align 8",
        "  %end.at = getelementptr i64, ptr %ends, i64 %chunk",
        "  %end = load i64, ptr %end.at, align 8",
        f"  %whole = sub i64 %end, {LANES}",
        "  br label %rows",
        "rows:",
        "  %i = phi i64 [ %start, %chosen ], [ %i.then, %row ]",
        f"  %sum = phi {lanes} [ zeroinitializer, %chosen ], [ %sum.then, %row ]",
        "  %full = icmp sle i64 %i, %whole",
        "  br i1 %full, label %row, label %rest",
        "row:",
    ]
    for side in sides:
        lines += [
            f"  %{side}.at = getelementptr {entry}, ptr %{side}, i64 %i",
            f"  %{side}.row = load {row}, ptr %{side}.at, align {size}",
        ]
    lines += _terms(kind, dtype, "row")
    lines += [
        f"  %sum.then = fadd {lanes} %sum, %term.row",
        f"  %i.then = add i64 %i, {LANES}",
        "  br label %rows",
        "rest:",
        "  %left.over = sub i64 %end, %i",
        "  %any = icmp sgt i64 %left.over, 0",
        "  br i1 %any, label %short.row, label %fold",
        "short.row:",
        *(f"  store {row} zeroinitializer, ptr %{side}.filled, align {size}" for side in sides),
        "  br label %fill",
        "fill:",
        "  %k = phi i64 [ 0, %short.row ], [ %k.then, %filling ]",
        "  %more = icmp slt i64 %k, %left.over",
        "  br i1 %more, label %filling, label %filled",
        "filling:",
        "  %place = add i64 %i, %k",
    ]
    for side in sides:
        lines += [
            f"  %{side}.from = getelementptr {entry}, ptr %{side}, i64 %place",
            f"  %{side}.entry = load {entry}, ptr %{side}.from, align {size}",
            f"  %{side}.to = getelementptr {entry}, ptr %{side}.filled, i64 %k",
            f"  store {entry} %{side}.entry, ptr %{side}.to, align {size}",
        ]
    lines += ["  %k.then = add i64 %k, 1", "  br label %fill", "filled:"]
    lines += [f"  %{side}.rest = load {row}, ptr %{side}.filled, align {size}" for side in sides]
    lines += _terms(kind, dtype, "rest")
    lines += [
        f"  %sum.rest = fadd {lanes} %sum, %term.rest",
        "  br label %fold",
        "fold:",
        f"  %fold{LANES} = phi {lanes} [ %sum, %rest ], [ %sum.rest, %filled ]",
        "  br label %folding",
        "folding:",
    ]
    half = LANES // 2
    while half:
        both, kind_of_half = f"<{2 * half} x double>", f"<{half} x double>"
        for name, places in (("low", range(half)), ("high", range(half, 2 * half))):
            chosen = ", ".join(f"i32 {k}" for k in places)
            lines.append(
                f"  %{name}{half} = shufflevector {both} %fold{2 * half}, {both} poison, "
                f"<{half} x i32> <{chosen}>"
            )
        lines.append(f"  %fold{half} = fadd {kind_of_half} %low{half}, %high{half}")
        half //= 2
    lines += [
        "  %part = extractelement <1 x double> %fold1, i32 0",
        "  br label %folded",
        "folded:",
        "  %part.at = getelementptr double, ptr %parts, i64 %chunk",
        "  store double %part, ptr %part.at, align 8",
        "  %chunk.then = add i64 %chunk, 1",
        "  br label %next",
        "done:",
        "  ret void",
        "}",
    ]
    return "\n".join(lines) + "\n"


def _fields(*fields: tuple[str, str, int]) -> list[str]:
    """Reads what a kernel is given: name, type and place of each."""
    lines = []
    for name, kind, place in fields:
        lines += [
            f"  %{name}.field = getelementptr i64, ptr %job, i64 {place}",
            f"  %{name} = load {kind}, ptr %{name}.field, align 8",
        ]
    return lines


def _terms(kind: str, dtype: str, what: str) -> list[str]:
    """What is added to the lanes, in float64."""
    lanes, row = f"<{LANES} x double>", f"<{LANES} x {_TYPES[dtype]}>"
    lines, names = [], []
    for side in ("left", "right") if kind == "product" else ("left",):
        names.append(f"%{side}.{what}")
        if dtype == "float32":
            names[-1] = f"%{side}.{what}.wide"
            lines.append(f"  {names[-1]} = fpext {row} %{side}.{what} to {lanes}")
    if kind == "none":
        lines.append(f"  %term.{what} = shufflevector {lanes} {names[0]}, {lanes} poison, "
                     f"<{LANES} x i32> <{', '.join(f'i32 {k}' for k in range(LANES))}>")  # fmt: skip
    else:
        lines.append(f"  %term.{what} = fmul {lanes} {names[0]}, {names[-1]}")
    return lines


IN_ORDER = """\
define void @in_order(ptr %job) {
entry:
  %segments.at = getelementptr i64, ptr %job, i64 0
  %segments = load i64, ptr %segments.at, align 8
  %parts.at = getelementptr i64, ptr %job, i64 1
  %parts = load ptr, ptr %parts.at, align 8
  %counts.at = getelementptr i64, ptr %job, i64 2
  %counts = load ptr, ptr %counts.at, align 8
  %sums.at = getelementptr i64, ptr %job, i64 3
  %sums = load ptr, ptr %sums.at, align 8
  br label %next
next:
  %segment = phi i64 [ 0, %entry ], [ %segment.then, %added ]
  %place = phi i64 [ 0, %entry ], [ %end, %added ]
  %some = icmp slt i64 %segment, %segments
  br i1 %some, label %begin, label %done
begin:
  %count.at = getelementptr i64, ptr %counts, i64 %segment
  %count = load i64, ptr %count.at, align 8
  %end = add i64 %place, %count
  br label %more
more:
  %k = phi i64 [ %place, %begin ], [ %k.then, %add ]
  %total = phi double [ 0.0, %begin ], [ %total.then, %add ]
  %left = icmp slt i64 %k, %end
  br i1 %left, label %add, label %added
add:
  %part.at = getelementptr double, ptr %parts, i64 %k
  %part = load double, ptr %part.at, align 8
  %total.then = fadd double %total, %part
  %k.then = add i64 %k, 1
  br label %more
added:
  %sum.at = getelementptr double, ptr %sums, i64 %segment
  store double %total, ptr %sum.at, align 8
  %segment.then = add i64 %segment, 1
  br label %next
done:
  ret void
}
"""
"""Adds the sums of chunks one after the other, segment by segment. 0.0 + x is x: no part is -0.0."""
