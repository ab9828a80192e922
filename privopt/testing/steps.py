"""Steps: the layout that a plug-in keeps, whose memory it touches, what remains of a step that fails."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..auxvar import AuxVar
from ..executors import executor
from ..groups import Group
from ..plugin import OptiModule, Plugin, Regularizer
from ..vector import Vector
from .inputs import SEVERAL, Shapes, gradients, precise
from .subject import Subject, accepted, closeness, difference, expect, frozen
from .trial import Trial

__all__ = [
    "check_caller_arrays",
    "check_failed_steps",
    "check_groups",
    "check_integers",
    "check_layout",
    "check_memory",
    "overwrite",
    "run_once",
]


def run_once(plugin: Plugin, grads: Vector, weights: Vector) -> Vector:
    """One call of a plug-in outside an optimizer: `run`, and for a module `finish`."""
    if isinstance(plugin, Regularizer):
        return plugin.run(grads, weights)
    if not isinstance(plugin, OptiModule):
        raise TypeError(f"Expected a module or a regularizer, got the {plugin._kind()} {plugin.name!r}.")
    given = {"weights": weights, "raw_gradients": grads}
    with np.errstate(all="ignore"):  # as an optimizer does
        return plugin.finish(plugin.run(grads, **{name: given[name] for name in plugin.takes}), weights)


def check_layout(subject: Subject, shapes: Shapes, dtype: str, framework: str = "numpy") -> None:
    """Names, shapes and dtypes stay, in `run` and in an optimizer; ordinary numbers give finite ones."""
    with precise(framework, dtype):
        plugin = subject.build()
        weights = gradients(1000, shapes, dtype, framework)
        for step in range(3):
            grads = gradients(step, shapes, dtype, framework)
            _same_layout(subject, "run", run_once(plugin, grads, weights), grads)
        for by in ("eager", "blocked"):
            trial = Trial(subject, shapes, dtype, framework, by=by).play(["round", "step", "step"])
            with executor(by):
                updates = trial.optimizer.compute_updates(trial.step_gradients(), trial.weights)
            _same_layout(subject, "a step", updates, weights)
            trial.play(["step"])
            _same_layout(subject, "a step in place", trial.weights, weights)


def _same_layout(subject: Subject, what: str, found: object, like: Vector) -> None:
    if not isinstance(found, Vector):
        raise subject.broken(
            f"Expected a Vector of {what}, got {type(found).__name__}. Return what was computed."
        )
    expect(
        found.layout == like.layout,
        subject,
        f"Expected {what} to keep the layout, got {_layout(found)} for {_layout(like)}.",
    )
    finite = bool(np.isfinite(np.asarray(found.flatten(), np.float64)).all())
    expect(finite, subject, f"Expected finite numbers of {what} for gradients between 1/4 and 2, got others.")


def _layout(vector: Vector) -> str:
    return f"{vector.layout.to_json()}"


def check_caller_arrays(subject: Subject) -> None:
    """Gradients and weights that a caller passes are never written to."""
    plugin = subject.build()
    for step in range(3):
        with _untouched(subject, "run", gradients(step), gradients(1000)) as (grads, weights):
            run_once(plugin, grads, weights)
    for by in ("eager", "blocked"):
        trial = Trial(subject, by=by).play(["round"])
        for step in range(3):
            with executor(by), _untouched(subject, by, gradients(step), gradients(1000)) as (grads, weights):
                trial.optimizer.compute_updates(grads, weights)


@contextlib.contextmanager
def _untouched(subject: Subject, how: str, grads: Vector, weights: Vector) -> Iterator[tuple[Vector, Vector]]:
    arrays = grads.buffers, weights.buffers
    before = grads.copy(), weights.copy()
    yield grads, weights
    for what, vector, held, kept in zip(
        ("gradients", "weights"), (grads, weights), arrays, before, strict=True
    ):
        same = vector.buffers is held and difference(kept, vector) is None
        expect(
            same,
            subject,
            f"Expected the caller's {what} to stay as they were ({how}), got other values. Compute a new "
            "Vector (`gradients = gradients * 2`) instead of writing into the one that was given.",
        )


def check_memory(subject: Subject) -> None:
    """States own their memory: what was passed in, or given out by get_state, may change afterwards.

    Inside a step the optimizer sees to that, whatever `run` and `finish` keep, and this verifies it. What
    hooks are given, a plug-in copies.
    """
    for by in ("eager", "blocked"):
        _memory_in_an_optimizer(subject, by)
    trial = Trial(subject).play(["round", "step", "step", "accept"])
    before = frozen(trial.optimizer.get_state())
    overwrite(trial.weights)
    _unchanged(subject, "the weights that a round ended with", before, trial.optimizer.get_state())
    update = gradients(8)
    trial.plugin.on_update_sent(update)
    before = frozen(trial.optimizer.get_state())
    overwrite(update)
    _unchanged(subject, "the update that on_update_sent was given", before, trial.optimizer.get_state())
    overwrite(trial.plugin.get_state())
    _unchanged(subject, "what get_state gave", before, trial.optimizer.get_state())
    given = trial.plugin.get_state()
    trial.plugin.set_state(given)
    overwrite(given)
    _unchanged(subject, "what set_state was given", before, trial.optimizer.get_state())


def _memory_in_an_optimizer(subject: Subject, by: str) -> None:
    trial = Trial(subject, by=by).play(["round"])
    with executor(by):
        for step in range(3):
            grads, weights = gradients(step), gradients(1000 + step)
            updates = trial.optimizer.compute_updates(grads, weights)
            before = frozen(trial.optimizer.get_state())
            overwrite(grads, weights, updates)
            after = trial.optimizer.get_state()
            _unchanged(subject, f"the arrays of a step ({by})", before, after)
        trial.optimizer.step(gradients(7), trial.weights)
        before = frozen(trial.optimizer.get_state())
        overwrite(trial.weights)
        _unchanged(subject, f"the weights after a step ({by})", before, trial.optimizer.get_state())


def _unchanged(subject: Subject, what: str, before: Any, after: Any) -> None:
    gap = difference(before, after)
    expect(
        gap is None,
        subject,
        f"Expected its state to own its memory, got {gap} after {what} changed. "
        "Keep a copy: `vector.copy()`.",
    )


def overwrite(*values: Any) -> None:
    """Put other numbers into the memory of Vectors, wherever they stand in a state."""
    for value in values:
        if isinstance(value, Vector):
            for array in value.coefs.values():
                array[...] = 7.0
        elif isinstance(value, dict):
            overwrite(*value.values())
        elif isinstance(value, list | tuple):
            overwrite(*value)
        elif isinstance(value, AuxVar):
            overwrite(*vars(value).values())


class _Breaks(OptiModule, register=False):
    """Raises in `run` or `finish`, when told to."""

    name = "breaks"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._where, self._error = "", BaseException()

    def arm(self, where: str, error: BaseException) -> None:
        self._where, self._error = where, error

    def run(self, gradients: Vector) -> Vector:
        """Pass gradients, or raise."""
        if self._where == "run":
            raise self._error
        return gradients

    def finish(self, updates: Vector, weights: Vector) -> Vector:
        """Pass updates, or raise."""
        if self._where == "finish":
            raise self._error
        return updates


def check_failed_steps(subject: Subject, by: str = "eager") -> None:
    """A step that raises or is interrupted after the plug-in ran changes nothing, and can be taken again."""
    for start in (["round"], ["round", "step", "step"]):
        breaks = _Breaks()
        trial = Trial(subject, after=[breaks], by=by).play(start)
        undisturbed = Trial(subject, after=[_Breaks()], by=by).play(start)
        for where in ("run", "finish"):
            for error in (RuntimeError("on purpose"), KeyboardInterrupt()):
                before = trial.state()
                breaks.arm(where, error)
                try:
                    trial.play(["step"])
                except type(error) as caught:
                    if caught is not error:
                        raise
                gap = difference(before, trial.state())
                expect(
                    gap is None,
                    subject,
                    f"Expected a step that fails to change nothing, got {gap} after {error!r} in "
                    f"{where} of a later module.",
                )
        breaks.arm("", RuntimeError())
        gap = difference(undisturbed.play(["step"]).state(), trial.play(["step"]).state())
        expect(gap is None, subject, f"Expected the step after failed ones to be as without them, got {gap}.")


def check_groups(subject: Subject) -> None:
    """A setting that a group gives to all tensors acts as the hyper-parameter does, or is refused."""
    for name, hyper in subject.hyper.items():
        value = _another(subject, name) if hyper.type in ("float", float) else None
        if value is None:
            continue
        other = Subject(subject.plugin, {**subject.config, name: value}, subject.make)
        grouped = Trial(subject, groups=[Group(".*", settings={f"{subject.plugin.name}.{name}": value})])
        kept = grouped.plugin.get_config()
        before = grouped.state()
        life = ["step", "step", "step"]  # no round: a counterpart's own settings would come between
        try:
            grouped.play(life)
        except TypeError:
            gap = difference(before, grouped.state())
        else:
            expected = Trial(other).play(life)
            gap = closeness(expected.weights, grouped.weights, 1e-12, "weights")
        expect(
            gap is None,
            subject,
            f"Expected a group's {name}={value} to act as {name} itself, or to be refused, got {gap}. Use "
            "arithmetic on it; where it decides what is computed, branch on it, which refuses it.",
        )
        gap = difference(kept, grouped.plugin.get_config())
        expect(gap is None, subject, f"Expected the config to stay as it was beside groups, got {gap}.")


def _another(subject: Subject, name: str) -> float | None:
    """A value of a hyper-parameter other than the one it has; None if the constructor takes none of a few."""
    now = getattr(subject.build(), name)
    for value in (now / 2, 0.25, 2.0):
        if value != now and accepted(subject, {**subject.config, name: value}):
            return float(value)
    return None


def check_integers(subject: Subject, shapes: Shapes = SEVERAL) -> None:
    """A step on integer weights is refused, and changes nothing."""
    whole = Vector.build({name: np.full(shape, 3) for name, shape in shapes.items()})
    for by in ("eager", "blocked"):
        trial = Trial(subject, shapes, by=by)
        before, kept = frozen(trial.optimizer.get_state()), whole.copy()
        with executor(by):
            try:
                trial.optimizer.step(whole.copy(), whole)
            except (TypeError, ValueError):
                pass
            else:
                raise subject.broken(f"Expected integer weights to be refused ({by}).")
        gap = difference(before, trial.optimizer.get_state()) or difference(kept, whole)
        expect(gap is None, subject, f"Expected a step that was refused to change nothing, got {gap} ({by}).")
