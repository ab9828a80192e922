"""Times two ways of doing one thing, interleaved in one process, so that a machine's drift hits both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Case", "compare"]


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        case: What was done, with its size.
        ours: Our median time, seconds.
        baseline: The baseline's median time, seconds.
        baseline_name: What it was compared with.
        ratio: ours / baseline, medians.
        ours_min: Our smallest time, seconds.
        baseline_min: The baseline's smallest time, seconds.
        ratio_min: Ratio of the smallest times.
        runs: How often each was run.
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

    def to_dict(self) -> dict[str, Any]:
        """The case as JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        times = f"{self.ours * 1e3:10.2f} ms  {self.baseline_name} {self.baseline * 1e3:10.2f} ms"
        return f"{self.case:<48} {times}  ratio {self.ratio:.2f} (smallest {self.ratio_min:.2f})"


def compare(
    case: str, ours: Callable[[], object], baseline: Callable[[], object], name: str, *, runs: int = 9
) -> Case:
    """Run both in turn, `runs` times each after one warm-up."""
    ours(), baseline()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(runs):
        for run, kept in zip((ours, baseline), times, strict=True):
            started = time.perf_counter()
            run()
            kept.append(time.perf_counter() - started)
    a, b = (statistics.median(kept) for kept in times)
    low_a, low_b = (min(kept) for kept in times)
    return Case(case, a, b, name, a / b, low_a, low_b, low_a / low_b, runs)
