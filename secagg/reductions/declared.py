"""What takes no lane: values that are stated when a round opens or never leave, and what no sum can carry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn, TypeAlias

from .base import Reduction

Declared: TypeAlias = "str | int | float | bool | bytes"


@dataclass(frozen=True, slots=True)
class Same(Reduction):
    """A value that all clients must hold alike (see `same`)."""

    kind: ClassVar[str] = "same"

    @property
    def disclosure(self) -> str:
        """What the server learns, in one line."""
        return "whether all clients hold the same value (one that can be guessed can be confirmed)"

    @property
    def remainder(self) -> str:
        """What all other clients of a round learn of one client."""
        return "that it holds their value"

    @property
    def difference(self) -> str:
        """What two rounds tell of a client that took part in one of them."""
        return "nothing: hashes of two rounds cannot be compared"

    def reduce(self, values: Sequence[Any], weights: Sequence[Any] | None = None) -> Declared:
        """The common value; raises ValueError where clients differ."""
        first, *others = values
        if any(type(v) is not type(first) or v != first for v in others):
            raise ValueError(f"Expected one value held alike by all {len(values)} clients; they differ.")
        value: Declared = first
        return value


@dataclass(frozen=True, slots=True)
class Public(Reduction):
    """A value that every client publishes (see `public`)."""

    kind: ClassVar[str] = "public"

    @property
    def disclosure(self) -> str:
        """What the server learns, in one line."""
        return "every client's value, in clear"

    @property
    def remainder(self) -> str:
        """What all other clients of a round learn of one client."""
        return "its value: it is published"

    @property
    def difference(self) -> str:
        """What two rounds tell of a client that took part in one of them."""
        return "its value: it is published"

    def reduce(self, values: Sequence[Any], weights: Sequence[Any] | None = None) -> tuple[Declared, ...]:
        """All values, in the order of the clients."""
        return tuple(values)


@dataclass(frozen=True, slots=True)
class Local(Reduction):
    """A value that never leaves its client (see `local`)."""

    kind: ClassVar[str] = "local"

    @property
    def disclosure(self) -> str:
        """What the server learns, in one line."""
        return "nothing: the value never leaves its client"

    @property
    def remainder(self) -> str:
        """What all other clients of a round learn of one client."""
        return "nothing"

    @property
    def difference(self) -> str:
        """What two rounds tell of a client that took part in one of them."""
        return "nothing"

    def reduce(self, values: Sequence[Any], weights: Sequence[Any] | None = None) -> None:
        """Nothing."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Marks a field that asks for what no masked sum can carry; `refuse` says what to use instead."""

    kind: str
    alternatives: str

    def refuse(self, field: str, owner: str | None = None) -> NoReturn:
        """Raise the TypeError that names the field, its class and the alternatives."""
        where = f"field {field!r}" + (f" of {owner}" if owner else "")
        raise TypeError(f"{self.kind!r} cannot be carried by a masked sum ({where}). {self.alternatives}")


def verify_reduction(field: str, reduction: Any, owner: str | None = None) -> None:
    """Raise TypeError unless `reduction` is one that a masked round can carry.

    Args:
        field: Name of the field, for the error.
        reduction: What the field declares.
        owner: Name of the class that declares it, for the error.
    """
    if isinstance(reduction, Refused):
        reduction.refuse(field, owner)
    if not isinstance(reduction, Reduction):
        where = f"field {field!r}" + (f" of {owner}" if owner else "")
        raise TypeError(
            f"Expected a reduction for {where}, got {type(reduction).__name__}. Declare how clients' values "
            "combine: summed(), averaged(), counted(), any_(), maximum(), same(), public(), local() …"
        )
