"""The same numbers everywhere: in each framework, and by each executor."""

from __future__ import annotations

import importlib.util
import unittest
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..vector import Vector
from .inputs import LARGE, SEVERAL
from .subject import Subject, difference, expect
from .trial import live

__all__ = ["EXECUTORS", "SHORT", "check_executors", "check_frameworks", "closeness", "runs_on"]

SHORT = ("round", "step", "step", "accept", "round", "step")
"""Enough for first and later steps, and for a round with what was exchanged."""
RTOL = {"float32": 1e-6, "float64": 1e-12}
"""Across frameworks, of each tensor's largest entry."""
COMPILED_RTOL = {"float32": 2e-6, "float64": 4e-15}
"""Of what frameworks' own fused kernels and compilers may contract and reorder."""
EXECUTORS = ("auto", "exact", "blocked", "numba", "torch")


def check_frameworks(subject: Subject, framework: str, dtype: str = "float32") -> None:
    """A life in one framework gives numpy's states and weights: to 1e-6 in float32, 1e-12 in float64."""
    expected = live(subject, SHORT, dtype=dtype, by="exact").state()
    found = live(subject, SHORT, dtype=dtype, framework=framework, by="exact").state()
    gap = closeness(expected, found, RTOL[dtype])
    expect(gap is None, subject, f"Expected numpy's numbers in {framework}, got {gap} ({dtype}).")


def check_executors(subject: Subject, by: str, framework: str = "numpy", dtype: str = "float32") -> None:
    """An executor gives eager's states and weights, on a small model and on one of several blocks.

    Bit for bit on numpy and torch, but where the framework's own kernels run: torch's fused ones (``torch``,
    and ``auto`` without numba), and whole programs compiled (``traced``, and ``auto`` elsewhere). These agree
    to 2e-6 of each tensor's largest entry in float32.

    Raises:
        unittest.SkipTest: If the executor is not installed.
    """
    if by == "numba" and not _has_numba():
        raise unittest.SkipTest("numba is not installed")
    exact = framework == "numpy" or (framework == "torch" and by in _exact_on_torch())
    # What a framework compiles, it compiles anew for each size.
    for shapes in (LARGE,) if framework not in ("numpy", "torch") else (SEVERAL, LARGE):
        settings: dict[str, Any] = {"framework": framework, "dtype": dtype, "shapes": shapes}
        expected = live(subject, SHORT, by="eager", **settings).state()
        found = live(subject, SHORT, by=by, **settings).state()
        gap = difference(expected, found) if exact else closeness(expected, found, COMPILED_RTOL[dtype])
        expect(
            gap is None,
            subject,
            f"Expected eager's numbers by executor {by!r} ({framework} {dtype}), got {gap}.",
        )


def runs_on(by: str, framework: str) -> bool:
    """Whether an executor does something of its own with a framework's arrays."""
    if framework not in ("numpy", "torch"):
        return by in ("auto", "blocked")
    return by != "traced" and (by != "torch" or framework == "torch")


def _exact_on_torch() -> Sequence[str]:
    return ("exact", "blocked", "numba", "auto") if _has_numba() else ("exact", "blocked")


def _has_numba() -> bool:
    return importlib.util.find_spec("numba") is not None


def closeness(left: Any, right: Any, rtol: float, where: str = "") -> str | None:
    """What first differs by more than `rtol` of its tensor's largest entry, in words; or None."""
    if isinstance(left, Vector) and isinstance(right, Vector):
        theirs = right.to_numpy().coefs
        for name, array in left.to_numpy().coefs.items():
            ours, other = np.asarray(array, np.float64), np.asarray(theirs[name], np.float64)
            worst = float(np.max(np.abs(ours - other), initial=0.0))
            # Written so that a NaN on one side is a difference.
            if not worst <= rtol * float(np.max(np.abs(ours), initial=0.0)):
                return f"{where}: tensor {name!r} differs by up to {worst:.3g}"
        return None
    if isinstance(left, Mapping) and isinstance(right, Mapping) and left.keys() == right.keys():
        found = (closeness(left[k], right[k], rtol, f"{where}.{k}" if where else str(k)) for k in left)
        return next((gap for gap in found if gap is not None), None)
    if isinstance(left, float) and isinstance(right, float):
        return None if abs(left - right) <= rtol * abs(left) else f"{where}: {left!r} and {right!r}"
    return difference(left, right, where)
