"""Who is told how a run goes: the console, a notebook, nobody."""

from __future__ import annotations

from typing import Any, Protocol

__all__ = ["Observer", "Silent"]


class Observer(Protocol):
    """Told of a run's progress; what it raises stops the run."""

    def started(self, facts: dict[str, Any]) -> None:
        """The run is set up; `facts` is what ``run.json`` holds, and the config under ``"config"``."""

    def round_done(self, line: dict[str, Any]) -> None:
        """A round ended; `line` is what was appended to ``metrics.jsonl``."""

    def twin_done(self, facts: dict[str, Any]) -> None:
        """The same run without privacy ended (built-in public data only)."""

    def finished(self, outcome: dict[str, Any]) -> None:
        """The run's folder is complete."""


class Silent:
    """An observer that says nothing."""

    def started(self, facts: dict[str, Any]) -> None:
        """Say nothing."""

    def round_done(self, line: dict[str, Any]) -> None:
        """Say nothing."""

    def twin_done(self, facts: dict[str, Any]) -> None:
        """Say nothing."""

    def finished(self, outcome: dict[str, Any]) -> None:
        """Say nothing."""
