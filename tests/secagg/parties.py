"""Parties for tests: a roster, its machines, and a round run by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from secagg import Client, Identity, MemoryRegister, Policy, Result, Roster, Schema, Server

SMALL = Policy(min_clients=3, allow_three=True)


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
) -> None:
    """Stages 0 and 1 for everybody."""
    offer = parties.server.open(round, context=context)
    for i, client in enumerate(parties.clients):
        advert = client.receive(offer, context=context, declared=declared[i] if declared else {})
        assert advert is not None
        assert parties.server.receive(advert) == client.name


def ready(parties: Parties, round: int = 1, **kwargs: Any) -> None:
    """Stages 0 to 2 for everybody."""
    advertise(parties, round, **kwargs)
    message = parties.server.close_adverts()
    for client in parties.clients:
        assert client.receive(message) is None


def run_round(parties: Parties, values: Sequence[Mapping[str, Any]], round: int = 1, **kwargs: Any) -> Result:
    """A whole round."""
    ready(parties, round, **kwargs)
    for client, each in zip(parties.clients, values, strict=True):
        assert parties.server.receive(client.submit(each)) == client.name
    assert parties.server.missing == ()
    return parties.server.result()
