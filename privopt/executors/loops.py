"""Spells a program as one loop in LLVM's language.

The text comes from a fixed table of operations, never from data; numbers are its parameters. It asks for no
reordering and no contraction, so what it computes equals eager's numbers bit for bit. To teach it an
operation, add it to `_Loop._node`.
"""

from __future__ import annotations

from ..expression import Program

__all__ = ["ARRAYS", "BYTES", "TYPES", "fields", "source"]

# What a kernel is given: one array of 64-bit numbers, mostly addresses. The first is the next entry that no
# thread has taken yet.
NEXT, SIZE, PIECE, NUMBERS, BOUNDS, POINTS, SEGMENTS, ARRAYS = range(8)

TYPES = {"float32": "float", "float64": "double", "bool": "i1"}
BYTES = {"float32": 4, "float64": 8, "bool": 1}
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


def fields(*fields: tuple[str, str, int]) -> list[str]:
    """Reads what a kernel is given: name, type and place of each."""
    lines = []
    for name, kind, place in fields:
        lines += [
            f"  %{name}.field = getelementptr i64, ptr %job, i64 {place}",
            f"  %{name} = load {kind}, ptr %{name}.field, align 8",
        ]
    return lines


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
        self.lines += fields(
            ("size", "i64", SIZE),
            ("piece", "i64", PIECE),
            ("numbers", "ptr", NUMBERS),
            ("bounds", "ptr", BOUNDS),
            ("points", "ptr", POINTS),
            ("segments", "i64", SEGMENTS),
            *((f"a{k}", "ptr", ARRAYS + k) for k in range(len(self.arrays))),
        )
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
        kind, vector = TYPES[dtype], f"<{self.width} x {TYPES[dtype]}>"
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
            self.lines.append(f"  store {kind} {value}, ptr {place}, align {BYTES[dtype]}")
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
        return self._vector(TYPES[dtype])

    def _vector(self, kind: str) -> str:
        return f"<{self.count} x {kind}>" if self.count > 1 else kind

    def _number(self, number: int, dtype: str) -> str:
        if dtype == "bool":
            wide = self._number(number, "float64")
            return self._compare("une", wide, self._constant("0.0", "float64"), "float64")
        self.numbers.add((number, dtype))
        return f"%n{number}.{dtype}" + (".wide" if self.count > 1 else "")

    def _constant(self, value: str, dtype: str) -> str:
        kind = TYPES[dtype]
        return f"<{', '.join([f'{kind} {value}'] * self.count)}>" if self.count > 1 else value

    def _place(self, array: int, dtype: str) -> str:
        memory = "i8" if dtype == "bool" else TYPES[dtype]
        return self._new(f"getelementptr {memory}, ptr %a{array}, i64 %i.{self.at}")

    def _load(self, array: int, dtype: str) -> str:
        place = self._place(array, dtype)
        if dtype != "bool":
            return self._new(f"load {self._type(dtype)}, ptr {place}, align {BYTES[dtype]}")
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
