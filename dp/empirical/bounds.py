"""Bounds: how large epsilon is at least, from an attacker's right and wrong guesses: floor 4.

Two experiments. In many runs the attacker guesses each time whether one unit was in the data:
`bound_from_rates`. In one run it guesses of many units at once, each of which was in the data by the toss of
a coin: `bound_from_guesses`. Either bound is too high with a probability of at most ``1 - confidence``,
whatever the attacker does and however dependent its guesses are on the mechanism's output.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import PrivacyParameterError

__all__ = ["CONFIDENCE", "bound_from_guesses", "bound_from_rates"]

Counts: TypeAlias = npt.NDArray[np.int64]
CONFIDENCE = 0.999
"""An honest mechanism then passes twenty audits in a row with a probability of 98 %."""
_LARGEST = 64.0
"""No experiment that fits a computer says more."""


def bound_from_rates(
    true_positives: int,
    members: int,
    false_positives: int,
    others: int,
    *,
    delta: float,
    confidence: float = CONFIDENCE,
) -> float:
    """Lower bound on epsilon from repeated runs, with a unit and without it.

    Computes ``log((true - delta) / false)`` from a lower bound on the rate of true positives and an upper
    bound on that of false ones (Clopper and Pearson), and the same for the negative guesses; the larger
    counts.

    Guarantees:
        - If the mechanism is (epsilon, delta)-DP, runs are independent and the attacker was fixed before
          them, the bound is above epsilon with a probability of at most ``1 - confidence``.

    Args:
        true_positives: Runs with the unit in which the attacker said that it is there.
        members: Runs with the unit, at least 1.
        false_positives: Runs without it in which it said so too.
        others: Runs without it, at least 1.
        delta: At which delta, in [0, 1).
        confidence: In (0, 1).

    Returns:
        The bound, at least 0.

    Raises:
        PrivacyParameterError: If a value is out of its range.

    Example:
        >>> round(bound_from_rates(990, 1000, 10, 1000, delta=1e-5), 2)
        3.62

    References:
        Jagielski, Ullman, Oprea (2020), https://arxiv.org/abs/2006.07709; Clopper and Pearson (1934).
    """
    _verify_counts(("true_positives", true_positives, members), ("false_positives", false_positives, others))
    if not members * others:
        raise PrivacyParameterError(f"Expected runs of both kinds, got {members} and {others}.")
    _verify_levels(delta, confidence)
    counts = np.array([true_positives]), np.array([false_positives])
    return float(bounds_from_rates(*counts, members, others, delta, confidence)[0])


def bounds_from_rates(
    true_positives: Counts,
    false_positives: Counts,
    members: int,
    others: int,
    delta: float,
    confidence: float,
) -> npt.NDArray[np.float64]:
    """The same for many counts at once, each by itself at that confidence; nothing is verified."""
    # Four one-sided intervals, each of which fails with a quarter of the probability.
    alpha = (1 - confidence) / 4
    positive = _ratio(_low(true_positives, members, alpha), _high(false_positives, others, alpha), delta)
    negative = _ratio(
        _low(others - false_positives, others, alpha), _high(members - true_positives, members, alpha), delta
    )
    return np.maximum(positive, negative)


def bound_from_guesses(
    correct: int, guesses: int, canaries: int, *, delta: float, confidence: float = CONFIDENCE
) -> float:
    """Lower bound on epsilon from one run with many canaries.

    Each canary was put into the data or left out by a fair coin, independently. The attacker sees what the
    mechanism released, and guesses of as many as it likes whether they were in.

    Guarantees:
        - If the mechanism is (epsilon, delta)-DP for one canary's presence, the bound is above epsilon with a
          probability of at most ``1 - confidence``.

    Args:
        correct: Guesses that were right.
        guesses: Guesses, at most `canaries`.
        canaries: Canaries whose coins were tossed.
        delta: At which delta, in [0, 1).
        confidence: In (0, 1).

    Returns:
        The bound, at least 0.

    Raises:
        PrivacyParameterError: If a value is out of its range.

    Example:
        >>> round(bound_from_guesses(560, 1000, 1000, delta=0.0), 3)
        0.043
        >>> bound_from_guesses(500, 1000, 1000, delta=1e-5)
        0.0

    References:
        Steinke, Nasr, Jagielski (2023), https://arxiv.org/abs/2305.08846, Theorem 5.2.
    """
    _verify_counts(("correct", correct, guesses), ("guesses", guesses, canaries))
    _verify_levels(delta, confidence)
    alpha = 1 - confidence
    if not guesses or _p_value(correct, guesses, canaries, 0.0, delta) > alpha:
        return 0.0
    low, high = 0.0, _LARGEST
    while high - low > 1e-6:
        middle = (low + high) / 2
        if _p_value(correct, guesses, canaries, middle, delta) <= alpha:
            low = middle
        else:
            high = middle
    return low


def _p_value(correct: int, guesses: int, canaries: int, epsilon: float, delta: float) -> float:
    """How probable so many right guesses are at the most, if the mechanism is (epsilon, delta)-DP.

    Under pure epsilon-DP the number of right guesses is dominated by that of independent ones, each right
    with probability 1 / (1 + exp(-epsilon)). Delta lets an attacker move probability from counts below the
    one that was seen to it: by i counts at the price of i / (2 canaries delta) at the least.
    """
    from scipy import stats  # takes a while to load

    right = 1 / (1 + math.exp(-epsilon))
    beyond = float(stats.binom.sf(correct - 1, guesses, right))
    if correct == 0 or delta == 0:
        return min(1.0, beyond)
    counts = np.arange(correct - 1, -1, -1)
    below = np.cumsum(stats.binom.pmf(counts, guesses, right))
    steepest = float(np.max(below / np.arange(1, correct + 1)))
    return min(1.0, beyond + 2 * canaries * delta * steepest)


def _ratio(
    low: npt.NDArray[np.float64], high: npt.NDArray[np.float64], delta: float
) -> npt.NDArray[np.float64]:
    """log((low - delta) / high), where it says anything."""
    return np.maximum(0.0, np.log(np.maximum(low - delta, 1e-300) / high))


def _low(successes: Counts, trials: int, alpha: float) -> npt.NDArray[np.float64]:
    """Lower limits of Clopper and Pearson, each too high with probability alpha."""
    from scipy import stats

    limits = stats.beta.ppf(alpha, np.maximum(successes, 1), trials - successes + 1)
    return np.where(successes > 0, limits, 0.0)


def _high(successes: Counts, trials: int, alpha: float) -> npt.NDArray[np.float64]:
    """Upper limits of Clopper and Pearson, each too low with probability alpha."""
    from scipy import stats

    limits = stats.beta.isf(alpha, successes + 1, np.maximum(trials - successes, 1))
    return np.where(successes < trials, limits, 1.0)


def _verify_counts(*given: tuple[str, int, int]) -> None:
    for name, count, of in given:
        for value in (count, of):
            if isinstance(value, bool) or not isinstance(value, int):
                raise PrivacyParameterError(f"Expected {name} and its total as integers, got {value!r}.")
        if not 0 <= count <= of:
            raise PrivacyParameterError(f"Expected {name} in 0..{of}, got {count}.")


def _verify_levels(delta: float, confidence: float) -> None:
    if not 0 <= delta < 1:
        raise PrivacyParameterError(f"Expected delta in [0, 1), got delta={delta}.")
    if not 0 < confidence < 1:
        raise PrivacyParameterError(f"Expected confidence in (0, 1), got confidence={confidence}.")
