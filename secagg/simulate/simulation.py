"""Simulation: a round of any number of clients in this process and its workers, against the clear sum.

Small cohorts are real clients and a real server. For large ones only what makes the sum is computed for every
client, and the rest is measured on one neighbourhood: `secagg.simulate.outcome.COMPUTED` says which is which.
"""

from __future__ import annotations

import functools
import math
import os
import time
from typing import Final

import numpy as np

from ..encoding import Encoding
from ..errors import PolicyError
from ..graph import COMPLETE_UP_TO, Plan, failure_bound, plan, privacy_bound, smallest_sum
from ..graph import threshold as shares_needed
from ..messages import MAX_CLIENTS
from ..policy import Policy
from .batched import NEVER, draw_losses, sum_by_segments
from .machines import STAGES, Progress
from .outcome import COLLUDERS, Simulation
from .parties import estimate_parties, sum_by_machines
from .segment import field_schema

MACHINES_UP_TO: Final = 150
"""Clients that are simulated by real machines where nothing else is asked for: some 10 s."""


def simulate(
    clients: int,
    entries: int = 1000,
    dropout: float = 0.1,
    *,
    colluders: float = COLLUDERS,
    degree: int | None = None,
    threshold: int | None = None,
    bits: int = 16,
    lost_at: str | None = None,
    machines: bool | None = None,
    processes: int | None = None,
    estimate: bool = True,
    progress: Progress | None = None,
) -> Simulation:
    """Simulate a round of secure aggregation, and compare what it releases with the clear sum.

    It protects nobody from this process and its workers: they hold all values and keys. All secrets are drawn
    from the operating system's randomness, as clients would draw them, and none is written to a file.

    Args:
        clients: How many are offered the round, 5..2^17.
        entries: Numbers in each one's vector.
        dropout: Fraction of them that is lost, in [0, 1).
        colluders: Fraction of them that may work with the server, in [0, 1). By default a quarter of what
            `Policy` and `secagg.plan` assume, for speed: give 0.2 to see what those ask for.
        degree: Neighbours of a client, even; 0 for all the others, as it always is among up to 32. By default
            `secagg.graph.plan` says.
        threshold: Shares that give a secret back; to be given with `degree`.
        bits: Bits of a number.
        lost_at: One of `STAGES` at which all are lost that are; by default all stages alike.
        machines: True to run real clients and a real server whatever the size; False never to; by default
            for cohorts of up to 150 and for complete graphs.
        processes: Worker processes for large cohorts; by default one a core. With more than one, the calling
            script must guard its entry: ``if __name__ == "__main__":``.
        estimate: Whether to estimate, for large cohorts, what the round would cost a real client and server.
        progress: Called with what is done and the fraction of it.

    Returns:
        What the round gave and cost; look at `correct` first. Its graph is the one that ran: where losses
        leave 32 adverts or fewer, the complete one.

    Raises:
        ValueError: If an argument is out of its range.
        PolicyError: If no graph stands so many colluders and losses, or the one asked for does not.
        CohortError: If too few are left.
        RuntimeError: If worker processes cannot start.
        SchemaError: If `bits` or `entries` do not fit.

    Example:
        >>> done = simulate(20, entries=10, dropout=0.2)
        >>> done.correct, done.survivors, done.degree
        (True, 17, 0)
    """
    began = time.perf_counter()
    chosen = plan_round(clients, entries, dropout, colluders, degree, threshold)
    if processes is not None and processes < 1:
        raise ValueError(f"Expected processes >= 1, got {processes}. Leave it out for one a core.")
    if lost_at is not None and lost_at not in STAGES:
        raise ValueError(f"Expected lost_at as one of {STAGES}, got {lost_at!r}.")
    lost = draw_losses(clients, dropout, lost_at)
    here = int(np.count_nonzero(lost > STAGES.index("advert")))
    ran = _as_run(chosen, here, here - int(np.count_nonzero(lost == NEVER)))
    if machines is False and not ran.degree:
        raise ValueError(
            f"Expected a graph with few neighbours for a round without machines, got the complete one for "
            f"{here} clients. Give degree= and threshold=, or leave machines= out."
        )
    schema = field_schema(entries, bits)
    policy = Policy(
        threshold_fraction=chosen.fraction,
        colluders=colluders,
        sparse=chosen.degree > 0,
        max_clients=MAX_CLIENTS,
    )
    names = tuple(f"c{i:06d}" for i in range(clients))
    client = server = None
    if machines or (machines is None and (not ran.degree or clients <= MACHINES_UP_TO)):
        method, processes = "machines", 1
        summed, client, server = sum_by_machines(names, lost, chosen, schema, policy, progress)
    else:
        method, processes = "segments", processes or _cores()
        beside = functools.partial(estimate_parties, clients, here, chosen, entries, bits)
        summed, parties = sum_by_segments(
            names,
            lost,
            chosen.degree,
            chosen.threshold,
            schema,
            policy,
            processes,
            progress,
            beside if estimate else None,
        )
        if parties is not None:
            client, server = parties
            server.seconds["result"] = sum(
                summed.work[part] for part in ("reconstruction", "removing masks", "decoding")
            )
    return Simulation(
        correct=summed.correct,
        clients=clients,
        entries=entries,
        words=Encoding(schema, clients).words,
        survivors=summed.survivors,
        lost={stage: int(np.count_nonzero(lost == place)) for place, stage in enumerate(STAGES)},
        degree=ran.degree,
        threshold=ran.threshold,
        colluders=colluders,
        privacy=ran.privacy,
        failure=ran.failure,
        method=method,
        processes=processes,
        seconds=time.perf_counter() - began,
        work=summed.work,
        pairs=summed.pairs,
        recovered=summed.recovered,
        peak_megabytes=summed.peak_megabytes,
        client=client,
        server=server,
    )


def _cores() -> int:
    """Cores that this process may use, where the system says."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _as_run(chosen: Plan, advertised: int, lost_later: int) -> Plan:
    """The plan of the graph that is drawn: few adverts make a complete one, whatever degree is offered.

    The rule is that of `secagg.graph.draw`.
    """
    if advertised > COMPLETE_UP_TO and 0 < chosen.degree <= advertised - 2:
        return chosen
    needed = shares_needed(chosen.fraction, advertised)
    return Plan(
        advertised,
        chosen.colluders,
        0,
        needed,
        chosen.fraction,
        privacy_bound(advertised, 0, needed, chosen.colluders),
        failure_bound(advertised, 0, needed, lost_later / advertised),
        smallest_sum(advertised, 0, needed, chosen.colluders),
    )


def plan_round(
    clients: int, entries: int, dropout: float, colluders: float, degree: int | None, threshold: int | None
) -> Plan:
    """The plan asked for, or the one that is needed; a degree of 0 alone is the complete graph's."""
    if not 5 <= clients <= MAX_CLIENTS or entries < 1:
        raise ValueError(
            f"Expected 5..{MAX_CLIENTS} clients and at least 1 entry, got clients={clients} and "
            f"entries={entries}."
        )
    if not (0 <= dropout < 1 and 0 <= colluders < 1):
        raise ValueError(f"Expected fractions in [0, 1), got dropout={dropout}, colluders={colluders}.")
    if degree == 0 and threshold is None:
        threshold = math.floor((1 + colluders) * clients / 2) + 1
    if (degree is None) != (threshold is None):
        raise ValueError(f"Expected degree and threshold together, got {degree} and {threshold}.")
    if degree is None or threshold is None:
        try:
            return plan(clients, colluders=colluders, dropout=dropout)
        except ValueError as error:
            raise PolicyError(str(error)) from error
    if degree and clients <= COMPLETE_UP_TO:
        raise ValueError(
            f"Expected no degree, or degree=0, for {clients} clients, got degree={degree}: up to "
            f"{COMPLETE_UP_TO} everybody is everybody's neighbour. Leave degree and threshold out."
        )
    holders = degree + 1 if degree else clients
    if 2 * threshold <= holders:
        raise PolicyError(
            f"Expected a threshold of more than half of the {holders} that hold shares of a secret (degree + "
            f"1, or all), got threshold={threshold}. Give {holders // 2 + 1} or more, or leave degree and "
            "threshold out."
        )
    return Plan(
        clients,
        colluders,
        degree,
        threshold,
        threshold / holders,
        privacy_bound(clients, degree, threshold, colluders),
        failure_bound(clients, degree, threshold, dropout),
        smallest_sum(clients, degree, threshold, colluders),
    )
