"""Parties: what a round costs a real client and a real server.

Small cohorts are run by real machines whole. Of a large one, a single neighbourhood is: a client of a ring
with k neighbours does the work of one among k + 1 in a complete graph, except for the roster, which names
everybody; that part is measured by the advert. The server's work is so much a client.
"""

from __future__ import annotations

import os
import secrets
import statistics
import time
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..client import Client
from ..graph import Plan
from ..keys import KEY_BYTES, Identity, Roster
from ..messages import MAX_ADVERT_BYTES, Advert, open_sealed
from ..policy import Policy
from ..register import MemoryRegister
from ..schema import Schema
from ..server import Server
from .batched import NEVER
from .machines import STAGES, Costs, Progress, run_round
from .outcome import Party, Summed
from .segment import FIELD, VECTOR, draw_values, field_schema, megabytes

_CHECKED = 50
"""Adverts whose check is timed."""


def make_machines(
    names: Sequence[str], schema: Schema, policy: Policy, degree: int = 0, pinned: int = 0
) -> tuple[Server, list[Client]]:
    """A server and its clients with fresh identities.

    Args:
        names: Ids of the clients.
        schema: The fields.
        policy: Everybody's.
        degree: What the server offers.
        pinned: Clients in the roster, those included that never come; their keys are random bytes.
    """
    boss = Identity.generate("server")
    people = [Identity.generate(name) for name in names]
    keys = {person.name: person.public_key for person in people}
    keys |= {f"absent{i:06d}": os.urandom(KEY_BYTES) for i in range(len(names), pinned)}
    roster = Roster(boss.public_key, keys)
    clients = [Client(p, roster, schema, policy=policy, register=MemoryRegister()) for p in people]
    return Server(boss, roster, schema, policy=policy, degree=degree), clients


def sum_by_machines(
    names: Sequence[str],
    lost: NDArray[np.int8],
    chosen: Plan,
    schema: Schema,
    policy: Policy,
    progress: Progress | None = None,
) -> tuple[Summed, Party, Party]:
    """A round of real machines; what it cost a client that stayed to the end (the median), and the server.

    Raises:
        SecAggError: Whatever the machines raise.
    """
    costs, source = Costs(), np.random.default_rng()  # values of invented clients: nothing to protect
    server, clients = make_machines(names, schema, policy, chosen.degree)
    values = draw_values(schema, source, len(names))
    result = run_round(
        server,
        clients,
        [{FIELD: value} for value in values],
        drops={name: STAGES[at] for name, at in zip(names, lost.tolist(), strict=True) if at != NEVER},
        beacon=secrets.token_bytes(32) if chosen.degree else None,
        costs=costs,
        progress=progress,
    )
    survives = lost > VECTOR
    there = [name for name, is_there in zip(names, survives, strict=True) if is_there]
    exact = np.array_equal(result.values[FIELD], values[survives].sum(axis=0))
    of_clients = sum(sum(by_stage.values()) for by_stage in costs.client_seconds.values())
    work = {"clients": of_clients, "server": sum(costs.server_seconds.values())}
    summed = Summed(exact and list(result.survivors) == there, len(there), work, megabytes())
    whole = [name for name, at in zip(names, lost.tolist(), strict=True) if at == NEVER]
    up, down = sum(costs.bytes_up.values()), sum(costs.bytes_down.values())
    return summed, _median_client(costs, whole), Party(dict(costs.server_seconds), up, down)


def _median_client(costs: Costs, names: Sequence[str]) -> Party:
    stages = costs.client_seconds[names[0]]
    return Party(
        {stage: statistics.median(costs.client_seconds[name][stage] for name in names) for stage in stages},
        int(statistics.median(costs.bytes_up[name] for name in names)),
        int(statistics.median(costs.bytes_down[name] for name in names)),
    )


def estimate_parties(
    offered: int,
    advertised: int,
    chosen: Plan,
    entries: int,
    bits: int,
) -> tuple[Party, Party]:
    """What a round of very many would cost a real client and a real server, from one neighbourhood of them.

    Of the server's result this measures one neighbourhood's; the caller may know it in full.

    Args:
        offered: Clients that the lanes are wide enough for.
        advertised: Clients in the roster.
        chosen: Degree and threshold.
        entries: Numbers in a vector.
        bits: Bits of a number.
    """
    schema = field_schema(entries, bits)
    source = np.random.default_rng()  # values of invented clients: nothing to protect
    holders, costs = chosen.degree + 1, Costs()
    names = [f"c{i:06d}" for i in range(holders)]
    policy = Policy(threshold_fraction=chosen.fraction, colluders=0)
    server, clients = make_machines(names, schema, policy, pinned=offered)
    values = [{FIELD: row} for row in draw_values(schema, source, holders)]
    run_round(server, clients, values, costs=costs)
    check, size = _advert_costs(names, schema, policy)
    near = _median_client(costs, names)
    further = advertised - holders
    client = Party(
        near.seconds | {"shares": near.seconds["shares"] + further * check},
        near.bytes_up,
        near.bytes_down + further * size + (advertised + 7) // 8 - (holders + 7) // 8,
    )
    seconds = {stage: value * advertised / holders for stage, value in costs.server_seconds.items()}
    return client, Party(seconds, advertised * client.bytes_up, advertised * client.bytes_down)


def _advert_costs(names: Sequence[str], schema: Schema, policy: Policy) -> tuple[float, int]:
    """Seconds to check one advert, the least of many, and its bytes in a roster."""
    server, clients = make_machines(names[: policy.min_clients], schema, policy)
    advert = clients[0].receive(server.open(1))
    assert advert is not None  # noqa: S101  # our invariant: an offer is answered by one
    keys = {client.name: client._identity.public_key for client in clients}
    least = float("inf")
    for _ in range(_CHECKED):
        began = time.process_time()
        open_sealed(advert, (Advert,), keys, MAX_ADVERT_BYTES)
        least = min(least, time.process_time() - began)
    return least, len(msgspec.msgpack.encode(advert))
