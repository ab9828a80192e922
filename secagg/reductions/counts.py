"""Counts: non-negative integers and truth values that add up exactly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from .base import (
    MAX_GUARD_BITS,
    MAX_INTEGER_BITS,
    Lanes,
    MaskedReduction,
    Number,
    Shape,
    Source,
    plain,
    total_of,
    verified_shape,
    verify_int,
)


@dataclass(frozen=True, slots=True)
class Counted(MaskedReduction):
    """The total of non-negative integers (see `counted`)."""

    kind: ClassVar[str] = "counted"
    entrywise: ClassVar[bool] = True
    at_most: int = 2**20
    shape: Shape | None = None
    guard_bits: int = 0

    def __post_init__(self) -> None:
        """Refuse a limit that is no positive integer, and bad shapes."""
        object.__setattr__(self, "shape", verified_shape(self.kind, self.shape))
        object.__setattr__(
            self, "at_most", verify_int(f"{self.kind} at_most", self.at_most, 1, 2**MAX_INTEGER_BITS)
        )
        guard = verify_int(f"{self.kind} guard_bits", self.guard_bits, 0, MAX_GUARD_BITS)
        object.__setattr__(self, "guard_bits", guard)

    @property
    def integer(self) -> bool:
        """Counts are exact."""
        return True

    @property
    def accepts(self) -> tuple[str, str]:
        """Integers."""
        return "iub", "integers (it is counted)"

    @property
    def remedy(self) -> str:
        """What to do with what is no count."""
        return "Pass integers, or declare summed(bound=...) for real values."

    @property
    def holds(self) -> tuple[type[np.generic], ...]:
        """Exact integers."""
        return (np.int64,)

    @property
    def disclosure(self) -> str:
        """What the server learns, in one line."""
        return "the total count"

    @property
    def remainder(self) -> str:
        """What all other clients of a round learn of one client."""
        return "its count, exactly"

    @property
    def difference(self) -> str:
        """What two rounds tell of a client that took part in one of them."""
        return "its count, as far as the others' counts did not change"

    def reduce(self, values: Sequence[Any], weights: Sequence[Any] | None = None) -> Number:
        """Exact total."""
        return total_of(values, True)

    def lanes(self) -> Iterator[Lanes]:
        """One lane an entry."""
        yield Lanes("value", "integer", self.size, 0, self.at_most, guard_bits=self.guard_bits)

    def source(self, kind: str, values: NDArray[Any]) -> Source:
        """The counts themselves."""
        return values.__getitem__

    def assemble(self, sums: Mapping[str, NDArray[Any]], weight: int, out: NDArray[Any] | None = None) -> Any:
        """The total, in its shape."""
        return plain(sums["value"].reshape(self.dims))


@dataclass(frozen=True, slots=True)
class TrueCount(Counted):
    """How many clients hold true (see `true_count`)."""

    kind: ClassVar[str] = "true_count"
    at_most: int = field(default=1, init=False)

    @property
    def accepts(self) -> tuple[str, str]:
        """Truth values."""
        return "b", "truth values (bool)"

    @property
    def remedy(self) -> str:
        """What to do with what is no truth value."""
        return "Pass bools, such as x > 0."

    @property
    def disclosure(self) -> str:
        """What the server learns, in one line."""
        return "how many clients hold true"

    @property
    def remainder(self) -> str:
        """What all other clients of a round learn of one client."""
        return "its truth value"

    @property
    def difference(self) -> str:
        """What two rounds tell of a client that took part in one of them."""
        return "its truth value, as far as the others' did not change"
