"""What samplers other than Poisson's cost: closed forms, the library, and no amplification by accident."""

from __future__ import annotations

import math

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant

from dp import UnsupportedEvent
from dp.accounting import By, epsilon, rdp_of
from dp.events import Epoch, Gaussian, Neighboring, Poisson, Repeated, TruncatedPoisson, WithoutReplacement

DELTA = 1e-5


@pytest.mark.parametrize("by", ["PLD", "RDP"])
def test_an_epoch_costs_one_release_however_many_batches(by: By) -> None:
    for relation in Neighboring:
        whole = epsilon(Repeated(Gaussian(2.71828), 5), DELTA, by=by, neighboring=relation)
        for batches in (1, 1000):
            plan = Repeated(Epoch(batches, Gaussian(2.71828)), 5)
            assert epsilon(plan, DELTA, by=by, neighboring=relation) == whole
    # Epochs and releases of the same noise add up as one kind.
    mixed = [Repeated(Epoch(7, Gaussian(2.71828)), 3), Repeated(Gaussian(2.71828), 2)]
    assert epsilon(mixed, DELTA, by=by) == epsilon(Repeated(Gaussian(2.71828), 5), DELTA, by=by)


def test_ten_shuffled_epochs_cost_what_the_specification_says_they_do() -> None:
    shuffled = epsilon(Repeated(Epoch(100, Gaussian(1.0)), 10), DELTA)
    assert shuffled == pytest.approx(17.86, abs=0.01)
    assert epsilon(Repeated(Poisson(0.01, Gaussian(1.0)), 1000), DELTA) == pytest.approx(1.828, abs=1e-3)


@pytest.mark.parametrize(("noise", "batch"), [(3.14159, 10), (8.0, 300), (2.0, 1000)])
def test_a_fixed_size_batch_has_the_closed_form_at_order_two(noise: float, batch: int) -> None:
    # Wang, Balle and Kasiviswanathan (2019), theorem 9, at order 2; replacing moves the sum by 2C.
    q, base = batch / 1000, 2 * (2 / noise) ** 2 / 2
    expected = math.log1p(q**2 * min(4 * math.expm1(base), 2 * math.exp(base))) if q < 1 else base
    event = WithoutReplacement(1000, batch, Gaussian(noise))
    assert rdp_of(event, 2.0, Neighboring.REPLACE_ONE) == pytest.approx(expected, rel=1e-9)
    sampled = epsilon(Repeated(event, 20), DELTA, by="RDP", neighboring="replace-one")
    whole = epsilon(Repeated(Gaussian(noise), 20), DELTA, by="RDP", neighboring="replace-one")
    assert sampled <= whole
    assert (sampled < whole / 2) == (q < 0.1)


@pytest.mark.parametrize("relation", list(Neighboring))
def test_a_fixed_size_batch_has_no_price_by_distributions(relation: Neighboring) -> None:
    event = WithoutReplacement(1000, 10, Gaussian(1.0))
    for by in ("PLD", "PRV"):
        with pytest.raises(UnsupportedEvent, match="without-replacement"):
            epsilon(event, DELTA, by=by, neighboring=relation)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedEvent, match="without-replacement"):
        epsilon(event, DELTA, by="RDP")


@pytest.mark.parametrize(("most", "steps"), [(15, 30), (25, 30)])
def test_a_truncated_sample_costs_what_the_library_says(most: int, steps: int) -> None:
    event = TruncatedPoisson(100, 0.1, most, Gaussian(2.0))
    accountant = PLDAccountant(value_discretization_interval=1e-4)
    accountant.compose(dp_accounting.dp_event.TruncatedSubsampledGaussianDpEvent(100, 0.1, most, 2.0), steps)
    expected = accountant.get_epsilon(DELTA)
    cost = epsilon(Repeated(event, steps), DELTA)
    assert expected - 1e-8 <= cost <= expected * 1.001 + 2e-6
    # Truncation never comes for free, and hardly matters where it hardly happens.
    plain = epsilon(Repeated(Poisson(0.1, Gaussian(2.0)), steps), DELTA)
    assert cost >= plain - 1e-4
    assert (cost < plain * 1.01) == (most >= 25)


def test_hardly_any_noise_on_a_truncated_sample_is_infinite_and_none_of_it_free() -> None:
    for noise in (0.0, 1e-3, 0.04):
        assert epsilon(TruncatedPoisson(100, 0.1, 5, Gaussian(noise)), DELTA) == math.inf
    assert epsilon(TruncatedPoisson(100, 0.1, 5, Gaussian(0.3)), DELTA) > 1
    assert epsilon(TruncatedPoisson(100, 0.0, 5, Gaussian(1.0)), DELTA) == 0
