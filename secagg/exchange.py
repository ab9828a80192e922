"""Exchange: what clients send a piece of for each neighbour, sorted into what each neighbour receives.

A server does this twice a round, with boxes of shares and with receipts for them: n k pieces of a few bytes.
They are one table, and are sorted by their numbers in it: as many Python objects would cost seconds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from .graph import Graph

Table: TypeAlias = NDArray[np.void]
"""Pieces of bytes, shape ``(clients, neighbours)``: a row for each client, its neighbours by their ids."""


def table(graph: Graph, size: int) -> Table:
    """A table of pieces of `size` bytes, all zeros; a row takes up memory once it is written."""
    return np.zeros((len(graph.names), graph.degree or max(0, len(graph.names) - 1)), f"V{size}")


def exchange(
    graph: Graph, pieces: Table, given: Collection[str]
) -> Iterator[tuple[str, NDArray[np.bool_], bytes]]:
    """For each client that gave pieces: those that its neighbours gave for it.

    Args:
        graph: Who is whose neighbour.
        pieces: A `table` of `graph`.
        given: Whose rows of it count.

    Yields:
        In the order of ids: a client of `given`, which of its neighbours are in `given`, shape
        ``(neighbours,)``, and the pieces of those, by id.
    """
    near, flat = graph.neighbour_places(), pieces.reshape(-1)
    degree = near.shape[1]
    # All pairs by their second client, each one's by the first: its places among its neighbours' neighbours.
    places = np.argsort(near, axis=None, kind="stable")
    places %= max(1, degree)
    gave = np.array([name in given for name in graph.names], np.bool_)
    for receiver in np.flatnonzero(gave).tolist():
        senders = near[receiver]
        there = gave[senders]
        numbers = senders.astype(np.int64) * degree + places[receiver * degree : (receiver + 1) * degree]
        yield graph.names[receiver], there, flat.take(numbers[there]).tobytes()
