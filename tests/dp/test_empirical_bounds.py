"""Lower bounds on epsilon: closed forms, exact enumeration, and how often they are wrong."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import optimize, stats

import dp
from dp.empirical import bound_from_guesses, bound_from_rates
from dp.empirical.bounds import _p_value


def test_all_guesses_right_is_the_closed_form():
    """Without delta m right guesses of m have probability (1 + exp(-eps))^-m."""
    for m, alpha in itertools.product((10, 100, 1000), (0.05, 0.001)):
        expected = -math.log(alpha ** (-1 / m) - 1)
        assert bound_from_guesses(m, m, m, delta=0.0, confidence=1 - alpha) == pytest.approx(
            expected, abs=1e-5
        )


def test_guesses_of_a_coin_say_nothing():
    surprising = int(stats.binom.isf(1e-3, 1000, 0.5)) + 1
    for correct in range(0, surprising, 7):
        assert bound_from_guesses(correct, 1000, 1000, delta=0.0) == 0.0
    assert bound_from_guesses(surprising + 1, 1000, 1000, delta=0.0) > 0.0
    assert bound_from_guesses(0, 0, 10, delta=0.0) == 0.0


def test_the_bound_rises_with_right_guesses_and_falls_with_delta_and_confidence():
    found = [bound_from_guesses(v, 200, 200, delta=1e-5) for v in range(100, 201, 5)]
    assert found == sorted(found)
    assert found[-1] > 3
    deltas = [bound_from_guesses(180, 200, 1000, delta=d) for d in (0.0, 1e-6, 1e-4, 1e-3, 1e-2)]
    assert deltas == sorted(deltas, reverse=True)
    assert deltas[0] > deltas[-1]
    levels = [bound_from_guesses(180, 200, 200, delta=1e-5, confidence=c) for c in (0.9, 0.99, 0.999)]
    assert levels == sorted(levels, reverse=True)


def test_no_approximate_mechanism_is_more_often_right_than_the_p_value_says():
    """All of m = 4 canaries' coins and a mechanism that gives everything away with probability delta m.

    It tells all coins with a probability that its delta for one canary allows, and else answers each by
    randomized response: its true tail, enumerated exactly, is below the bound for every count.
    """
    for m, epsilon, delta in itertools.product((2, 4, 6), (0.0, 0.5, 2.0), (1e-3, 1e-2, 0.1)):
        right = Fraction(1 / (1 + math.exp(-epsilon)))
        for correct in range(m + 1):
            tail = sum(math.comb(m, v) * right**v * (1 - right) ** (m - v) for v in range(correct, m + 1))
            # With probability delta the whole database leaves: (epsilon, delta)-DP, and all guesses right.
            true = float((1 - Fraction(delta)) * tail + Fraction(delta))
            assert true <= _p_value(correct, m, m, epsilon, delta) + 1e-12


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_a_mechanism_of_known_epsilon_is_bounded_below_it_and_not_far_below(epsilon):
    """Randomized response: 2,000 audits. A bound above epsilon has probability 1e-3 each.

    ALPHA = 1e-6: of 2,000 audits at most 13 may be above; an audit at 95 % confidence has 100 above.
    """
    rng = np.random.default_rng(20261122)
    m, right = 1000, 1 / (1 + math.exp(-epsilon))
    limit = int(stats.binom.isf(1e-6, 2000, 1e-3))
    assert limit <= 13
    bounds: dict[tuple[int, float], float] = {}

    def above(confidence: float) -> int:
        found = []
        for correct in rng.binomial(m, right, size=2000).tolist():
            key = correct, confidence
            if key not in bounds:
                bounds[key] = bound_from_guesses(correct, m, m, delta=0.0, confidence=confidence)
            found.append(bounds[key])
        assert np.median(found) > 0.6 * epsilon - 0.1
        return sum(bound > epsilon for bound in found)

    assert above(0.999) <= limit
    assert above(0.95) > limit, "power: a bound that is wrong too often is seen"


def test_rates_agree_with_clopper_and_pearsons_limits():
    """The limits solve P(X >= k) = alpha and P(X <= k) = alpha: checked by the binomial tails themselves."""
    tp, members, fp, others, delta, confidence = 990, 1000, 7, 900, 1e-5, 0.999
    alpha = (1 - confidence) / 4
    found = bound_from_rates(tp, members, fp, others, delta=delta, confidence=confidence)
    low = optimize.brentq(lambda rate: stats.binom.sf(tp - 1, members, rate) - alpha, 0.9, 0.99, xtol=1e-12)
    high = optimize.brentq(lambda rate: stats.binom.cdf(fp, others, rate) - alpha, 1e-4, 0.1, xtol=1e-12)
    first = math.log((low - delta) / high)
    second_low = stats.beta.ppf(alpha, others - fp, fp + 1)
    second_high = stats.beta.isf(alpha, members - tp + 1, tp)
    second = math.log((second_low - delta) / second_high)
    assert found == pytest.approx(max(first, second), abs=1e-6)


def test_runs_of_one_kind_alone_are_refused():
    with pytest.raises(dp.PrivacyParameterError, match="runs of both kinds"):
        bound_from_rates(3, 3, 0, 0, delta=0.0)


def test_an_attacker_that_always_says_yes_learns_nothing():
    assert bound_from_rates(1000, 1000, 1000, 1000, delta=1e-5) == 0.0
    assert bound_from_rates(0, 1000, 0, 1000, delta=1e-5) == 0.0


def test_gaussian_noise_is_bounded_below_its_price_and_above_a_third_of_it():
    """A counting query with Gaussian noise, 20,000 runs a side, against what dp-accounting says.

    The attacker says yes beyond a threshold that was fixed before: 2.5 std, where the ratio is large.
    """
    rng = np.random.default_rng(7)
    z, delta, runs, at = 1.0, 1e-3, 20_000, 2.5
    price = dp.epsilon(dp.events.Gaussian(z), delta)
    tp = int(np.count_nonzero(rng.normal(1.0, z, runs) > at))
    fp = int(np.count_nonzero(rng.normal(0.0, z, runs) > at))
    found = bound_from_rates(tp, runs, fp, runs, delta=delta)
    assert price / 3 < found < price
    # Half the noise at the same price is found out.
    tp = int(np.count_nonzero(rng.normal(1.0, 0.25, runs) > 0.9))
    fp = int(np.count_nonzero(rng.normal(0.0, 0.25, runs) > 0.9))
    assert bound_from_rates(tp, runs, fp, runs, delta=delta) > price


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"correct": 5, "guesses": 4, "canaries": 10, "delta": 0.0}, "correct in 0..4"),
        ({"correct": 1, "guesses": 11, "canaries": 10, "delta": 0.0}, "guesses in 0..10"),
        ({"correct": 1.5, "guesses": 4, "canaries": 10, "delta": 0.0}, "integers, got 1.5"),
        ({"correct": 1, "guesses": 4, "canaries": 10, "delta": 1.0}, "delta in"),
        ({"correct": 1, "guesses": 4, "canaries": 10, "delta": 0.0, "confidence": 1.0}, "confidence in"),
    ],
)
def test_what_is_no_experiment_is_refused(arguments, says):
    with pytest.raises(dp.PrivacyParameterError, match=says):
        bound_from_guesses(**arguments)
