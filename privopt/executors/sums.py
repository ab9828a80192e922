"""Spells sums in LLVM's language: chunk by chunk and lane by lane, as `privopt.summation` defines them."""

from __future__ import annotations

import functools

from ..summation import LANES
from .loops import BYTES, TYPES, fields

__all__ = ["IN_ORDER", "source"]

# What the kernel of a sum is given.
_CHUNKS, _TAKEN, _STARTS, _ENDS, _PARTS, _LEFT, _RIGHT = range(1, 8)


@functools.cache
def source(dtype: str, kind: str) -> str:
    """The sums of chunks in LLVM's language, lane by lane as `privopt.summation` defines them.

    A chunk's last row of lanes is filled with zeros, which change no sum.

    Args:
        dtype: Of the arrays: float32 or float64.
        kind: ``"none"`` for a sum, ``"square"`` and ``"product"`` for inner products.
    """
    lanes, entry = f"<{LANES} x double>", TYPES[dtype]
    row, size = f"<{LANES} x {entry}>", BYTES[dtype]
    sides = ("left", "right") if kind == "product" else ("left",)
    lines = [
        "define void @sums(ptr %job) {",
        "entry:",
        *fields(("chunks", "i64", _CHUNKS), ("piece", "i64", _TAKEN), ("starts", "ptr", _STARTS)),
        *fields(("ends", "ptr", _ENDS), ("parts", "ptr", _PARTS)),
        *fields(*((side, "ptr", _LEFT if side == "left" else _RIGHT) for side in sides)),
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


def _terms(kind: str, dtype: str, what: str) -> list[str]:
    """What is added to the lanes, in float64."""
    lanes, row = f"<{LANES} x double>", f"<{LANES} x {TYPES[dtype]}>"
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


IN_ORDER = "\n".join(
    [
        "define void @in_order(ptr %job) {",
        "entry:",
        *fields(("segments", "i64", 0), ("parts", "ptr", 1), ("counts", "ptr", 2), ("sums", "ptr", 3)),
        """\
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
""",
    ]
)
"""Adds the sums of chunks one after the other, segment by segment. 0.0 + x is x: no part is -0.0."""
