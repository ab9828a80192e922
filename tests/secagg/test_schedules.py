"""Any schedule of honest parties: lost, doubled, late, reordered and damaged messages, calls out of turn.

Whatever happens, a result is the exact sum of exactly its survivors, and no client ever masks two vectors,
signs two sets of survivors, or gives two lots of shares in a round.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from secagg import (
    ClientPhase,
    Policy,
    Result,
    Schema,
    SecAggError,
    ServerPhase,
    averaged,
    counted,
    same,
    summed,
)
from secagg.messages import Consistency, Masked, Shares, Unmask, open_sealed
from tests.secagg.parties import make_parties

SCHEMA = Schema(x=averaged(1.0, "n", shape=(5,)), n=counted(), i=summed(100), model=same())
N = 5
ONCE = (Shares, Masked, Consistency, Unmask)


class World:
    """A server, clients, and a network that remembers every message and delivers what it likes."""

    def __init__(self, seed: int, hybrid: bool = False) -> None:
        self.rng = np.random.default_rng(seed)
        policy = Policy(min_clients=3, allow_three=True, threshold_fraction=0.6, colluders=0, hybrid=hybrid)
        self.parties = make_parties(N, SCHEMA, policy=policy)
        self.under_way: list[tuple[str, bytes]] = []
        self.past: list[tuple[str, bytes]] = []
        self.values: dict[tuple[int, str], dict] = {}
        self.sent: list[tuple[type, int, str]] = []
        self.vectors: dict[tuple[int, str], list[bytes]] = {}
        self.results: list[Result] = []
        self.refused = 0
        self.round = 0

    def pick(self, items):
        return items[int(self.rng.integers(0, len(items)))]

    def step(self) -> None:
        try:
            self.pick([self.server_acts, self.deliver, self.deliver, self.deliver, self.submit])()
        except SecAggError:
            self.refused += 1

    def server_acts(self) -> None:
        """Open, end the stage, or give up: mostly when it is time to, sometimes when it is not."""
        server, hurry = self.parties.server, self.rng.random()
        if hurry < 0.003:
            server.abort()
        elif server.phase is ServerPhase.IDLE or hurry < 0.01:
            self.round += int(self.rng.integers(0, 3))
            self.send(dict.fromkeys(self.parties.names(), server.open(self.round)))
        elif not server.missing or (server.enough and hurry < 0.1) or hurry < 0.02:
            if server.phase is ServerPhase.UNMASKING or hurry < 0.015:
                self.results.append(server.result())
            else:
                self.send(server.advance())

    def send(self, messages: dict[str, bytes]) -> None:
        self.under_way += messages.items()

    def deliver(self) -> None:
        """One message, most often a new one, to whom it is for; lost, altered or to another now and then."""
        luck = self.rng.random()
        if luck < 0.9 and self.under_way:
            to, data = self.under_way.pop(int(self.rng.integers(0, min(12, len(self.under_way)))))
            self.past.append((to, data))
        elif self.past:
            to, data = self.pick(self.past[-40:] if luck < 0.97 else self.past)
        else:
            return
        if self.rng.random() < 0.02:
            return
        if self.rng.random() < 0.02:
            damaged = bytearray(data)
            damaged[int(self.rng.integers(0, len(data)))] ^= 1 << int(self.rng.integers(0, 8))
            data = bytes(damaged)
        if self.rng.random() < 0.02:
            to = self.pick(["", *self.parties.names()])
        if to == "":
            self.parties.server.receive(data)
            return
        client = next(client for client in self.parties.clients if client.name == to)
        answer = client.receive(data, declared={"model": "linear"})
        if answer is not None:
            self.answer(client, answer)

    def answer(self, client, data: bytes) -> None:
        for kind in ONCE:
            try:
                opened = open_sealed(data, (kind,), self.parties.roster.clients, 10**6)
            except SecAggError:
                continue
            self.sent.append((kind, opened.message.round, client.name))
        self.under_way.append(("", data))

    def submit(self) -> None:
        waiting = [client for client in self.parties.clients if client.phase is ClientPhase.READY]
        client = (
            self.pick(waiting) if waiting and self.rng.random() < 0.95 else self.pick(self.parties.clients)
        )
        values = {
            "x": self.rng.uniform(-1, 1, 5),
            "n": int(self.rng.integers(0, 1000)),
            "i": int(self.rng.integers(-100, 101)),
        }
        if self.rng.random() < 0.3:
            messages = list(client.submit_parts(values, part_words=int(self.rng.integers(1, 6))))
        else:
            messages = [client.submit(values)]
        opened = open_sealed(messages[0], (Masked,), self.parties.roster.clients, 10**6)
        self.values[opened.message.round, client.name] = values
        self.answer(client, messages[0])
        self.under_way += [("", message) for message in messages[1:]]

    def verify(self) -> None:
        assert max(Counter(self.sent).values(), default=0) <= 1, "something that leaves once left twice"
        assert len({result.round for result in self.results}) == len(self.results), "a round gave two results"
        for result in self.results:
            values = [self.values[result.round, name] for name in result.survivors]
            weight = sum(v["n"] for v in values)
            assert result.values["n"] == weight
            assert result.values["i"] == sum(v["i"] for v in values)
            assert len(values) >= 3
            assert not result.faulty
            if weight:
                mean = sum(v["n"] * v["x"] for v in values) / weight
                assert np.max(np.abs(result.values["x"] - mean)) <= SCHEMA["x"].quantum * (1 + 1e-9)


def run_worlds(seeds, steps: int, hybrid: bool = False) -> None:
    results, with_dropouts, refused = 0, 0, 0
    for seed in seeds:
        world = World(seed, hybrid)
        for _ in range(steps):
            world.step()
        world.verify()
        world.parties.server.abort()
        results += len(world.results)
        with_dropouts += sum(len(result.survivors) < N for result in world.results)
        refused += world.refused
    assert results >= len(seeds), "the schedules get rounds done"
    assert with_dropouts >= len(seeds) / 4, "some of them without everybody"
    assert refused >= 20 * len(seeds), "and get much wrong"


@pytest.mark.parametrize("block", range(4))
def test_whatever_the_schedule_results_are_exact_and_everything_leaves_once(block):
    run_worlds(range(5 * block, 5 * block + 5), 900)


def test_hybrid_rounds_too():
    run_worlds(range(100, 104), 900, hybrid=True)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(6))
def test_many_schedules(block):
    run_worlds(range(1000 + 30 * block, 1000 + 30 * block + 30), 800)
