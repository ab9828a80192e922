"""Guard: one call of a state machine at a time, from whatever thread it comes.

What a call checks must still hold when it acts: two threads that hand a client two sets of survivors at once
must not both find that it has signed none.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from .errors import PhaseError

P = ParamSpec("P")
R = TypeVar("R")


class Guard:
    """A lock that calls of other threads wait for, and that calls from within a call are refused by."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner: int | None = None

    def __enter__(self) -> None:
        if self._owner == threading.get_ident():
            raise PhaseError("Expected one call after another, got one from within another call.")
        self._lock.acquire()
        self._owner = threading.get_ident()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._owner = None
        self._lock.release()


class Guarded(Protocol):
    """What has a guard."""

    _guard: Guard


S = TypeVar("S", bound=Guarded)


def one_at_a_time(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Let a method run while no other of its object's guarded methods does."""

    def guarded(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with self._guard:
            return method(self, *args, **kwargs)

    functools.update_wrapper(guarded, method)
    return guarded
