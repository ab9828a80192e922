"""Parties for tests: a roster, its machines, and rounds driven by hand or to their end."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from secagg import (
    Client,
    ClientPhase,
    Identity,
    MemoryRegister,
    Policy,
    Result,
    Roster,
    Schema,
    Server,
    ServerPhase,
)

SMALL = Policy(min_clients=3, allow_three=True)
STAGES = ("advert", "shares", "vector", "consistency", "unmask")
"""What a client may fail to send, in order."""


@dataclass
class Parties:
    """A server, its clients and the keys of both."""

    boss: Identity
    people: list[Identity]
    roster: Roster
    server: Server
    clients: list[Client]

    def names(self) -> list[str]:
        return [client.name for client in self.clients]


def insecure_rounding(seed: int) -> Callable[[bytes, int], np.random.Generator]:
    """Replayable rounding: a function of the seed and the round."""
    return lambda session, round: np.random.default_rng([seed, round])


def make_parties(n: int, schema: Schema, *, policy: Policy = SMALL, **server: Any) -> Parties:
    boss = Identity.generate("server")
    people = [Identity.generate(f"c{i}") for i in range(n)]
    roster = Roster(boss.public_key, {p.name: p.public_key for p in people})
    clients = [
        Client(p, roster, schema, policy=policy, register=MemoryRegister(), rounding=insecure_rounding(i))
        for i, p in enumerate(people)
    ]
    return Parties(boss, people, roster, Server(boss, roster, schema, policy=policy, **server), clients)


def advertise(
    parties: Parties,
    round: int = 1,
    context: bytes = b"",
    declared: Sequence[Mapping[str, Any]] | None = None,
    dropped: Collection[str] = (),
) -> None:
    """Stages 0 and 1 for everybody but `dropped`."""
    offer = parties.server.open(round, context=context)
    for i, client in enumerate(parties.clients):
        advert = client.receive(offer, context=context, declared=declared[i] if declared else {})
        assert advert is not None
        if client.name not in dropped:
            assert parties.server.receive(advert) == client.name


def share(parties: Parties, *, dropped: Collection[str] = (), beacon: bytes | None = None) -> None:
    """Stages 2 and 3, until the server has the boxes of everybody that it still hears of but `dropped`."""
    messages = parties.server.advance()
    if beacon is not None:
        parties.server.draw_graph(beacon)
    for client in parties.clients:
        if client.name in messages:
            boxes = client.receive(messages[client.name])
            if beacon is not None:
                assert boxes is None
                boxes = client.draw_graph(beacon)
            assert boxes is not None
            if client.name not in dropped:
                assert parties.server.receive(boxes) == client.name


def ready(parties: Parties, round: int = 1, *, beacon: bytes | None = None, **kwargs: Any) -> None:
    """Stages 0 to 3 for everybody: what is left is to submit."""
    advertise(parties, round, **kwargs)
    share(parties, beacon=beacon)
    deliver(parties)


def deliver(parties: Parties) -> None:
    """The delivery that ends stage 3."""
    messages = parties.server.advance()
    for client in parties.clients:
        if client.name in messages:
            assert client.receive(messages[client.name]) is None
            assert client.phase is ClientPhase.READY


def submit(
    parties: Parties, values: Mapping[str, Mapping[str, Any]], *, dropped: Collection[str] = ()
) -> None:
    """Stage 4 for everybody that is ready; `values` by client."""
    for client in parties.clients:
        if client.phase is ClientPhase.READY:
            masked = client.submit(values[client.name])
            if client.name not in dropped:
                assert parties.server.receive(masked) == client.name


def finish(parties: Parties, *, silent: Collection[str] = (), mute: Collection[str] = ()) -> Result:
    """Stages 5 and 6: `silent` clients do not sign, `mute` ones sign and give no shares."""
    for gone in (silent, mute):
        messages = parties.server.advance()
        for client in parties.clients:
            if client.name in messages:
                answer = client.receive(messages[client.name])
                assert answer is not None
                if client.name not in gone:
                    assert parties.server.receive(answer) == client.name
    assert parties.server.phase is ServerPhase.UNMASKING
    return parties.server.result()


def run_round(
    parties: Parties,
    values: Sequence[Mapping[str, Any]],
    round: int = 1,
    *,
    drops: Mapping[str, str] | None = None,
    beacon: bytes | None = None,
    **kwargs: Any,
) -> Result:
    """A whole round; `drops` says from which of `STAGES` on a client is not heard of any more."""
    at = {stage: {name for name, when in (drops or {}).items() if when == stage} for stage in STAGES}
    advertise(parties, round, dropped=at["advert"], **kwargs)
    share(parties, dropped=at["shares"], beacon=beacon)
    deliver(parties)
    named = {client.name: each for client, each in zip(parties.clients, values, strict=True)}
    submit(parties, named, dropped=at["vector"])
    return finish(parties, silent=at["consistency"], mute=at["unmask"])
