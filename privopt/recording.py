"""Vectors that remember instead of computing: floor 2, what plug-ins see inside a step.

Arithmetic on a `Recorded` adds a node to its `Tape`. Reductions (`norm`, `sum`, `dot`, `norms`) and access to
the numbers themselves (`coefs`, `flatten`, anything that reads `buffers`) compute what they need at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, NoReturn, Self

import numpy as np
import numpy.typing as npt

from .backends import Array, Backend
from .executors import Pass, run, segment_products, sum_products
from .expression import Instruction, Program, pruned
from .layout import Block, Layout
from .vector import PerTensor, Scalar, Vector, fractional

__all__ = ["Borrowed", "Recorded", "Tape"]

Dtypes = tuple[str, ...]
_RESULTS: dict[tuple[Any, ...], Dtypes] = {}
MOST_PLACES = 1 << 16
"""Places that are kept for a layout: an optimizer whose steps never repeat must not fill the memory."""


_new = object.__new__


class Borrowed(Vector):
    """Somebody else's Vector, handed to a plug-in: in-place operations give it memory of its own first."""

    __slots__ = ()
    in_step: ClassVar[bool] = True

    @classmethod
    def of(cls, vector: Vector) -> Borrowed:
        """Borrow a Vector."""
        return cls(vector.layout, vector.buffers, vector._backend)

    @property
    def coefs(self) -> dict[str, Array]:
        """Views on memory of its own, since they can be written to."""
        self.buffers = tuple(map(self._backend.copy, self.buffers))
        return super().coefs

    def _write(self, sources: Sequence[Array]) -> None:
        pairs = zip(sources, self.layout.blocks, strict=True)
        self.buffers = tuple(
            s if self._backend.describe(s)[1] == b.dtype else self._backend.cast(s, b.dtype) for s, b in pairs
        )


class _Place:
    """What was recorded so far. All steps that came the same way stand at the same place.

    An operation that was recorded at this place before is found under its operands, with everything that is
    known of its result, and what a step computes here is kept: a step like the last costs a few look-ups.
    Numbers are no part of it.
    """

    __slots__ = ("after", "before", "dtypes", "instruction", "layout", "node", "passes")

    def __init__(
        self, before: _Place | None, instruction: Instruction, node: int, dtypes: Dtypes, layout: Layout
    ) -> None:
        self.before = before
        self.instruction = instruction
        self.node = node
        self.dtypes = dtypes
        self.layout = layout
        self.after: Any = {}
        self.passes: dict[tuple[int, ...], list[_Part]] = {}


class _Start(_Place):
    """Where a step over one layout in one framework begins."""

    __slots__ = ("bounds", "layouts", "places")

    def __init__(self, layout: Layout) -> None:
        super().__init__(None, (), -1, (), layout)
        self.layouts: dict[Dtypes, Layout] = {layout.dtypes: layout}
        self.bounds: dict[tuple[Layout, int], npt.NDArray[np.int64]] = {}
        self.places = 0


class _Over:
    """Stands where a step's next operations are looked up, once the step is over."""

    def get(self, key: object) -> NoReturn:
        raise RuntimeError(
            "Expected a Vector of the present step, got one that an earlier step recorded. "
            "Declare what outlives a step with state(): `kept: Vector | None = state(None)`."
        )


_Part = tuple[Program, tuple[int, ...], tuple[int, ...]]
"""One block's program, and which leaves and spreads it reads."""


class Tape:
    """The expression of one step, with the arrays and numbers it starts from.

    Args:
        like: Gives layout, framework, dtypes and devices.
    """

    def __init__(self, like: Vector) -> None:
        self.backend: Backend = like._backend
        self.layout = like.layout
        self.dtypes: list[Dtypes] = []
        self.scalars: list[float] = []
        self.leaves: list[Vector] = []
        self.spreads: list[PerTensor] = []
        starts = like.layout.recordings
        start = starts.get(self.backend.name)
        if start is None or start.places > MOST_PLACES:
            start = starts[self.backend.name] = _Start(like.layout)
        self._start: _Start = start
        self._place: _Place = start
        self._known: dict[int, int] = {}
        self._memory: dict[int, Vector] = {}
        self._sums: dict[tuple[int, int | None, Layout | None], Any] = {}

    def close(self) -> None:
        """The step is over: nothing can be recorded any more."""
        self._place = _Place(None, (), -1, (), self.layout)
        self._place.after = _Over()

    def verify_open(self) -> None:
        """Raise RuntimeError if the step is over."""
        self._place.after.get(None)

    # ---- nodes -----------------------------------------------------------------------------------------

    def emit(self, instruction: Instruction, dtypes: Dtypes) -> int:
        """Add a node."""
        place = self._place.after.get((instruction, dtypes))
        if place is None:
            place = self.new_place((instruction, dtypes), instruction, dtypes)
        self._place = place
        self.dtypes.append(dtypes)
        return int(place.node)

    def new_place(self, key: object, instruction: Instruction, dtypes: Dtypes, nodes: int = 1) -> _Place:
        """What follows from here by an operation that was not recorded here before and adds `nodes`."""
        place = _Place(self._place, instruction, self._place.node + nodes, dtypes, self.layout_of(dtypes))
        self._place.after[key] = place
        self._start.places += 1
        return place

    def leaf(self, vector: Vector) -> int:
        """The node of a Vector in memory; the same one each time."""
        node = self._known.get(id(vector))
        if node is None:
            self.leaves.append(vector)  # keeps it alive, so that its id stays its own
            self._start.layouts.setdefault(vector.layout.dtypes, vector.layout)
            node = self._known[id(vector)] = self.emit(("leaf", len(self.leaves) - 1), vector.layout.dtypes)
            self._memory[node] = vector
        return node

    def known(self, vector: Vector) -> int | None:
        """The node of a Vector in memory, if it has one."""
        return self._known.get(id(vector))

    def bound(self, vector: Vector) -> Recorded:
        """A Vector in memory as one of this step."""
        node = self.leaf(vector)
        bound = _new(Recorded)
        bound._tape = self
        bound._node = node
        bound._out = None
        bound._backend = self.backend
        bound.layout = vector.layout
        return bound

    def recorded(self, node: int) -> Recorded:
        """A Vector that stands for a node."""
        vector = _new(Recorded)
        vector._tape = self
        vector._node = node
        vector._out = None
        vector._backend = self.backend
        vector.layout = self.layout_of(self.dtypes[node])
        return vector

    def layout_of(self, dtypes: Dtypes) -> Layout:
        """The model's layout with other dtypes."""
        layouts = self._start.layouts
        found = layouts.get(dtypes)
        if found is None:
            devices = [b.device for b in self.layout.blocks]
            found = layouts[dtypes] = self.layout.with_blocks(dtypes, devices)
        return found

    def number(self, value: float) -> int:
        """The operand of a number."""
        self.scalars.append(value)
        return -len(self.scalars)

    # ---- values ----------------------------------------------------------------------------------------

    def evaluate(self, nodes: tuple[int, ...], targets: Sequence[Vector | None]) -> list[Vector]:
        """Compute nodes in one pass, into the targets' memory where there is one of the same dtypes."""
        parts = self._place.passes.get(nodes)
        if parts is None:
            self.verify_open()
            parts = self._place.passes[nodes] = self._pruned(nodes)
        found: dict[int, list[Array]] = {}
        order: Sequence[int] = range(len(parts))
        if len(order) > 1:
            # What a framework's own operations refuse, they refuse before compiled code wrote another block.
            order = sorted(order, key=lambda block: parts[block][0].compilable)
            targets = [self._memory_for(node, target) for node, target in zip(nodes, targets, strict=True)]
        for block in order:
            (program, leaves, spreads), where = parts[block], self.layout.blocks[block]
            arrays = [self.leaves[k].buffers[block] for k in leaves]
            into = [None if t is None else t.buffers[block] for t in targets]
            points, bounds = self._points(spreads, block) if spreads else ([], None)
            size, device = where.size, where.device
            job = Pass(
                self.backend, program, arrays, self.scalars, points, bounds, into, size, device, targets
            )
            found[block] = run(job)
        vectors = []
        for k, (node, target) in enumerate(zip(nodes, targets, strict=True)):
            buffers = tuple([found[block][k] for block in range(len(parts))])
            if target is None:
                vectors.append(Vector(self.layout_of(self.dtypes[node]), buffers, self.backend))
            else:
                target.buffers = buffers
                vectors.append(target)
        return vectors

    def _memory_for(self, node: int, target: Vector | None) -> Vector | None:
        """A Vector to write to: memory that cannot be had is missed before another block was written."""
        if target is not None or self.backend.name not in ("numpy", "torch"):
            return target
        layout = self.layout_of(self.dtypes[node])
        memory = (self.backend.full(b.size, 0, b.dtype, b.device) for b in layout.blocks)
        return Vector(layout, memory, self.backend)

    def _pruned(self, nodes: tuple[int, ...]) -> list[_Part]:
        """What the nodes need, block by block."""
        way: list[_Place] = []
        place = self._place
        while place.before is not None:
            way.append(place)
            place = place.before
        code: list[Instruction] = []
        for place in reversed(way):
            if place.instruction[0] == "becomes":
                code[int(place.instruction[1])] = ("leaf", place.instruction[2])
            else:
                code.append(place.instruction)
        blocks = range(len(self.layout.blocks))
        return [pruned(code, [dtypes[block] for dtypes in self.dtypes], nodes) for block in blocks]

    def _points(self, spreads: Sequence[int], block: int) -> tuple[list[Any], Any]:
        """Numbers per segment (all for the same segments) and the segments' bounds."""
        chosen = [self.spreads[k] for k in spreads]
        layout = max((p.layout for p in chosen), key=len)
        _, starts = layout.places(block)
        values = []
        for point in chosen:
            own, own_starts = point.layout.places(block)
            part = point.values[own]
            if len(part) != len(starts):
                # Numbers per tensor beside numbers per row: repeat each for its tensor's rows.
                part = part[np.searchsorted(own_starts, starts, side="right") - 1]
            values.append(part)
        bounds = self._start.bounds.get((layout, block))
        if bounds is None:  # of a million rows it takes longer to make than all the rest
            bounds = np.array([*starts, self.layout.blocks[block].size], np.int64)
            self._start.bounds[layout, block] = bounds
        return values, bounds

    def sums(self, left: int, right: int | None, segments: Layout | None) -> Any:
        """Inner products of two nodes (or sums of one), over all or of each segment; kept for the step."""
        key = (left, right, segments)
        found = self._sums.get(key)
        if found is None:
            a = self._in_memory(left)
            b = None if right is None else a if right == left else self._in_memory(right)
            if segments is None:
                parts = [None] * len(a.buffers) if b is None else b.buffers
                rows = zip(a.buffers, parts, self._blocks(a, b), strict=True)
                found = math.fsum(sum_products(self.backend, *row) for row in rows)
            else:
                values = np.zeros(len(segments))
                for i, x in enumerate(a.buffers):
                    places, starts = segments.places(i)
                    y = None if b is None else b.buffers[i]
                    values[places] = segment_products(self.backend, x, y, starts, self._blocks(a, b)[i])
                found = PerTensor(segments, values)
            self._sums[key] = found
        return found

    @staticmethod
    def _blocks(left: Vector, right: Vector | None) -> Sequence[Block]:
        """Where two Vectors lie; of a dtype that no compiled sum takes where their dtypes differ."""
        if right is None or right.layout is left.layout:
            return left.layout.blocks
        pairs = zip(left.layout.blocks, right.layout.blocks, strict=True)
        return [a if a.dtype == b.dtype else Block("mixed", a.device, a.size) for a, b in pairs]

    def _in_memory(self, node: int) -> Vector:
        """A node's values; what was computed here is a leaf from now on."""
        vector = self._memory.get(node)
        if vector is None:
            vector = self._memory[node] = self.evaluate((node,), (None,))[0]
            self.leaves.append(vector)
            key = ("becomes", node, len(self.leaves) - 1)
            place = self._place.after.get(key)
            if place is None:
                place = self.new_place(key, key, self.dtypes[node], nodes=0)
            self._place = place
        return vector


def _result(tape: Tape, op: str, kinds: tuple[Any, ...]) -> str:
    """The dtype that an operation gives, found by trying it on nothing."""
    backend, device = tape.backend, tape.layout.blocks[0].device
    arrays = [backend.full(0, 0, k, device) if isinstance(k, str) else k() for k in kinds]
    if op == "where":
        result = backend.where(*arrays)
    elif len(arrays) == 1:
        result = backend.unary(op, arrays[0])
    else:
        result = backend.binary(op, *arrays)
    return backend.describe(result)[1]


class Recorded(Vector):
    """A Vector inside a step: it knows how it is computed, not its values.

    Guarantees:
        - What a plug-in does to it in place changes no memory of others.
        - Reading its numbers (`coefs`, `flatten`, ...) gives copies; writing to those changes this Vector.
        - Used after its step ended it raises RuntimeError.
    """

    __slots__ = ("_node", "_out", "_tape")
    in_step: ClassVar[bool] = True
    _tape: Tape
    _node: int
    _out: Vector | None

    # The numbers: computed when asked for.
    @property
    def buffers(self) -> tuple[Array, ...]:
        """The arrays, in memory of this Vector's own."""
        if self._out is None:
            self._tape.verify_open()
            leaf = self._tape._memory.get(self._node)
            if leaf is None:
                self._out = self._tape.evaluate((self._node,), (None,))[0]
            else:
                self._out = Vector.copy(leaf)
        return self._out.buffers

    @buffers.setter
    def buffers(self, value: tuple[Array, ...]) -> None:
        self._out = Vector(self.layout, value, self._backend)

    def again(self) -> Recorded:
        """The same values: what is done to one of the two in place, the other does not see."""
        again = _new(Recorded)
        again._tape = tape = self._tape
        again._node = self._node if self._out is None else tape.leaf(self._out.copy())
        again._out = None
        again._backend = self._backend
        again.layout = self.layout
        return again

    def use(self) -> int:
        """The node that stands for the present values."""
        if self._out is not None:
            # Its memory was handed out and may be written to: what is recorded now uses today's values.
            return self._tape.leaf(self._out.copy())
        return self._node

    def __repr__(self) -> str:
        return f"Recorded({len(self.layout)} tensors, {self.size} entries, {self.framework})"

    # ---- recording -------------------------------------------------------------------------------------

    def _operand(self, other: object) -> tuple[int, Any] | None:
        """The operand of the other side, and what stands for its dtype."""
        kind = other.__class__
        tape = self._tape
        if kind is Recorded:
            if other._tape is not tape:  # type: ignore[attr-defined]  # a Recorded
                tape_of_other: Tape = other._tape  # type: ignore[attr-defined]
                tape_of_other.verify_open()
                tape.verify_open()
                raise RuntimeError("Expected Vectors of one step, got Vectors of two.")
            if other.layout is not self.layout:  # type: ignore[attr-defined]
                self._verify(other)  # type: ignore[arg-type]
            node = other.use()  # type: ignore[attr-defined]
            return node, tape.dtypes[node]
        if kind is float or kind is int or kind is bool:
            return tape.number(other), kind  # type: ignore[arg-type]
        if isinstance(other, Vector):
            self._verify(other)
            if other._backend is not self._backend:
                self._operands(other)  # raises
            node = tape.leaf(other)
            return node, tape.dtypes[node]
        if isinstance(other, PerTensor):
            if not self._spreads_over(other.layout):
                raise ValueError(
                    "Expected a PerTensor of this Vector's layout, got one that names other tensors."
                )
            tape.spreads.append(other)
            dtypes = tuple(fractional(b.dtype) for b in self.layout.blocks)
            return tape.emit(("spread", len(tape.spreads) - 1), dtypes), dtypes
        if isinstance(other, np.number | bool | int | float):
            value = other.item() if isinstance(other, np.number) else other
            return tape.number(value), type(value)
        return None

    def _spreads_over(self, segments: Layout) -> bool:
        """Whether these are segments of this layout; by name only where need be, of a million rows."""
        own = self.layout
        if segments is own or segments is own.rows:
            return True
        return segments.names in (own.names, own.rows.names)

    def _binary(self, operation: str, other: object, swap: bool = False) -> Vector:
        if operation == "pow" and not swap and isinstance(other, int | float):
            # What frameworks do too, and these are exact where a general power is not.
            if other == 1:
                return self._tape.recorded(self.use())
            if other == 2:
                operation, other = "mul", self
            elif other == 0.5:
                return self._unary("sqrt")
        # A step of a small model is mostly these lines: the common operands are taken without a call.
        tape = self._tape
        node = self._node if self._out is None else self.use()
        kind: Any = other.__class__
        if kind is float or kind is int:
            tape.scalars.append(other)  # type: ignore[arg-type]  # as its class says
            right = -len(tape.scalars)
        elif kind is Recorded and other._tape is tape and other.layout is self.layout:  # type: ignore[attr-defined]
            right, kind = other._node if other._out is None else other.use(), None  # type: ignore[attr-defined]
        else:
            operand = self._operand(other)
            if operand is None:
                return NotImplemented  # type: ignore[no-any-return]
            right, kind = operand
            if right >= 0:
                kind = None
        key = (operation, node, right, kind, swap)
        place = tape._place.after.get(key)
        if place is None:
            place = self._new_binary(key)
        tape._place = place
        tape.dtypes.append(place.dtypes)
        result = _new(Recorded)
        result._tape = tape
        result._node = place.node
        result._out = None
        result._backend = self._backend
        result.layout = place.layout
        return result

    def _new_binary(self, key: tuple[str, int, int, Any, bool]) -> _Place:
        operation, node, right, kind, swap = key
        tape = self._tape
        own = tape.dtypes[node]
        if kind is None:
            kind = tape.dtypes[right]
        known = (tape.backend.name, operation, own, kind, swap)
        dtypes = _RESULTS.get(known)
        if dtypes is None:
            others = kind if isinstance(kind, tuple) else (kind,) * len(own)
            pairs = [(b, a) if swap else (a, b) for a, b in zip(own, others, strict=True)]
            dtypes = _RESULTS[known] = tuple(_result(tape, operation, pair) for pair in pairs)
        instruction = (operation, right, node) if swap else (operation, node, right)
        return tape.new_place(key, instruction, dtypes)

    def _unary(self, operation: str) -> Vector:
        tape, node = self._tape, self.use()
        own = tape.dtypes[node]
        key = (tape.backend.name, operation, own)
        dtypes = _RESULTS.get(key)
        if dtypes is None:
            dtypes = _RESULTS[key] = tuple(_result(tape, operation, (a,)) for a in own)
        return tape.recorded(tape.emit((operation, node), dtypes))

    def where(self, then: Vector | Scalar, otherwise: Vector | Scalar) -> Vector:
        """See `Vector.where`."""
        tape, condition = self._tape, self.use()
        sides = []
        for side in (then, otherwise):
            operand = self._operand(side)
            if operand is None:
                raise TypeError("Expected each choice to be a Vector or a number.")
            sides.append(operand)
        if all(node < 0 for node, _ in sides):
            raise TypeError("Expected at least one of the two choices to be a Vector, got two numbers.")
        (a, left), (b, right) = sides
        key = (tape.backend.name, "where", tape.dtypes[condition], left, right)
        dtypes = _RESULTS.get(key)
        if dtypes is None:
            count = len(self.layout.blocks)
            columns = [x if isinstance(x, tuple) else (x,) * count for x in (left, right)]
            rows = zip(tape.dtypes[condition], *columns, strict=True)
            dtypes = _RESULTS[key] = tuple(_result(tape, "where", row) for row in rows)
        return tape.recorded(tape.emit(("where", condition, a, b), dtypes))

    def keep(self, chosen: PerTensor) -> Vector:
        """See `Vector.keep`."""
        operand = self._operand(chosen)
        assert operand is not None  # noqa: S101 - a PerTensor is always an operand
        return (self._tape.recorded(operand[0]) != 0).where(self, 0.0)

    def full_like(self, value: Scalar) -> Vector:
        """See `Vector.full_like`."""
        tape = self._tape
        return tape.recorded(tape.emit(("fill", tape.number(value)), self.layout.dtypes))

    def copy(self) -> Vector:
        """The same values; a Vector in a step is never changed through another."""
        return self.again()

    def astype(self, dtype: str) -> Vector:
        """See `Vector.astype`."""
        tape, node = self._tape, self.use()
        dtypes = (dtype,) * len(self.layout.blocks)
        return tape.recorded(node if tape.dtypes[node] == dtypes else tape.emit(("cast", node), dtypes))

    def _in_place(self, operation: str, other: object) -> Self:
        result = self._binary(operation, other)
        if result is NotImplemented:
            return NotImplemented  # type: ignore[no-any-return]
        self._become(result)
        return self

    def assign(self, other: Vector) -> Self:
        """See `Vector.assign`."""
        self._verify(other)
        if other._backend is not self._backend:
            other = other.to(self)
        operand = self._operand(other)
        assert operand is not None  # noqa: S101 - a Vector is always an operand
        self._become(self._tape.recorded(operand[0]))
        return self

    def _become(self, result: Vector) -> None:
        """Take over values, in this Vector's dtypes."""
        assert isinstance(result, Recorded)  # noqa: S101 - operations on a Recorded record
        dtypes = self.layout.dtypes
        node = result.use()
        if self._tape.dtypes[node] != dtypes:
            node = self._tape.emit(("cast", node), dtypes)
        if self._out is None:
            self._node = node
        else:
            # Views of its memory are about: they see the change, as they would outside a step.
            source = self._tape.evaluate((node,), (None,))[0]
            self._out._write(source.buffers)

    # ---- reductions ------------------------------------------------------------------------------------

    def sum(self) -> float:
        """See `Vector.sum`."""
        return float(self._tape.sums(self.use(), None, None))

    def dot(self, other: Vector) -> float:
        """See `Vector.dot`."""
        operand = self._operand(other)
        if operand is None or not isinstance(other, Vector):
            raise TypeError(f"Expected a Vector, got {type(other).__name__}.")
        return float(self._tape.sums(self.use(), operand[0], None))

    def norm(self) -> float:
        """See `Vector.norm`."""
        node = self.use()
        return math.sqrt(self._tape.sums(node, node, None))

    def _per_segment(self, other: Vector | None, segments: Layout) -> PerTensor:
        node = self.use()
        operand = None if other is None else node if other is self else self._operand(other)[0]  # type: ignore[index]
        found: PerTensor = self._tape.sums(node, operand, segments)
        return found
