"""Any schedule of honest parties: lost, doubled, late, reordered and damaged messages, calls out of turn.

Whatever happens, a result is the exact sum of exactly its survivors, and no client masks twice in a round.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from secagg import Result, Schema, SecAggError, averaged, counted, same, summed
from secagg.messages import KINDS, MAGIC, Masked, open_sealed
from tests.secagg.parties import make_parties

SCHEMA = Schema(x=averaged(1.0, "n", shape=(5,)), n=counted(), i=summed(100), model=same())
N = 4


class World:
    """A server, clients, and a network that remembers every message and delivers what it likes."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.parties = make_parties(N, SCHEMA)
        self.messages: list[bytes] = []
        self.values: dict[tuple[int, str], dict] = {}
        self.masked: list[tuple[int, str]] = []
        self.results: list[Result] = []
        self.refused = 0
        self.round = 0

    def pick(self, items):
        return items[int(self.rng.integers(0, len(items)))]

    def step(self) -> None:
        try:
            self.pick([self.server_acts, self.deliver_to_server, self.deliver_to_client, self.submit])()
        except SecAggError:
            self.refused += 1

    def server_acts(self) -> None:
        server = self.parties.server
        match int(self.rng.integers(0, 40)):
            case 0:
                server.abort()
            case n if n < 14:
                self.round += int(self.rng.integers(0, 3))
                self.messages.append(server.open(self.round))
            case n if n < 27:
                if not server.missing or self.rng.random() < 0.05:
                    self.messages.append(server.close_adverts())
            case _:
                if not server.missing or self.rng.random() < 0.02:
                    self.results.append(server.result())

    def message(self) -> bytes:
        recent = self.messages[-N - 1 :] if self.rng.random() < 0.9 else self.messages
        data = self.pick(recent) if recent else b""
        if self.rng.random() < 0.03 and data:
            damaged = bytearray(data)
            damaged[int(self.rng.integers(0, len(data)))] ^= 1 << int(self.rng.integers(0, 8))
            return bytes(damaged)
        return data

    def deliver_to_server(self) -> None:
        self.parties.server.receive(self.message())

    def deliver_to_client(self) -> None:
        data = self.message()
        for client in self.parties.clients if self.rng.random() < 0.8 else [self.pick(self.parties.clients)]:
            try:
                answer = client.receive(data, declared={"model": "linear"})
            except SecAggError:
                self.refused += 1
                continue
            if answer is not None:
                self.messages.append(answer)
            if answer is not None and self.rng.random() < 0.9:
                self.parties.server.receive(answer)

    def submit(self) -> None:
        client = self.pick(self.parties.clients)
        values = {
            "x": self.rng.uniform(-1, 1, 5),
            "n": int(self.rng.integers(0, 1000)),
            "i": int(self.rng.integers(-100, 101)),
        }
        message = client.submit(values)
        opened = open_sealed(message, (Masked,), self.parties.roster.clients, 10**6)
        key = (opened.message.round, client.name)
        self.masked.append(key)
        self.values[key] = values
        self.messages.append(message)
        if self.rng.random() < 0.9:
            self.parties.server.receive(message)

    def verify(self) -> None:
        assert max(Counter(self.masked).values(), default=0) <= 1, "a client masked twice in one round"
        assert len({result.round for result in self.results}) == len(self.results), "a round gave two results"
        for result in self.results:
            values = [self.values[result.round, name] for name in result.survivors]
            weight = sum(v["n"] for v in values)
            assert result.values["n"] == weight
            assert result.values["i"] == sum(v["i"] for v in values)
            assert len(values) >= 3
            if weight:
                mean = sum(v["n"] * v["x"] for v in values) / weight
                assert np.max(np.abs(result.values["x"] - mean)) <= SCHEMA["x"].quantum * (1 + 1e-9)


@pytest.mark.parametrize("block", range(4))
def test_whatever_the_schedule_results_are_exact_and_masks_are_used_once(block):
    results = refused = 0
    for seed in range(10 * block, 10 * block + 10):
        world = World(seed)
        for _ in range(400):
            world.step()
        world.verify()
        results += len(world.results)
        refused += world.refused
    assert results >= 5, "the schedules get rounds done"
    assert refused >= 100, "and get much wrong"


def test_the_magic_and_kinds_are_stable():
    """A change of these is a change of the protocol's version."""
    assert MAGIC == b"SAG\x01"
    assert {kind.__name__: number for kind, number in KINDS.items()} == {
        "Offer": 0,
        "Advert": 1,
        "RosterMessage": 2,
        "Masked": 4,
    }
