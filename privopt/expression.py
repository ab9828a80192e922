"""What a step records: floor 1, an expression as plain data that any executor can run.

Instructions come from a fixed table of operations. Numbers are parameters, never part of the
expression, so one compiled kernel serves every step of the same shape.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["BINARY", "COMPILED_DTYPES", "INEXACT", "UNARY", "Instruction", "Program", "pruned"]

UNARY = frozenset({"neg", "abs", "sqrt", "sign", "exp", "log", "isfinite"})
BINARY = frozenset(
    {"add", "sub", "mul", "div", "pow", "minimum", "maximum", "lt", "le", "gt", "ge", "eq", "ne"}
)

COMPILED_DTYPES = frozenset({"float32", "float64", "bool"})
INEXACT = frozenset({"exp", "log", "pow"})
"""Operations whose last bit depends on the library that computes them."""

Instruction = tuple[str | int, ...]
"""One node of an expression. An operand >= 0 is a node, one < 0 the number ``scalars[-1 - operand]``.

``("leaf", k)``: array k · ``("fill", s)``: a number everywhere · ``("spread", k)``: one number per segment ·
``("cast", a)``: in the node's own dtype · ``(unary, a)`` · ``(binary, a, b)`` · ``("where", c, a, b)``.
"""


@dataclass(frozen=True, eq=False)
class Program:
    """One pass over memory: instructions in order, the dtype of each node, and which nodes are kept.

    Attributes:
        code: Instructions; only those that an output needs.
        dtypes: Dtype of each node (numpy's spelling, or ``bfloat16``).
        outputs: Nodes whose values are wanted.
        segmented: Whether it reads one number per segment.
        compilable: Whether all dtypes are floats of a processor (or bool) and IEEE 754 settles every bit.
        kernels: What executors made of it, kept here because looking a program up costs more than running a
            small one.
    """

    code: tuple[Instruction, ...]
    dtypes: tuple[str, ...]
    outputs: tuple[int, ...]
    segmented: bool
    compilable: bool
    kernels: dict[object, Any] = field(default_factory=dict, repr=False)


def pruned(
    code: list[Instruction], dtypes: list[str], outputs: tuple[int, ...]
) -> tuple[Program, tuple[int, ...], tuple[int, ...]]:
    """Keep what the outputs need; returns the program and which leaves and spreads it reads, in its order."""
    live: set[int] = set()
    stack = list(outputs)
    while stack:
        node = stack.pop()
        if node not in live:
            live.add(node)
            stack += nodes_of(code[node])
    number = {node: k for k, node in enumerate(sorted(live))}
    leaves: dict[int, int] = {}
    spreads: dict[int, int] = {}
    kept: list[Instruction] = []
    for node in sorted(live):
        op, *operands = code[node]
        if op == "leaf":
            kept.append((op, leaves.setdefault(int(operands[0]), len(leaves))))
        elif op == "spread":
            kept.append((op, spreads.setdefault(int(operands[0]), len(spreads))))
        else:
            kept.append((op, *(number[int(x)] if int(x) >= 0 else int(x) for x in operands)))
    places = tuple(dtypes[node] for node in sorted(live))
    program = Program(
        tuple(kept),
        places,
        tuple(number[node] for node in outputs),
        segmented=bool(spreads),
        compilable=not any(op in INEXACT or _mixes_truth(op, x, kept, places) for op, *x in kept)
        and COMPILED_DTYPES.issuperset(places),
    )
    return program, tuple(leaves), tuple(spreads)


def _mixes_truth(
    op: str | int, operands: list[Any], code: list[Instruction], dtypes: tuple[str, ...]
) -> bool:
    """Whether numbers and truth values meet in arithmetic: frameworks differ in what that gives."""
    if op not in BINARY and op not in ("neg", "abs", "sign", "sqrt"):
        return False
    return any(int(x) >= 0 and dtypes[int(x)] == "bool" for x in operands)


def nodes_of(instruction: Instruction) -> list[int]:
    """The earlier nodes that an instruction reads."""
    op, *operands = instruction
    if op in ("leaf", "spread"):
        return []
    return [int(x) for x in operands if int(x) >= 0]
