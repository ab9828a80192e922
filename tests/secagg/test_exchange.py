"""What clients send for each neighbour, sorted by receiver."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Collection

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secagg.exchange import exchange, table
from secagg.graph import Graph


def some_graph(count: int, degree: int, seed: int) -> Graph:
    names = [f"c{i}" for i in range(count)]  # "c10" comes before "c2"
    return Graph.harary(names, degree, seed.to_bytes(4, "little")) if degree else Graph.complete(names)


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    count = draw(st.integers(4, 30))
    return some_graph(count, 2 * draw(st.integers(0, (count - 2) // 2)), draw(st.integers(0, 999)))


def received_one_by_one(
    graph: Graph, sent: dict[tuple[str, str], bytes], gave: Collection[str]
) -> list[tuple[str, list[bool], bytes]]:
    """What the words say: for each receiver, over its neighbours by id."""
    return [
        (
            name,
            [peer in gave for peer in graph.neighbours(name)],
            b"".join(sent[peer, name] for peer in graph.neighbours(name) if peer in gave),
        )
        for name in graph.names
        if name in gave
    ]


@given(graph=graphs(), size=st.integers(1, 5), data=st.data())
def test_each_client_gets_what_its_neighbours_sent_for_it_by_their_ids(
    graph: Graph, size: int, data: st.DataObject
) -> None:
    gave = data.draw(st.sets(st.sampled_from(graph.names)))
    sent = {(u, v): os.urandom(size) for u in gave for v in graph.neighbours(u)}
    pieces = table(graph, size)
    for place, name in enumerate(graph.names):
        if name in gave:
            row = b"".join(sent[name, peer] for peer in graph.neighbours(name))
            pieces[place] = np.frombuffer(row, pieces.dtype)
    received = [(name, there.tolist(), each) for name, there, each in exchange(graph, pieces, gave)]
    assert received == received_one_by_one(graph, sent, gave)


@given(graph=graphs())
def test_neighbours_by_place_are_the_neighbours(graph: Graph) -> None:
    names = graph.names
    by_place = [tuple(names[place] for place in row) for row in graph.neighbour_places().tolist()]
    assert by_place == [graph.neighbours(name) for name in names]


@pytest.mark.parametrize("degree", [0, 50])
def test_sorting_holds_no_second_copy_of_what_was_sent(degree: int) -> None:
    """Beside the table there are places, at most 24 bytes a pair, and one client's pieces at a time."""
    graph, size = some_graph(300, degree, 1), 100
    pieces = table(graph, size)
    tracemalloc.start()
    received = sum(len(each) for _, _, each in exchange(graph, pieces, graph.names))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    pairs = len(graph.names) * (degree or 299)
    assert received == pairs * size
    assert peak < 24 * pairs + 3 * size * len(graph.names) < pieces.nbytes / 2
