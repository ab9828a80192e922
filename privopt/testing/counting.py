"""Schedules: rates from counts, nothing else."""

from __future__ import annotations

import math
from typing import Any

from ..checkpoint import dump_state, load_state
from ..schedules import Schedule
from .subject import ContractError, Subject, difference, expect

__all__ = ["check_schedule"]

_LIFE = [
    *("step", "step", "round", "step", "fed", "step", "step"),
    *("round", "step", "fed", "fed", "step", "round", "step", "step"),
]


def check_schedule(subject: Subject) -> None:
    """Rates are finite and >= 0, a pure function of the count, and go on from a saved state bit for bit."""
    alone, first, second = (_built(subject) for _ in range(3))
    seen = [_play(alone, word, at) for at, word in enumerate(_LIFE)]
    turns = [(_play(first, word, at), _play(second, word, at)) for at, word in enumerate(_LIFE)]
    gap = difference([(a, a) for a in seen], turns)
    expect(
        gap is None, subject, f"Expected two instances that take turns to do what one does alone, got {gap}."
    )
    for rate in seen:
        expect(math.isfinite(rate) and rate >= 0, subject, f"Expected a finite rate >= 0, got {rate!r}.")
    _is_pure(subject)
    stopping = _built(subject)
    for at, word in enumerate(_LIFE):
        _play(stopping, word, at)
        resumed = _built(subject)
        resumed.set_state(load_state(dump_state(stopping.get_state())))
        rest = [_play(resumed, later, at + 1 + k) for k, later in enumerate(_LIFE[at + 1 :])]
        gap = difference(seen[at + 1 :], rest)
        expect(
            gap is None, subject, f"Expected a schedule to resume where it stopped, got {gap} after {at + 1}."
        )
    stopping.reset()
    gap = difference(_built(subject).get_state(), stopping.get_state())
    expect(gap is None, subject, f"Expected reset to forget everything, got {gap}.")


def _is_pure(subject: Subject) -> None:
    schedule = _built(subject)
    before = schedule.get_state()
    forth = [schedule.rate(t) for t in range(20)]
    back = [schedule.rate(t) for t in reversed(range(20))]
    gap = difference(forth, back[::-1]) or difference(before, schedule.get_state())
    expect(gap is None, subject, f"Expected rate(t) to depend on t alone and to change nothing, got {gap}.")
    shown = schedule.current
    expect(
        shown == schedule.advance(), subject, f"Expected the first step's rate to be shown, got {shown!r}."
    )


def _built(subject: Subject) -> Schedule:
    schedule = subject.build()
    if not isinstance(schedule, Schedule):
        raise ContractError(f"Expected a schedule, got the {subject.kind} {subject}.")
    return schedule


def _play(schedule: Schedule, word: str, at: int) -> float:
    if word == "round":
        schedule.on_round_start()
    elif word == "fed":
        metric: Any = 1.0 + at % 3  # up and down
        schedule.feed(metric)
    else:
        schedule.advance()
    return schedule.current
