"""The graph of a round: regular, symmetric, the same for all, and drawn from what nobody could choose."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from itertools import pairwise, permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secagg.graph import COMPLETE_UP_TO, Graph, draw, threshold
from secagg.keys import PROTOCOL
from tests.statistical import assert_counts, assert_rejects

SEED = bytes(range(32))
rosters = st.lists(st.text(min_size=1, max_size=6), min_size=5, max_size=40, unique=True)


def names(count: int) -> list[str]:
    return [f"client-{number}" for number in range(count)]


@given(roster=rosters, seed=st.binary(max_size=40), data=st.data())
def test_a_harary_graph_is_regular_symmetric_and_ordered(
    roster: list[str], seed: bytes, data: st.DataObject
) -> None:
    degree = 2 * data.draw(st.integers(1, (len(roster) - 2) // 2))
    graph = Graph.harary(roster, degree, seed)
    shuffled = Graph.harary(data.draw(st.permutations(roster)), degree, seed)
    assert graph == shuffled
    assert hash(graph) == hash(shuffled)
    assert graph.names == tuple(sorted(roster))
    for name in roster:
        near = graph.neighbours(name)
        assert len(set(near)) == len(near) == degree
        assert name not in near
        assert list(near) == sorted(near)
        assert all(name in graph.neighbours(other) for other in near)
        assert graph.holders(name) == tuple(sorted([*near, name]))


@given(roster=rosters)
def test_in_a_complete_graph_all_are_neighbours(roster: list[str]) -> None:
    graph = Graph.complete(roster)
    assert graph.degree == 0
    for name in roster:
        assert graph.holders(name) == graph.names == tuple(sorted(roster))
        assert set(graph.neighbours(name)) == set(roster) - {name}


def test_the_ring_is_sorted_by_a_hash_over_the_seed_and_the_id() -> None:
    def position(name: str) -> bytes:
        # By hand: every part with its length before it, in 8 bytes, least significant first.
        parts = [PROTOCOL, b"graph position", SEED, name.encode()]
        return hashlib.sha256(b"".join(len(p).to_bytes(8, "little") + p for p in parts)).digest()

    roster = names(50)
    ring = sorted(roster, key=position)
    graph = Graph.harary(roster, 6, SEED)
    for place, name in enumerate(ring):
        near = {ring[(place + step) % 50] for step in (-3, -2, -1, 1, 2, 3)}
        assert set(graph.neighbours(name)) == near


def test_all_rings_are_drawn_equally_often() -> None:
    # 5 clients on a ring of degree 2: (5 - 1)! / 2 = 12 rings.
    roster = names(5)
    rings = {
        frozenset(frozenset(p) for p in pairwise((*r, r[0]))): k for k, r in enumerate(permutations(roster))
    }
    cells = sorted(set(rings.values()))
    assert len(cells) == 12
    seen = Counter(
        rings[frozenset(frozenset((name, other)) for name in roster for other in graph.neighbours(name))]
        for graph in (Graph.harary(roster, 2, number.to_bytes(4, "big")) for number in range(6000))
    )
    counts = [seen[cell] for cell in cells]
    assert_counts(counts, [1 / 12] * 12)
    assert_rejects(assert_counts, [2 * counts[0], *counts[1:]], [1 / 12] * 12)


def test_another_seed_or_roster_gives_another_ring() -> None:
    graph = Graph.harary(names(60), 4, SEED)
    assert graph != Graph.harary(names(60), 4, bytes(32))
    assert graph != Graph.harary(names(60), 6, SEED)
    assert graph != Graph.harary(names(61), 4, SEED)
    assert graph != "graph"


@pytest.mark.parametrize(
    ("count", "degree", "drawn"),
    [
        (33, 0, 0),
        (COMPLETE_UP_TO, 4, 0),
        (COMPLETE_UP_TO + 1, 4, 4),
        (40, 38, 38),
        (40, 40, 0),
        (41, 40, 0),
        (42, 40, 40),
        (10, 100, 0),
    ],
)
def test_small_cohorts_get_the_complete_graph(count: int, degree: int, drawn: int) -> None:
    assert draw(names(count), degree, SEED).degree == drawn


@given(holders=st.integers(1, 2000), data=st.data())
def test_a_threshold_that_was_made_a_fraction_comes_back(holders: int, data: st.DataObject) -> None:
    t = data.draw(st.integers(1, holders))
    assert threshold(t / holders, holders) == t


@pytest.mark.parametrize(
    ("fraction", "holders", "t"), [(0.5, 10, 5), (0.51, 10, 6), (2 / 3, 1000, 667), (1e-12, 5, 1), (1, 7, 7)]
)
def test_thresholds_are_rounded_up(fraction: float, holders: int, t: int) -> None:
    assert threshold(fraction, holders) == t


def test_a_graph_takes_its_threshold_of_the_holders_that_each_client_has() -> None:
    ring, complete = Graph.harary(names(50), 10, SEED), Graph.complete(names(50))
    for graph, t in ((ring, 8), (complete, 34)):  # two thirds of 11 and of 50, rounded up
        assert {threshold(2 / 3, len(graph.holders(name))) for name in graph.names} == {t}
        assert graph.threshold(2 / 3) == t


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Graph.complete([]).threshold(0.5), "holders=0"),
        (lambda: threshold(0, 5), "fraction=0"),
        (lambda: threshold(1.1, 5), r"fraction=1\.1"),
        (lambda: threshold(float("nan"), 5), "fraction=nan"),
        (lambda: threshold(0.5, 0), "holders=0"),
        (lambda: Graph.complete(["a", "b", "a"]), "1 of them twice"),
        (lambda: Graph.harary(["a", "a", *names(9)], 2, SEED), "1 of them twice"),
        (lambda: Graph.harary(names(9), 3, SEED), "degree=3 for n=9"),
        (lambda: Graph.harary(names(9), 0, SEED), "degree=0"),
        (lambda: Graph.harary(names(9), 8, SEED), "degree=8 for n=9"),
        (lambda: draw(names(9), -2, SEED), "got -2"),
        (lambda: draw(names(9), 3, SEED), "got 3"),
        (lambda: Graph.complete(["a", "b"]).neighbours("c"), "got 'c'"),
        (lambda: Graph.complete(["a", "b"]).holders("c"), "roster of 2 clients"),
    ],
)
def test_what_is_no_graph_is_refused(call: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


def test_a_graph_does_not_change() -> None:
    graph = Graph.complete(["a", "b"])
    with pytest.raises(AttributeError, match="cannot be changed"):
        graph.degree = 2
    with pytest.raises(AttributeError, match="stays"):
        del graph.names
    assert repr(graph) == "Graph(2 clients, complete)"
    assert repr(Graph.harary(names(9), 4, SEED)) == "Graph(9 clients, degree=4)"


def test_a_graph_of_100_000_clients_is_drawn_in_seconds() -> None:
    roster = names(100_000)
    started = time.process_time()
    graph = draw(roster, 100, SEED)
    near = graph.neighbours("client-77777")
    # Measured: 0.3 s. Ten times that is a graph that was built edge by edge.
    assert time.process_time() - started < 3
    assert len(near) == 100


@given(st.integers(33, 80), st.integers(1, 15), st.binary(min_size=1, max_size=4), st.data())
def test_counts_of_the_chosen_near_each_client_are_those_of_its_holders(n, half, seed, data):
    names = [f"c{i}" for i in range(n)]
    chosen = data.draw(st.sets(st.sampled_from(names)))
    for graph in (Graph.harary(names, 2 * half, seed), Graph.complete(names)):
        counts = graph.count_near(chosen).tolist()
        assert counts == [len(chosen.intersection(graph.holders(name))) for name in graph.names]
