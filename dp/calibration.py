"""Calibration: noise for a target, steps for a target, and what delta may be: floor 4.

Searched on PLD's coarse grid, certified on its fine one: what is returned holds as
`dp.epsilon` will price it.
"""

from __future__ import annotations

import math
import warnings

from .accounting import By, epsilon
from .errors import PrivacyParameterError, PrivacyWarning
from .events import Event, Gaussian, Neighboring, Poisson, Repeated

__all__ = ["check_delta", "noise_multiplier_for", "num_steps_for"]

_GRID = 1000
"""Noise multipliers are multiples of 1/1000, rounded up: three digits, as people read them."""
_MOST_NOISE = 1e6


# The target comes by keyword, as in every public signature: epsilon=8.0 reads as what it is.
def noise_multiplier_for(
    *,
    epsilon: float,
    delta: float,
    sample_rate: float,
    num_steps: int,
    neighboring: Neighboring | str = Neighboring.ADD_OR_REMOVE_ONE,
    by: By = "PLD",
) -> float:
    """The least noise that keeps a plan within (epsilon, delta).

    Guarantees:
        - ``dp.epsilon(plan, delta, by=by) <= epsilon`` for the noise that is returned.
        - One that is smaller by 1 % and 0.002 exceeds epsilon.

    Args:
        epsilon: Target, finite and > 0.
        delta: Target, in (0, 1).
        sample_rate: Poisson inclusion probability, in (0, 1].
        num_steps: Releases of the whole plan, at least 1.
        neighboring: Relation.
        by: Accountant.

    Returns:
        Noise multiplier, a multiple of 0.001.

    Raises:
        PrivacyParameterError: If a target is out of range, or no noise reaches it.
        UnsupportedEvent: If the accountant prices no such plan.

    Example:
        >>> noise_multiplier_for(epsilon=8.0, delta=1e-3, sample_rate=0.2, num_steps=100)
        1.175
    """
    _check_target(epsilon, sample_rate)
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 1:
        raise PrivacyParameterError(f"Expected num_steps >= 1, got num_steps={num_steps}.")

    def cost(thousandths: int, *, precise: bool = False) -> float:
        plan = Repeated(step_event(sample_rate, thousandths / _GRID), num_steps)
        return _price(plan, delta, by, neighboring, precise)

    low, high = 0, _GRID
    costs = {0: math.inf}
    while costs.setdefault(high, cost(high)) > epsilon:
        low, high = high, 2 * high
        if high > _MOST_NOISE * _GRID:
            raise PrivacyParameterError(
                f"Expected a target that some noise reaches, got epsilon={epsilon} at delta={delta} over "
                f"{num_steps} steps: noise multiplier {_MOST_NOISE:g} is too little. "
                "Raise epsilon or take fewer steps."
            )
    while high - low > 1:
        guess = min(max(_power_law(costs, epsilon, (low + high) // 2), low + 1), high - 1)
        costs[guess] = cost(guess)
        low, high = (low, guess) if costs[guess] <= epsilon else (guess, high)
    while cost(high, precise=True) > epsilon:
        high += 1
    return high / _GRID


def _power_law(costs: dict[int, float], target: float, otherwise: int) -> int:
    """Where the power law through the two points nearest to `target` passes it.

    The cost is nearly one around there, so that a handful of evaluations do where a bisection needs ten.
    """
    known = sorted((abs(math.log(c / target)), n) for n, c in costs.items() if 0 < c < math.inf)
    if len(known) < 2:
        return otherwise
    a, b = known[0][1], known[1][1]
    if costs[a] == costs[b]:
        return otherwise
    exponent = math.log(costs[b] / costs[a]) / math.log(b / a)
    # A jump beyond tenfold says that the law does not hold there.
    step = math.log(target / costs[a]) / exponent
    return math.ceil(a * math.exp(step)) if abs(step) < math.log(10) else otherwise


def num_steps_for(
    *,
    epsilon: float,
    delta: float,
    sample_rate: float,
    noise_multiplier: float,
    neighboring: Neighboring | str = Neighboring.ADD_OR_REMOVE_ONE,
    by: By = "PLD",
    at_most: int = 10_000_000,
) -> int:
    """The most steps that stay within (epsilon, delta).

    Guarantees:
        - ``dp.epsilon(plan, delta, by=by) <= epsilon`` for the steps that are returned.

    Args:
        epsilon: Target, finite and > 0.
        delta: Target, in (0, 1).
        sample_rate: Poisson inclusion probability, in (0, 1].
        noise_multiplier: Noise std over the clip norm.
        neighboring: Relation.
        by: Accountant.
        at_most: Where the search ends.

    Returns:
        Number of steps; 0 where one step is too many.

    Raises:
        PrivacyParameterError: If a target is out of range.
        UnsupportedEvent: If the accountant prices no such plan.

    Example:
        >>> num_steps_for(epsilon=1.83, delta=1e-5, sample_rate=0.01, noise_multiplier=1.0) >= 1000
        True
    """
    _check_target(epsilon, sample_rate)
    step = step_event(sample_rate, noise_multiplier)

    def reaches(count: int, *, precise: bool) -> bool:
        return _price(Repeated(step, count), delta, by, neighboring, precise) <= epsilon

    low, high = 0, 1
    while high <= at_most and reaches(high, precise=False):
        low, high = high, 2 * high
    high = min(high, at_most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if reaches(middle, precise=False) else (low, middle)
    # The two grids differ by far less than 1 % in epsilon; the certificate decides about the rest.
    while low > 0 and not reaches(low, precise=True):
        low -= max(1, low // 1000)
    return low


def step_event(sample_rate: float, noise_multiplier: float) -> Poisson:
    """The event of one step of private gradient descent."""
    return Poisson(sample_rate, Gaussian(noise_multiplier))


def check_delta(delta: float, num_units: int) -> None:
    """Refuse a delta that allows to publish somebody's data outright; warn where it is close to that.

    With delta = 1/n the mechanism that publishes one unit in n, chosen at random, is "private".

    Args:
        delta: Delta of the guarantee.
        num_units: Number of units (samples, people) that the data holder protects; its own, not all holders'.

    Raises:
        PrivacyParameterError: If delta is not in (0, 1), or at least 1 over `num_units`.

    Warns:
        PrivacyWarning: If delta is more than a tenth of 1 over `num_units`.
    """
    if isinstance(num_units, bool) or not isinstance(num_units, int) or num_units < 1:
        raise PrivacyParameterError(f"Expected num_units >= 1, got num_units={num_units}.")
    if not 0 < delta < 1:
        raise PrivacyParameterError(f"Expected delta in (0, 1), got delta={delta}.")
    advice = f"Choose delta <= {_one_digit_below(0.1 / num_units):g}, a tenth of 1 over the number of units."
    if delta >= 1 / num_units:
        raise PrivacyParameterError(
            f"Expected delta < 1/{num_units} = {1 / num_units:.3g} for {num_units} units, got delta={delta}: "
            f"it would allow to publish one of them. {advice}"
        )
    if delta > 1 / (10 * num_units):
        warnings.warn(
            f"delta={delta} is more than a tenth of 1/{num_units}, the number of units. {advice}",
            PrivacyWarning,
            stacklevel=2,
        )


def _one_digit_below(value: float) -> float:
    """The largest number of one significant digit that is at most `value`."""
    exponent = math.floor(math.log10(value))
    return math.floor(value / 10.0**exponent) * 10.0**exponent


LEAST_EPSILON = 1e-3
"""Below it a plan takes PLD minutes to hours to price, and noise hides everything."""


def _check_target(target: float, sample_rate: float) -> None:
    if not (target > 0 and math.isfinite(target)):
        raise PrivacyParameterError(f"Expected epsilon > 0 and finite, got epsilon={target}.")
    if target < LEAST_EPSILON:
        raise PrivacyParameterError(
            f"Expected epsilon >= {LEAST_EPSILON:g}, got epsilon={target}: noise would hide everything, and "
            "the price cannot be computed in reasonable time. Raise epsilon or take fewer steps."
        )
    if not 0 < sample_rate <= 1:
        raise PrivacyParameterError(f"Expected sample_rate in (0, 1], got sample_rate={sample_rate}.")


def _price(plan: Event, delta: float, by: By, neighboring: Neighboring | str, precise: bool) -> float:
    # Under its own name here, since the callers' argument is called epsilon too.
    return epsilon(plan, delta, by=by, neighboring=neighboring, precise=precise)
