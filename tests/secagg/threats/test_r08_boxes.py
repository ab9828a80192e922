"""R8: shares read, altered, swapped or replayed on their way through the server."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from secagg import ClientPhase, RoundAborted, shamir
from secagg.ephemeral import Binding, PublicKeys, TransportKey
from secagg.keys import hkdf
from secagg.sharing import MASK_SEED, RoundSecrets
from tests.secagg.threats.attacker import THREE, Attacker, assert_is_sum, secret_values

GROUP = b"one key for all clients's boxes."


def one_key_for_all(monkeypatch):
    """Boxes as a group key would make them: whoever is in the group opens them."""

    def seal(self, name, peer, keys, binding, plain):
        return AESGCM(hkdf(GROUP, b"", 32)).encrypt(bytes(12), plain, b""), bytes(16)

    def open(self, name, peer, keys, binding, box):
        return AESGCM(hkdf(GROUP, b"", 32)).decrypt(bytes(12), box, b""), bytes(16)

    monkeypatch.setattr(TransportKey, "seal", seal)
    monkeypatch.setattr(TransportKey, "open", open)


def boxes_of_others(parties: Attacker, values, victim="c0") -> int:
    """The corrupt c1 tries its key on the boxes that c0 sealed for the others; returns how many opened."""
    parties.advertise(parties.offer())
    mallory = parties.clients["c1"]._round.secrets._transport
    parties.share()
    parties.deliver()
    parties.submit(values, [victim])
    opened, publics, binding = 0, parties.now.publics, parties.binding(parties.now)
    for receiver in parties.names[2:]:
        try:
            plain, _ = mallory.open(receiver, victim, publics[victim], binding, parties.box(victim, receiver))
        except InvalidTag:
            continue
        parties.take_shares(receiver, victim, np.frombuffer(plain, "<u4").reshape(2, shamir.LIMBS))
        opened += 1
    return opened


def test_one_key_for_all_boxes_lets_one_client_and_the_server_read_another(monkeypatch):
    one_key_for_all(monkeypatch)
    parties = Attacker(4, corrupt=["c1"])
    values = secret_values(parties.names)
    assert boxes_of_others(parties, values) == 2
    assert_is_sum(parties.learn(["c0"]), [values["c0"]])


def test_boxes_open_for_their_receivers_only():
    parties = Attacker(4, corrupt=["c1"])
    assert boxes_of_others(parties, secret_values(parties.names)) == 0
    assert len(parties.now.shares["c0", MASK_SEED]) == 1
    assert parties.secret("c0", MASK_SEED) is None


NOWHERE = Binding(bytes(16), 0, bytes(32), bytes(32), bytes(32))


def long_lived_and_unbound(monkeypatch):
    """Transport keys that live as long as the client, and boxes that do not say of which round they are."""
    kept: dict[str, TransportKey] = {}
    made = RoundSecrets.__init__
    for call in ("seal", "open"):
        bound = getattr(TransportKey, call)

        def unbound(self, name, peer, keys, binding, data, bound=bound):
            return bound(self, name, peer, keys, NOWHERE, data)

        monkeypatch.setattr(TransportKey, call, unbound)

    def init(self, name, hybrid):
        made(self, name, hybrid)
        self._transport = kept.setdefault(name, self._transport)
        self.public = type(self.public)(self.public.mask, self._transport.keys[0])

    monkeypatch.setattr(RoundSecrets, "__init__", init)


def replayed_boxes(parties: Attacker, values) -> dict:
    """Round 1 gives c0's self-mask seed. In round 2 it is dropped, and its boxes are those of 1."""
    parties.run(values, parties.names)
    first = parties.now
    parties.advertise(parties.offer(2))
    parties.share()
    others = parties.names[1:]
    for name in others:
        old = {"c0": parties.box("c0", name, first)}
        parties.clients[name].receive(parties.delivery(name, set(parties.names) - {name}, old))
        parties.now.delivered[name] = tuple(parties.names)
    parties.submit(values, others)
    for name in others:
        parties.ask(name, others)
    for name in others:
        parties.unmask(name, others)
    first.shares["c0", MASK_SEED] = parties.now.shares["c0", MASK_SEED]
    return parties.learn(["c0"], first)


def test_boxes_of_an_older_round_give_the_other_secret_where_nothing_binds_them(monkeypatch):
    long_lived_and_unbound(monkeypatch)
    parties = Attacker(4, policy=THREE)
    values = secret_values(parties.names)
    assert_is_sum(replayed_boxes(parties, values), [values["c0"]])


def test_boxes_of_an_older_round_do_not_open():
    parties = Attacker(4, policy=THREE)
    with pytest.raises(RoundAborted, match=r"Round 2: the shares of \['c0'\] for 'c1' do not open") as info:
        replayed_boxes(parties, secret_values(parties.names))
    assert info.value.blame == ("c0",)


def test_old_boxes_do_not_open_even_for_transport_keys_that_live_on(monkeypatch):
    """The binding alone is enough: the second line."""
    bound = {call: getattr(TransportKey, call) for call in ("seal", "open")}
    long_lived_and_unbound(monkeypatch)
    for call, method in bound.items():
        monkeypatch.setattr(TransportKey, call, method)
    with pytest.raises(RoundAborted, match=r"Round 2: the shares of \['c0'\] for 'c1' do not open"):
        replayed_boxes(Attacker(4, policy=THREE), secret_values([f"c{i}" for i in range(4)]))


def flipped(parties):
    box = bytearray(parties.box("c0", "c1"))
    box[5] ^= 1
    return bytes(box)


WRONG = {
    "altered": flipped,
    "for another receiver": lambda parties: parties.box("c0", "c2"),
    "of another sender": lambda parties: parties.box("c2", "c1"),
    "reflected": lambda parties: parties.box("c1", "c0"),
    "zeros": lambda parties: bytes(len(parties.box("c0", "c1"))),
}


@pytest.mark.parametrize("what", WRONG)
def test_any_other_box_is_refused_and_the_round_given_up(what):
    parties = Attacker(4)
    parties.advertise(parties.offer())
    parties.share()
    message = parties.delivery("c1", ["c0", "c2", "c3"], {"c0": WRONG[what](parties)})
    with pytest.raises(
        RoundAborted, match=r"^Round 1: the shares of \['c0'\] for 'c1' do not open\. They or"
    ):
        parties.clients["c1"].receive(message)
    assert parties.clients["c1"].phase is ClientPhase.IDLE


@pytest.mark.parametrize("change", ["roster", "round", "session", "context", "config"])
def test_a_box_opens_under_its_own_binding_only(change):
    one, two = TransportKey(False), TransportKey(False)
    binding = Binding(bytes(16), 1, bytes(32), bytes(32), bytes(32))
    keys = {"one": PublicKeys(b"1" * 32, one.keys[0]), "two": PublicKeys(b"2" * 32, two.keys[0])}
    box, receipt = one.seal("one", "two", keys["two"], binding, b"plain")
    value = getattr(binding, change)
    other = replace(binding, **{change: value + 1 if change == "round" else b"\x01" + value[1:]})
    with pytest.raises(InvalidTag):
        two.open("two", "one", keys["one"], other, box)
    assert two.open("two", "one", keys["one"], binding, box) == (b"plain", receipt)
