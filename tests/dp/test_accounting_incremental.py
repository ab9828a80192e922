"""Compositions that grow: the library's distributions, its figures, and no slower for what came before."""

from __future__ import annotations

import math
import time

import dp_accounting
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant, privacy_loss_distribution

from dp import accounting, composition
from dp.accounting import epsilon
from dp.composition import Losses, epsilon_at, gaussian_losses
from dp.events import Event, Gaussian, Poisson, Repeated

DELTA = 1e-5


def forget() -> None:
    """Forget everything that pricing keeps, as a new process has it."""
    composition.forget()
    for kept in (accounting._pld_epsilon, accounting._pld_step, accounting._pld_summaries):
        kept.cache_clear()


def ledger(events: int) -> list[Event]:
    return [Repeated(Poisson(0.01 + i * 1e-4, Gaussian(1.0 + i * 0.01)), 3 + i % 7) for i in range(events)]


def divergence(losses: Losses, interval: float, eps: float) -> float:
    """The hockey-stick divergence, from its definition."""
    values = (losses.lower + np.arange(len(losses.probs))) * interval
    above = values > eps
    return losses.infinity + float(np.sum(losses.probs[above] * -np.expm1(eps - values[above])))


@pytest.mark.parametrize(
    ("noise", "rate"), [(1.0, 0.01), (0.4, 1e-3), (2.71828, 0.31), (3.14159, 1.0), (0.7, 1e-9), (30.0, 0.999)]
)
def test_a_steps_distribution_is_the_librarys(noise: float, rate: float) -> None:
    theirs = privacy_loss_distribution.from_gaussian_mechanism(
        noise, sampling_prob=rate, value_discretization_interval=1e-3
    )
    for ours, pmf in zip(
        gaussian_losses(noise, rate, 1e-3), (theirs._pmf_remove, theirs._pmf_add), strict=True
    ):
        for eps in (0.0, 1e-3, 0.0123, 0.1, 1.0, 3.3):
            expected = pmf.get_delta_for_epsilon(eps)
            assert divergence(ours, 1e-3, eps) == pytest.approx(expected, rel=1e-9, abs=1e-13)
        if (expected := pmf.get_epsilon_for_delta(1e-12)) < math.inf:
            assert epsilon_at(ours, 1e-3, 1e-12) == pytest.approx(expected, rel=1e-6)


def test_a_composition_of_different_events_is_the_librarys() -> None:
    accountant = PLDAccountant(value_discretization_interval=1e-4)
    for event in (plan := ledger(4)):
        assert isinstance(event, Repeated)
        assert isinstance(event.event, Poisson)
        noise = dp_accounting.GaussianDpEvent(event.event.event.noise_multiplier)
        accountant.compose(dp_accounting.PoissonSampledDpEvent(event.event.sample_rate, noise), event.count)
    expected = accountant.get_epsilon(DELTA)
    # Theirs leaves 1e-15 to infinity at every composition, ours once: the last digits differ.
    assert expected - 1e-8 <= epsilon(plan, DELTA) <= expected + 2e-6


def test_one_event_at_a_time_costs_what_all_together_cost() -> None:
    plan = ledger(8)
    forget()
    grown = [epsilon(plan[: i + 1], DELTA) for i in range(8)]
    for i in (3, 7):
        forget()
        assert epsilon(plan[: i + 1], DELTA) == pytest.approx(grown[i], abs=2e-6)
    assert grown == sorted(grown)
    # An event that comes again, not last in the list, goes on from the same product.
    again = epsilon([*plan, plan[2]], DELTA)
    forget()
    assert epsilon([plan[2], *plan], DELTA) == pytest.approx(again, abs=2e-6)
    assert again > grown[-1]


def test_a_cached_composition_is_never_taken_for_a_smaller_one() -> None:
    plan = ledger(3)
    forget()
    alone = epsilon(plan[:2], DELTA)
    forget()
    assert epsilon(plan, DELTA) > alone
    assert epsilon(plan[:2], DELTA) == alone
    assert epsilon([plan[0], plan[2]], DELTA) != alone


def test_one_more_event_on_a_hundred_is_priced_from_what_is_kept() -> None:
    plan = ledger(100)
    epsilon(plan, DELTA, precise=False)
    built = accounting._pld_summaries.cache_info().misses
    began = time.process_time()
    epsilon([*plan, Poisson(0.0333, Gaussian(1.2345))], DELTA, precise=False)
    # The bar is 0.2 s on a quiet machine; this is to notice that all would be composed again.
    assert time.process_time() - began < 1.0
    assert accounting._pld_summaries.cache_info().misses == built + 1


def test_epsilon_is_zero_where_delta_pays_for_all_and_infinite_where_for_nothing() -> None:
    losses = Losses(-1, np.array([0.45, 0.0, 0.55 - 1e-6]), 1e-6)
    # delta(eps) = 1e-6 + (0.55 - 1e-6)(1 - exp(eps - 1)) with points one nat apart.
    expected = 1 + math.log1p(-(0.1 - 1e-6) / (0.55 - 1e-6))
    assert epsilon_at(losses, 1.0, 0.1) == pytest.approx(expected, rel=1e-12)
    assert epsilon_at(losses, 1.0, 0.6) == 0
    assert epsilon_at(losses, 1.0, 1e-7) == math.inf
    assert epsilon_at(Losses(-5, np.array([1.0]), 0.0), 1.0, 1e-9) == 0
