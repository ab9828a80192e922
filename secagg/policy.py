"""Policy: what a participant insists on, whatever a server offers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from .errors import CohortError, PolicyError
from .graph import Graph, is_crowd, is_exclusive, plan, privacy_bound, smallest_sum
from .masks import CIPHER_KEY_BYTES, CipherName
from .messages import MAX_CLIENTS, Offer

PRIVACY: Final = 2.0**-40
"""Largest probability with which the neighbourhoods of a sparse graph may fail a client."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Local limits; an offer that is weaker in any of them is refused before a key is made.

    A sum over two clients tells each of them the other's value, so two are always refused. Among three, two
    that collude (or one and the server) are enough; that takes the explicit consent `allow_three`.

    Args:
        min_clients: Smallest cohort to take part in, and fewest survivors that a sum may be over.
        threshold_fraction: Smallest fraction of a client's holders (of the cohort, where the graph is
            complete) whose shares give its secrets back; so many must survive for a sum to be released.
        max_clients: Largest cohort: a limit on work and on the width of lanes.
        allow_three: Consent to `min_clients=3`.
        cipher: Weakest mask cipher: AES-128 (128-bit security) or AES-256.
        colluders: Clients that may collude with the server without anybody else's value being learnt: a
            number, or a fraction of the cohort (rounded down). The server chooses whom it asks: a fraction
            trusts it not to gather the colluders in a small cohort, a number does not.
        sparse: Consent to a graph in which each client has few neighbours. Only for callers who can fetch a
            public beacon after the roster was fixed (`Client.draw_graph`).
        hybrid: Insist on keys that X25519 and ML-KEM-768 protect together.

    Raises:
        PolicyError: If the policy would protect nobody.

    Example:
        >>> Policy(min_clients=2)
        Traceback (most recent call last):
        ...
        secagg.errors.PolicyError: Expected min_clients >= 3, got 2: a sum over two clients tells each ...
    """

    min_clients: int = 5
    threshold_fraction: float = 2 / 3
    max_clients: int = MAX_CLIENTS
    allow_three: bool = False
    cipher: CipherName = "AES-128"
    colluders: float = 0.2
    sparse: bool = False
    hybrid: bool = False

    def __post_init__(self) -> None:
        """Refuse limits that protect nobody or contradict each other."""
        for what in ("min_clients", "max_clients"):
            if isinstance(getattr(self, what), bool) or not isinstance(getattr(self, what), int):
                raise PolicyError(f"Expected {what} to be an integer, got {getattr(self, what)!r}.")
        for what in ("threshold_fraction", "colluders"):
            if isinstance(getattr(self, what), bool) or not isinstance(getattr(self, what), (int, float)):
                raise PolicyError(f"Expected {what} to be a number, got {getattr(self, what)!r}.")
        if self.min_clients < 3:
            raise PolicyError(
                f"Expected min_clients >= 3, got {self.min_clients}: a sum over two clients tells each of "
                "them the other's value. Find more clients."
            )
        if self.min_clients == 3 and not self.allow_three:
            raise PolicyError(
                "Expected min_clients >= 4, got 3: any two clients that collude, or one and the server, "
                "learn the third's value. Find more clients, or consent with allow_three=True."
            )
        if not self.min_clients <= self.max_clients <= MAX_CLIENTS:
            raise PolicyError(
                f"Expected max_clients in {self.min_clients} (min_clients)..{MAX_CLIENTS}, got "
                f"{self.max_clients}."
            )
        if not 0.5 < self.threshold_fraction <= 1:
            # With half or less, two disjoint sets of survivors could both be unmasked.
            raise PolicyError(f"Expected threshold_fraction in (0.5, 1], got {self.threshold_fraction}.")
        if self.cipher not in CIPHER_KEY_BYTES:
            raise PolicyError(f"Expected cipher in {sorted(CIPHER_KEY_BYTES)}, got {self.cipher!r}.")
        if isinstance(self.colluders, bool) or not 0 <= self.colluders < math.inf:
            raise PolicyError(
                f"Expected colluders as a number of clients or a fraction below 1, got {self.colluders}."
            )
        if self.colluders != int(self.colluders) and self.colluders > 1:
            raise PolicyError(f"Expected a whole number of colluders, got {self.colluders}.")

    def colluding(self, size: int) -> int:
        """How many of `size` clients may collude: the number, or the fraction of them, rounded down."""
        if isinstance(self.colluders, float) and self.colluders < 1:
            return math.floor(self.colluders * size + 1e-9)
        return int(self.colluders)

    def verify_offer(self, offer: Offer) -> None:
        """Raise PolicyError, with all reasons, if `offer` is weaker than this policy."""
        weaker = []
        if offer.min_clients < self.min_clients:
            weaker.append(f"min_clients={offer.min_clients}, at least {self.min_clients} wanted")
        if not offer.threshold_fraction >= self.threshold_fraction:
            weaker.append(
                f"threshold_fraction={offer.threshold_fraction:.3f}, at least "
                f"{self.threshold_fraction:.3f} wanted"
            )
        if offer.capacity > self.max_clients:
            weaker.append(f"capacity={offer.capacity}, at most {self.max_clients} clients wanted")
        if offer.capacity < self.min_clients:
            weaker.append(f"capacity={offer.capacity}, at least {self.min_clients} clients wanted")
        if offer.degree and not self.sparse:
            weaker.append(f"degree={offer.degree}, a complete graph wanted (this caller has no beacon)")
        if self.hybrid and not offer.hybrid:
            weaker.append("hybrid=False, X25519 with ML-KEM-768 wanted")
        if CIPHER_KEY_BYTES[offer.cipher] < CIPHER_KEY_BYTES[self.cipher]:
            weaker.append(f"cipher={offer.cipher}, at least {self.cipher} wanted")
        if weaker:
            raise PolicyError(
                f"Round {offer.round}: the server's offer is weaker than this client's policy: "
                f"{'; '.join(weaker)}. Change the server's policy, or this client's if its owner agrees."
            )

    def verify_cohort(self, round: int, size: int, promised: int = 0) -> None:
        """Raise PolicyError if a roster of `size` clients is not one that policy and offer allow."""
        fewest = max(self.min_clients, promised)
        if not fewest <= size <= self.max_clients:
            raise PolicyError(
                f"Round {round}: expected a roster of {fewest}..{self.max_clients} clients, got {size}."
            )

    def verify_graph(self, round: int | None, graph: Graph, threshold: int) -> None:
        """Raise PolicyError unless shares are safe from as many colluders as this policy names.

        Each holder gives one share of a peer, a colluder both: with h holders and c colluders among them a
        server that tells clients different sets of survivors gets h + c shares of the two secrets, and
        needs 2t.
        """
        size, where = len(graph.names), "E" if round is None else f"Round {round}: e"
        colluders = self.colluding(size)
        if colluders >= size:
            raise PolicyError(
                f"{where}xpected fewer colluders than clients, got colluders={colluders} of {size}. Find "
                "more clients, or lower colluders."
            )
        if not graph.degree:
            if not is_exclusive(size, threshold, colluders):
                raise PolicyError(
                    f"{where}xpected 2 * threshold > clients + colluders, got threshold={threshold} "
                    f"of {size} clients and colluders={colluders}: they and the server could learn a "
                    "client's value. Raise threshold_fraction, or lower colluders."
                )
            return
        bound = privacy_bound(size, graph.degree, threshold, colluders=colluders / size)
        if not bound <= PRIVACY:
            raise PolicyError(
                f"{where}xpected a graph that fails with probability <= 2^-40, got 2^"
                f"{math.log2(bound):.1f} with degree={graph.degree}, threshold={threshold}, {size} clients "
                f"and colluders={colluders}. {_remedy(size, colluders)}"
            )
        smallest = smallest_sum(size, graph.degree, threshold, colluders / size)
        if smallest < self.min_clients:
            raise PolicyError(
                f"{where}xpected sums over at least min_clients={self.min_clients} honest clients, "
                f"a graph with degree={graph.degree} and threshold={threshold} guarantees {smallest}."
            )

    def verify_survivors(self, round: int, survivors: int, size: int, promised: int = 0) -> None:
        """Raise CohortError if a sum over `survivors` of `size` clients would tell too much.

        `promised` is the offer's min_clients. Everybody holds the server to it: whoever has a stricter policy
        than the others has seen the offer, but need not be asked about the survivors.
        """
        colluders = self.colluding(size)
        fewest = max(self.min_clients, promised, colluders + 2)
        if survivors < fewest or not is_crowd(survivors, colluders):
            raise CohortError(
                f"Round {round} has {survivors} survivors of {size} clients, expected at least {fewest} "
                f"(min_clients={max(self.min_clients, promised)}, colluders={colluders} and two more). "
                "Nothing is released."
            )


def _remedy(size: int, colluders: int) -> str:
    """Which graph would do; found for the error only."""
    try:
        found = plan(size, colluders=colluders / size)
    except ValueError:
        return "No graph stands so many; lower colluders."
    return (
        f"secagg.plan({size}, colluders={colluders}/{size}) gives degree={found.degree} and "
        f"threshold_fraction={found.fraction:.3f}: give the server and all clients that plan's policy()."
    )
