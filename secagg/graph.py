"""Who shares secrets and pair masks with whom: the complete graph, or a ring where each has few neighbours.

In the complete graph each client does work for each other one, which is right for small cohorts. In a Harary
graph each has `degree` neighbours, the nearest ones on a ring whose order nobody could choose: it follows
from the hash of the roster and from a beacon that was published after the roster was fixed.

    the graph       Graph, draw, threshold
    its size        plan → Plan; privacy_bound and failure_bound, which it searches; smallest_sum
    any graph       is_exclusive, is_crowd

docs/secagg-graph.md derives every bound here, with what the protocol has to check for them to hold.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from .keys import hash_parts

if TYPE_CHECKING:
    from .policy import Policy

__all__ = [
    "COMPLETE_UP_TO",
    "DRAWS",
    "Graph",
    "Plan",
    "draw",
    "failure_bound",
    "is_crowd",
    "is_exclusive",
    "plan",
    "privacy_bound",
    "smallest_sum",
    "threshold",
]

COMPLETE_UP_TO: Final = 32
"""Cohorts up to this size always get the complete graph."""
DRAWS: Final = 2**10
"""Graphs that a server may see drawn, rounds and aborted attempts together, before bounds are spent."""


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

    __slots__ = ("_holders", "_places", "_ring", "degree", "names")

    names: tuple[str, ...]
    degree: int
    _ring: tuple[str, ...]
    _places: dict[str, int]
    _holders: dict[str, tuple[str, ...]]

    def __init__(self, names: tuple[str, ...], degree: int, ring: tuple[str, ...]) -> None:
        """Use `complete`, `harary` or `draw`."""
        places = {name: place for place, name in enumerate(ring)}
        if len(places) < len(names):
            raise ValueError(f"Expected different ids, got {len(names) - len(places)} of them twice.")
        own = {"names": names, "degree": degree, "_ring": ring, "_places": places, "_holders": {}}
        for attribute, value in own.items():
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
        found = self._holders.get(name)
        if found is None:
            half, size = self.degree // 2, len(self._ring)
            near = (self._ring[(place + step) % size] for step in range(-half, half + 1))
            found = self._holders[name] = tuple(sorted(near))
        return found

    def neighbour_places(self) -> NDArray[np.int32]:
        """Each client's neighbours by their places in `names`, shape ``(clients, neighbours)``, sorted."""
        count = len(self.names)
        own = np.arange(count, dtype=np.int32)[:, None]
        if not self.degree:
            others = np.arange(max(0, count - 1), dtype=np.int32)
            return np.asarray(others + (others >= own), np.int32)
        half, place_of = self.degree // 2, {name: place for place, name in enumerate(self.names)}
        ring = np.array([place_of[name] for name in self._ring], np.int32)
        steps = np.r_[-half:0, 1 : half + 1]
        near = np.empty((count, self.degree), np.int32)
        near[ring] = np.sort(ring[(own + steps) % count], axis=1)
        return near

    def count_near(self, chosen: Container[str]) -> NDArray[np.int64]:
        """How many of the chosen are in each client's closed neighbourhood, in the order of `names`."""
        ring = np.array([name in chosen for name in self._ring], np.int64)
        if not self.degree:
            return np.full(len(ring), ring.sum())
        half = self.degree // 2
        sums = np.cumsum(np.r_[0, ring[-half:], ring, ring[:half]])
        order = np.argsort(np.array(self._ring, object))
        near: NDArray[np.int64] = (sums[self.degree + 1 :] - sums[: -self.degree - 1])[order]
        return near

    def threshold(self, fraction: float) -> int:
        """Shares that give a secret back; the same for everybody, since all have as many holders.

        Args:
            fraction: As for the function `threshold`, of a client's holders.

        Raises:
            ValueError: If the fraction is not in (0, 1], or nobody is in the graph.
        """
        return threshold(fraction, self.degree + 1 if self.degree else len(self.names))


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


@dataclass(frozen=True, slots=True)
class Plan:
    """Degree and threshold for a cohort, with what they give.

    Attributes:
        num_clients: Size n of the roster that it was made for.
        colluders: Fraction of the roster that may work with the server.
        degree: Number of neighbours k; 0 for the complete graph.
        threshold: Shares t that give a secret back, among the holders of a closed neighbourhood.
        fraction: ``threshold / holders``: what an offer names.
        privacy: Bound on the probability that the server ever learns more than one sum a round, whichever
            part of the roster advertises.
        failure: Bound on the probability that a round of honest parties fails for lack of shares.
        smallest_sum: Honest clients that are at least in whatever sum the server learns.
    """

    num_clients: int
    colluders: float
    degree: int
    threshold: int
    fraction: float
    privacy: float
    failure: float
    smallest_sum: int

    def policy(self, **limits: Any) -> Policy:
        """A policy with this plan's threshold, colluders and consent to a sparse graph.

        Server and clients need the same: a client refuses a round whose threshold is lower than its own.

        Args:
            **limits: Further fields of `Policy`.
        """
        from .policy import Policy

        given = {
            "threshold_fraction": self.fraction,
            "colluders": self.colluders,
            "sparse": self.degree > 0,
        }
        return Policy(**{**given, **limits})


def plan(
    num_clients: int,
    *,
    colluders: float = 0.2,
    dropout: float = 0.1,
    privacy: float = 2**-40,
    failure: float = 2**-20,
    malicious: bool = True,
    draws: int = DRAWS,
) -> Plan:
    """The smallest degree, with a threshold, that keeps privacy and failure within their targets.

    A policy checks the roster that advertised, which may lack some of those that the plan was made for. As
    colluders are a fraction rounded down, they can be a larger part of fewer clients: 10 % of 446 are 44, and
    so they are of 440. So the target for privacy is also kept for the roster where they are most.

    Guarantees:
        - Whatever part of the roster advertises, if at most `dropout` of it does not: a policy that names
          these colluders finds the bound on privacy no larger than `privacy` (of which it accepts 2^-40).

    Args:
        num_clients: Size n of the roster, at least 3.
        colluders: Largest fraction of the roster that works with the server, in [0, 1).
        dropout: Largest fraction of the roster that is lost in a round, in [0, 1).
        privacy: Target for `privacy_bound`, over all draws together.
        failure: Target for `failure_bound`, for one round.
        malicious: Whether the server may lie about who dropped out; False for one that follows the protocol.
        draws: Graphs that the server sees drawn: rounds and aborted attempts together.

    Returns:
        A plan with the smallest even degree of at most n / 2 that meets both targets, or the complete graph,
        which meets them for certain.

    Raises:
        ValueError: If an argument is out of its range, or even the complete graph cannot stand so many
            colluders and dropouts: a malicious server takes ``(1 + colluders) / 2 + dropout < 1``.

    Example:
        >>> found = plan(10_000, colluders=0.1, dropout=0.1)
        >>> found.degree, found.threshold
        (138, 99)
    """
    if num_clients < 3 or draws < 1:
        raise ValueError(f"Expected num_clients >= 3 and draws >= 1, got {num_clients} and {draws}.")
    if not (0 < privacy < 1 and 0 < failure < 1):
        raise ValueError(f"Expected targets in (0, 1), got privacy={privacy}, failure={failure}.")
    found = _sparse(num_clients, colluders, dropout, privacy, failure, malicious, draws)
    degree, t = found or (0, _complete_threshold(num_clients, colluders, dropout, malicious))
    corrupt, dropped = (_count("", fraction, num_clients) for fraction in (colluders, dropout))
    honest_survivors = num_clients - dropped - corrupt
    bounds = [
        privacy_bound(size, degree, t, colluders, malicious=malicious, dropout=dropout, draws=draws)
        for size in (_rosters(num_clients, degree, colluders, dropout) if degree else (num_clients,))
    ]
    return Plan(
        num_clients,
        colluders,
        degree,
        t,
        t / _holders(num_clients, degree),
        max(bounds),
        failure_bound(num_clients, degree, t, dropout),
        smallest_sum(num_clients, degree, t, colluders) if malicious else honest_survivors,
    )


def _sparse(
    n: int, colluders: float, dropout: float, privacy: float, failure: float, malicious: bool, draws: int
) -> tuple[int, int] | None:
    """Smallest degree, with its smallest threshold; None where the complete graph is as good."""
    if n <= COMPLETE_UP_TO:
        return None

    def private(degree: int, t: int) -> bool:
        return all(
            privacy_bound(size, degree, t, colluders, malicious=malicious, dropout=dropout, draws=draws)
            <= privacy
            for size in _rosters(n, degree, colluders, dropout)
        )

    t = 1
    for degree in range(2, n // 2 + 1, 2):
        # From one degree to the next the smallest threshold moves by a few: search from the last one.
        while t > 1 and private(degree, t - 1):
            t -= 1
        while t <= degree + 1 and not private(degree, t):
            t += 1
        if t <= degree + 1 and failure_bound(n, degree, t, dropout) <= failure:
            return degree, t
    return None


def _rosters(n: int, degree: int, colluders: float, dropout: float) -> tuple[int, ...]:
    """The roster, and that part of it, of those `dropout` allows, where colluders are the largest fraction.

    That is the smallest one that has as many of them. A graph is drawn for more than ``degree + 1`` clients.
    """
    corrupt, dropped = _count("colluders", colluders, n), _count("dropout", dropout, n)
    fewest = math.ceil((corrupt - 1e-9) / colluders) if corrupt else n
    return n, min(n, max(fewest, n - dropped, degree + 2))


def _complete_threshold(n: int, colluders: float, dropout: float, malicious: bool) -> int:
    corrupt, dropped = _count("colluders", colluders, n), _count("dropout", dropout, n)
    t = (n + corrupt) // 2 + 1 if malicious else corrupt + 1
    t = max(t, corrupt + 2)  # two honest survivors at least
    if t > n - dropped:
        raise ValueError(
            f"Expected fewer colluders or dropouts: of {n} clients {n - dropped} survive, and with {corrupt} "
            f"colluders {t} shares are needed. Lower colluders={colluders} or dropout={dropout}."
        )
    return t


def privacy_bound(
    num_clients: int,
    degree: int,
    threshold: int,
    colluders: float,
    *,
    malicious: bool = True,
    dropout: float = 0.0,
    draws: int = DRAWS,
) -> float:
    """Probability, at most, that a server learns more than one sum of a round, in any of `draws` rounds.

    Against a malicious server it takes no dropout rate: who is declared dropped is the server's choice,
    made when it sees the graph. The event is that some honest client has both of its secrets
    reconstructed, or that the sums of two disjoint sets of clients come out.

    Args:
        num_clients: Size n of the roster.
        degree: Number of neighbours k, even; 0 for the complete graph.
        threshold: Shares t that give a secret back.
        colluders: Largest fraction of the roster that works with the server, in [0, 1), chosen before the
            beacon is known.
        malicious: False for a server that follows the protocol; then `dropout` counts.
        dropout: Fraction of the roster lost in a round, in [0, 1), independent of the graph.
        draws: Graphs that the server sees drawn.

    Returns:
        A bound in [0, 1]; sums of exact tails, up to rounding errors of about 1e-9 of it.

    Raises:
        ValueError: If an argument is out of its range.
    """
    n, k, t = num_clients, degree, threshold
    corrupt, dropped = _count("colluders", colluders, n), _count("dropout", dropout, n)
    holders = _holders(n, k)
    if not 1 <= t <= holders:
        raise ValueError(f"Expected a threshold of 1..{holders} holders, got {t}.")
    if not k:
        safe = is_exclusive(n, t, corrupt) if malicious else t > corrupt
        return 0.0 if safe else 1.0
    if malicious:
        # A closed neighbourhood with so many colluders that both secrets can come out.
        neighbourhood = _log_tail(n - 1, corrupt, k, 2 * t - holders)
        # k / 2 positions in a row with so many colluders that a ring can be cut there.
        place = _log_tail(n, corrupt, k // 2, t - k // 2 - 1)
    else:
        neighbourhood = _log_tail(n - 1, corrupt, k, t)
        place = _log_tail(n, min(n, corrupt + dropped), k // 2, k // 2)
    exclusive = (n - corrupt) * math.exp(neighbourhood)
    # A cut takes two places apart; where windows may meet around the ring, the bound is the one for one.
    cut = n * (n - 1) / 2 * math.exp(2 * place) if n > 3 * k // 2 else n * math.exp(place)
    return min(1.0, draws * (exclusive + cut))


def failure_bound(num_clients: int, degree: int, threshold: int, dropout: float) -> float:
    """Probability, at most, that some closed neighbourhood keeps fewer than `threshold` clients.

    Where none does, every survivor finds enough signatures, and every secret that is needed comes back.

    Args:
        num_clients: Size n of the roster.
        degree: Number of neighbours k, even; 0 for the complete graph.
        threshold: Shares t that give a secret back.
        dropout: Fraction of the roster lost at any stage of the round, in [0, 1), independent of the graph.

    Returns:
        A bound in [0, 1].

    Raises:
        ValueError: If an argument is out of its range.
    """
    n, k, t = num_clients, degree, threshold
    dropped, holders = _count("dropout", dropout, n), _holders(n, k)
    if not k:
        return 0.0 if n - dropped >= t else 1.0
    # More than holders - t of the closed neighbourhood: of a survivor, and of one who is dropped itself.
    lost = holders - t + 1
    kept = (n - dropped) * math.exp(_log_tail(n - 1, dropped, k, lost))
    gone = dropped * math.exp(_log_tail(n - 1, dropped - 1, k, lost - 1)) if dropped else 0.0
    return min(1.0, kept + gone)


def smallest_sum(num_clients: int, degree: int, threshold: int, colluders: float = 0.0) -> int:
    """Honest clients that are at least in whatever sum a malicious server learns, unless the bound fails.

    In the complete graph everyone who unmasks agrees on one list of at least `threshold` survivors. On a ring
    no client sees all of it, and a server may learn the sum of a part; this says how large it is at least.

    Args:
        num_clients: Size n of the roster.
        degree: Number of neighbours k, even; 0 for the complete graph.
        threshold: Shares t that give a secret back.
        colluders: As for `privacy_bound`; counts in the complete graph only.
    """
    holders = _holders(num_clients, degree)
    if not degree:
        return max(0, threshold - _count("colluders", colluders, num_clients))
    windows = (num_clients - degree) // (3 * degree // 2)
    return (holders - threshold + 1) * max(1, windows)


def is_exclusive(holders: int, threshold: int, colluders: int) -> bool:
    """Whether the two secrets of a client cannot both come out: ``2 t > h + c``.

    A malicious server may tell some holders that the client survived and others that it dropped out. Each
    honest holder gives one share; the colluders give both. In the complete graph, ``holders`` is the size of
    the roster, and all honest clients that unmask then hold the same list of survivors.
    """
    return 2 * threshold > holders + colluders


def is_crowd(survivors: int, colluders: int) -> bool:
    """Whether a sum over `survivors` hides a client from `colluders` among them: two honest ones are left.

    Of a sum over one honest client, the others' values can be taken off.
    """
    return survivors - colluders >= 2


def _holders(n: int, degree: int) -> int:
    if degree < 0 or degree % 2 or (degree and degree >= n - 1):
        raise ValueError(f"Expected degree 0 or an even one below n - 1, got {degree} for n={n}.")
    return degree + 1 if degree else n


def _count(what: str, fraction: float, n: int) -> int:
    """How many clients a fraction is at most."""
    if not 0 <= fraction < 1:
        raise ValueError(f"Expected {what} in [0, 1), got {fraction}.")
    return math.floor(fraction * n + 1e-9)  # 0.29 * 100 comes out below 29


@lru_cache(maxsize=1 << 14)
def _log_choose(n: int, k: int) -> float:
    # Of the exact integer: math.lgamma would lose 1e-9 to cancellation at n = 10^6.
    return math.log(math.comb(n, k))


@lru_cache(maxsize=1 << 12)
def _log_tail(population: int, marked: int, drawn: int, least: int) -> float:
    """Logarithm of the probability that `drawn` of a population, without return, hold `least` marked ones."""
    if least <= max(0, drawn - (population - marked)):
        return 0.0
    if least > min(drawn, marked):
        return -math.inf
    first = (
        _log_choose(marked, least)
        + _log_choose(population - marked, drawn - least)
        - _log_choose(population, drawn)
    )
    terms = [0.0]
    for i in range(least, min(drawn, marked)):
        ratio = (marked - i) * (drawn - i) / ((i + 1) * (population - marked - drawn + i + 1))
        terms.append(terms[-1] + math.log(ratio))
    # Relative to the largest, so that nothing that matters underflows.
    top = max(terms)
    return min(0.0, first + top + math.log(math.fsum(math.exp(term - top) for term in terms)))
