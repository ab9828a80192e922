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
from ..graph import COMPLETE_UP_TO
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

    Guarantees:
        - After an error nobody is left in the round: server and clients take the next one. Its number is
          used up.
        - What a client raises carries a note with its name.

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
        TypeError: If `clients`, `values` or `declared` is a mapping.
        ValueError: If `values` or `declared` do not fit `clients`, `drops` names what is not there, or a
            beacon is needed and not given.
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
    drops = drops or {}
    _verify(clients, values, declared, drops)
    there = sum(drops.get(client.name) != "advert" for client in clients)
    if beacon is None and server._degree and there > COMPLETE_UP_TO:
        raise ValueError(
            f"Expected beacon= for a round of {there} clients whose server has degree={server._degree}, got "
            "none. Give 16 random bytes or more, which nobody knew before."
        )
    driver = _Driver(server, clients, drops, Costs() if costs is None else costs, progress)
    with driver.timed("offer"):
        offer = server.open(round, context=context)
    try:
        driver.carry(offer, values, declared or [{}] * len(clients), context, beacon)
        with driver.timed("result"):
            return server.result()
    except BaseException:
        driver.abort()
        raise


def _verify(
    clients: Sequence[Client],
    values: Sequence[Mapping[str, Any]],
    declared: Sequence[Mapping[str, Declared]] | None,
    drops: Mapping[str, str],
) -> None:
    """Raise TypeError or ValueError unless the arguments fit each other."""
    for what, given in (("clients", clients), ("values", values), ("declared", declared)):
        if isinstance(given, Mapping):
            raise TypeError(
                f"Expected {what} as a sequence, in the order of clients, got {type(given).__name__}. Give "
                f"list({what}.values())."
            )
    names = [client.name for client in clients]
    if len(values) != len(names) or (declared is not None and len(declared) != len(names)):
        raise ValueError(f"Expected values, and declared= if given, for each of {len(names)} clients.")
    if unknown := [name for name, stage in drops.items() if name not in names or stage not in STAGES]:
        raise ValueError(f"Expected drops of clients at one of {STAGES}, got others for {unknown}.")


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
        self._joined: list[Client] = []

    def carry(
        self,
        offer: bytes,
        values: Sequence[Mapping[str, Any]],
        declared: Sequence[Mapping[str, Declared]],
        context: bytes,
        beacon: bytes | None,
    ) -> None:
        """All messages from the offer to the last share."""
        names = [client.name for client in self._clients]
        stated = dict(zip(names, declared, strict=True))
        given = dict(zip(names, values, strict=True))
        self.ask(
            "advert", dict.fromkeys(names, offer), lambda c, m: self._join(c, m, context, stated[c.name])
        )
        self.ask("shares", self.end("advert", beacon), lambda c, message: _deal(c, message, beacon))
        self.ask("delivery", self.end("shares"), Client.receive)
        ready = {client.name: b"" for client in self._clients if client.phase is ClientPhase.READY}
        self.ask("vector", ready, lambda client, _: client.submit(given[client.name]))
        self.ask("consistency", self.end("vector"), Client.receive)
        self.ask("unmask", self.end("consistency"), Client.receive)

    def _join(
        self, client: Client, offer: bytes, context: bytes, declared: Mapping[str, Declared]
    ) -> bytes | None:
        advert = client.receive(offer, context=context, declared=declared)
        self._joined.append(client)
        return advert

    def abort(self) -> None:
        """Let everybody out of the round; one that refused the offer may be in another."""
        self._server.abort()
        for client in self._joined:
            client.abort()

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
            try:
                sent = answer(client, messages[name])
            except Exception as error:
                error.add_note(f"Raised by client {name!r} at {stage!r}.")
                raise
            self._costs.client_seconds[name][stage] = time.process_time() - began
            if sent is not None:
                self._costs.bytes_up[name] += len(sent)
                if self._lost_from.get(name) != number:
                    with self.timed(stage):
                        self._server.receive(sent)
            if self._progress is not None:
                self._progress(stage, (place + 1) / len(self._clients))
