"""Prices of private training: one more event on a long ledger, and calibration, against limits and peers."""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import dp
from dp import accounting, composition
from dp.events import Event, Gaussian, Poisson, Repeated

from .harness import Benchmark, Case, Disagreement, against_limit, compare

DELTA = 1e-5
ONE_MORE, CALIBRATION = 0.2, 2.0
"""Limits in seconds of processor time."""
PLAN: dict[str, Any] = {"delta": DELTA, "sample_rate": 1e-3, "num_steps": 10_000}


def cases() -> Iterator[Benchmark]:
    """One more event, from what is kept and from scratch; calibration alone and against Opacus PRV."""
    measures: dict[str, Callable[[str], Case]] = {
        "one more event on 100 distinct ones": _one_more,
        "one more event on 20 distinct ones, kept against scratch": _against_scratch,
        "noise for epsilon 8, q=0.001, 10,000 steps": _calibration,
        "noise for epsilon 8, q=0.001, 10,000 steps, against PRV": _against_prv,
    }
    for case, measure in measures.items():
        yield Benchmark(case, functools.partial(measure, case))


def _ledger(events: int) -> list[Event]:
    return [Repeated(Poisson(0.01, Gaussian(0.9 + i / 100)), 10) for i in range(events)]


def _forget() -> None:
    """As a process that has priced nothing yet."""
    composition.forget()
    for kept in vars(accounting).values():
        if hasattr(kept, "cache_clear"):
            kept.cache_clear()


def _one_more(case: str) -> Case:
    ledger = _ledger(100)
    dp.epsilon(ledger, DELTA)
    took = []
    for i in range(7):
        ledger.append(Poisson(0.02, Gaussian(1.5 + i / 100)))
        began = time.process_time()
        dp.epsilon(ledger, DELTA)
        took.append(time.process_time() - began)
    return against_limit(case, took, ONE_MORE, "s")


def _against_scratch(case: str) -> Case:
    ledger, more = _ledger(20), iter(range(1, 1000))

    def kept() -> float:
        ledger[20:] = [Poisson(0.02, Gaussian(1.5 + next(more) / 1000))]
        return dp.epsilon(ledger, DELTA)

    def scratch() -> float:
        _forget()
        return dp.epsilon([*_ledger(20), Poisson(0.02, Gaussian(1.5))], DELTA)

    if abs(kept() - scratch()) > 1e-3:
        raise Disagreement("what is kept gives another price than from scratch.")
    base, times = [], []
    for _ in range(3):
        began = time.process_time()
        scratch()
        base.append(time.process_time() - began)
        for _ in range(3):
            began = time.process_time()
            kept()
            times.append(time.process_time() - began)
    return _case(case, times, base, "scratch", None)


def _calibration(case: str) -> Case:
    took = []
    dp.epsilon(Gaussian(1.0), DELTA)
    for _ in range(3):
        _forget()
        began = time.process_time()
        dp.noise_multiplier_for(epsilon=8.0, **PLAN)
        took.append(time.process_time() - began)
    return against_limit(case, took, CALIBRATION, "s")


def _against_prv(case: str) -> Case:
    """The same search by Opacus, at the accuracy it has by default."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from opacus.accountants.utils import get_noise_multiplier

    def ours() -> float:
        _forget()
        return dp.noise_multiplier_for(epsilon=8.0, **PLAN)

    def theirs() -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            noise: float = get_noise_multiplier(
                target_epsilon=8.0,
                target_delta=DELTA,
                sample_rate=PLAN["sample_rate"],
                steps=PLAN["num_steps"],
                accountant="prv",
            )
        return noise

    if abs(ours() - theirs()) > 0.01 * ours():
        raise Disagreement("the two searches find noise more than 1 % apart.")
    return compare(case, ours, theirs, "opacus PRV", runs=2, seconds=0)


def _case(case: str, ours: list[float], baseline: list[float], name: str, bar: float | None) -> Case:
    a, b, low_a, low_b = median(ours), median(baseline), min(ours), min(baseline)
    return Case(case, a, b, name, a / b, low_a, low_b, low_a / low_b, len(baseline), bar=bar)
