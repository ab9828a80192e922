"""What `dp` raises, so that a caller can tell a spent budget from a wrong argument: floor 1."""

from __future__ import annotations

__all__ = [
    "DPError",
    "LedgerError",
    "PrivacyBudgetExceeded",
    "PrivacyParameterError",
    "PrivacyWarning",
    "UnsupportedEvent",
    "UnsupportedLayer",
]


class DPError(Exception):
    """Base of every error that `dp` raises on purpose."""


class PrivacyParameterError(DPError, ValueError):
    """A privacy parameter has no sensible meaning, or promises less than it seems to."""


class PrivacyBudgetExceeded(DPError):  # noqa: N818 - a verdict, named as the docs name it
    """A release would pass a budget; it was refused before anything was written or drawn."""


class UnsupportedEvent(DPError):  # noqa: N818 - a verdict, named as the docs name it
    """An accountant has no sound price for an event under a neighbouring relation."""


class UnsupportedLayer(DPError, ValueError):  # noqa: N818 - a verdict, named as the docs name it
    """A layer has no gradient of one sample alone, or none that the engine can find."""


class LedgerError(DPError):
    """A ledger was altered, cut, or is used against its rules.

    Attributes:
        record: Sequence number of the first bad record; None where the fault is not in one record.
    """

    def __init__(self, message: str, record: int | None = None) -> None:
        super().__init__(message)
        self.record = record


class PrivacyWarning(UserWarning):
    """A parameter is allowed, but weaker than good practice asks for."""
