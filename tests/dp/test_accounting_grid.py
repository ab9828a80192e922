"""Two hundred plans against dp-accounting's own PLD accountant at its finest: never below, hardly above."""

from __future__ import annotations

import dp_accounting
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant

from dp.accounting import _pld_grid, epsilon
from dp.events import Gaussian, Poisson, Repeated

DELTA = 1e-5
_RNG = np.random.default_rng(20240)
PLANS = [
    (round(float(z), 4), round(float(q), 6), int(t))
    for z, q, t in zip(
        np.exp(_RNG.uniform(np.log(0.5), np.log(3.0), 200)),
        np.exp(_RNG.uniform(np.log(1e-3), np.log(0.3), 200)),
        np.exp(_RNG.uniform(0, np.log(1000), 200)),
        strict=True,
    )
]


def reference(noise: float, rate: float, steps: int, interval: float = 1e-4) -> float:
    accountant = PLDAccountant(value_discretization_interval=interval)
    step = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise))
    return float(accountant.compose(step, steps).get_epsilon(DELTA))


def assert_agrees(noise: float, rate: float, steps: int) -> None:
    expected = reference(noise, rate, steps)
    cost = epsilon(Repeated(Poisson(rate, Gaussian(noise)), steps), DELTA)
    if expected > 50:  # RDP answers from there on; an upper bound is all that is promised
        assert cost >= expected * 0.999
        return
    # Where a step's loss is far below 1e-4 our grid is finer, and as sound: there, its reference.
    # 1e-7 is what two ways of truncating mass of 1e-15 differ by.
    interval = _pld_grid(((Poisson(rate, Gaussian(noise)), steps),), 1e-4)
    assert cost >= (expected if interval >= 1e-4 else reference(noise, rate, steps, interval)) - 1e-7
    assert cost <= expected * 1.005 + (1e-3 if expected < 0.5 else 0.0)


@pytest.mark.parametrize("plan", PLANS[:3], ids=str)
def test_a_few_plans_cost_what_the_reference_says(plan: tuple[float, float, int]) -> None:
    assert_agrees(*plan)


@pytest.mark.slow
@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_every_plan_costs_what_the_reference_says(plan: tuple[float, float, int]) -> None:
    assert_agrees(*plan)


@pytest.mark.slow
def test_where_the_grid_is_finer_the_reference_comes_down_to_it() -> None:
    noise, rate, steps = 5.0, 1e-4, 100_000
    cost = epsilon(Repeated(Poisson(rate, Gaussian(noise)), steps), DELTA)
    coarse, fine = reference(noise, rate, steps), reference(noise, rate, steps, 5e-6)
    assert cost < coarse
    assert abs(cost - fine) < abs(cost - coarse)
