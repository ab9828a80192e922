"""R6: a server that looks for the graph in which a client has none but corrupt neighbours."""

from __future__ import annotations

from itertools import count

import pytest
from scipy import stats

from secagg import MessageError, Policy, PolicyError
from secagg.cohort import bind_beacon, hash_roster
from secagg.graph import draw
from tests.secagg.threats.attacker import Attacker, assert_is_sum, secret_values
from tests.statistical import ALPHA

N, DEGREE = 40, 4
CORRUPT = [f"c{i}" for i in range(1, 11)]
VICTIM = "c0"
CHANCE = 10 * 9 * 8 * 7 / (39 * 38 * 37 * 36)
"""That all four neighbours of an honest client are among ten corrupt ones of the other 39."""


class Few(Policy):
    """Content with four neighbours."""

    __slots__ = ()

    def verify_graph(self, *_):
        pass


FEW = Few(min_clients=30, colluders=10, sparse=True)


def beacons():
    return (number.to_bytes(16, "little") for number in count())


def is_surrounded(graph) -> bool:
    return set(graph.neighbours(VICTIM)) <= set(CORRUPT)


def ground(names, roster: bytes) -> bytes:
    """The first beacon that surrounds the victim."""
    return next(b for b in beacons() if is_surrounded(draw(names, DEGREE, bind_beacon(roster, b))))


def surrounded(parties: Attacker, values) -> dict:
    """Four corrupt neighbours hold four of five shares of both secrets: the threshold."""
    parties.advertise(parties.offer(degree=DEGREE))
    parties.now.beacon = ground(parties.names, hash_roster(parties.now.digest, parties.now.adverts))
    chosen = [VICTIM, *parties.now.graph.neighbours(VICTIM)]
    parties.share(chosen)
    parties.deliver()
    parties.submit(values, [VICTIM])
    return parties.learn([VICTIM])


def test_a_graph_that_the_server_seeds_is_ground_until_a_client_is_surrounded():
    """The callers of these clients take the beacon from the server, and its word that four are enough."""
    parties = Attacker(N, corrupt=CORRUPT, policy=FEW)
    values = secret_values(["c0"])
    assert_is_sum(surrounded(parties, values), [values[VICTIM]])


def test_a_sparse_graph_is_refused_by_callers_without_a_beacon():
    parties = Attacker(N, corrupt=CORRUPT, policy=Policy(min_clients=30))
    with pytest.raises(PolicyError, match=r"degree=4, a complete graph wanted \(this caller has no beacon\)"):
        surrounded(parties, {})


def test_so_few_neighbours_are_refused_even_with_a_beacon():
    parties = Attacker(N, corrupt=CORRUPT, policy=Policy(min_clients=5, colluders=10, sparse=True))
    with pytest.raises(
        PolicyError, match=r"expected a graph that fails with probability <= 2\^-40, got 2\^-?0"
    ):
        surrounded(parties, {})


def test_a_beacon_of_the_callers_own_undoes_the_grinding():
    """The victim's caller fetched another one: what the server delivers is about another graph."""
    parties = Attacker(N, corrupt=CORRUPT, policy=FEW)
    parties.advertise(parties.offer(degree=DEGREE))
    victim = parties.clients[VICTIM]
    assert victim.receive(parties.roster_message()) is None
    assert victim.draw_graph(b"a public beacon of a later minute")
    parties.now.beacon = ground(parties.names, hash_roster(parties.now.digest, parties.now.adverts))
    parties.share(parties.now.graph.neighbours(VICTIM))
    with pytest.raises(MessageError, match="Refused a message of round 1: it is about another roster or bea"):
        victim.receive(parties.delivery(VICTIM, CORRUPT))


def test_rosters_ground_before_the_beacon_is_known_are_no_better_than_any():
    """The server may grind adverts of its own clients; the beacon comes later and is not its choice."""
    names, draws = [f"c{i}" for i in range(N)], 1500
    guess = b"what the server expected"
    rosters = (number.to_bytes(32, "big") for number in count())
    best = next(r for r in rosters if is_surrounded(draw(names, DEGREE, bind_beacon(r, guess))))

    def hits(later) -> int:
        return sum(
            is_surrounded(draw(names, DEGREE, bind_beacon(best, b)))
            for _, b in zip(range(draws), later, strict=False)
        )

    limit = stats.binom.isf(ALPHA, draws, CHANCE)
    assert hits(beacons()) <= limit
    assert hits(guess for _ in count()) > limit, "a beacon that was known beforehand shows"
