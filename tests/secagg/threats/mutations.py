"""Mutations: recorded rounds with the states that machines were in, and hostile inputs made out of both."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from secagg import Client, Identity, Policy, Schema, Server, adaptive, averaged, counted, public, same, summed
from secagg.messages import MAGIC, _digest, _signed
from tests.secagg.parties import Parties, make_parties
from tests.secagg.threats.snapshots import snapshot, snapshot_of_server

SCHEMA = Schema(
    x=summed(1.0, shape=(3,)),
    y=averaged(adaptive(1.0, at_most=4.0), weight="n"),
    n=counted(),
    model=same(),
    note=public(),
    blob=public(),
)
DECLARED: dict[str, Any] = {"model": "a model", "note": "a note", "blob": b"\x00\x01"}
VALUES = {"x": [0.1, 0.2, 0.3], "y": 0.5, "n": 3}
PLAIN = Policy(min_clients=3, allow_three=True)
HYBRID = Policy(min_clients=3, allow_three=True, hybrid=True)
TAILED = {3, 4, 5, 8, 9}
FROM_SERVER = {0, 2, 4, 6, 8}


class Lax(Policy):
    """Allows a ring of 34 with few neighbours, so that its phases can be reached."""

    __slots__ = ()

    def verify_graph(self, *_: Any) -> None:
        pass


@dataclass
class Message:
    """A recorded message, taken apart."""

    data: bytes
    signer: Identity

    @property
    def kind(self) -> int:
        return self.data[4]

    def parts(self) -> tuple[list[Any], bytes]:
        end = 73 + int.from_bytes(self.data[69:73], "little")
        return msgspec.msgpack.decode(self.data[73:end]), self.data[end:]


@dataclass
class State:
    """A machine in one phase, with what comes next if nobody interferes."""

    name: str
    machine: Client | Server
    expected: int
    world: World


@dataclass
class World:
    """The messages and states of one recorded round."""

    parties: Parties
    messages: list[Message] = field(default_factory=list)
    states: list[State] = field(default_factory=list)

    def add(self, data: bytes, signer: Identity) -> bytes:
        self.messages.append(Message(data, signer))
        return data

    def keep(self, expected_by_client: int, expected_by_server: int) -> None:
        client, server = self.parties.clients[0], self.parties.server
        name = f"client, {client.phase.value}"
        self.states.append(State(name, snapshot(client), expected_by_client, self))
        name = f"server, {server.phase.value}"
        self.states.append(State(name, snapshot_of_server(server), expected_by_server, self))

    def of(self, kind: int) -> list[Message]:
        return [message for message in self.messages if message.kind == kind]


def recorded(policy: Policy, schema: Schema = SCHEMA) -> World:
    """A whole round of four, with the machines as they are before each message."""
    parties = make_parties(4, schema, policy=policy)
    world, server = World(parties), parties.server
    world.keep(0, 1)
    answers = [world.add(server.open(1), parties.boss)] * 4
    last = None
    for kind in range(0, 10, 2):
        world.keep(kind, kind + 1)
        replies = []
        for i, client in enumerate(parties.clients):
            if kind == 4:
                client.receive(answers[i])
                if i == 0:
                    last = snapshot(client)
                reply: bytes | None = client.submit(VALUES)
            else:
                reply = client.receive(answers[i], declared=DECLARED if kind == 0 else None)
            assert reply is not None
            replies.append(world.add(reply, parties.people[i]))
        for reply in replies[1:]:
            server.receive(reply)
        world.keep((kind + 2) % 10, kind + 1)  # the server lacks one answer
        server.receive(replies[0])
        if kind < 8:
            messages = server.advance()
            answers = [world.add(messages[client.name], parties.boss) for client in parties.clients]
    assert last is not None
    world.states.append(State("client, ready", last, 4, world))
    return world


def sparse() -> World:
    """A ring of 34: a client and a server that wait for a beacon, and after it."""
    parties = make_parties(34, Schema(n=counted()), policy=Lax(min_clients=20, sparse=True), degree=6)
    world, server = World(parties), parties.server
    offer = world.add(server.open(1), parties.boss)
    for client, person in zip(parties.clients, parties.people, strict=True):
        advert = client.receive(offer)
        assert advert is not None
        server.receive(world.add(advert, person))
    roster = world.add(server.advance()["c0"], parties.boss)
    world.keep(2, 3)
    parties.clients[0].receive(roster)
    world.keep(4, 3)
    server.draw_graph(bytes(16))
    world.add(parties.clients[0].draw_graph(bytes(16)), parties.people[0])
    world.keep(4, 3)
    return world


BOMBS = (
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xc9\xff\xff\xff\xff\x01",
    b"\x91" * 3_000,
    b"\x81\xa1a" * 2_000,
    b"\xdc\xff\xff" + b"\xc0" * 65_535,
    b"\x9d" + b"\xca\x7f\xc0\x00\x00" * 13,
)
ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**53 - 1, 2**53, 2**63 - 1, -(2**63), 2**64 - 1, 0.5, 1.0,
    float("nan"), float("inf"), -0.0, 5e-324, "", "c0", "c1", "server", "\x00", "ü" * 64, "x" * 200, b"",
    b"\x00" * 16, b"\x00" * 32, b"\xff" * 32, b"\x00" * 31, b"\x01" + b"\x00" * 31, b"\xff" * 1184, [], {},
    [[]], [None] * 20, {"a": 1}, {"": b""}, {"model": b"\x00" * 32}, "AES-256", "AES-512",
)  # fmt: skip
JSON_ODD = [odd for odd in ODD if "b'" not in repr(odd) and odd == odd]
NOT_BYTES: tuple[Any, ...] = (None, 1, 1.5, "text", [1, 2], {}, object(), np.zeros(100, np.uint8), [b"x"])


class Mutator:
    """Makes inputs out of recorded ones."""

    def __init__(self, rng: random.Random, worlds: list[World]) -> None:
        self.rng, self.worlds = rng, worlds
        self.every = [message for world in worlds for message in world.messages]

    def noise(self, data: bytes) -> bytes:
        """A few random edits of bytes."""
        rng, edited = self.rng, bytearray(data)
        for _ in range(1 + int(rng.expovariate(1))):
            at = rng.randrange(len(edited) + 1)
            match rng.randrange(9):
                case 0 | 1 if edited:
                    edited[at % len(edited)] ^= 1 << rng.randrange(8)
                case 2 if edited:
                    edited[at % len(edited)] = rng.choice((0, 1, 0x7F, 0x80, 0xC0, 0xC4, 0xD9, 0xFE, 0xFF))
                case 3:
                    del edited[at:]
                case 4:
                    edited[at:at] = rng.randbytes(rng.randrange(1, 40))
                case 5:
                    del edited[at : at + rng.randrange(1, 40)]
                case 6:
                    other = rng.choice(self.every).data
                    edited[at:] = other[rng.randrange(len(other)) :]
                case 7 if len(edited) >= 73:
                    length = rng.choice((0, 1, len(edited), 2**31, 2**32 - 1, rng.randrange(2**16)))
                    edited[69:73] = length.to_bytes(4, "little")
                case _ if len(edited) >= 5:
                    edited[4] = rng.randrange(12)
        return bytes(edited)

    def bomb(self, message: Message) -> bytes:
        """A header that claims more than there is, under a good signature."""
        return sealed(message.signer, message.kind, self.rng.choice(BOMBS), b"")

    def raw(self, message: Message) -> bytes:
        """Bytes that no party signed."""
        match self.rng.randrange(20):
            case 0:
                return self.rng.randbytes(self.rng.randrange(300))
            case 1:
                return message.data[:5] + self.rng.randbytes(self.rng.randrange(400))
            case 2:
                bomb = self.rng.choice(BOMBS)
                return MAGIC + message.data[4:69] + len(bomb).to_bytes(4, "little") + bomb
            case 3:
                header, tail = message.parts()
                return message.data[:69] + joined(self.altered(header, message), tail)
            case _:
                return self.noise(message.data)

    def resealed(self, message: Message) -> bytes:
        """What a malicious party that is enrolled can send: fields changed, and signed."""
        rng = self.rng
        if rng.random() < 0.02:
            return self.bomb(message)
        header, tail = message.parts()
        signer = message.signer
        tailed = message.kind in TAILED
        if rng.random() < (0.5 if tailed else 0.95):
            header = self.altered(header, message)
        if tailed and rng.random() < 0.7:
            tail = self.tail(tail)
        elif rng.random() < 0.01:
            tail = rng.randbytes(8)
        if rng.random() < 0.02:
            signer = rng.choice(self.every).signer
        kind = message.kind if rng.random() < 0.98 else rng.randrange(10)
        return sealed(signer, kind, msgspec.msgpack.encode(header), tail)

    def tail(self, tail: bytes) -> bytes:
        rng = self.rng
        match rng.randrange(4):
            case 0:
                return rng.randbytes(len(tail))
            case 1:
                return tail + rng.randbytes(rng.choice((1, 8, 16, 36, 64, 88)))
            case 2:
                return tail[: max(0, len(tail) - rng.choice((1, 8, 16, 36, 64, 88)))]
            case _:
                return self.noise(tail)

    def altered(self, header: list[Any], message: Message) -> list[Any]:
        """A header with one field, sometimes two, that are not what they were."""
        rng, header = self.rng, list(header)
        # Session, round, sender and roster come first: what follows them is more interesting.
        first = 4 if message.kind > 2 else 3
        for _ in range(1 + (rng.random() < 0.2)):
            if not header:
                return header
            later = range(min(first, len(header) - 1), len(header))
            at = rng.randrange(len(header)) if rng.random() < 0.15 else rng.choice(later)
            match rng.randrange(12):
                case 0:
                    header[at] = rng.choice(ODD)
                case 1:
                    del header[at]
                case 2:
                    header.insert(at, rng.choice(ODD))
                case 3:
                    other, _ = rng.choice(self.every).parts()
                    header[at] = rng.choice(other)
                case _:
                    header[at] = self.near(header[at], message)
        return header

    def near(self, value: Any, message: Message) -> Any:
        """A value of the same type, not far from this one."""
        rng = self.rng
        match value:
            case bool():
                return not value
            case int():
                near = (value + 1, value - 1, -value, value * 2, 0, 1, 2**31, 2**53 - 1)
                return rng.choice([v for v in near if -(2**63) <= v < 2**64])
            case float():
                return rng.choice((0.0, 1.0, value / 2, value + 0.1, float("nan"), 1e-300))
            case str():
                return rng.choice(("", value + "x", value[:-1], "c1", "c2", "AES-128", "AES-256", "\ud7ff"))
            case bytes() if message.kind == 0 and value[:1] == b"{":
                return self.schema(value)
            case bytes():
                return self.noise(value) if value and rng.random() < 0.7 else rng.randbytes(len(value))
            case list() if message.kind == 2 and value and all(isinstance(a, bytes) for a in value):
                return self.roster(value)
            case list():
                return value[: rng.randrange(len(value) + 1)]
            case dict():
                changed = dict(value)
                changed[rng.choice(["model", "note", "blob", "x", ""])] = rng.choice(ODD)
                return changed
            case _:
                return rng.choice(ODD)

    def roster(self, adverts: list[Any]) -> list[Any]:
        """Adverts left out, doubled, in another order, noisy, or altered and signed by their clients."""
        rng, adverts = self.rng, list(adverts)
        at = rng.randrange(len(adverts))
        match rng.randrange(6):
            case 0:
                del adverts[at]
            case 1:
                adverts.insert(at, rng.choice(adverts))
            case 2:
                rng.shuffle(adverts)
            case 3:
                adverts[at] = self.noise(adverts[at])
            case _:
                mine = [m for m in self.every if m.data == adverts[at]]
                if mine:
                    header, _ = mine[0].parts()
                    changed = msgspec.msgpack.encode(self.altered(header, mine[0]))
                    adverts[at] = sealed(mine[0].signer, 1, changed, b"")
        return adverts

    def schema(self, data: bytes) -> bytes:
        """Another schema in canonical form, mostly."""
        rng = self.rng
        try:
            tree = json.loads(data)
        except (ValueError, RecursionError):  # it was altered before
            return self.noise(data)
        found = list(places(tree)) if isinstance(tree, (dict, list)) else []
        if not found or rng.random() < 0.3:
            return self.noise(data)
        for _ in range(1 + (rng.random() < 0.3)):
            parent, key = rng.choice(found)
            if rng.random() < 0.1 and isinstance(parent, dict):
                parent.pop(key, None)
                continue
            parent[key] = rng.choice([*JSON_ODD, "summed", "counted", "local", 10**400, -5, 1e308, [1] * 5])
        if rng.random() < 0.02:
            return b'{"fields":' + b"[" * 50_000 + b"]" * 50_000 + b',"version":1}'
        return json.dumps(tree, separators=(",", ":"), sort_keys=True).encode()


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    for key, value in list(tree.items() if isinstance(tree, dict) else enumerate(tree)):
        yield tree, key
        if isinstance(value, (dict, list)):
            yield from places(value)


def joined(header: list[Any], tail: bytes) -> bytes:
    encoded = msgspec.msgpack.encode(header)
    return len(encoded).to_bytes(4, "little") + encoded + tail


def sealed(signer: Identity, kind: int, header: bytes, tail: bytes) -> bytes:
    """Any header and tail, sealed as a message of this kind."""
    length = len(header).to_bytes(4, "little")
    signature = signer.sign(_signed(_digest(kind, length + header, memoryview(tail))))
    return b"".join((MAGIC, bytes([kind]), signature, length, header, tail))
