"""Guard: one call of a state machine at a time, from whatever thread it comes.

What a call checks must still hold when it acts: two threads that hand a client two sets of survivors at once
must not both find that it has signed none.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from .errors import PhaseError

P = ParamSpec("P")
R = TypeVar("R")


class Guard:
    """Lets calls of other threads wait, and refuses calls from within a call."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._busy = False

    @contextmanager
    def no_other_call(self) -> Iterator[None]:
        """The time of what may end a call of the same thread, such as letting go of an iterator."""
        with self._lock:
            yield

    @contextmanager
    def one_call(self) -> Iterator[None]:
        """The time of one call; raises PhaseError within another one of the same thread."""
        with self._lock:
            if self._busy:
                raise PhaseError("Expected one call after another, got one from within another call.")
            try:
                self._busy = True
                yield
            finally:
                self._busy = False


class Guarded(Protocol):
    """What has a guard."""

    _guard: Guard


S = TypeVar("S", bound=Guarded)


def one_at_a_time(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Let a method run while no other of its object's guarded methods does."""

    def guarded(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with self._guard.one_call():
            return method(self, *args, **kwargs)

    functools.update_wrapper(guarded, method)
    return guarded
