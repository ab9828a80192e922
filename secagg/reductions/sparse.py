"""Sparse sums: of a long array only the entries at public indices travel, densely packed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..errors import SchemaError
from .base import MAX_SIZE, Lanes, Source, verify_int
from .sums import Bounded


@dataclass(frozen=True, slots=True)
class Sparse(Bounded):
    """The sum over clients of the entries at public indices (see `sparse`)."""

    kind: ClassVar[str] = "sparse"
    indices: tuple[int, ...] | range = ()

    def __post_init__(self) -> None:
        """Refuse what `summed` refuses, and indices that are not ascending places of the array."""
        Bounded.__post_init__(self)
        object.__setattr__(self, "indices", _verified_indices(self.indices))
        if self.shape is not None and (len(self.shape) != 1 or self.indices[-1] >= self.shape[0]):
            raise SchemaError(
                f"Expected a flat array of more than {self.indices[-1]} entries for sparse indices, got "
                f"shape {self.shape}. Flatten the value, or raise size."
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready description; a range stays one, however long."""
        described = Bounded.to_dict(self)
        if isinstance(self.indices, range):
            described["indices"] = {"range": [self.indices.start, self.indices.stop, self.indices.step]}
        return described

    @property
    def disclosure(self) -> str:
        """What the server learns, in one line."""
        return f"the sum over the clients of the entries at {len(self.indices)} public indices"

    @property
    def remainder(self) -> str:
        """What all other clients of a round learn of one client."""
        whole: str = Bounded.remainder.__get__(self)
        return "its entries there" + whole.removeprefix("its value")

    @property
    def num_lanes(self) -> int:
        """Entries that travel."""
        return len(self.indices)

    @property
    def expects(self) -> str:
        """The whole array, or its entries at the indices."""
        return f"shape {self.dims}, or {(self.num_lanes,)} for the indices alone"

    def lanes(self) -> Iterator[Lanes]:
        """Those of the entries at the indices."""
        if self.shape is None:
            raise SchemaError("Expected the size of a sparse field. Declare size=, or call Schema.resolve().")
        return Bounded.lanes(self)

    def arranged(self, values: NDArray[Any]) -> NDArray[Any] | None:
        """The whole array or the entries at the indices; where both are as long they are the same."""
        return values if values.shape in (self.dims, (self.num_lanes,)) else None

    def index_of(self, entry: int, values: NDArray[Any]) -> tuple[int, ...]:
        """Its place in the whole array, where that was given."""
        return (entry if len(values) == self.num_lanes else self.indices[entry],)

    def source(self, kind: str, values: NDArray[Any]) -> Source:
        """The entries at the indices, gathered slice by slice."""
        if len(values) == self.num_lanes:
            return values.__getitem__
        indices = self.indices
        if isinstance(indices, range):
            steps = indices
            return lambda where: values[steps[where].start : steps[where].stop : steps.step]
        places = np.array(indices)
        return lambda where: values[places[where]]

    def reduce(self, values: Sequence[Any], weights: Sequence[Any] | None = None) -> Any:
        """Sum over clients at the indices, zero elsewhere."""
        places = np.array(self.indices)
        arrays = [np.asarray(value) for value in values]
        whole = np.zeros(self.shape or max(map(len, arrays)), np.int64 if self.integer else np.float64)
        for array in arrays:
            whole[places] += array if len(array) == self.num_lanes else array[places]
        return whole

    def assemble(self, sums: Mapping[str, NDArray[Any]], weight: int, out: NDArray[Any] | None = None) -> Any:
        """The whole array: sums at the indices, zero elsewhere."""
        whole = np.empty(self.dims, sums["value"].dtype) if out is None else out
        whole[...] = 0
        indices = self.indices
        if isinstance(indices, range):
            whole[indices.start : indices.stop : indices.step] = sums["value"]
        else:
            whole[np.array(indices)] = sums["value"]
        return whole

    def error_bound(self, n: int, at_most: int) -> float:
        """One quantum a client, and float64's round-off; integers are exact."""
        return 0.0 if self.integer else n * (self.quantum + 1e-13 * self.limit)


def _verified_indices(indices: Any) -> tuple[int, ...] | range:
    """Ascending places in an array; a range where they were given as one."""
    if isinstance(indices, Mapping):
        indices = range(*_verified_range(indices))
    if isinstance(indices, range):
        for edge in (indices.start, indices.stop, indices.step):
            verify_int("each edge of a range of sparse indices", edge, 0, MAX_SIZE)
        if indices:
            return range(indices.start, indices[-1] + 1, indices.step)
    elif not isinstance(indices, (tuple, list, np.ndarray)):
        raise SchemaError(f"Expected sparse indices to be integers or a range, got {type(indices).__name__}.")
    if not len(indices):
        raise SchemaError("Expected at least one sparse index, got none.")
    places = tuple(verify_int("each sparse index", index, 0, MAX_SIZE) for index in indices)
    if any(not low < high for low, high in pairwise(places)):
        raise SchemaError(
            "Expected sparse indices in ascending order, each once. Sort them and drop doubles."
        )
    return places


def _verified_range(described: Mapping[str, Any]) -> tuple[int, int, int]:
    """The edges of a range that `to_dict` described."""
    edges = described.get("range")
    if set(described) != {"range"} or not isinstance(edges, (list, tuple)) or len(edges) != 3:
        raise SchemaError("Expected sparse indices as a list, or as {'range': [start, stop, step]}.")
    start, stop = (
        verify_int("each edge of a range of sparse indices", edge, 0, MAX_SIZE) for edge in edges[:2]
    )
    return start, stop, verify_int("the step of a range of sparse indices", edges[2], 1, MAX_SIZE)
