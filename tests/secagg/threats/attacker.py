"""An attacker: the server's signing key, the memory of some clients, every message; no honest server between.

It sends what it likes to whom it likes, keeps all that comes back, and takes off a masked vector every mask
that what it knows gives. `learn` succeeds only where the words that are left say themselves (zero lane, count
lane) that no mask is on them any more: whoever calls it with too little gets the error of the decoder.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from secagg import (
    Client,
    Encoding,
    Identity,
    MemoryRegister,
    Policy,
    Roster,
    RoundAborted,
    Schema,
    counted,
    shamir,
    summed,
)
from secagg.cohort import adverts_of, bind_beacon, hash_roster, hash_survivors, public_keys
from secagg.ephemeral import RECEIPT_BYTES, Binding, MaskKey, PublicKeys, pair_mask_key, self_mask_key
from secagg.graph import Graph, draw, threshold
from secagg.masks import CIPHER_KEY_BYTES, Mask, add_masks
from secagg.messages import (
    KINDS,
    SIGNATURE_BYTES,
    Agreement,
    Consistency,
    Delivery,
    Masked,
    Message,
    Offer,
    Opened,
    RosterMessage,
    Survivors,
    Unmask,
    open_sealed,
    seal,
    signature_of,
    to_bits,
)
from secagg.sharing import MASK_SEED, SELF_SEED, SHARE_BYTES, box_bytes
from tests.secagg.parties import insecure_rounding

SCHEMA = Schema(x=summed(1.0, shape=(2,)), n=counted())
FOUR = Policy(min_clients=4, colluders=0)
"""What honest clients insist on in most of the attacks: four of them, none of whom works with the server."""
THREE = Policy(min_clients=3, allow_three=True, colluders=0)


def secret_values(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """A value for each client that tells whose it is: exact on the grid of `SCHEMA`, so sums come exact."""
    return {name: {"x": [(7 + i) / 64, -1.0], "n": 100 + 3**i} for i, name in enumerate(names)}


@dataclass
class Seen:
    """What the attacker has of one round."""

    offer: Offer
    digest: bytes
    adverts: dict[str, Opened] = field(default_factory=dict)
    sealed: dict[str, bytes] = field(default_factory=dict)
    boxes: dict[str, Opened] = field(default_factory=dict)
    delivered: dict[str, tuple[str, ...]] = field(default_factory=dict)
    vectors: dict[str, list[Opened]] = field(default_factory=dict)
    signatures: dict[tuple[str, frozenset[str]], bytes] = field(default_factory=dict)
    shares: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    receipts: dict[tuple[str, str], bytes] = field(default_factory=dict)
    beacon: bytes = b""
    seeds: dict[tuple[str, int], bytes] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        return sorted(self.adverts)

    @property
    def roster(self) -> bytes:
        roster = hash_roster(self.digest, self.adverts)
        return bind_beacon(roster, self.beacon) if self.beacon else roster

    @property
    def graph(self) -> Graph:
        return draw(self.names, self.offer.degree, self.roster)

    @property
    def publics(self) -> dict[str, PublicKeys]:
        return {name: public_keys(advert) for name, advert in adverts_of(self.adverts).items()}


class Attacker:
    """The server and the corrupt ones among `n` clients; the honest ones are real, or of a weakened class."""

    def __init__(
        self,
        n: int,
        schema: Schema = SCHEMA,
        *,
        corrupt: Collection[str] = (),
        client: type[Client] = Client,
        policy: Policy = FOUR,
        policies: Mapping[str, Policy] | None = None,
        registers: Mapping[str, Any] | None = None,
    ) -> None:
        self.boss = Identity.generate("server")
        self.people = {f"c{i}": Identity.generate(f"c{i}") for i in range(n)}
        self.roster = Roster(self.boss.public_key, {name: p.public_key for name, p in self.people.items()})
        self.schema, self.policy, self.corrupt = schema, policy, frozenset(corrupt)
        self._made, self._policies = client, dict(policies or {})
        self.clients = {name: self.restarted(name, (registers or {}).get(name)) for name in self.people}
        self.rounds: dict[int, Seen] = {}
        self.now: Seen

    def restarted(self, name: str, register: Any = None) -> Client:
        """A new machine for a client: what its process is after a restart."""
        return self._made(
            self.people[name],
            self.roster,
            self.schema,
            policy=self._policies.get(name, self.policy),
            register=MemoryRegister() if register is None else register,
            rounding=insecure_rounding(self.names.index(name)),
        )

    @property
    def names(self) -> list[str]:
        return list(self.people)

    def sign(self, message: Message, tail: Any = b"") -> bytes:
        """The server's signature is the attacker's."""
        return seal(self.boss, message, tail)[0]

    def opened(self, sealed: bytes) -> Opened:
        keys = {"": self.roster.server, **self.roster.clients}
        return open_sealed(sealed, tuple(KINDS), keys, 10**7)

    def head(self, sender: str = "") -> tuple[bytes, int, str]:
        return self.now.offer.session, self.now.offer.round, sender

    # Stages 0 to 6, each to whom and with what the attacker likes.

    def offer(self, round: int = 1, **changes: Any) -> bytes:
        """Begin a round."""
        offer = Offer(
            session=b"attacked session",
            round=round,
            sender="",
            schema=self.schema.to_bytes(),
            capacity=len(self.people),
            min_clients=self.policy.min_clients,
            threshold_fraction=self.policy.threshold_fraction,
            degree=0,
            cipher="AES-128",
            hybrid=False,
        )
        sealed, digest = seal(self.boss, msgspec.structs.replace(offer, **changes))
        opened = self.opened(sealed).message
        assert isinstance(opened, Offer)
        self.now = self.rounds[round] = Seen(opened, digest)
        return sealed

    def advertise(self, offer: bytes, names: Iterable[str] | None = None, **kwargs: Any) -> None:
        """Stage 1; what the corrupt ones make there is the attacker's."""
        for name in self.names if names is None else names:
            sealed = self.clients[name].receive(offer, **kwargs)
            assert sealed is not None
            self.take_advert(sealed)
            if name in self.corrupt:
                secrets = self.memory(name)
                self.now.seeds[name, SELF_SEED] = secrets._seed
                self.now.seeds[name, MASK_SEED] = secrets._mask_key.seed

    def memory(self, name: str) -> Any:
        """A client's secrets of the round: the attacker's, where the client is corrupt."""
        state = self.clients[name]._round
        assert state is not None
        return state.secrets

    def take_advert(self, sealed: bytes) -> None:
        opened = self.opened(sealed)
        self.now.adverts[opened.message.sender] = opened
        self.now.sealed[opened.message.sender] = sealed

    def roster_message(self) -> bytes:
        adverts = [self.now.sealed[name] for name in self.now.names]
        return self.sign(RosterMessage(*self.head(), adverts=adverts))

    def share(self, names: Iterable[str] | None = None) -> None:
        """Stages 2 and 3."""
        message = self.roster_message()
        for name in self.now.names if names is None else names:
            sealed = self.clients[name].receive(message)
            if self.now.beacon:
                assert sealed is None
                sealed = self.clients[name].draw_graph(self.now.beacon)
            assert sealed is not None
            self.now.boxes[name] = self.opened(sealed)

    def box(self, sender: str, receiver: str, seen: Seen | None = None) -> bytes:
        """What `sender` sealed for `receiver`."""
        seen = seen or self.now
        size = box_bytes(seen.offer.hybrid)
        place = seen.graph.neighbours(sender).index(receiver)
        return bytes(seen.boxes[sender].tail[place * size : (place + 1) * size])

    def delivery(self, receiver: str, senders: Iterable[str], boxes: Mapping[str, bytes] = {}) -> bytes:
        """The boxes of `senders`, or what the attacker puts in their place."""
        chosen = set(senders)
        peers = self.now.graph.neighbours(receiver)
        present = Delivery(*self.head(), roster=self.now.roster, present=to_bits(peers, chosen))
        sealed = (boxes.get(name) or self.box(name, receiver) for name in peers if name in chosen)
        return self.sign(present, b"".join(sealed))

    def deliver(self, senders: Mapping[str, Iterable[str]] | None = None) -> None:
        """Stage 3: to each client the boxes of everybody, or of whom the attacker names."""
        for name in self.now.boxes:
            chosen = set((senders or {}).get(name, self.now.boxes)) & {*self.now.graph.neighbours(name)}
            message = self.delivery(name, chosen)
            self.now.delivered[name] = tuple(sorted({*chosen, name}))
            if name in self.corrupt:
                self.open_boxes(name, chosen)
                with contextlib.suppress(
                    RoundAborted
                ):  # What a machine refuses, its owner reads all the same.
                    self.clients[name].receive(message)
                continue
            assert self.clients[name].receive(message) is None

    def open_boxes(self, name: str, senders: Iterable[str]) -> None:
        """Read both shares out of every box for a corrupt client, and out of its memory its own."""
        secrets, publics = self.memory(name), self.now.publics
        self.take_shares(name, name, secrets._shares[name])
        for sender in senders:
            box, binding = self.box(sender, name), self.binding(self.now)
            plain, receipt = secrets._transport.open(name, sender, publics[sender], binding, box)
            self.now.receipts[name, sender] = receipt
            self.take_shares(name, sender, np.frombuffer(plain, "<u4").reshape(2, shamir.LIMBS))

    def take_shares(self, holder: str, owner: str, both: Any) -> None:
        for which in (SELF_SEED, MASK_SEED):
            self.now.shares.setdefault((owner, which), {})[holder] = np.array(both[which])

    def submit(self, values: Mapping[str, Any], names: Iterable[str] | None = None) -> None:
        """Stage 4."""
        for name in values if names is None else names:
            self.take_vector(self.clients[name].submit(values[name]))

    def take_vector(self, sealed: bytes) -> None:
        opened = self.opened(sealed)
        assert isinstance(opened.message, Masked)
        name, receipts = opened.message.sender, opened.message.receipts
        self.now.vectors.setdefault(name, []).append(opened)
        senders = [peer for peer in self.now.delivered.get(name, ()) if peer != name]
        for place, peer in enumerate(senders):
            self.now.receipts[name, peer] = receipts[place * RECEIPT_BYTES : (place + 1) * RECEIPT_BYTES]

    def survivors(self, chosen: Iterable[str]) -> bytes:
        """The message of stage 5 that names these survivors."""
        bits = to_bits(self.now.names, chosen)
        return self.sign(Survivors(*self.head(), roster=self.now.roster, survivors=bits))

    def ask(self, name: str, chosen: Iterable[str]) -> bytes:
        """Stage 5: have `name` sign this set."""
        chosen = frozenset(chosen)
        sealed = self.clients[name].receive(self.survivors(chosen))
        assert sealed is not None
        self.now.signatures[name, chosen] = signature_of(sealed)
        return sealed

    def forge_corrupt(self, chosen: Iterable[str]) -> None:
        """The corrupt ones sign whatever it takes."""
        chosen = frozenset(chosen)
        agreed = hash_survivors(self.now.roster, to_bits(self.now.names, chosen))
        for name in self.corrupt:
            header = Consistency(*self.head(name), roster=self.now.roster, survivors=agreed)
            self.now.signatures[name, chosen] = signature_of(seal(self.people[name], header)[0])

    def agreement(self, receiver: str, chosen: Iterable[str], signers: Iterable[str] | None = None) -> bytes:
        """The message of stage 6; by default with all signatures of this set that there are.

        Signatures and receipts that the attacker does not have are zeros.
        """
        chosen = frozenset(chosen)
        there = {name for name, signed in self.now.signatures if signed == chosen}
        holders = self.now.graph.holders(receiver)
        who = sorted((there if signers is None else {*signers}) & {*holders})
        header = Agreement(*self.head(), roster=self.now.roster, signers=to_bits(holders, who))
        tail = [self.now.signatures.get((name, chosen), bytes(SIGNATURE_BYTES)) for name in who]
        near = sorted(chosen & {*self.now.graph.neighbours(receiver)})
        tail += [self.now.receipts.get((peer, receiver), bytes(RECEIPT_BYTES)) for peer in near]
        return self.sign(header, b"".join(tail))

    def unmask(self, name: str, chosen: Iterable[str], signers: Iterable[str] | None = None) -> None:
        """Stage 6: have `name` give its shares for this set."""
        chosen = frozenset(chosen)
        sealed = self.clients[name].receive(self.agreement(name, chosen, signers))
        assert sealed is not None
        self.keep_shares(name, self.opened(sealed), chosen)

    def keep_shares(self, name: str, opened: Opened, chosen: frozenset[str]) -> None:
        assert isinstance(opened.message, Unmask)
        rows = np.frombuffer(bytes(opened.tail), "<u4").reshape(-1, SHARE_BYTES // 4)
        for peer, row in zip(self.now.delivered[name], rows, strict=True):
            which = SELF_SEED if peer in chosen else MASK_SEED
            self.now.shares.setdefault((peer, which), {})[name] = row

    def run(self, values: Mapping[str, Any], chosen: Iterable[str], round: int = 1) -> None:
        """A whole round as an honest server would run it, over `values`, with these survivors."""
        self.advertise(self.offer(round))
        self.share()
        self.deliver()
        self.submit(values)
        chosen = sorted(chosen)
        for name in chosen:
            self.ask(name, chosen)
        for name in chosen:
            self.unmask(name, chosen)

    # What it all gives.

    def secret(self, owner: str, which: int, seen: Seen | None = None) -> bytes | None:
        """A client's secret, if the attacker has it or enough shares of it."""
        seen = seen or self.now
        if (owner, which) in seen.seeds:
            return seen.seeds[owner, which]
        held = seen.shares.get((owner, which), {})
        order = seen.graph.holders(owner)
        t = threshold(seen.offer.threshold_fraction, len(order))
        if len(held) < t:
            return None
        holders = sorted(held)[:t]
        points = [1 + order.index(name) for name in holders]
        return shamir.reconstruct(points, np.stack([held[name] for name in holders])[:, None, :])[0]

    def binding(self, seen: Seen) -> Binding:
        context = next(iter(adverts_of(seen.adverts).values())).context
        digest = Schema.from_bytes(seen.offer.schema).digest
        return Binding(seen.offer.session, seen.offer.round, seen.roster, context, digest)

    def masks_of(self, name: str, seen: Seen) -> Iterable[tuple[str, Mask | None]]:
        """Each mask on a client's vector by the peer it is with (its own: itself); None: not known."""
        length, binding, publics = CIPHER_KEY_BYTES[seen.offer.cipher], self.binding(seen), seen.publics
        seed = self.secret(name, SELF_SEED, seen)
        yield (
            name,
            None if seed is None else Mask(self_mask_key(seed, name, publics[name], binding, length), 1),
        )
        for peer in seen.delivered[name]:
            if peer == name:
                continue
            yield peer, None
            for one, other in ((name, peer), (peer, name)):
                seed = self.secret(one, MASK_SEED, seen)
                if seed is not None:
                    shared = MaskKey(seed, False).exchange(publics[other].mask)
                    sides = (one, publics[one], b""), (other, publics[other], b"")
                    key = pair_mask_key(shared, *sides, binding, length)
                    yield peer, Mask(key, 1 if name < peer else -1)
                    break

    def words(self, names: Iterable[str], seen: Seen | None = None) -> Any:
        """The sum of these clients' vectors, less all masks that the attacker can take off."""
        seen = seen or self.now
        total = np.zeros(Encoding(self.schema, seen.offer.capacity).words, np.uint64)
        for name in names:
            total += np.frombuffer(seen.vectors[name][0].tail, "<u8")
            known = dict(self.masks_of(name, seen))
            add_masks(total, [Mask(m.key, -1 if m.sign > 0 else 1) for m in known.values() if m])
        return total

    def learn(self, names: Iterable[str], seen: Seen | None = None) -> dict[str, Any]:
        """The sum of these clients' values; EncodingError if a mask is still on it."""
        seen, names = seen or self.now, list(names)
        encoding = Encoding(self.schema, seen.offer.capacity)
        return encoding.decode(self.words(names, seen), len(names)).values


def assert_is_sum(found: Mapping[str, Any], values: Iterable[Mapping[str, Any]]) -> None:
    """What the attacker found is the exact sum of these values."""
    values = list(values)
    assert found["n"] == sum(each["n"] for each in values)
    error = Encoding(SCHEMA, len(values)).error_bound("x", len(values))
    difference = np.abs(np.asarray(found["x"]) - np.sum([each["x"] for each in values], axis=0))
    assert difference.max() <= error
