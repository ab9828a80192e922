"""The same numbers everywhere: in each framework, and by each executor."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

from .inputs import LARGE, SEVERAL, precise
from .subject import Subject, closeness, difference, expect
from .trial import live

__all__ = ["EXECUTORS", "SHORT", "check_executors", "check_frameworks", "runs_on"]

SHORT = ("round", "step", "step", "accept", "round", "step")
"""Enough for first and later steps, and for a round with what was exchanged."""
RTOL = {"float32": 1e-6, "float64": 1e-12}
"""Across frameworks, of each tensor's largest entry."""
COMPILED_RTOL = {"float32": 2e-6, "float64": 4e-15}
"""Of what frameworks' own fused kernels and compilers may contract and reorder."""
EXECUTORS = ("auto", "exact", "blocked", "llvm", "torch")


def check_frameworks(subject: Subject, framework: str, dtype: str = "float32") -> None:
    """A life in one framework gives numpy's states and weights: to 1e-6 in float32, 1e-12 in float64.

    And stopped there and resumed from a file it goes on bit for bit.
    """
    expected = live(subject, SHORT, dtype=dtype, by="exact").state()
    there = live(subject, SHORT[:4], dtype=dtype, framework=framework, by="exact")
    resumed = there.resumed().play(SHORT[4:])
    there.play(SHORT[4:])
    gap = closeness(expected, there.state(), RTOL[dtype])
    expect(gap is None, subject, f"Expected numpy's numbers in {framework}, got {gap} ({dtype}).")
    gap = difference(there.state(), resumed.state())
    expect(gap is None, subject, f"Expected a run in {framework} to resume bit for bit, got {gap} ({dtype}).")
    with precise(framework, dtype):
        updates = there.optimizer.compute_updates(there.step_gradients(), there.weights)
    expect(
        updates.framework == framework and updates.layout == there.weights.layout,
        subject,
        f"Expected updates of {framework} in {dtype}, got {updates!r}.",
    )


def check_executors(
    subject: Subject,
    framework: str = "numpy",
    dtype: str = "float32",
    executors: Sequence[str] = EXECUTORS,
) -> None:
    """Every executor gives eager's states and weights, on a small model and on one of several blocks.

    Bit for bit on numpy and torch, but where the framework's own kernels run: torch's fused ones (``torch``,
    and ``auto`` without llvmlite), and whole programs compiled (``auto`` elsewhere). These agree to 2e-6 of
    each tensor's largest entry in float32. Executors that are not installed, or do nothing of their own with
    the framework's arrays, are left out.
    """
    # What a framework compiles, it compiles anew for each size.
    for shapes in (LARGE,) if framework not in ("numpy", "torch") else (SEVERAL, LARGE):
        settings: dict[str, Any] = {"framework": framework, "dtype": dtype, "shapes": shapes}
        expected = live(subject, SHORT, by="eager", **settings).state()
        for by in executors:
            if not runs_on(by, framework):
                continue
            found = live(subject, SHORT, by=by, **settings).state()
            exact = framework == "numpy" or (framework == "torch" and by in _exact_on_torch())
            gap = difference(expected, found) if exact else closeness(expected, found, COMPILED_RTOL[dtype])
            expect(
                gap is None,
                subject,
                f"Expected eager's numbers by executor {by!r} ({framework} {dtype}), got {gap}.",
            )


def runs_on(by: str, framework: str) -> bool:
    """Whether an executor does something of its own with a framework's arrays."""
    if by == "llvm" and not _has_llvm():
        return False
    if framework not in ("numpy", "torch"):
        return by in ("auto", "blocked")
    return by != "traced" and (by != "torch" or framework == "torch")


def _exact_on_torch() -> Sequence[str]:
    return ("exact", "blocked", "llvm", "auto") if _has_llvm() else ("exact", "blocked")


def _has_llvm() -> bool:
    return importlib.util.find_spec("llvmlite") is not None
