"""Batched: a round of very many clients, segment by segment of the ring, on a few processes.

What the parent draws at random is what the clients would draw: their secrets, and who is lost when. The hash
of the roster is random too, since nobody signs an advert here. Secrets go to the workers through pipes; no
file holds any.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..cohort import bind_beacon, hash_context
from ..encoding import Encoding
from ..ephemeral import SEED_BYTES, Binding
from ..errors import CohortError, EncodingError
from ..graph import Graph, draw
from ..policy import Policy
from ..schema import Schema
from .machines import STAGES, Progress
from .outcome import Party, Summed
from .segment import FIELD, SHARES, VECTOR, Part, Segment, megabytes, simulate_segment

Parties: TypeAlias = tuple[Party, Party]
Beside: TypeAlias = Callable[[], Parties] | None
NEVER = len(STAGES)
_SMALLEST, _LARGEST = 500, 4000
"""Clients of a segment. Those of its margins are done twice, so a large one is cheaper; but at the end one
process waits for the other's last."""


def draw_losses(clients: int, dropout: float, stage: str | None) -> NDArray[np.int8]:
    """From which stage on each client is lost, as a place in `STAGES`; `NEVER` for the others.

    Args:
        clients: Number of clients.
        dropout: Fraction of them that is lost, rounded down.
        stage: At which stage; None spreads them evenly over all five.
    """
    lost = np.full(clients, NEVER, np.int8)
    number = math.floor(dropout * clients + 1e-9)
    chosen = np.random.default_rng().permutation(clients)[:number]  # who is lost is chance, not a secret
    lost[chosen] = np.arange(number) % NEVER if stage is None else STAGES.index(stage)
    return lost


def sum_by_segments(
    names: tuple[str, ...],
    lost: NDArray[np.int8],
    degree: int,
    threshold: int,
    schema: Schema,
    policy: Policy,
    processes: int,
    progress: Progress | None = None,
    beside: Beside = None,
) -> tuple[Summed, Parties | None]:
    """Simulate a round on a ring.

    Args:
        names: Ids of the clients, sorted.
        lost: From which stage on each is lost.
        degree: Neighbours of a client.
        threshold: Shares that give a secret back.
        schema: One field, `FIELD`.
        policy: What the cohort and the graph must fulfil.
        processes: Worker processes.
        progress: Called with what is done and the fraction of it.
        beside: What a worker does besides, to be pickled.

    Returns:
        The sum and what it took, and what `beside` gave.

    Raises:
        PolicyError: If the graph is weaker than the policy.
        CohortError: If too few clients are left.
    """
    work: dict[str, float] = {}
    began = time.process_time()
    present = lost > STAGES.index("advert")
    graph, binding = _draw_graph([n for n, here in zip(names, present, strict=True) if here], degree, schema)
    policy.verify_cohort(binding.round, len(graph.names))
    policy.verify_graph(binding.round, graph, threshold)
    stages = dict(zip(names, lost.tolist(), strict=True))
    ring = _Ring(
        np.array(graph._ring),
        np.array([stages[name] for name in graph._ring], np.int8),
        degree // 2,
        threshold,
    )
    policy.verify_survivors(binding.round, ring.survivors, len(graph.names))
    gives = ring.verify_survival()
    work["graph"] = time.process_time() - began
    segments = ring.segments(gives, binding, schema, len(names), processes)
    parts: list[Part] = []
    found: Parties | None = None
    simulated = 0
    for done in _run(segments, beside, processes):
        if not isinstance(done, Part):
            found = done
            continue
        parts.append(done)
        simulated += done.clients
        if progress is not None:
            progress("clients", simulated / len(ring.names))
    return _joined(parts, ring.survivors, work, Encoding(schema, len(names)), processes), found


def _draw_graph(names: list[str], degree: int, schema: Schema) -> tuple[Graph, Binding]:
    """Graph and binding of a round that nobody could know before."""
    session, number = secrets.token_bytes(16), 1
    roster = bind_beacon(secrets.token_bytes(32), secrets.token_bytes(32))
    context = hash_context(session, number, b"")
    return draw(names, degree, roster), Binding(session, number, roster, context, schema.digest)


@dataclass(frozen=True)
class _Ring:
    """Clients in the order of the ring, and when each is lost."""

    names: NDArray[np.str_]
    lost: NDArray[np.int8]
    margin: int
    threshold: int

    @property
    def survivors(self) -> int:
        """Clients whose vector comes."""
        return int(np.count_nonzero(self.lost > VECTOR))

    def near(self, chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
        """How many of the chosen are in each one's closed neighbourhood."""
        margin = self.margin
        around = np.concatenate([chosen[-margin:], chosen, chosen[:margin]])
        sums = np.concatenate([[0], np.cumsum(around)])
        near: NDArray[np.int64] = sums[2 * margin + 1 :] - sums[: -2 * margin - 1]
        return near

    def verify_survival(self) -> NDArray[np.bool_]:
        """Who gives shares at the end; raises CohortError where somebody keeps too few holders."""
        survives, signs = self.lost > VECTOR, self.lost > STAGES.index("consistency")
        asked = signs & (self.near(signs) >= self.threshold)
        gives: NDArray[np.bool_] = asked & (self.lost == NEVER)
        stages = {"submitting": survives, "signing": signs, "unmasking": gives}
        for what, left in stages.items():
            lacking = (self.near(left) < self.threshold) & (self.lost > SHARES)
            if lacking.any():
                raise CohortError(
                    f"Fewer than threshold={self.threshold} holders of {np.count_nonzero(lacking)} clients "
                    f"are left after {what}. Lower the dropout or the threshold, or raise the degree.",
                    self.names[lacking].tolist(),
                )
        return gives

    def segments(
        self, gives: NDArray[np.bool_], binding: Binding, schema: Schema, capacity: int, processes: int
    ) -> list[Segment]:
        """The work in parts that become smaller, so that all processes end at nearly the same time."""
        size, margin = len(self.names), self.margin
        seeds = np.frombuffer(secrets.token_bytes(2 * SEED_BYTES * size), np.uint8)
        cut: list[Segment] = []
        low = high = 0
        smallest = min(_SMALLEST, math.ceil(size / (2 * processes)))  # of few clients each process gets some
        while high < size:
            step = max(smallest, min(_LARGEST, (size - high) // (2 * processes)))
            low, high = high, min(size, high + step)
            places = np.arange(low - margin, high + margin) % size
            cut.append(
                Segment(
                    tuple(self.names[places].tolist()),
                    seeds.reshape(size, 2, SEED_BYTES)[places],
                    self.lost[places],
                    gives[places],
                    margin,
                    self.threshold,
                    binding,
                    schema.to_bytes(),
                    capacity,
                )
            )
        return cut


def _follow_parent() -> None:
    """In a worker: end when interrupted, and when the parent is gone, which a killed one cannot ask for."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    if parent is not None:
        gone = parent.sentinel
        threading.Thread(target=lambda: (wait([gone]), os._exit(1)), daemon=True).start()


def _run(segments: list[Segment], beside: Beside, processes: int) -> Iterator[Part | Parties]:
    """Parts as they are done, and what `beside` gives."""
    if processes == 1:
        yield from map(simulate_segment, segments)
        if beside is not None:
            yield beside()
        return
    # Spawned, not forked: a fork beside a thread that holds a lock would hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, context, _follow_parent)
    try:
        jobs: list[Future[Any]] = [] if beside is None else [pool.submit(beside)]
        jobs += [pool.submit(simulate_segment, segment) for segment in segments]
        for done in as_completed(jobs):
            yield done.result()
    except BrokenProcessPool:
        raise RuntimeError(
            "Expected worker processes to start; they did not, or were killed. Call simulate() under "
            "'if __name__ == \"__main__\":' in a file, or give processes=1."
        ) from None
    except BaseException:
        # Nobody wants what is under way, and it would take seconds more. (`terminate_workers` from 3.14 on.)
        for worker in list((pool._processes or {}).values()):
            worker.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _joined(
    parts: list[Part], survivors: int, work: dict[str, float], encoding: Encoding, processes: int
) -> Summed:
    """The end of the server's work: the sum of all, its masks taken off, compared with the clear one."""
    for part in parts:
        for what, seconds in part.seconds.items():
            work[what] = work.get(what, 0.0) + seconds
    began = time.process_time()
    total = np.zeros(encoding.words, np.uint64)
    clear, exact = np.zeros_like(total), np.zeros_like(parts[0].exact)
    for part in parts:
        total += part.total
        total -= part.remaining
        clear += part.clear
        exact += part.exact
    try:
        close = np.array_equal(encoding.decode(total, survivors).values[FIELD], exact)
    except EncodingError:  # the zero lane or the count lane is wrong
        close = False
    whole = sum(p.vectors for p in parts) == survivors and not any(p.unrecovered for p in parts)
    work["decoding"] = time.process_time() - began
    return Summed(
        correct=bool(close and whole and np.array_equal(total, clear)),
        survivors=survivors,
        work=work,
        peak_megabytes=megabytes() + (processes * max(p.megabytes for p in parts) if processes > 1 else 0.0),
        pairs=sum(p.pairs for p in parts),
        recovered=sum(p.recovered for p in parts),
    )
