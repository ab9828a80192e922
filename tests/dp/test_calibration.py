"""Calibration: what is returned keeps to its target, by no wide margin, and delta is checked."""

from __future__ import annotations

import math
import time
import warnings
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dp
from dp import PrivacyParameterError, PrivacyWarning
from dp.calibration import step_event
from dp.events import Gaussian, Poisson, Repeated


@pytest.mark.parametrize(
    ("target", "delta", "rate", "steps"),
    [
        (8.0, 1e-3, 0.2, 100),
        (1.0, 1e-5, 0.01, 1_000),
        (0.1, 1e-6, 0.01, 300),
        (3.0, 1e-5, 1.0, 50),
        (60.0, 1e-5, 0.5, 40),
    ],
)
def test_noise_keeps_to_the_target_and_a_little_less_does_not(
    target: float, delta: float, rate: float, steps: int
) -> None:
    noise = dp.noise_multiplier_for(epsilon=target, delta=delta, sample_rate=rate, num_steps=steps)
    assert dp.epsilon(Repeated(step_event(rate, noise), steps), delta) <= target
    less = 0.99 * noise - 0.002
    assert dp.epsilon(Repeated(step_event(rate, less), steps), delta) > target
    assert noise == round(noise, 3)


def test_calibration_of_ten_thousand_steps_takes_seconds() -> None:
    dp.epsilon(Gaussian(1.0), 1e-5)  # not the imports
    started = time.process_time()
    noise = dp.noise_multiplier_for(epsilon=8.0, delta=1e-5, sample_rate=0.001, num_steps=10_000)
    # The bar is 2 s on a quiet machine; this is to notice a change of the method, not a busy machine.
    assert time.process_time() - started < 8
    assert noise == pytest.approx(0.451, abs=0.002)


@pytest.mark.parametrize("by", ["RDP", "PLD"])
def test_any_accountant_can_calibrate(by: Any) -> None:
    noise = dp.noise_multiplier_for(epsilon=4.0, delta=1e-5, sample_rate=0.05, num_steps=30, by=by)
    assert dp.epsilon(Repeated(step_event(0.05, noise), 30), 1e-5, by=by) <= 4.0


@pytest.mark.parametrize(("target", "noise", "rate"), [(1.83, 1.0, 0.01), (8.0, 1.18, 0.2), (0.3, 4.0, 0.02)])
def test_steps_keep_to_the_target_and_a_few_more_do_not(target: float, noise: float, rate: float) -> None:
    steps = dp.num_steps_for(epsilon=target, delta=1e-5, sample_rate=rate, noise_multiplier=noise)
    step = step_event(rate, noise)
    assert dp.epsilon(Repeated(step, steps), 1e-5) <= target
    assert dp.epsilon(Repeated(step, math.ceil(1.03 * steps) + 1), 1e-5) > target


def test_steps_are_none_where_one_is_too_many_and_end_at_the_limit() -> None:
    assert dp.num_steps_for(epsilon=0.1, delta=1e-5, sample_rate=1.0, noise_multiplier=0.5) == 0
    endless = dp.num_steps_for(
        epsilon=5.0, delta=1e-5, sample_rate=0.001, noise_multiplier=5.0, at_most=1_000
    )
    assert endless == 1_000


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"epsilon": 0.0}, r"epsilon=0\.0"),
        ({"epsilon": -1.0}, r"epsilon=-1\.0"),
        ({"epsilon": math.inf}, "epsilon=inf"),
        ({"epsilon": math.nan}, "epsilon=nan"),
        ({"delta": 0.0}, r"delta=0\.0"),
        ({"sample_rate": 1.2}, r"sample_rate=1\.2"),
        ({"num_steps": 0}, "num_steps=0"),
        ({"epsilon": 1e-9}, "Raise epsilon or take fewer steps"),
    ],
)
def test_impossible_targets_are_refused_with_the_reason(wrong: dict[str, Any], text: str) -> None:
    plan: dict[str, Any] = {"epsilon": 1.0, "delta": 1e-12, "sample_rate": 1.0, "num_steps": 10, **wrong}
    with pytest.raises(PrivacyParameterError, match=text):
        dp.noise_multiplier_for(**plan)


@settings(max_examples=200)
@given(st.integers(1, 10**7), st.floats(1e-12, 0.999))
def test_delta_is_refused_from_one_over_n_and_warned_about_from_a_tenth_of_it(n: int, delta: float) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if delta >= 1 / n:
            with pytest.raises(PrivacyParameterError, match=f"1/{n} "):
                dp.check_delta(delta, n)
        else:
            dp.check_delta(delta, n)
    assert [w.category for w in caught] == ([PrivacyWarning] if 1 / (10 * n) < delta < 1 / n else [])


def test_the_advice_about_delta_can_be_followed() -> None:
    for n in (3, 7, 180, 999, 1_000, 60_000):
        with pytest.raises(PrivacyParameterError, match="Choose delta <= ") as caught:
            dp.check_delta(1 / n, n)
        advised = float(str(caught.value).split("Choose delta <= ")[1].split(",")[0])
        dp.check_delta(advised, n)


@pytest.mark.parametrize("delta", [0.0, -1e-5, 1.0, math.nan])
def test_delta_that_is_no_probability_is_refused(delta: float) -> None:
    with pytest.raises(PrivacyParameterError, match=r"delta in \(0, 1\)|delta <"):
        dp.check_delta(delta, 100)


def test_a_step_is_a_poisson_sampled_gaussian() -> None:
    assert step_event(0.2, 1.18) == Poisson(0.2, Gaussian(1.18))


def test_an_epsilon_that_cannot_be_priced_in_time_is_refused_at_once() -> None:
    with pytest.raises(PrivacyParameterError, match="epsilon=1e-06"):
        dp.noise_multiplier_for(epsilon=1e-6, delta=1e-5, sample_rate=0.2, num_steps=50)
