"""Times two ways of doing one thing, interleaved in one process, so that a machine's drift hits both."""

from __future__ import annotations

import gc
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Benchmark", "Case", "Disagreement", "Unavailable", "against_limit", "compare"]


SECONDS = 5.0
"""How long a case is measured at least, where it does not say; ``--seconds`` sets it."""


class Unavailable(Exception):  # noqa: N818  # a state of the environment, not an error of the benchmark
    """A case that cannot be measured here; the text says what to install."""


class Disagreement(Exception):  # noqa: N818  # what was found, not what failed
    """The two sides do not give the same result, so their times mean nothing."""


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        case: What was done, with its size.
        ours: Our median, in `unit`.
        baseline: The baseline's median, in `unit`.
        baseline_name: What it was compared with.
        ratio: ours / baseline, medians.
        ours_min: Our smallest value.
        baseline_min: The baseline's smallest value.
        ratio_min: Ratio of the smallest values.
        runs: How often each was run.
        unit: What the values are: seconds (``s``), megabytes (``MB``), or a pure number (empty).
        bar: The largest ratio that the project accepts, where it has set one.
        load: The machine's load average over the minute before, to judge the values by; other work than
            these measurements is in it too.
    """

    case: str
    ours: float
    baseline: float
    baseline_name: str
    ratio: float
    ours_min: float
    baseline_min: float
    ratio_min: float
    runs: int
    unit: str = "s"
    bar: float | None = None
    load: float = field(default_factory=lambda: round(os.getloadavg()[0], 2))

    def to_dict(self) -> dict[str, Any]:
        """The case as JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        scale, unit = (1e3, "ms") if self.unit == "s" else (1.0, self.unit)
        ours, baseline = self.ours * scale, self.baseline * scale
        values = f"{ours:10.3f} {unit:<2}  {self.baseline_name:<12} {baseline:10.3f} {unit:<2}"
        line = f"{self.case:<58} {values}  ratio {self.ratio:.3f} (smallest {self.ratio_min:.3f})"
        if self.bar is not None:
            line += f"  bar {self.bar:.3f} {'met' if self.ratio <= self.bar else 'MISSED'}"
        return line


@dataclass(frozen=True)
class Benchmark:
    """A case that has a name and has not been measured yet, so that cases can be chosen by name.

    Attributes:
        case: What will be measured, with its size.
        measure: Sets up, checks that both sides give the same result, and measures.
    """

    case: str
    measure: Callable[[], Case]


def compare(
    case: str,
    ours: Callable[[], object],
    baseline: Callable[[], object],
    name: str,
    *,
    runs: int = 9,
    seconds: float | None = None,
    bar: float | None = None,
) -> Case:
    """Run both in turn after a warm-up, at least `runs` times each and for about `seconds` in all.

    What takes under a millisecond is called several times a measurement. The two sides take turns in
    being first, and the garbage collector waits.
    """
    numbers = [_calls(side) for side in (ours, baseline)]
    times: tuple[list[float], list[float]] = ([], [])
    sides = list(zip((ours, baseline), numbers, times, strict=True))
    seconds = SECONDS if seconds is None else seconds
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        began = time.perf_counter()
        while len(times[0]) < runs or time.perf_counter() - began < seconds:
            for side, number, kept in sides:
                kept.append(_timed(side, number))
            sides.reverse()
    finally:
        if enabled:
            gc.enable()
    a, b = (statistics.median(kept) for kept in times)
    low_a, low_b = (min(kept) for kept in times)
    return Case(case, a, b, name, a / b, low_a, low_b, low_a / low_b, len(times[0]), bar=bar)


def against_limit(case: str, values: Sequence[float], limit: float, unit: str) -> Case:
    """What was measured, with a limit in place of a baseline; the bar is to stay within it."""
    middle, low = statistics.median(values), min(values)
    ratio, ratio_min = middle / limit, low / limit
    return Case(case, middle, limit, "limit", ratio, low, limit, ratio_min, len(values), unit=unit, bar=1.0)


def _calls(side: Callable[[], object], shortest: float = 1e-3) -> int:
    """How many calls last `shortest` seconds together, after two that warm up."""
    side()
    return max(1, math.ceil(shortest / max(_timed(side, 1), 1e-9)))


def _timed(side: Callable[[], object], number: int) -> float:
    started = time.perf_counter()
    for _ in range(number):
        side()
    return (time.perf_counter() - started) / number
