"""A round at the scale of Bonawitz et al. (2017): one real client and the real server among many cheap peers.

The client under test and the server are the state machines, signatures and all. The other clients' messages
are made from what only a simulation has in one place, and are no different to those two:

- a peer's box for the client under test is sealed, and its receipt for that client's box is right; those
  between two peers, which nobody opens here, are random bytes, as they look to a server;
- a masked vector is a random one, all but the last: that one makes the sum what it must be;
- all peers' secrets are shared out in one matrix product.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
import numpy as np

from secagg import Client, Encoding, Identity, MemoryRegister, Policy, Roster, Server, shamir
from secagg.ephemeral import RECEIPT_BYTES, Binding, MaskKey, PublicKeys, TransportKey, self_mask_key
from secagg.graph import threshold
from secagg.masks import Mask, add_masks
from secagg.messages import (
    Advert,
    Consistency,
    Masked,
    Message,
    Shares,
    Unmask,
    open_sealed,
    seal,
)
from secagg.sharing import MASK_SEED, SELF_SEED, box_bytes, hash_seed
from secagg.simulate.curves import Curves, measure
from secagg.simulate.pairs import KEY_BYTES, PairKeys, Side
from secagg.simulate.segment import FIELD, draw_values, field_schema

from .harness import Benchmark, Case, Disagreement
from .masking import raw_keystream

M = TypeVar("M", bound=Message)
ENTRIES = 100_000
DROPPED = (0.0, 0.1, 0.3)
PAPER = {(500, 0.3): 144.0, (1000, 0.3): 414.0}
"""Seconds of the server in the paper's table. Where none is quoted, the baseline is the keystream that the
masks cannot do without."""
GROWTH = {
    "clients": {"client_seconds": 1, "server_seconds": 2, "client_bytes": 1, "server_bytes": 2},
    "entries": {"client_seconds": 1, "server_seconds": 1, "client_bytes": 1},
}
"""Powers with which a round's costs grow at most, by the protocol's work (Bonawitz et al. 2017, Table 1)."""
_SAMPLE = 200
"""Keystreams that are timed for a baseline of ever so many."""
_AT_ONCE = 50
SEEN = "c0000"
"""The client under test; it stays to the end."""


@dataclass(repr=False)
class Peer:
    """A client that exists only as far as others see it."""

    identity: Identity
    key: MaskKey = field(default_factory=lambda: MaskKey.generate(False))
    transport: TransportKey = field(default_factory=lambda: TransportKey(False))
    seed: bytes = field(default_factory=lambda: os.urandom(32))

    @property
    def publics(self) -> PublicKeys:
        """As its advert states them."""
        return PublicKeys(self.key.public, self.transport.keys[0])


@dataclass
class Measured:
    """Processor seconds by stage of the client under test and of the server."""

    client: dict[str, float] = field(default_factory=dict)
    server: dict[str, float] = field(default_factory=dict)
    up: int = 0
    down: int = 0

    @contextmanager
    def timed(self, who: str, stage: str) -> Iterator[None]:
        """Count what one of the two does meanwhile."""
        seconds = self.client if who == "client" else self.server
        began = time.process_time()
        yield
        seconds[stage] = seconds.get(stage, 0.0) + time.process_time() - began


class Round:
    """One round of `n` clients of which a fraction is lost before its vectors come."""

    def __init__(self, n: int, entries: int, dropout: float) -> None:
        self.names = [f"c{i:04d}" for i in range(n)]
        self.lost = set(self.names[1 : 1 + round(dropout * n)])
        self.stays = [name for name in self.names if name not in self.lost]
        self.schema, policy = field_schema(entries, 16), Policy()
        boss = Identity.generate("server")
        own = Identity.generate(SEEN)
        self.peers = {name: Peer(Identity.generate(name)) for name in self.names[1:]}
        keys = {name: peer.identity.public_key for name, peer in self.peers.items()}
        roster = Roster(boss.public_key, {SEEN: own.public_key, **keys})
        self.keys = {"": boss.public_key, **roster.clients}
        self.server = Server(boss, roster, self.schema, policy=policy)
        self.client = Client(own, roster, self.schema, policy=policy, register=MemoryRegister())
        self.encoding = Encoding(self.schema, n)
        self.threshold = threshold(policy.threshold_fraction, n)
        self.measured = Measured()

    def run(self) -> Measured:
        """All stages; raises Disagreement unless the result is the clear sum."""
        with self.measured.timed("server", "offer"):
            offer = self.server.open(1)
        own = self._client("advert", self.client.receive, offer)
        roster = self._advertise(own)
        shares = self._client("shares", self.client.receive, roster)
        delivery = self._share(shares)
        self._client("delivery", self.client.receive, delivery)
        values = draw_values(self.schema, np.random.default_rng(), 1)[0]
        vector = self._client("vector", lambda _: self.client.submit({FIELD: values}), b"")
        survivors = self._vectors(vector, values)
        signature = self._client("consistency", self.client.receive, survivors)
        agreement = self._consistency(survivors, signature)
        answer = self._client("unmask", self.client.receive, agreement)
        self._unmask(answer)
        with self.measured.timed("server", "result"):
            result = self.server.result()
        if not np.array_equal(result.values[FIELD], self.clear):
            raise Disagreement("the released sum is not the clear one")
        return self.measured

    def _client(self, stage: str, act: Callable[[bytes], bytes | None], message: bytes) -> bytes:
        with self.measured.timed("client", stage):
            answer = act(message)
        self.measured.down += len(message)
        self.measured.up += len(answer or b"")
        return answer or b""

    def _serve(self, stage: str, messages: Any) -> None:
        for message in messages:
            with self.measured.timed("server", stage):
                self.server.receive(message)

    def _advance(self, stage: str) -> bytes:
        """End a stage; what the server has for the client under test."""
        with self.measured.timed("server", stage):
            messages = self.server.advance()
        return messages[SEEN]

    def _advertise(self, own: bytes) -> bytes:
        """Peers answer the offer as the client under test did, with their own keys."""
        template = self._read(Advert, own)
        self.header = (template.session, template.round)
        adverts = [own]
        for name, peer in self.peers.items():
            keys = {"mask_key": peer.publics.mask, "transport_key": peer.publics.transport}
            advert = msgspec.structs.replace(template, sender=name, **keys)
            adverts.append(seal(peer.identity, advert)[0])
        self._serve("advert", adverts)
        self.context = template.context
        roster = self._advance("advert")
        self.publics = {name: peer.publics for name, peer in self.peers.items()}
        self.publics[SEEN] = PublicKeys(template.mask_key, template.transport_key)
        return roster

    def _share(self, own: bytes) -> bytes:
        """Every peer deals both its secrets to all; kept is what each holder will be asked for."""
        roster = self._read(Shares, own).roster
        self.binding = Binding(*self.header, roster, self.context, self.schema.digest)
        self.given = np.empty((len(self.names), len(self.names), shamir.LIMBS), "<u4")
        messages = [own]
        for low in range(1, len(self.names), _AT_ONCE):
            some = self.names[low : low + _AT_ONCE]
            seeds = [seed for name in some for seed in (self.peers[name].seed, self.peers[name].key.seed)]
            dealt = shamir.split(seeds, len(self.names), self.threshold)
            dealt = dealt.astype("<u4").reshape(len(self.names), len(some), 2, shamir.LIMBS)
            for place, name in enumerate(some):
                which = MASK_SEED if name in self.lost else SELF_SEED
                self.given[:, low + place] = dealt[:, place, which]
                messages.append(self._shares_message(name, dealt[0, place].tobytes()))
        self._serve("shares", messages)
        self._open_own(open_sealed(own, (Shares,), self.keys, len(own)).tail)
        return self._advance("shares")

    def _shares_message(self, name: str, for_seen: bytes) -> bytes:
        """Boxes by the holders' ids, of which the first is the client under test."""
        peer = self.peers[name]
        box, _ = peer.transport.seal(name, SEEN, self.publics[SEEN], self.binding, for_seen)
        boxes = box + os.urandom((len(self.names) - 2) * box_bytes(False))
        seed = hash_seed(self.binding, name, peer.seed)
        return seal(peer.identity, Shares(*self.header, name, self.binding.roster, seed), boxes)[0]

    def _open_own(self, boxes: memoryview) -> None:
        """The shares that the client under test dealt to its peers, and the receipts that it awaits."""
        self.receipts: dict[str, bytes] = {}
        size = box_bytes(False)
        for place, (name, peer) in enumerate(self.peers.items()):
            box = bytes(boxes[place * size : (place + 1) * size])
            plain, self.receipts[name] = peer.transport.open(
                name, SEEN, self.publics[SEEN], self.binding, box
            )
            self.given[place + 1, 0] = np.frombuffer(plain, "<u4").reshape(2, shamir.LIMBS)[SELF_SEED]

    def _vectors(self, own: bytes, values: Any) -> bytes:
        """Random vectors whose sum is that of the peers' values, masked."""
        common = draw_values(self.schema, np.random.default_rng(), 1)[0]
        *others, last = self.stays[1:]
        total = self.encoding.encode({FIELD: common}, np.random.default_rng()) * np.uint64(len(others) + 1)
        add_masks(total, self._masks(), threads=2)
        self.clear = values + (len(others) + 1) * common
        self._serve("vector", [own])
        for name in others:
            words = np.frombuffer(os.urandom(total.nbytes), "<u8")
            total -= words
            self._serve("vector", [self._masked(name, words)])
        self._serve("vector", [self._masked(last, total)])
        return self._advance("vector")

    def _masked(self, name: str, words: Any) -> bytes:
        """A vector, with a right receipt for the box of the client under test, and random ones beside."""
        others = os.urandom((len(self.names) - 2) * RECEIPT_BYTES)
        return self._sealed(name, Masked, words, start=0, receipts=self.receipts[name] + others)

    def _masks(self) -> Iterator[Mask]:
        """Of the masks on the surviving peers' vectors, those that do not cancel among them."""
        keys = PairKeys(self.binding)
        sides = {name: Side.of(name, publics.mask) for name, publics in self.publics.items()}
        for name in self.stays[1:]:
            peer = self.peers[name]
            yield Mask(self_mask_key(peer.seed, name, peer.publics, self.binding, KEY_BYTES), 1)
            for other in (SEEN, *self.lost):
                key = keys.key(peer.key, sides[name], sides[other])
                yield Mask(key, 1 if name < other else -1)

    def _consistency(self, survivors: bytes, own: bytes) -> bytes:
        self.agreed = self._read(Consistency, own).survivors
        sealed = [self._sealed(name, Consistency, survivors=self.agreed) for name in self.stays[1:]]
        self._serve("consistency", [own, *sealed])
        return self._advance("consistency")

    def _unmask(self, own: bytes) -> None:
        places = {name: place for place, name in enumerate(self.names)}
        answers = (
            self._sealed(name, Unmask, self.given[places[name]], survivors=self.agreed)
            for name in self.stays[1:]
        )
        self._serve("unmask", [own])
        self._serve("unmask", answers)

    def _read(self, kind: type[M], sealed: bytes) -> M:
        header = open_sealed(sealed, (kind,), self.keys, len(sealed)).message
        assert isinstance(header, kind)
        return header

    def _sealed(self, name: str, kind: Any, tail: Any = b"", **fields: Any) -> bytes:
        header = kind(*self.header, name, roster=self.binding.roster, **fields)
        return seal(self.peers[name].identity, header, tail)[0]


def cases() -> Iterator[Benchmark]:
    """The paper's table, ours beside it; then how costs grow."""
    for n in (500, 1000):
        for dropout in DROPPED:
            for who in ("server", "client"):
                case = f"table, n={n}, {dropout:.0%} dropped, {ENTRIES:,} entries, {who}"
                yield Benchmark(case, functools.partial(_table, case, n, dropout, who))
    for of, costs in GROWTH.items():
        for cost, power in costs.items():
            case = f"curves, {cost.replace('_', ' ')}, power of {of}"
            yield Benchmark(case, functools.partial(_growth, case, of, cost, power))


@functools.lru_cache(maxsize=1)
def _measured(n: int, dropout: float) -> Measured:
    return Round(n, ENTRIES, dropout).run()


def _table(case: str, n: int, dropout: float, who: str) -> Case:
    measured = _measured(n, dropout)
    ours = sum((measured.client if who == "client" else measured.server).values())
    name = "bonawitz 2017"
    baseline = PAPER.get((n, dropout)) if who == "server" else None
    bar = None if baseline is None else 1.0
    if baseline is None:
        name = "keystream"
        lost = round(dropout * n)
        keys = n if who == "client" else (n - lost) * (lost + 1)
        baseline = _keystream(n) * keys
    return Case(case, ours, baseline, name, ours / baseline, ours, baseline, ours / baseline, 1, bar=bar)


def _keystream(n: int) -> float:
    """Processor seconds of one mask's keystream."""
    num_bytes = 8 * Encoding(field_schema(ENTRIES, 16), n).words
    raw_keystream(num_bytes, 1)
    began = time.process_time()
    raw_keystream(num_bytes, _SAMPLE)
    return (time.process_time() - began) / _SAMPLE


@functools.cache
def _curves() -> Curves:
    return measure()


def _growth(case: str, of: str, cost: str, power: float) -> Case:
    found = next(e for e in _curves().exponents if (e.cost, e.of) == (cost, of))
    ratio = found.value / power
    return Case(case, found.value, power, "at most", ratio, found.value, power, ratio, 1, unit="", bar=1.1)
