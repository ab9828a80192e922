"""Machines: a round of real state machines in one process, every message from one hand to the other.

It is the protocol to the last byte, but it hides nothing from the process that it runs in: whoever can read
the memory has all clients' values and keys. For trials, tests and measurements.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from ..client import Client, ClientPhase
from ..reductions import Declared
from ..server import Result, Server, ServerPhase

Progress: TypeAlias = Callable[[str, float], None]
"""Is told what is being done and the fraction of it that is."""
STAGES: Final = ("advert", "shares", "vector", "consistency", "unmask")
"""What a client sends, in order; from one of these on it may be lost."""
_WORK: Final = ("advert", "shares", "delivery", "vector", "consistency", "unmask")
"""What a client does, in order; what a delivery is answered with is the vector, later."""


@dataclass
class Costs:
    """What a round cost each party; hand one to `run_round` to have it filled.

    Attributes:
        client_seconds: Each client's processor seconds by stage, by client; ``"delivery"`` is the work on
            what the others sealed for it, between ``"shares"`` and ``"vector"``.
        server_seconds: The server's processor seconds by stage: receiving, and ending the stage. ``"offer"``
            opens the round, ``"result"`` is reconstruction, unmasking and decoding.
        bytes_up: Bytes that each client sent, by client, those that were lost included.
        bytes_down: Bytes that the server sent, by client.
    """

    client_seconds: dict[str, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))
    server_seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    bytes_up: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    bytes_down: dict[str, int] = field(default_factory=lambda: defaultdict(int))


def run_round(
    server: Server,
    clients: Sequence[Client],
    values: Sequence[Mapping[str, Any]],
    *,
    round: int = 1,
    drops: Mapping[str, str] | None = None,
    beacon: bytes | None = None,
    context: bytes = b"",
    declared: Sequence[Mapping[str, Declared]] | None = None,
    costs: Costs | None = None,
    progress: Progress | None = None,
) -> Result:
    """Drive a server and its clients through one round, in this process.

    It protects nobody from this process: all keys and values are in its memory. What runs is the protocol,
    message by message; only the network is left out.

    Args:
        server: An idle server.
        clients: Its clients, any of the roster.
        values: What each client submits, in the order of `clients`.
        round: Number of the round.
        drops: By client, from which of `STAGES` on nothing of it reaches the server any more.
        beacon: What everybody draws a sparse graph with; needed where the server offers one.
        context: The bytes that all hold alike, such as a model.
        declared: Values of `same` and `public` fields, in the order of `clients`.
        costs: Filled with seconds and bytes.
        progress: Called with a stage and the fraction of its clients that were served.

    Returns:
        What the round released.

    Raises:
        ValueError: If `values` or `declared` do not fit `clients`, or `drops` names what is not there.
        SecAggError: Whatever the server or a client raises; too many drops, say, give CohortError.

    Example:
        >>> from secagg import Client, Identity, MemoryRegister, Roster, Schema, Server, summed
        >>> schema, boss = Schema(x=summed(3, shape=())), Identity.generate("server")
        >>> people = [Identity.generate(f"c{i}") for i in range(6)]
        >>> roster = Roster(boss.public_key, {p.name: p.public_key for p in people})
        >>> clients = [Client(p, roster, schema, register=MemoryRegister()) for p in people]
        >>> server = Server(boss, roster, schema)
        >>> result = run_round(server, clients, [{"x": i % 3} for i in range(6)], drops={"c5": "vector"})
        >>> result.values["x"], result.dropped
        (4, ('c5',))
    """
    names = [client.name for client in clients]
    drops = drops or {}
    if len(values) != len(names) or (declared is not None and len(declared) != len(names)):
        raise ValueError(f"Expected values, and declared= if given, for each of {len(names)} clients.")
    if unknown := [name for name, stage in drops.items() if name not in names or stage not in STAGES]:
        raise ValueError(f"Expected drops of clients at one of {STAGES}, got others for {unknown}.")
    driver = _Driver(server, clients, drops, Costs() if costs is None else costs, progress)
    with driver.timed("offer"):
        offer = server.open(round, context=context)
    stated = dict(zip(names, declared or [{}] * len(names), strict=True))
    given = dict(zip(names, values, strict=True))
    driver.ask(
        "advert",
        dict.fromkeys(names, offer),
        lambda client, message: client.receive(message, context=context, declared=stated[client.name]),
    )
    driver.ask("shares", driver.end("advert", beacon), lambda c, message: _deal(c, message, beacon))
    driver.ask("delivery", driver.end("shares"), Client.receive)
    ready = {client.name: b"" for client in clients if client.phase is ClientPhase.READY}
    driver.ask("vector", ready, lambda client, _: client.submit(given[client.name]))
    driver.ask("consistency", driver.end("vector"), Client.receive)
    driver.ask("unmask", driver.end("consistency"), Client.receive)
    with driver.timed("result"):
        return server.result()


def _deal(client: Client, roster: bytes, beacon: bytes | None) -> bytes | None:
    shares = client.receive(roster)
    return client.draw_graph(beacon) if shares is None and beacon is not None else shares


class _Driver:
    """Carries messages; keeps who is lost, and what everything costs."""

    def __init__(
        self,
        server: Server,
        clients: Collection[Client],
        drops: Mapping[str, str],
        costs: Costs,
        progress: Progress | None,
    ) -> None:
        self._server, self._clients, self._costs, self._progress = server, clients, costs, progress
        self._lost_from = {name: _WORK.index(stage) for name, stage in drops.items()}

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Count what the server does meanwhile."""
        began = time.process_time()
        yield
        self._costs.server_seconds[stage] += time.process_time() - began

    def end(self, stage: str, beacon: bytes | None = None) -> dict[str, bytes]:
        """Have the server end a stage."""
        with self.timed(stage):
            messages = self._server.advance()
            if beacon is not None and self._server.phase is ServerPhase.BEACON:
                self._server.draw_graph(beacon)
        return messages

    def ask(
        self,
        stage: str,
        messages: Mapping[str, bytes],
        answer: Callable[[Client, bytes], bytes | None],
    ) -> None:
        """Hand each client its message, and its answer to the server unless the client is lost by then."""
        number = _WORK.index(stage)
        for place, client in enumerate(self._clients):
            name = client.name
            if name not in messages or self._lost_from.get(name, number) < number:
                continue
            self._costs.bytes_down[name] += len(messages[name])
            began = time.process_time()
            sent = answer(client, messages[name])
            self._costs.client_seconds[name][stage] = time.process_time() - began
            if sent is not None:
                self._costs.bytes_up[name] += len(sent)
                if self._lost_from.get(name) != number:
                    with self.timed(stage):
                        self._server.receive(sent)
            if self._progress is not None:
                self._progress(stage, (place + 1) / len(self._clients))
