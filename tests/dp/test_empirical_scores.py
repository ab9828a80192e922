"""Attacks by scores: honest mechanisms pass, planted defects are found, and the line is judged fairly."""

from __future__ import annotations

import numpy as np
import pytest

import dp
from dp.empirical import attack, bound_from_scores
from dp.empirical.bounds import bounds_from_rates
from dp.noise import release

DELTA = 1e-3
CLIP, NOISE, SIZE = 1.0, 1.0, 50
PRICE = dp.epsilon(dp.events.Gaussian(NOISE), DELTA)


def scores(mechanism, runs: int, seed: int = 3, seen: slice = slice(None)):
    """A unit's gradient of norm C along one direction; the attacker knows it, and all others' are zero.

    Of the release it looks at the values `seen`, such as those of one tensor.
    """
    rng = np.random.default_rng(seed)  # the direction: nothing to protect
    direction = rng.normal(size=SIZE)
    direction /= np.linalg.norm(direction)

    def score(there: bool) -> float:
        return float(mechanism(CLIP * direction * there)[seen] @ direction[seen])

    return attack(score, runs, delta=DELTA)


def honest(total: np.ndarray) -> np.ndarray:
    stream = dp.secure_source().stream("test")
    return release(total, CLIP, NOISE, stream).values


def test_the_honest_release_passes_twenty_of_twenty():
    """So few runs cannot even give a bound above the price: of 100 judged log(1 / 0.08) is the largest."""
    found = [scores(honest, 200).epsilon for _ in range(20)]
    assert max(found) <= PRICE


def test_the_honest_release_is_bounded_by_a_quarter_of_its_price_at_least():
    """10,000 runs give 1.9 of 3.1, with a standard deviation of 0.2: a quarter is more than 5 below."""
    assert PRICE / 4 <= scores(honest, 10_000).epsilon <= PRICE


@pytest.mark.parametrize(
    "defect",
    [
        lambda total: total,  # no noise at all
        lambda total: (
            release(total, CLIP, NOISE / 20, dp.secure_source().stream("t")).values
        ),  # over the batch
        lambda total: release(20 * total, CLIP, NOISE, dp.secure_source().stream("t")).values,  # not clipped
    ],
    ids=["no noise", "noise divided by the batch", "not clipped"],
)
def test_planted_defects_are_refuted(defect):
    found = scores(defect, 1000)
    assert found.refutes(PRICE), found


def test_noise_that_is_missing_on_one_tensor_is_refuted_by_a_look_at_that_tensor():
    def defect(total: np.ndarray) -> np.ndarray:
        return np.append(honest(total)[:-25], total[-25:])

    assert scores(defect, 1000, seen=slice(25, 50)).refutes(PRICE)
    assert not scores(honest, 1000, seen=slice(25, 50)).refutes(PRICE)


def test_the_same_noise_in_two_rounds_is_refuted():
    """Of two releases with one noise the difference is the data's."""

    def score(there: bool) -> float:
        noise = honest(np.zeros(SIZE))
        first, second = noise + 0.0, noise + CLIP * there * np.eye(SIZE)[0]
        return float((second - first)[0])

    twice = dp.epsilon(dp.events.Repeated(dp.events.Gaussian(NOISE), 2), DELTA)
    assert attack(score, 4000, delta=DELTA).refutes(twice)


def test_a_line_is_chosen_on_one_half_and_judged_on_the_other():
    """Scores that say nothing: the best line of 200, judged on the runs that chose it, would say much."""
    rng = np.random.default_rng(11)
    fair, unfair = [], []
    for _ in range(200):
        there, missing = rng.normal(size=(2, 40))
        fair.append(bound_from_scores(there, missing, delta=0.0, confidence=0.5).epsilon)
        said = (np.array([np.sum(x >= line) for line in there]) for x in (there, missing))
        unfair.append(max(bounds_from_rates(*said, 40, 40, 0.0, 0.5)))
    assert np.mean(np.array(fair) > 0) <= 0.5
    assert np.mean(np.array(unfair) > 0) > np.mean(np.array(fair) > 0) + 0.2, "power"


def test_what_are_no_scores_is_refused():
    with pytest.raises(dp.PrivacyParameterError, match="at least 20"):
        bound_from_scores(np.zeros(19), np.zeros(19), delta=0.0)
    with pytest.raises(dp.PrivacyParameterError, match="got shapes"):
        bound_from_scores(np.zeros(30), np.zeros(31), delta=0.0)
    with pytest.raises(dp.PrivacyParameterError, match="NaN"):
        bound_from_scores(np.full(30, np.nan), np.zeros(30), delta=0.0)
    with pytest.raises(dp.PrivacyParameterError, match="runs >= 20"):
        attack(lambda there: 0.0, 5, delta=0.0)
