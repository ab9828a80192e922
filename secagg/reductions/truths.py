"""Truth values: whole words, random where true, whose sum tells whether any is true and nothing more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from .base import Lanes, MaskedReduction, Shape, Source, plain, verified_shape


@dataclass(frozen=True, slots=True)
class _OneTruth(MaskedReduction):
    """What `any_` and `all_` share: one word an entry."""

    entrywise: ClassVar[bool] = True
    shape: Shape | None = None

    def __post_init__(self) -> None:
        """Refuse bad shapes."""
        object.__setattr__(self, "shape", verified_shape(self.kind, self.shape))

    @property
    def accepts(self) -> tuple[str, str]:
        """Truth values."""
        return "b", "truth values (bool)"

    @property
    def remedy(self) -> str:
        """What to do with what is no truth value."""
        return "Pass bools, such as x > 0."

    @property
    def holds(self) -> tuple[type[np.generic], ...]:
        """Truth values."""
        return (np.bool_,)

    def lanes(self) -> Iterator[Lanes]:
        """One word an entry."""
        yield Lanes("value", "truth", self.size)


@dataclass(frozen=True, slots=True)
class AnyTrue(_OneTruth):
    """Whether any client holds true (see `any_`)."""

    kind: ClassVar[str] = "any"

    @property
    def disclosure(self) -> str:
        """What the server learns, in one line."""
        return "whether any client holds true, not how many"

    @property
    def remainder(self) -> str:
        """What all other clients of a round learn of one client."""
        return "its truth value"

    @property
    def difference(self) -> str:
        """What two rounds tell of a client that took part in one of them."""
        return "that it holds true, where the result is true in its round alone"

    def reduce(self, values: Sequence[Any], weights: Sequence[Any] | None = None) -> Any:
        """Disjunction, entry by entry."""
        return plain(np.any(np.asarray(values, np.bool_), axis=0))

    def source(self, kind: str, values: NDArray[Any]) -> Source:
        """The truth values themselves."""
        return values.__getitem__

    def assemble(self, sums: Mapping[str, NDArray[Any]], weight: int, out: NDArray[Any] | None = None) -> Any:
        """True where a word is not zero."""
        return plain(sums["value"].reshape(self.dims))


@dataclass(frozen=True, slots=True)
class AllTrue(_OneTruth):
    """Whether all clients hold true (see `all_`): no client says that its value is false."""

    kind: ClassVar[str] = "all"

    @property
    def disclosure(self) -> str:
        """What the server learns, in one line."""
        return "whether all clients hold true, not how many"

    @property
    def remainder(self) -> str:
        """What all other clients of a round learn of one client."""
        return "its truth value"

    @property
    def difference(self) -> str:
        """What two rounds tell of a client that took part in one of them."""
        return "that it holds false, where the result is false in its round alone"

    def reduce(self, values: Sequence[Any], weights: Sequence[Any] | None = None) -> Any:
        """Conjunction, entry by entry."""
        return plain(np.all(np.asarray(values, np.bool_), axis=0))

    def source(self, kind: str, values: NDArray[Any]) -> Source:
        """What is false speaks up."""
        return lambda where: ~values[where]

    def assemble(self, sums: Mapping[str, NDArray[Any]], weight: int, out: NDArray[Any] | None = None) -> Any:
        """True where nobody spoke up."""
        found = sums["value"].reshape(self.dims)
        return plain(np.logical_not(found, out=found))
