"""Accountants against published values, closed forms and the library itself; and what they refuse."""

from __future__ import annotations

import json
import logging
import math
import subprocess
import sys
import time
from pathlib import Path

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

import dp
from dp import PrivacyParameterError, UnsupportedEvent
from dp.accounting import SUPPORTED, Accountant, By, Epsilon, count_steps, epsilon, rdp_epsilon_at, rdp_of
from dp.events import (
    Epoch,
    Event,
    Gaussian,
    Neighboring,
    Poisson,
    Repeated,
    TruncatedPoisson,
    Unpriced,
    WithoutReplacement,
)

DELTA = 1e-5
VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "dp_epsilon.json").read_text())


def sgd(noise: float, rate: float, steps: int) -> Event:
    return Repeated(Poisson(rate, Gaussian(noise)), steps)


def exact_gaussian(noise: float, delta: float) -> float:
    """Epsilon of one Gaussian release, in closed form (Balle and Wang 2018, theorem 8)."""

    def excess(eps: float) -> float:
        high, low = 0.5 / noise - eps * noise, -0.5 / noise - eps * noise
        return float(stats.norm.cdf(high) - math.exp(eps + stats.norm.logcdf(low)) - delta)

    return float(optimize.brentq(excess, 0, 200, xtol=1e-12))


@pytest.mark.parametrize("case", VECTORS["cases"], ids=str)
def test_pld_gives_the_reference_values(case: dict[str, float]) -> None:
    plan = sgd(case["noise_multiplier"], case["sample_rate"], int(case["num_steps"]))
    assert epsilon(plan, case["delta"]) == pytest.approx(case["epsilon"], abs=case["tolerance"])


@pytest.mark.parametrize(
    ("noise", "rate", "steps", "delta"),
    [(2.71828, 0.031, 700, 1e-6), (0.7, 0.002, 3_000, 1e-5), (5.5, 0.3, 50, 1e-3), (1.18, 0.2, 100, 1e-3)],
)
def test_pld_is_the_librarys_at_1e4_rounded_up(noise: float, rate: float, steps: int, delta: float) -> None:
    accountant = PLDAccountant(value_discretization_interval=1e-4)
    step = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise))
    expected = accountant.compose(step, steps).get_epsilon(delta)
    assert expected <= epsilon(sgd(noise, rate, steps), delta) <= expected + 2e-6
    coarse = epsilon(sgd(noise, rate, steps), delta, precise=False)
    assert coarse == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(("noise", "steps"), [(3.14159, 1), (2.71828, 7), (20.0, 100)])
def test_gaussians_without_sampling_have_their_closed_form(noise: float, steps: int) -> None:
    exact = exact_gaussian(noise / math.sqrt(steps), DELTA)
    assert exact <= epsilon(Repeated(Gaussian(noise), steps), DELTA) <= exact * 1.005 + 1e-3
    # Replacing a vector of norm C by another moves the sum by 2C: half the noise.
    replaced = epsilon(Repeated(Gaussian(noise), steps), DELTA, neighboring=Neighboring.REPLACE_ONE)
    assert exact_gaussian(noise / 2 / math.sqrt(steps), DELTA) == pytest.approx(replaced, rel=0.005)


@pytest.mark.parametrize("plan", [sgd(1.0, 0.01, 1000), sgd(1.18, 0.2, 100), sgd(0.8, 0.05, 60)], ids=str)
def test_the_three_accountants_agree(plan: Event) -> None:
    pld, rdp, prv = (epsilon(plan, DELTA, by=by) for by in ("PLD", "RDP", "PRV"))
    assert abs(prv - pld) <= 0.01 * pld + 0.011
    assert pld <= rdp
    # Not a constant: twice the noise costs less by each.
    assert isinstance(plan, Repeated)
    assert isinstance(plan.event, Poisson)
    quieter = sgd(2 * plan.event.event.noise_multiplier, plan.event.sample_rate, plan.count)
    for by, cost in (("PLD", pld), ("RDP", rdp), ("PRV", prv)):
        assert epsilon(quieter, DELTA, by=by) < 0.7 * cost  # type: ignore[arg-type]


def test_a_composition_costs_the_same_however_it_is_written() -> None:
    step = Poisson(0.2, Gaussian(1.18))
    whole = epsilon(Repeated(step, 20), DELTA)
    assert epsilon([step] * 20, DELTA) == whole
    assert epsilon([Repeated(step, 5)] * 4, DELTA) == whole
    accountant = Accountant()
    for _ in range(4):
        accountant.compose(step, 2)
        accountant.compose(Repeated(step, 3))
    assert accountant.epsilon(DELTA) == Epsilon(whole, DELTA, "PLD")
    assert accountant.events == [Repeated(step, 20)]


def test_different_events_compose_in_any_order() -> None:
    plan = [sgd(1.0, 0.01, 100), sgd(2.0, 0.05, 30), Gaussian(5.0), Repeated(Gaussian(9.0), 3)]
    accountant = PLDAccountant(value_discretization_interval=1e-4)
    for noise, rate, steps in ((1.0, 0.01, 100), (2.0, 0.05, 30), (5.0, 1.0, 1), (9.0, 1.0, 3)):
        step = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise))
        accountant.compose(step, steps)
    expected = accountant.get_epsilon(DELTA)
    assert epsilon(plan, DELTA) == pytest.approx(expected, rel=1e-3)
    assert epsilon(plan[::-1], DELTA) == pytest.approx(expected, rel=1e-3)


@settings(max_examples=8, deadline=None)
@given(st.floats(0.9, 5), st.floats(0.001, 0.5), st.integers(1, 50), st.floats(1e-9, 1e-3))
def test_more_steps_less_noise_more_sampling_or_smaller_delta_never_cost_less(
    noise: float, rate: float, steps: int, delta: float
) -> None:
    cost = epsilon(sgd(noise, rate, steps), delta, precise=False)
    slack = 0.01 * cost + 1e-3
    assert epsilon(sgd(noise, rate, steps + 5), delta, precise=False) >= cost - slack
    assert epsilon(sgd(noise * 0.9, rate, steps), delta, precise=False) >= cost - slack
    assert epsilon(sgd(noise, rate * 1.5, steps), delta, precise=False) >= cost - slack
    assert epsilon(sgd(noise, rate, steps), delta / 2, precise=False) >= cost - slack


@pytest.mark.parametrize("by", ["PLD", "RDP", "PRV"])
def test_limits_are_answered_sensibly(by: By) -> None:
    assert epsilon([], DELTA, by=by) == 0
    assert epsilon(sgd(1.0, 0.01, 0), DELTA, by=by) == 0
    assert epsilon(sgd(1.0, 0.0, 100), DELTA, by=by) == 0
    assert epsilon(sgd(0.0, 0.01, 1), DELTA, by=by) == math.inf
    assert epsilon(Gaussian(1e-300), DELTA, by=by) == math.inf


def test_hardly_any_noise_is_priced_fast_and_above_what_more_noise_costs() -> None:
    cost = epsilon(sgd(0.05, 0.5, 10_000), DELTA)
    assert 1e5 < cost < math.inf
    assert cost > epsilon(sgd(0.1, 0.5, 10_000), DELTA) > 100


def test_what_has_no_price_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedEvent, match=r"unpriced\(weights in clear\)"):
        epsilon([Gaussian(1.0), Unpriced("weights in clear")], DELTA)
    with pytest.raises(UnsupportedEvent, match=r"poisson\(q=0.1, gaussian\(z=1\)\).*replace-one|replace-one"):
        epsilon(sgd(1.0, 0.1, 5), DELTA, neighboring="replace-one")
    with pytest.raises(UnsupportedEvent, match="unpriced"):
        Accountant().compose(Unpriced("x"))


def test_the_table_says_which_combinations_are_priced() -> None:
    shapes: dict[str, Event] = {
        "gaussian": Gaussian(2.0),
        "poisson(gaussian)": Poisson(0.1, Gaussian(2.0)),
        "epoch(gaussian)": Epoch(10, Gaussian(2.0)),
        "truncated-poisson(gaussian)": TruncatedPoisson(100, 0.1, 15, Gaussian(2.0)),
        "without-replacement(gaussian)": WithoutReplacement(100, 10, Gaussian(2.0)),
    }
    assert {shape for shape, _ in SUPPORTED} == set(shapes)
    for shape, event in shapes.items():
        for relation in Neighboring:
            for by in ("PLD", "RDP", "PRV"):
                if by in SUPPORTED.get((shape, relation), ()):
                    assert 0 < epsilon(event, DELTA, by=by, neighboring=relation) < math.inf
                else:
                    with pytest.raises(UnsupportedEvent):
                        epsilon(event, DELTA, by=by, neighboring=relation)


def test_renyi_divergences_add_up_and_convert_as_the_library_does() -> None:
    step = Poisson(0.2, Gaussian(1.18))
    assert rdp_of(Gaussian(3.0), 7.0) == pytest.approx(7.0 / (2 * 3.0**2))
    assert rdp_of(Gaussian(3.0), 7.0, Neighboring.REPLACE_ONE) == pytest.approx(7.0 / (2 * 1.5**2))
    assert rdp_of([Repeated(step, 5), step], 4.0) == pytest.approx(6 * rdp_of(step, 4.0))
    assert rdp_of(Gaussian(0.0), 2.0) == math.inf
    plan = Repeated(step, 100)
    best = min(rdp_epsilon_at(rdp_of(plan, a), a, DELTA) for a in range(2, 30))
    assert best == pytest.approx(epsilon(plan, DELTA, by="RDP"), rel=0.02)


def test_counting_takes_repetitions_apart() -> None:
    step = Poisson(0.2, Gaussian(1.0))
    assert count_steps([step, Repeated(step, 4), Gaussian(1.0), Repeated(step, 0)]) == (
        (step, 5),
        (Gaussian(1.0), 1),
    )
    with pytest.raises(TypeError, match="str"):
        count_steps(["gaussian"])  # type: ignore[list-item]


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan])
def test_a_delta_that_is_no_probability_is_refused(delta: float) -> None:
    with pytest.raises(PrivacyParameterError, match="delta="):
        epsilon(Gaussian(1.0), delta)


def test_unknown_accountants_and_relations_are_refused() -> None:
    with pytest.raises(PrivacyParameterError, match="'CLT'"):
        epsilon(Gaussian(1.0), DELTA, by="CLT")  # type: ignore[arg-type]
    with pytest.raises(PrivacyParameterError, match="'swap'"):
        epsilon(Gaussian(1.0), DELTA, neighboring="swap")


def test_pricing_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        epsilon(sgd(1.05, 0.21, 3), DELTA, by="RDP")
    assert not caplog.records


def test_an_epsilon_is_a_number_that_says_where_it_comes_from() -> None:
    assert float(Epsilon(2.97, 1e-5)) == 2.97
    assert str(Epsilon(2.97123, 1e-5, "RDP")) == "Epsilon(2.971, delta=1e-05, by='RDP')"


def test_importing_dp_loads_neither_frameworks_nor_accountants() -> None:
    heavy = ["torch", "opacus", "dp_accounting", "scipy"]
    code = f"import sys, dp; print([m for m in {heavy} if m in sys.modules])"
    root = Path(dp.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("noise", "steps"), [(50.0, 1000), (5.0, 10), (300.0, 100_000)])
@pytest.mark.parametrize("delta", [1e-9, 1e-11, 1e-12, 1e-13, 1e-14, 1e-16])
def test_rounding_in_the_library_never_makes_a_small_delta_cheaper(
    noise: float, steps: int, delta: float
) -> None:
    # A rate this close to 1 is composed numerically, and costs what the closed form says to many digits.
    exact = exact_gaussian(noise / math.sqrt(steps), delta)
    sampled = Repeated(Poisson(1 - 1e-12, Gaussian(noise)), steps)
    assert epsilon(sampled, delta) >= exact * (1 - 1e-9)
    assert epsilon(sampled, delta) <= epsilon(sampled, delta, by="RDP")
    assert epsilon(Repeated(Gaussian(noise), steps), delta) >= exact * (1 - 1e-9)


def test_a_million_tiny_steps_cost_what_the_other_accountants_say() -> None:
    plan = Repeated(Poisson(1e-4, Gaussian(5.0)), 1_000_000)
    pld, rdp, prv = (epsilon(plan, 1e-6, by=by) for by in ("PLD", "RDP", "PRV"))
    assert pld <= rdp
    assert abs(prv - pld) <= 0.01 * pld + 0.011
    # Below the other upper bound is no proof of an upper bound: PRV's lower end is.
    assert pld >= prv - 0.011


def test_odd_parameters_are_answered() -> None:
    spent = Repeated(Gaussian(0.3), 20)
    assert 100 < epsilon(spent, 1e-5) <= epsilon(spent, 1e-5, by="RDP")
    assert epsilon(Gaussian(1e200), 1e-5) < 1e-3
    assert 0 <= epsilon(Poisson(1e-12, Gaussian(0.5)), 1e-5) < 1e-3
    assert epsilon(Repeated(Poisson(0.1, Gaussian(1.0)), 10), 0.9, by="PRV") == 0
    many = Repeated(Poisson(0.5, Gaussian(1e4)), 2**26)
    assert epsilon(many, 1e-6) <= epsilon(many, 1e-6, by="RDP")


@pytest.mark.parametrize(
    ("noise", "steps", "delta"),
    [
        (20.0, 10_000_001, 1e-5),
        (1.0, 2**53 - 1, 1e-5),
        (1.0, 100, 1 - 1e-6),
        (1.0, 100, 1e-300),
        (0.5, 9_999_999, 1e-5),  # few enough steps, and a grid of gigabytes
    ],
)
def test_what_prv_could_not_hold_is_refused_at_once(noise: float, steps: int, delta: float) -> None:
    epsilon(Gaussian(3.0), 1e-5, by="PRV")  # loads it
    began = time.monotonic()
    with pytest.raises(UnsupportedEvent, match="PRV"):
        epsilon(Repeated(Poisson(0.01, Gaussian(noise)), steps), delta, by="PRV")
    assert time.monotonic() - began < 5
