"""Who shares secrets and pair masks with whom: the complete graph, or a ring where each has few neighbours.

In the complete graph each client does work for each other one, which is right for small cohorts. In a Harary
graph each has `degree` neighbours, the nearest ones on a ring whose order nobody could choose: it follows
from the hash of the roster and from a beacon that was published after the roster was fixed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final, Self

from .keys import hash_parts

__all__ = ["COMPLETE_UP_TO", "Graph", "draw", "threshold"]

COMPLETE_UP_TO: Final = 32
"""Cohorts up to this size always get the complete graph."""


def threshold(fraction: float, holders: int) -> int:
    """Number of shares that give a secret back: the fraction of its holders, rounded up.

    Guarantees:
        - ``threshold(t / holders, holders) == t`` for every integer t in 1..holders, holders below 2^20.

    Args:
        fraction: In (0, 1].
        holders: Size of a closed neighbourhood, at least 1.

    Returns:
        Threshold t, in 1..holders.

    Raises:
        ValueError: If an argument is out of its range.
    """
    if not 0 < fraction <= 1 or holders < 1:
        raise ValueError(
            f"Expected a fraction in (0, 1] of at least one holder, got fraction={fraction}, "
            f"holders={holders}."
        )
    # t / holders * holders may come out above t by a rounding error, which must not ask for one more share.
    return max(1, math.ceil(fraction * holders - 1e-9))


class Graph:
    """An undirected graph over a roster; immutable.

    Attributes:
        names: Ids of the roster, sorted.
        degree: Number of neighbours of each in a Harary graph; 0 for the complete graph.

    Example:
        >>> graph = Graph.complete(["c", "a", "b"])
        >>> graph.neighbours("b"), graph.holders("b")
        (('a', 'c'), ('a', 'b', 'c'))
    """

    __slots__ = ("_places", "_ring", "degree", "names")

    names: tuple[str, ...]
    degree: int
    _ring: tuple[str, ...]
    _places: dict[str, int]

    def __init__(self, names: tuple[str, ...], degree: int, ring: tuple[str, ...]) -> None:
        """Use `complete`, `harary` or `draw`."""
        places = {name: place for place, name in enumerate(ring)}
        if len(places) < len(names):
            raise ValueError(f"Expected different ids, got {len(names) - len(places)} of them twice.")
        for attribute, value in (("names", names), ("degree", degree), ("_ring", ring), ("_places", places)):
            object.__setattr__(self, attribute, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"A Graph cannot be changed: draw another one to set {name!r}.")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"A Graph cannot be changed: {name!r} stays.")

    def __repr__(self) -> str:
        kind = f"degree={self.degree}" if self.degree else "complete"
        return f"Graph({len(self.names)} clients, {kind})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Graph):
            return NotImplemented
        return (self.names, self.degree, self._ring) == (other.names, other.degree, other._ring)

    def __hash__(self) -> int:
        return hash((self.names, self.degree, self._ring))

    @classmethod
    def complete(cls, names: Iterable[str]) -> Self:
        """Everyone is everyone's neighbour; raises ValueError for an id given twice."""
        ordered = tuple(sorted(names))
        return cls(ordered, 0, ordered)

    @classmethod
    def harary(cls, names: Iterable[str], degree: int, seed: bytes) -> Self:
        """A ring in an order drawn from `seed`, each client joined to the degree / 2 next ones on each side.

        Guarantees:
            - The same names and seed give the same graph everywhere, in whatever order the names come.
            - With hash SHA-256 taken as random, the ring is a uniform permutation of the roster.

        Args:
            names: Ids of the roster, all different.
            degree: Number of neighbours k, even, at least 2 and below n - 1.
            seed: What nobody could choose: the roster's hash and a later beacon, hashed.

        Raises:
            ValueError: If the degree does not fit the roster, or an id is given twice.

        References:
            Bell et al. (2020), https://eprint.iacr.org/2020/704, Algorithm 1.
        """
        ordered = tuple(sorted(names))
        if degree < 2 or degree % 2 or degree >= len(ordered) - 1:
            raise ValueError(
                f"Expected an even degree of at least 2 and below n - 1, got degree={degree} for "
                f"n={len(ordered)}. Use the complete graph for small cohorts."
            )
        ring = sorted(ordered, key=lambda name: (hash_parts("graph position", seed, name.encode()), name))
        return cls(ordered, degree, tuple(ring))

    def neighbours(self, name: str) -> tuple[str, ...]:
        """Ids joined to `name`, sorted, without itself; raises ValueError if it is not in the roster."""
        return tuple(other for other in self.holders(name) if other != name)

    def holders(self, name: str) -> tuple[str, ...]:
        """The closed neighbourhood of `name`, sorted, with itself: those who hold shares of its secrets.

        A holder's place, counted from 1, is its point in Shamir's sharing.

        Raises:
            ValueError: If `name` is not in the roster.
        """
        place = self._places.get(name)
        if place is None:
            raise ValueError(f"Expected an id of the roster of {len(self.names)} clients, got {name!r}.")
        if not self.degree:
            return self.names
        half, size = self.degree // 2, len(self._ring)
        return tuple(sorted(self._ring[(place + step) % size] for step in range(-half, half + 1)))


def draw(names: Iterable[str], degree: int, seed: bytes) -> Graph:
    """The graph of a round: Harary where a degree is given and the cohort is large enough, else complete.

    Args:
        names: Ids of the roster, all different.
        degree: Number of neighbours k that the offer names, even; 0 for the complete graph.
        seed: As for `Graph.harary`; unused where the graph is complete.

    Returns:
        The complete graph if `degree` is 0, the roster has at most `COMPLETE_UP_TO` clients, or it has fewer
        than ``degree + 2``; the Harary graph otherwise.

    Raises:
        ValueError: If the degree is negative or odd, or an id is given twice.
    """
    ordered = sorted(names)
    if degree < 0 or degree % 2:
        raise ValueError(f"Expected degree 0 or an even one, got {degree}.")
    if degree == 0 or len(ordered) <= COMPLETE_UP_TO or len(ordered) < degree + 2:
        return Graph.complete(ordered)
    return Graph.harary(ordered, degree, seed)
