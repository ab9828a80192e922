"""Going on: from a saved state, after a reset, in a new round; and that nothing else is remembered."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from ..plugin import Plugin
from ..vector import Vector
from .inputs import SEVERAL, Shapes
from .subject import Subject, difference, expect, frozen
from .trial import LIFE, Trial, live

__all__ = [
    "check_declared_state",
    "check_determinism",
    "check_reset",
    "check_resume",
    "check_round_reset",
]


def check_resume(
    subject: Subject,
    shapes: Shapes = SEVERAL,
    dtype: str = "float64",
    framework: str = "numpy",
    by: str = "eager",
    stops: Collection[int] | None = None,
) -> None:
    """Stopped anywhere and resumed from the bytes of its state, it goes on bit for bit.

    Args:
        subject: The plug-in.
        shapes: Of the model.
        dtype: Of the model.
        framework: That holds it.
        by: The executor.
        stops: After which words of its life (`privopt.testing.trial`) it is stopped; None for every one.
    """
    settings: dict[str, Any] = {"shapes": shapes, "dtype": dtype, "framework": framework, "by": by}
    whole = live(subject, **settings).state()
    stopping = Trial(subject, **settings)
    for at, word in enumerate(LIFE):
        stopping.play([word])
        if stops is not None and at not in stops:
            continue
        resumed = stopping.resumed()
        gap = difference(_portable(stopping.state()), _portable(resumed.state()))
        expect(gap is None, subject, f"Expected a state to survive the bytes of a file, got {gap}.")
        gap = difference(whole, resumed.play(LIFE[at + 1 :]).state())
        if gap is not None:
            raise subject.broken(
                f"Expected a run that stops after {' '.join(LIFE[: at + 1])!r} to resume bit for bit, got "
                f"{gap} in the end. {_forgotten(subject, settings, whole)}"
            )


def _forgotten(subject: Subject, settings: Mapping[str, Any], whole: Mapping[str, Any]) -> str:
    """What to do about a run that goes on otherwise: two whole ones may differ too."""
    if difference(whole, live(subject, **settings).state()) is None:
        return "Declare what changes: `name: Vector = state(0.0)`, `count: int = state(0)`."
    return _ELSEWHERE


_ELSEWHERE = (
    "Two of one configuration differ: it draws randomness, or keeps something, outside of itself. Draw "
    "from a declared source, `source: dataclasses.InitVar[dp.random.Source | None] = dataclasses.field("
    "default=None, kw_only=True)`, as `privopt.modules.noise` does; keep what changes in declared states."
)


def _portable(state: Any) -> Any:
    """A state as numpy holds it: what was read from a file waits there until a step moves it."""
    if isinstance(state, Vector):
        return state.to_numpy() if state.framework != "numpy" else state
    if isinstance(state, Mapping):
        return {key: _portable(value) for key, value in state.items()}
    return state


def check_determinism(subject: Subject, by: str = "eager") -> None:
    """Equal instances do equal things, even when they take turns: nothing is kept outside of them."""
    alone = live(subject, by=by).state()
    first, second = Trial(subject, by=by), Trial(subject, by=by)
    for word in LIFE:
        first.play([word])
        second.play([word])
    for state in (first.state(), second.state()):
        gap = difference(alone, state)
        expect(
            gap is None,
            subject,
            f"Expected two instances that take turns to do what one does alone, got {gap}. {_ELSEWHERE}",
        )


def check_declared_state(subject: Subject) -> None:
    """What changes as it lives is declared with `state`: other attributes stay what they were."""
    trial = Trial(subject)
    plugin = trial.plugin
    if type(plugin).get_state is not Plugin.get_state:
        return  # it says itself what its state is; `check_resume` finds what it forgets
    before = _others(plugin)
    for word in LIFE:
        trial.play([word])
        gap = difference(before, _others(plugin))
        expect(
            gap is None,
            subject,
            f"Expected attributes that change to be declared, got {gap} after {word!r}. "
            "Declare it: `name: Vector | None = state(None)`, `count: int = state(0)`.",
        )


def _others(plugin: Plugin) -> dict[str, Any]:
    """Plain values among the attributes that are not declared as state."""
    declared = {f.name for f in plugin._state}
    return {k: frozen(v) for k, v in vars(plugin).items() if k not in declared and _is_plain(v)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(k, str) for k in value) and all(map(_is_plain, value.values()))
    return value is None or isinstance(value, bool | int | float | str | np.ndarray | np.generic | Vector)


def check_reset(subject: Subject) -> None:
    """After `reset` it is as if it were fresh."""
    used = live(subject)
    used.optimizer.reset()
    gap = difference(Trial(subject).optimizer.get_state(), used.optimizer.get_state())
    expect(gap is None, subject, f"Expected reset to forget everything, got {gap}.")
    again = Trial(dataclasses.replace(subject, make=lambda **config: used.plugin))
    gap = difference(live(subject).state(), again.play(LIFE).state())
    expect(gap is None, subject, f"Expected a plug-in that was reset to act like a fresh one, got {gap}.")


def check_round_reset(subject: Subject) -> None:
    """`round_reset` set, a round starts from nothing; not set, its start changes no state."""
    for chosen in (True, False):
        own = Subject(subject.plugin, {**subject.config, "round_reset": chosen}, subject.make)
        trial = live(own, ["round", "step", "step", "step"])
        before = frozen(trial.plugin.get_state())
        trial.plugin.on_round_start()
        expected = own.build().get_state() if chosen else before
        gap = difference(expected, trial.plugin.get_state())
        what = "forget its state" if chosen else "keep its state"
        expect(
            gap is None,
            own,
            f"Expected it to {what} when a round starts, got {gap}. Call super().on_round_start().",
        )
        if chosen:
            expect(
                difference(own.build().get_state(), before) is not None,
                own,
                "Expected steps to change a state that `round_reset` forgets, got none that changed. "
                "Leave round_reset out of a plug-in without state.",
            )
