"""Scores: from what an attacker computes of a release to a lower bound on epsilon: floor 5.

An attacker gives every run a number, large where it believes that the unit was in the data. Where to draw the
line between yes and no is chosen on one half of the runs, and judged on the other: chosen and judged on the
same runs, the best of many lines would look better than it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import PrivacyParameterError
from .bounds import CONFIDENCE, bound_from_rates, bounds_from_rates

__all__ = ["EmpiricalBound", "attack", "bound_from_scores"]

_LINES = 200
"""Lines that are tried on the first half."""


@dataclass(frozen=True)
class EmpiricalBound:
    """What an attack has shown.

    Attributes:
        epsilon: Lower bound on epsilon, at `delta`.
        delta: At which delta.
        confidence: The bound is above the true epsilon with a probability of at most one minus this.
        runs: Runs that were judged, with the unit and without it.
        threshold: Score from which on the attacker says yes.
        true_positive_rate: Share of judged runs with the unit that it said yes to.
        false_positive_rate: The same without the unit.
    """

    epsilon: float
    delta: float
    confidence: float
    runs: int
    threshold: float
    true_positive_rate: float
    false_positive_rate: float

    def refutes(self, claimed: float) -> bool:
        """Whether a mechanism that claims this epsilon is not what it claims."""
        return self.epsilon > claimed


def attack(
    score: Callable[[bool], float], runs: int, *, delta: float, confidence: float = CONFIDENCE
) -> EmpiricalBound:
    """Run a mechanism many times with a unit and without it, and bound epsilon from below.

    Args:
        score: Runs the mechanism afresh, with the unit or without it, and returns the attacker's score. Runs
            must be independent, and use the randomness that the mechanism uses in earnest.
        runs: Runs of each kind, at least 20; half of them choose the line.
        delta: At which delta, in [0, 1).
        confidence: In (0, 1).

    Returns:
        The bound, with what it rests on.

    Raises:
        PrivacyParameterError: If a value is out of its range, or a score is NaN.

    Example:
        >>> noise = np.random.default_rng(0)  # in earnest: the mechanism's own
        >>> found = attack(lambda there: there + noise.normal(), runs=2000, delta=1e-2)
        >>> 0.5 < found.epsilon < 4.0
        True
    """
    if isinstance(runs, bool) or not isinstance(runs, int) or runs < 20:
        raise PrivacyParameterError(f"Expected runs >= 20 of each kind, got {runs!r}.")
    pairs = [(score(True), score(False)) for _ in range(runs)]
    return bound_from_scores(
        [there for there, _ in pairs], [missing for _, missing in pairs], delta=delta, confidence=confidence
    )


def bound_from_scores(
    members: Sequence[float] | npt.NDArray[np.float64],
    others: Sequence[float] | npt.NDArray[np.float64],
    *,
    delta: float,
    confidence: float = CONFIDENCE,
) -> EmpiricalBound:
    """Lower bound on epsilon from scores of runs with a unit and without it.

    Guarantees:
        - As `bound_from_rates`: the line is chosen on the first halves, the rates are those of the second.

    Args:
        members: Scores of runs with the unit, at least 20, in the order of the runs.
        others: Scores of as many runs without it.
        delta: At which delta, in [0, 1).
        confidence: In (0, 1).

    Returns:
        The bound, with what it rests on.

    Raises:
        PrivacyParameterError: If a value is out of its range, or a score is NaN.
    """
    there, missing = (np.asarray(scores, np.float64) for scores in (members, others))
    if there.ndim != 1 or there.shape != missing.shape or there.size < 20:
        raise PrivacyParameterError(
            f"Expected scores of as many runs with the unit as without it, at least 20 each, got shapes "
            f"{there.shape} and {missing.shape}."
        )
    if np.isnan(there).any() or np.isnan(missing).any():
        raise PrivacyParameterError("Expected scores that are numbers, got NaN. Score a failed run lowest.")
    half = there.size // 2
    threshold = _line(there[:half], missing[:half], delta)
    judged = there.size - half
    true_positives = int(np.count_nonzero(there[half:] >= threshold))
    false_positives = int(np.count_nonzero(missing[half:] >= threshold))
    epsilon = bound_from_rates(
        true_positives, judged, false_positives, judged, delta=delta, confidence=confidence
    )
    return EmpiricalBound(
        epsilon, delta, confidence, judged, threshold, true_positives / judged, false_positives / judged
    )


def _line(there: npt.NDArray[np.float64], missing: npt.NDArray[np.float64], delta: float) -> float:
    """The score that tells the two kinds apart best, by the same bound at a low confidence."""
    both = np.unique(np.concatenate([there, missing]))
    lines = both[np.linspace(0, both.size - 1, min(_LINES, both.size)).astype(int)]
    # As many scores are at a line or above as there are behind its place among the sorted ones.
    true = there.size - np.searchsorted(np.sort(there), lines)
    false = missing.size - np.searchsorted(np.sort(missing), lines)
    bounds = bounds_from_rates(true, false, there.size, missing.size, delta, 0.9)
    return float(lines[int(np.argmax(bounds))])
