"""Events: what a mechanism did, in the words that an accountant prices and a ledger records: floor 1.

The sampler and the noise that ran emit them; nobody writes the price list by hand. Which accountant prices
which event under which relation is the table `dp.accounting.SUPPORTED`.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Any, TypeAlias

import msgspec

from .errors import PrivacyParameterError

__all__ = [
    "Epoch",
    "Event",
    "Gaussian",
    "Neighboring",
    "Poisson",
    "Repeated",
    "Step",
    "TruncatedPoisson",
    "Unpriced",
    "WithoutReplacement",
    "event_from_dict",
]


class Neighboring(StrEnum):
    """Which two datasets a guarantee makes hard to tell apart."""

    ADD_OR_REMOVE_ONE = "add-or-remove-one"
    REPLACE_ONE = "replace-one"


class _Described(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind"):
    """What all events share: immutable, hashable, and JSON by `to_dict`.

    Guarantees:
        - ``event_from_dict(event.to_dict()) == event``, also through JSON text.
        - Unknown kinds, missing or additional keys and values out of range are refused.
    """

    def to_dict(self) -> dict[str, Any]:
        """The event as plain JSON values."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain

    @property
    def kind(self) -> str:
        """The event's kind, as `to_dict` names it."""
        return str(self.__struct_config__.tag)


class Gaussian(_Described, frozen=True, tag="gaussian"):
    """One release with Gaussian noise.

    Attributes:
        noise_multiplier: Noise std over the clip norm C, whatever the relation: under REPLACE_ONE the
            sensitivity is 2C, which the accountants take into account. Zero means no noise at all.
    """

    noise_multiplier: float

    def __post_init__(self) -> None:
        _store_float(self, "noise_multiplier", math.inf)

    def __str__(self) -> str:
        return f"gaussian(z={self.noise_multiplier:.6g})"


class Poisson(_Described, frozen=True, tag="poisson"):
    """A release about a Poisson sample: every unit entered independently with one probability.

    Attributes:
        sample_rate: Probability that a unit entered.
        event: What was released about the sample.
    """

    sample_rate: float
    event: Gaussian

    def __post_init__(self) -> None:
        _store_float(self, "sample_rate", 1.0)
        if not isinstance(self.event, Gaussian):
            raise TypeError(f"Expected event of poisson to be Gaussian, got {type(self.event).__name__}.")

    def __str__(self) -> str:
        return f"poisson(q={self.sample_rate:.6g}, {self.event})"


class WithoutReplacement(_Described, frozen=True, tag="without-replacement"):
    """A release about a batch of fixed size, drawn uniformly without replacement.

    Attributes:
        num_samples: Number of units, a public constant.
        batch_size: How many of them entered, at most `num_samples`.
        event: What was released about the batch.
    """

    num_samples: int
    batch_size: int
    event: Gaussian

    def __post_init__(self) -> None:
        _verify_int(self, "num_samples", 1, 2**53)
        _verify_int(self, "batch_size", 1, self.num_samples)
        _verify_inner(self)

    def __str__(self) -> str:
        return f"without-replacement({self.batch_size} of {self.num_samples}, {self.event})"


class TruncatedPoisson(_Described, frozen=True, tag="truncated-poisson"):
    """A release about a Poisson sample, of which a random subset remained where it was too large.

    Attributes:
        num_samples: Number of units, a public constant.
        sample_rate: Probability that a unit entered before truncation.
        max_batch_size: The most units that remained.
        event: What was released about the batch.
    """

    num_samples: int
    sample_rate: float
    max_batch_size: int
    event: Gaussian

    def __post_init__(self) -> None:
        _verify_int(self, "num_samples", 1, 2**53)
        _store_float(self, "sample_rate", 1.0)
        _verify_int(self, "max_batch_size", 1, self.num_samples)
        _verify_inner(self)

    def __str__(self) -> str:
        return (
            f"truncated-poisson(q={self.sample_rate:.6g}, at most {self.max_batch_size} of "
            f"{self.num_samples}, {self.event})"
        )


class Epoch(_Described, frozen=True, tag="epoch"):
    """Releases about batches in which every unit entered exactly once, whatever decided in which.

    It costs what one release does: the other batches do not depend on the unit. Nothing is gained from the
    order being random.

    Attributes:
        num_batches: Number of batches.
        event: What was released about each.
    """

    num_batches: int
    event: Gaussian

    def __post_init__(self) -> None:
        _verify_int(self, "num_batches", 1, 2**53)
        _verify_inner(self)

    def __str__(self) -> str:
        return f"epoch({self.num_batches} batches, {self.event})"


class Unpriced(_Described, frozen=True, tag="unpriced"):
    """A release that nobody can price; every accountant refuses it, and the ledger says so.

    Attributes:
        reason: Why it has no price, for the person who reads the audit.
    """

    reason: str

    def __post_init__(self) -> None:
        if not isinstance(self.reason, str):
            raise TypeError(f"Expected reason of unpriced to be text, got {type(self.reason).__name__}.")

    def __str__(self) -> str:
        return f"unpriced({self.reason})"


class Repeated(_Described, frozen=True, tag="repeated"):
    """The same event several times over, each with fresh randomness.

    Attributes:
        event: The event.
        count: How many times.
    """

    event: Gaussian | Poisson | WithoutReplacement | TruncatedPoisson | Epoch
    count: int

    def __post_init__(self) -> None:
        if isinstance(self.count, bool) or not isinstance(self.count, int):
            raise TypeError(f"Expected count of repeated to be an int, got {type(self.count).__name__}.")
        if not 0 <= self.count < 2**53:
            raise PrivacyParameterError(f"Expected count of repeated in [0, 2**53), got count={self.count}.")
        if not isinstance(self.event, Step):
            raise TypeError(
                "Expected event of repeated to be a release or releases about a sample, "
                f"got {type(self.event).__name__}."
            )

    def __str__(self) -> str:
        return f"{self.count} × {self.event}"


Step: TypeAlias = Gaussian | Poisson | WithoutReplacement | TruncatedPoisson | Epoch
"""What can repeat."""

Event: TypeAlias = Gaussian | Poisson | WithoutReplacement | TruncatedPoisson | Epoch | Repeated | Unpriced
"""Any event. Events nest in one order only (repetition, sample, noise), so a file cannot nest them deeper."""


def event_from_dict(value: Any) -> Event:
    """Read an event from plain JSON values, strictly.

    Args:
        value: What `to_dict` wrote; it may come from a file that somebody else made.

    Returns:
        The event.

    Raises:
        PrivacyParameterError: If it is no event: unknown kind, missing or additional keys, values of a wrong
            type or out of range.

    Example:
        >>> event_from_dict({"kind": "gaussian", "noise_multiplier": 1.5})
        Gaussian(noise_multiplier=1.5)
    """
    try:
        # The types, not the alias: mypy takes a union for a value of another kind than a type.
        event: Event = msgspec.convert(
            value, Gaussian | Poisson | WithoutReplacement | TruncatedPoisson | Epoch | Repeated | Unpriced
        )
    except msgspec.ValidationError as error:
        raise PrivacyParameterError(f"Expected an event as JSON values: {error}.") from error
    return event


def _verify_int(event: msgspec.Struct, name: str, low: int, high: int) -> None:
    value = getattr(event, name)
    kind = event.__struct_config__.tag
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"Expected {name} of {kind} to be an int, got {type(value).__name__}.")
    if not low <= value <= high:
        raise PrivacyParameterError(f"Expected {name} of {kind} in [{low}, {high}], got {name}={value}.")


def _verify_inner(event: WithoutReplacement | TruncatedPoisson | Epoch) -> None:
    if not isinstance(event.event, Gaussian):
        raise TypeError(f"Expected event of {event.kind} to be Gaussian, got {type(event.event).__name__}.")


def _store_float(event: msgspec.Struct, name: str, high: float) -> None:
    """Turn the field into a float in [0, high], finite; equal events then have equal JSON."""
    value = getattr(event, name)
    kind = event.__struct_config__.tag
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"Expected {name} of {kind} to be a number, got {type(value).__name__}.")
    if not (0 <= value <= high and math.isfinite(value)):
        raise PrivacyParameterError(
            f"Expected {name} of {kind} in [0, {high:g}] and finite, got {name}={value}."
        )
    # + 0.0 turns the negative zero, which compares equal and prints otherwise, into zero.
    msgspec.structs.force_setattr(event, name, float(value) + 0.0)
