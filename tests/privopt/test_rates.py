"""Schedules: each against torch's, optax's or a closed form; counting, resuming, and what is refused."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from privopt.checkpoint import dump_state, load_state
from privopt.modules import Adam
from privopt.registry import SCHEDULES, list_rate_schedulers
from privopt.schedules import (
    Constant,
    Cosine,
    CosineRestarts,
    CyclicExpRange,
    CyclicTriangular,
    Exponential,
    InverseScaling,
    Linear,
    OneCycle,
    Piecewise,
    Polynomial,
    ReduceOnPlateau,
    Schedule,
    Warmup,
    rates,
    schedule_of,
)

STEPS = 400

# One of each with no parameter at its default.
EACH: dict[str, dict[str, Any]] = {
    "constant": {"base": 0.3, "by": "round"},
    "exponential": {"base": 0.3, "factor": 0.97, "by": "round"},
    "inverse-scaling": {"base": 0.3, "power": 0.75, "by": "round"},
    "linear": {"base": 0.3, "duration": 37, "final": 0.125, "by": "round"},
    "polynomial": {"base": 0.3, "duration": 37, "final": 0.125, "power": 1.7, "by": "round"},
    "piecewise": {"base": 0.3, "boundaries": [3, 9], "factors": [0.5, 0.2], "values": [], "by": "round"},
    "cosine": {"base": 0.3, "duration": 37, "final": 0.125, "by": "round"},
    "cosine-restarts": {"base": 0.3, "period": 7, "multiplier": 3, "final": 0.125, "by": "round"},
    "cyclic-triangular": {"base": 0.1, "max_rate": 0.9, "rise": 5, "fall": 8, "shrink": 0.7, "by": "round"},
    "cyclic-exp-range": {"base": 0.1, "max_rate": 0.9, "rise": 5, "fall": 8, "factor": 0.9, "by": "round"},
    "one-cycle": {
        "base": 0.3, "duration": 37, "pct_start": 0.4, "anneal_strategy": "linear", "div_factor": 7.0,
        "final_div_factor": 50.0, "three_phase": True, "by": "round",
    },
    "reduce-on-plateau": {
        "base": 0.3, "mode": "max", "factor": 0.3, "patience": 1, "threshold": 0.01, "threshold_mode": "abs",
        "cooldown": 2, "min_rate": 0.001, "eps": 1e-9, "by": "round",
    },
    "warmup": {
        "base": 0.3, "duration": 6, "then": ["exponential", {"base": 0.3, "factor": 0.9, "by": "round"}],
        "start": 0.2, "by": "round",
    },
}  # fmt: skip
NAMES = sorted(EACH)


def build(name: str, **more: Any) -> Schedule:
    return schedule_of((name, {**EACH[name], **more}))


def stepped(name: str) -> Schedule:
    """The one of `EACH` that counts steps."""
    config = dict(EACH[name])
    if name == "warmup":
        config["then"] = ["exponential", {"base": 0.3, "factor": 0.9}]
    return schedule_of((name, {**config, "by": "step"}))


def of_torch(lr: float, n: int, make: Any, feed: Any = None, momentum: float = 0.0) -> list[float]:
    """The rates that torch's optimizer has at its first `n` steps."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr, momentum=momentum)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SequentialLR warns of a call of its own
        scheduler = make(optimizer)
        found = []
        for step in range(n):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step(*([] if feed is None else [feed[step]]))
    return found


def of_optax(make: Callable[[Any], Any], n: int) -> list[float]:
    """The first `n` rates of the schedule that `make` builds from optax, in float64."""
    optax, jax = pytest.importorskip("optax"), pytest.importorskip("jax")
    with jax.enable_x64(True):
        return np.asarray(jax.vmap(make(optax))(np.arange(n)), np.float64).tolist()


def agree(schedule: Schedule, expected: list[float]) -> None:
    """`advance` and `rates` both give the expected rates, to rounding."""
    found = [schedule.advance() for _ in expected]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)
    assert rates(schedule, len(expected)) == found


# --- the rates themselves -----------------------------------------------------------------------------------


def test_constant_is_the_base() -> None:
    agree(Constant(0.7), [0.7] * 5)


@pytest.mark.parametrize("factor", [0.97, 1.01])
def test_exponential_is_torchs(factor: float) -> None:
    agree(
        Exponential(0.3, factor), of_torch(0.3, STEPS, lambda o: lr_scheduler.ExponentialLR(o, gamma=factor))
    )


def test_inverse_scaling_is_its_closed_form() -> None:
    agree(InverseScaling(0.3, 0.75), [0.3 * math.exp(-0.75 * math.log1p(t)) for t in range(STEPS)])
    agree(InverseScaling(0.3, 0.0), [0.3] * 4)
    assert rates(InverseScaling(0.3, 900.0), 3)[2] == 0.0


@pytest.mark.parametrize(("duration", "final"), [(123, 0.2), (1, 0.5), (STEPS, 0.0)])
def test_linear_is_torchs(duration: int, final: float) -> None:
    torchs = of_torch(
        0.3, STEPS, lambda o: lr_scheduler.LinearLR(o, 1.0, end_factor=final, total_iters=duration)
    )
    agree(Linear(0.3, duration, final), torchs)


@pytest.mark.parametrize(("duration", "final"), [(123, 0.2), (300, 1.75)])
def test_linear_is_optaxs(duration: int, final: float) -> None:
    optaxs = of_optax(lambda optax: optax.linear_schedule(0.3, 0.3 * final, duration), STEPS)
    agree(Linear(0.3, duration, final), optaxs)


@pytest.mark.parametrize(("duration", "power"), [(123, 2.5), (300, 0.5), (7, 1.0)])
def test_polynomial_is_torchs(duration: int, power: float) -> None:
    torchs = of_torch(0.3, STEPS, lambda o: lr_scheduler.PolynomialLR(o, total_iters=duration, power=power))
    agree(Polynomial(0.3, duration, power=power), torchs)


def test_polynomial_is_optaxs() -> None:
    optaxs = of_optax(lambda optax: optax.polynomial_schedule(0.3, 0.06, 2.5, 123), STEPS)
    agree(Polynomial(0.3, 123, 0.2, 2.5), optaxs)


BOUNDARIES = [5, 6, 80, 200]


def test_piecewise_is_torchs_multi_step() -> None:
    torchs = of_torch(0.3, STEPS, lambda o: lr_scheduler.MultiStepLR(o, milestones=BOUNDARIES, gamma=0.2))
    agree(Piecewise(0.3, BOUNDARIES, [0.2] * 4), torchs)


def test_piecewise_is_optaxs() -> None:
    scales = dict(zip(BOUNDARIES, [0.5, 0.25, 2.0, 0.125], strict=True))
    optaxs = of_optax(lambda optax: optax.piecewise_constant_schedule(0.3, scales), STEPS)
    agree(Piecewise(0.3, BOUNDARIES, list(scales.values())), optaxs)


def test_piecewise_values_are_the_rates_from_each_boundary_on() -> None:
    agree(Piecewise(0.3, [2, 3, 5], values=[0.1, 0.7, 0.0]), [0.3, 0.3, 0.1, 0.7, 0.7, 0.0, 0.0])
    agree(Piecewise(0.3), [0.3] * 3)


@pytest.mark.parametrize(("duration", "final"), [(123, 0.2), (399, 0.0), (1, 0.5)])
def test_cosine_is_torchs_until_it_ends(duration: int, final: float) -> None:
    def torchs(optimizer: Any) -> Any:
        return lr_scheduler.CosineAnnealingLR(optimizer, T_max=duration, eta_min=0.3 * final)

    agree(Cosine(0.3, duration, final), of_torch(0.3, duration + 1, torchs))


def test_cosine_is_optaxs_and_stays_where_it_ends() -> None:
    agree(Cosine(0.3, 123, 0.2), of_optax(lambda optax: optax.cosine_decay_schedule(0.3, 123, 0.2), STEPS))


@pytest.mark.parametrize(
    ("period", "multiplier", "final"), [(10, 2, 0.1), (37, 1, 0.0), (1, 3, 0.5), (50, 3, 0.0)]
)
def test_cosine_restarts_are_torchs(period: int, multiplier: int, final: float) -> None:
    def torchs(optimizer: Any) -> Any:
        return lr_scheduler.CosineAnnealingWarmRestarts(
            optimizer, T_0=period, T_mult=multiplier, eta_min=0.3 * final
        )

    agree(CosineRestarts(0.3, period, multiplier, final), of_torch(0.3, STEPS, torchs))


def cyclic(**more: Any) -> Any:
    return lambda optimizer: lr_scheduler.CyclicLR(optimizer, 0.1, 0.9, cycle_momentum=False, **more)


@pytest.mark.parametrize(("rise", "fall"), [(10, 0), (17, 30), (1, 5), (40, 1)])
def test_cyclic_triangular_is_torchs(rise: int, fall: int) -> None:
    sizes = {"step_size_up": rise, "step_size_down": fall or None}
    agree(CyclicTriangular(0.1, 0.9, rise, fall), of_torch(0.1, STEPS, cyclic(**sizes)))
    halved = of_torch(0.1, STEPS, cyclic(mode="triangular2", **sizes))
    agree(CyclicTriangular(0.1, 0.9, rise, fall, shrink=0.5), halved)


@pytest.mark.parametrize(("rise", "fall"), [(10, 0), (17, 30), (1, 5)])
def test_cyclic_exp_range_is_torchs(rise: int, fall: int) -> None:
    sizes = {"step_size_up": rise, "step_size_down": fall or None}
    torchs = of_torch(0.1, STEPS, cyclic(mode="exp_range", gamma=0.995, **sizes))
    agree(CyclicExpRange(0.1, 0.9, rise, fall, factor=0.995), torchs)


@settings(max_examples=40, deadline=None)
@given(
    duration=st.integers(1, 150),
    pct_start=st.floats(0.05, 0.5),
    anneal_strategy=st.sampled_from(["cos", "linear"]),
    div_factor=st.floats(1.0, 100.0),
    final_div_factor=st.floats(0.1, 1e5),
    three_phase=st.booleans(),
)
def test_one_cycle_is_torchs(duration: int, **policy: Any) -> None:
    if policy["pct_start"] * duration == 1:
        return  # torch divides 0 by 0 there; see the next test
    ours = OneCycle(0.3, duration, **policy)
    torchs = of_torch(
        1.0, duration, lambda o: lr_scheduler.OneCycleLR(o, 0.3, duration, cycle_momentum=False, **policy)
    )
    agree(ours, torchs)
    last = ours.advance()
    assert last == pytest.approx(torchs[-1], rel=1e-12)
    assert ours.advance() == last


def test_one_cycle_whose_rise_takes_no_time_starts_at_the_peak() -> None:
    assert rates(OneCycle(0.3, 10, pct_start=0.1), 1) == [0.3]
    assert rates(OneCycle(0.3, 10, pct_start=1.0), 12)[9:] == [0.3] * 3


METRICS = np.random.default_rng(7).normal(size=STEPS) * 0.3 + np.geomspace(3, 0.5, STEPS)


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("threshold_mode", ["rel", "abs"])
@pytest.mark.parametrize(
    ("patience", "cooldown", "factor", "min_rate"), [(10, 0, 0.5, 0), (2, 5, 0.7, 1e-3), (0, 3, 0.9, 0)]
)
def test_reduce_on_plateau_is_torchs(
    mode: str, threshold_mode: str, patience: int, cooldown: int, factor: float, min_rate: float
) -> None:
    same: dict[str, Any] = {
        "mode": mode, "factor": factor, "patience": patience, "threshold": 0.01,
        "threshold_mode": threshold_mode, "cooldown": cooldown,
    }  # fmt: skip
    metrics = METRICS if mode == "min" else -METRICS + 3
    metrics = np.where(np.arange(STEPS) % 50 == 9, np.nan, metrics)
    expected = of_torch(
        0.3, STEPS, lambda o: lr_scheduler.ReduceLROnPlateau(o, min_lr=min_rate, **same), feed=metrics
    )
    schedule = ReduceOnPlateau(0.3, min_rate=min_rate, **same)
    found = []
    for metric in metrics:
        found.append(schedule.advance())
        schedule.feed(metric)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert len(set(found)) > 3


def test_reduce_on_plateau_leaves_out_reductions_too_small_to_matter_and_never_raises_the_rate() -> None:
    def last(**more: Any) -> float:
        schedule = ReduceOnPlateau(factor=0.5, patience=0, **more)
        for _ in range(20):
            schedule.feed(1.0)
        return schedule.advance()

    assert last(base=1.0, eps=0.1) == 0.125  # 0.125 - 0.0625 is no more than 0.1
    assert last(base=1.0, eps=0.0) == 0.5**19
    assert last(base=0.1, min_rate=0.2) == 0.1


@pytest.mark.parametrize("metric", [math.nan, math.inf, -math.inf])
def test_a_metric_that_is_not_finite_is_no_improvement(metric: float) -> None:
    schedule = ReduceOnPlateau(0.8, factor=0.5, patience=1)
    for fed in (metric, 2.0, metric, 1.0, metric):
        schedule.feed(fed)
    assert (schedule.best, schedule.reductions) == (1.0, 0)
    schedule.feed(metric)
    assert schedule.advance() == 0.4


# --- warm-up ------------------------------------------------------------------------------------------------


THEN = [
    "constant",
    "exponential",
    "linear",
    "cosine",
    "cosine-restarts",
    "cyclic-exp-range",
    "one-cycle",
    "piecewise",
]


@pytest.mark.parametrize("name", THEN)
@pytest.mark.parametrize(("duration", "start"), [(1, 0.0), (20, 0.0), (33, 0.25)])
def test_a_warm_up_ramps_to_the_first_rate_of_what_follows_and_lets_it_start_there(
    name: str, duration: int, start: float
) -> None:
    then = stepped(name)
    found = rates(Warmup(duration=duration, then=then, start=start), duration + 100)
    after = rates(then, 100)
    assert found[duration:] == after
    # The line from `start` at t = -1 to the first rate at t = duration.
    ramp = np.interp(np.arange(duration), [-1, duration], [start * after[0], after[0]])
    np.testing.assert_allclose(found[:duration], ramp, rtol=1e-12)
    assert min(found[:duration]) > 0


@pytest.mark.parametrize(("duration", "start"), [(20, 0.0), (33, 0.25)])
def test_a_warm_up_is_torchs_sequence_of_linear_and_another(duration: int, start: float) -> None:
    first = start + (1 - start) / (duration + 1)

    def torchs(optimizer: Any) -> Any:
        ramp = lr_scheduler.LinearLR(optimizer, first, total_iters=duration)
        then = lr_scheduler.ExponentialLR(optimizer, gamma=0.98)
        return lr_scheduler.SequentialLR(optimizer, [ramp, then], milestones=[duration])

    agree(Warmup(0.3, duration, ["exponential", {"factor": 0.98}], start), of_torch(0.3, STEPS, torchs))


def test_a_warm_up_is_optaxs_joined_schedules() -> None:
    def joined(optax: Any) -> Any:
        ramp, then = optax.linear_schedule(0.3 / 21, 0.3, 20), optax.cosine_decay_schedule(0.3, 100, 0.1)
        return optax.join_schedules([ramp, then], [20])

    agree(Warmup(duration=20, then=Cosine(0.3, 100, 0.1)), of_optax(joined, STEPS))


def test_what_follows_a_warm_up_takes_its_base_and_count_where_it_has_none_of_its_own() -> None:
    assert Warmup(0.3, 5, "cosine", by="round").then.get_config() == Cosine(0.3, by="round").get_config()
    assert Warmup(duration=5, then=["cosine", {"base": 0.2}]).base == 0.2
    assert (
        Warmup(duration=5, then=0.2, by="round").then.get_config() == Constant(0.2, by="round").get_config()
    )
    assert Warmup(duration=5).base == Constant().base
    with pytest.raises(ValueError, match="one base rate"):
        Warmup(0.3, 5, ["cosine", {"base": 0.2}])
    with pytest.raises(ValueError, match="count what the warm-up counts"):
        Warmup(0.3, 5, Cosine(0.3, by="round"))


def test_warm_ups_nest() -> None:
    inner = Warmup(0.4, 1, start=0.5)
    assert rates(Warmup(duration=1, then=inner), 4) == pytest.approx([0.15, 0.3, 0.4, 0.4])


def test_what_follows_a_warm_up_is_fed_once_the_ramp_is_over() -> None:
    schedule = Warmup(duration=2, then=ReduceOnPlateau(0.9, factor=0.5, patience=0))
    found = []
    for metric in (1.0, 1.0, 1.0, 1.0, 1.0):
        found.append(schedule.advance())
        schedule.feed(metric)
    # The third step is the first of what follows: its metric sets the best, the fourth's is no better.
    assert found == pytest.approx([0.3, 0.6, 0.9, 0.9, 0.45])


def test_by_round_what_follows_a_warm_up_is_fed_from_its_first_round_on() -> None:
    schedule = Warmup(duration=1, then=ReduceOnPlateau(0.9, factor=0.5, patience=0, by="round"), by="round")
    found = []
    for _ in range(4):
        schedule.on_round_start()
        found.append(schedule.advance())
        schedule.feed(1.0)
    assert found == pytest.approx([0.45, 0.9, 0.9, 0.45])


# --- counting -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_by_step_the_first_step_has_the_first_rate_and_rounds_change_nothing(name: str) -> None:
    schedule = stepped(name)
    expected = rates(schedule, 12)
    assert schedule.current == expected[0]
    found = []
    for step in range(12):
        if step % 4 == 0:
            schedule.on_round_start()
        found.append(schedule.advance())
        assert schedule.current == found[-1]
    assert found == expected


@pytest.mark.parametrize("name", NAMES)
def test_by_round_every_step_of_a_round_has_that_rounds_rate(name: str) -> None:
    schedule = build(name)
    expected = rates(schedule, 6)
    for round_ in range(6):
        schedule.on_round_start()
        assert [schedule.advance() for _ in range(3)] == [expected[round_]] * 3


def test_by_round_without_rounds_is_the_first_round_and_the_first_round_start_changes_nothing() -> None:
    schedule = Exponential(0.8, 0.5, by="round")
    assert [schedule.advance(), schedule.advance()] == [0.8, 0.8]
    schedule.on_round_start()
    assert schedule.advance() == 0.8
    schedule.on_round_start()
    assert schedule.current == 0.8  # of the last step; the round has had none yet
    assert schedule.advance() == 0.4
    schedule.reset()
    schedule.on_round_start()
    schedule.on_round_start()
    assert schedule.current == 0.4  # before any step: what it will have


def test_a_rate_of_zero_is_a_rate_too() -> None:
    schedule = CyclicTriangular(0.0, 1.0, rise=1)
    assert (schedule.advance(), schedule.current) == (0.0, 0.0)
    assert (schedule.advance(), schedule.current) == (1.0, 1.0)


def test_a_round_without_steps_is_counted() -> None:
    schedule = Exponential(0.8, 0.5, by="round")
    for _ in range(3):
        schedule.on_round_start()
    assert schedule.advance() == 0.2


def test_rates_leave_the_schedule_as_it_is() -> None:
    schedule = ReduceOnPlateau(0.8, factor=0.5, patience=0)
    schedule.advance()
    for _ in range(3):
        schedule.feed(1.0)
    before = schedule.get_state()
    assert rates(schedule, 3) == [0.8] * 3
    assert schedule.get_state() == before
    assert schedule.advance() == 0.2
    assert rates("constant", 0) == []


# --- config and state ---------------------------------------------------------------------------------------


def test_every_registered_schedule_is_tested_here_with_no_parameter_at_its_default() -> None:
    assert list(list_rate_schedulers()) == NAMES
    for name, cls in list_rate_schedulers().items():
        default = schedule_of(name).get_config()
        assert set(EACH[name]) == set(default)
        if name != "piecewise":  # which takes factors or values
            assert all(default[key] != value for key, value in EACH[name].items()), name
        assert cls is SCHEDULES.find(name)


@pytest.mark.parametrize("name", NAMES)
def test_configs_go_through_json(name: str) -> None:
    schedule = build(name)
    config = schedule.get_config()
    assert config == EACH[name]
    again = schedule_of([name, json.loads(json.dumps(config, allow_nan=False))])
    assert again.get_config() == config
    assert repr(again) == repr(schedule)
    assert rates(again, 50) == rates(schedule, 50)


def test_a_config_is_a_copy() -> None:
    schedule = Piecewise(0.3, [2], [0.5])
    schedule.get_config()["factors"].append(7.0)
    given = [4]
    other = Piecewise(0.3, given, [0.5])
    given.append(1)
    assert (schedule.factors, other.boundaries) == ([0.5], [4])


def train(schedule: Schedule, steps: int) -> Iterator[float]:
    """Rounds of three steps, a metric after each that soon stops improving."""
    while schedule.steps_taken < steps:
        if schedule.steps_taken % 3 == 0:
            schedule.on_round_start()
        yield schedule.advance()
        schedule.feed(float(METRICS[schedule.steps_taken % 20]))


@pytest.mark.parametrize("by", ["step", "round"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stop", [1, 10, 23])
def test_a_restored_schedule_goes_on_bitwise(name: str, by: str, stop: int) -> None:
    def new() -> Schedule:
        return build(name) if by == "round" else stepped(name)

    whole = list(train(new(), 60))
    live = new()
    first = list(train(live, stop))
    saved = live.get_state()
    json.dumps(saved, allow_nan=False)
    restored = new()
    restored.set_state(load_state(dump_state({"lrate": saved}))["lrate"])
    assert restored.current == live.current == first[-1]
    assert [*first, *train(restored, 60)] == whole
    restored.reset()
    assert restored.get_state() == new().get_state()
    assert list(train(restored, 60)) == whole


def test_a_restored_warm_up_keeps_what_a_plateau_within_it_knows() -> None:
    def new() -> Schedule:
        return Warmup(duration=4, then=ReduceOnPlateau(0.9, patience=1, factor=0.5, cooldown=1))

    whole = list(train(new(), 60))
    assert len(set(whole)) > 6
    for stop in (2, 7, 30):
        live, restored = new(), new()
        first = list(train(live, stop))
        restored.set_state(load_state(dump_state(live.get_state())))
        assert [*first, *train(restored, 60)] == whole


@pytest.mark.parametrize("name", NAMES)
def test_a_state_that_does_not_fit_changes_nothing(name: str) -> None:
    schedule = build(name)
    list(train(schedule, 7))
    before = schedule.get_state()
    other = build(name)
    list(train(other, 20))
    for key in before:
        with pytest.raises(KeyError, match=key):
            schedule.set_state({k: v for k, v in other.get_state().items() if k != key})
    with pytest.raises(ValueError, match="momentum"):
        schedule.set_state({**other.get_state(), "momentum": 1})
    assert schedule.get_state() == before


def test_what_a_plateau_within_a_warm_up_knows_is_kept_or_forgotten_with_it() -> None:
    def new() -> Warmup:
        return Warmup(duration=4, then=ReduceOnPlateau(0.9, patience=1, factor=0.5))

    schedule, other = new(), new()
    list(train(schedule, 60))
    list(train(other, 20))
    before = schedule.get_state()
    with pytest.raises(KeyError, match="steps_taken"):
        schedule.set_state({k: v for k, v in other.get_state().items() if k != "steps_taken"})
    with pytest.raises(KeyError, match="'reduce-on-plateau'"):
        schedule.set_state({**other.get_state(), "then": {}})
    assert schedule.get_state() == before != other.get_state()
    schedule.reset()
    assert schedule.get_state() == new().get_state() != before


def test_attributes_kept_by_reference_undo_an_advance() -> None:
    for name in NAMES:
        schedule = stepped(name)
        list(train(schedule, 5))
        kept, state = dict(schedule.__dict__), schedule.get_state()
        undone = schedule.advance()
        schedule.__dict__.clear()
        schedule.__dict__.update(kept)
        assert schedule.get_state() == state
        assert schedule.advance() == undone


# --- what users write ---------------------------------------------------------------------------------------


def test_a_schedule_of_ones_own_takes_five_lines_and_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SCHEDULES, "_classes", dict(SCHEDULES.table()))

    class Noam(Schedule):
        name = "test-noam"
        duration: int = 10

        def rate(self, t):  # type: ignore[no-untyped-def]  # as a user writes it
            return self.base * min((t + 1) ** -0.5, (t + 1) * self.duration**-1.5)

    assert list_rate_schedulers()["test-noam"] is Noam
    schedule = schedule_of(("test-noam", {"base": 2.0, "duration": 4}))
    assert [schedule.advance() for _ in range(5)] == pytest.approx([0.25, 0.5, 0.75, 1.0, 2 / math.sqrt(5)])
    assert schedule.get_config() == {"base": 2.0, "duration": 4, "by": "step"}
    assert Warmup(1.0, 3, "test-noam").then.base == 1.0
    with pytest.raises(TypeError, match=r"'test-noam'.*Noam has it"):
        type("Other", (Schedule,), {"name": "test-noam", "__module__": "elsewhere"})


def test_a_schedule_without_a_rate_says_what_to_define() -> None:
    class Empty(Schedule, register=False):
        name = "empty"

    with pytest.raises(TypeError, match=r"define rate\(self, t\)"):
        Empty().advance()


def test_what_stands_for_a_schedule() -> None:
    cosine = Cosine(0.3)
    assert schedule_of(cosine) is cosine
    assert schedule_of(1).get_config() == {"base": 1.0, "by": "step"}
    assert schedule_of("cosine").get_config() == Cosine().get_config()
    for pair in (("cosine", {"base": 0.3}), ["cosine", {"base": 0.3}]):
        assert schedule_of(pair).get_config() == cosine.get_config()


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (True, "a learning rate as a number.*True"),
        (None, "None"),
        (("cosine",), "cosine"),
        ({"cosine": {}}, "dict"),
        (("cosine", 0.1), "a mapping as config of schedule 'cosine', got 0.1"),
        (("cosine", None), "a mapping as config"),
        ((1, {}), r"\(name, config\)"),
        (Cosine, r"an instance.*Cosine\(base=0.1\)"),
        (Adam(), "a schedule, got the module 'adam'"),
        (("cosine", {"durations": 3}), "Did you mean 'duration'"),
        (("cosine", {"duration": 3.5}), "an integer"),
        (("cosine", {"base": "x"}), "a number"),
        (("cosine", {"base": True}), "a number"),
        (("piecewise", {"boundaries": 3}), r"whole numbers for piecewise.boundaries, got 3"),
        (("piecewise", {"boundaries": [1.5], "factors": [1]}), "whole numbers"),
        (("piecewise", {"boundaries": [1], "factors": ["x"]}), "numbers for piecewise.factors"),
        (("piecewise", {"boundaries": [1], "values": [True]}), "numbers for piecewise.values"),
        (("warmup", {"then": None}), "a learning rate as a number"),
        (("warmup", {"then": ["cosine", 3]}), "a mapping"),
    ],
)
def test_wrong_types_say_what_to_write(value: object, says: str) -> None:
    with pytest.raises(TypeError, match=says):
        schedule_of(value)


@pytest.mark.parametrize(
    ("name", "config", "says"),
    [
        ("cosin", {}, "Did you mean 'cosine'"),
        ("constant", {"base": -1}, "base >= 0 for schedule 'constant', got base=-1.0"),
        ("constant", {"base": math.inf}, "a finite base"),
        ("constant", {"base": math.nan}, "nan"),
        ("constant", {"by": "epoch"}, "by='step' or by='round'.*'epoch'"),
        ("exponential", {"factor": 0}, "factor > 0"),
        ("inverse-scaling", {"power": -0.1}, "power >= 0"),
        ("linear", {"duration": 0}, "duration >= 1"),
        ("linear", {"final": -0.1}, "final >= 0"),
        ("polynomial", {"power": 0}, "power > 0"),
        ("polynomial", {"duration": -3}, "duration >= 1"),
        ("piecewise", {"boundaries": [3, 3], "factors": [1, 1]}, "increasing boundaries"),
        ("piecewise", {"boundaries": [0], "factors": [1]}, "boundaries >= 1"),
        ("piecewise", {"boundaries": [3]}, "one factor or value for each boundary"),
        ("piecewise", {"boundaries": [3], "factors": [1, 2]}, "one factor or value"),
        ("piecewise", {"boundaries": [3], "factors": [1], "values": [1]}, "factors or values"),
        ("piecewise", {"boundaries": [3], "factors": [-1]}, ">= 0"),
        ("piecewise", {"boundaries": [3], "values": [math.inf]}, "finite"),
        ("cosine", {"duration": 0}, "duration >= 1"),
        ("cosine", {"final": -1}, "final >= 0"),
        ("cosine-restarts", {"period": 0}, "period >= 1"),
        ("cosine-restarts", {"multiplier": 0}, "multiplier >= 1"),
        ("cosine-restarts", {"final": -1}, "final >= 0"),
        ("cyclic-triangular", {"base": 0.1}, "max_rate >= base"),
        ("cyclic-triangular", {"rise": 0}, "rise >= 1"),
        ("cyclic-triangular", {"fall": -1}, "fall >= 0"),
        ("cyclic-triangular", {"shrink": 0}, "0 < shrink <= 1"),
        ("cyclic-exp-range", {"factor": 1.1}, "0 < factor <= 1"),
        ("one-cycle", {"duration": 0}, "duration >= 1"),
        ("one-cycle", {"pct_start": 1.1}, "0 <= pct_start <= 1"),
        ("one-cycle", {"pct_start": 0.6, "three_phase": True}, "0 <= pct_start <= 0.5"),
        ("one-cycle", {"anneal_strategy": "cosine"}, "'cos' or 'linear' .*'cosine'"),
        ("one-cycle", {"div_factor": 0.5}, "div_factor >= 1"),
        ("one-cycle", {"final_div_factor": 0}, "final_div_factor > 0"),
        ("reduce-on-plateau", {"mode": "less"}, "mode='min' or 'max'"),
        ("reduce-on-plateau", {"factor": 1}, "0 < factor < 1"),
        ("reduce-on-plateau", {"threshold_mode": "log"}, "'rel' or 'abs'"),
        ("reduce-on-plateau", {"patience": -1}, "patience >= 0"),
        ("reduce-on-plateau", {"threshold": -1}, "threshold >= 0"),
        ("reduce-on-plateau", {"cooldown": -1}, "cooldown >= 0"),
        ("reduce-on-plateau", {"min_rate": -1}, "min_rate >= 0"),
        ("reduce-on-plateau", {"eps": -1}, "eps >= 0"),
        ("warmup", {"duration": -1}, "duration >= 0"),
        ("warmup", {"start": 1.5}, "0 <= start <= 1"),
        ("warmup", {"then": "cosin"}, "Did you mean 'cosine'"),
    ],
)
def test_wrong_values_are_refused_when_a_schedule_is_built(
    name: str, config: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        schedule_of((name, config))


class Wrong(Schedule, register=False):
    name = "wrong"
    at: int = 2

    def rate(self, t: int) -> Any:
        wrong: list[Any] = [-1.0, math.nan, math.inf, None, "0.1", 1j]
        return wrong[self.at] if t == 1 else self.base


@pytest.mark.parametrize(
    ("at", "error", "says"),
    [
        (0, ValueError, "schedule 'wrong' at t=1, got -1.0"),
        (1, ValueError, "got nan"),
        (2, ValueError, "got inf"),
        (3, TypeError, "a number from schedule 'wrong' at t=1, got None"),
        (4, TypeError, "got '0.1'"),
        (5, TypeError, "got 1j"),
    ],
)
def test_a_wrong_rate_is_refused_and_not_counted(at: int, error: type[Exception], says: str) -> None:
    schedule = Wrong(0.5, at)
    schedule.advance()
    before = schedule.get_state()
    for _ in range(2):
        with pytest.raises(error, match=says):
            schedule.advance()
    assert schedule.get_state() == before
    with pytest.raises(error, match=says):
        rates(schedule, 3)


def test_a_rate_that_grows_past_all_numbers_says_when() -> None:
    schedule = Exponential(1.0, 1e100)
    assert [schedule.advance() for _ in range(4)][-1] == pytest.approx(1e300)
    with pytest.raises(ValueError, match="'exponential' at t=4, got inf"):
        schedule.advance()


@pytest.mark.parametrize("metric", ["0.1", None, True, [1.0]])
def test_a_metric_that_is_no_number_is_refused(metric: Any) -> None:
    with pytest.raises(TypeError, match="a number as metric of schedule 'reduce-on-plateau'"):
        ReduceOnPlateau().feed(metric)


def test_metrics_may_be_scalars_of_any_framework() -> None:
    schedule = ReduceOnPlateau(patience=0)
    for metric in (np.float32(0.5), torch.tensor(0.5), np.array(0.5)):
        schedule.feed(metric)  # type: ignore[arg-type]  # what users have
    assert (schedule.best, schedule.reductions) == (0.5, 2)


@pytest.mark.parametrize("n", [1.5, True, "3"])
def test_rates_take_a_whole_number(n: Any) -> None:
    with pytest.raises(TypeError, match="whole number"):
        rates("constant", n)
    with pytest.raises(ValueError, match="n=-1"):
        rates("constant", -1)


@settings(max_examples=100, deadline=None)
@given(
    cls=st.sampled_from([Linear, Polynomial, Cosine]),
    base=st.floats(1e-6, 10.0),
    final=st.floats(0.0, 1.0),
    duration=st.integers(1, 60),
)
@example(cls=Linear, base=3.0, final=1e-12, duration=7)  # a small final rate, all its digits
def test_decays_never_rise_and_end_at_the_final_rate(
    cls: type[Linear | Cosine], base: float, final: float, duration: int
) -> None:
    found = rates(cls(base, duration, final), duration + 3)
    assert found[0] == pytest.approx(base, rel=1e-12)
    assert found[duration:] == [base * final] * 3
    assert all(after <= before * (1 + 1e-12) for before, after in pairwise(found))
