"""R14: messages of another session or round, and rounds that are opened twice."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from secagg import (
    Client,
    ClientPhase,
    Encoding,
    EncodingError,
    FileRegister,
    MemoryRegister,
    MessageError,
    RoundAborted,
    RoundReused,
    ephemeral,
    sharing,
)
from tests.secagg.parties import make_parties, run_round
from tests.secagg.threats.attacker import SCHEMA, Attacker, assert_is_sum, secret_values


class Forgetful(MemoryRegister):
    def claim(self, session, round):
        pass


def keys_from_a_file(monkeypatch):
    """Ephemeral keys that follow from what a client keeps: whoever restarts makes the same ones again."""
    made = sharing.RoundSecrets.__init__

    def init(self, name, hybrid):
        numbers = iter(range(100))

        def token_bytes(length):
            return hashlib.sha256(f"{name} {next(numbers)}".encode()).digest()[:length]

        monkeypatch.setattr(sharing, "secrets", SimpleNamespace(token_bytes=token_bytes))
        monkeypatch.setattr(ephemeral, "secrets", SimpleNamespace(token_bytes=token_bytes))
        made(self, name, hybrid)
        self._transport._private = X25519PrivateKey.from_private_bytes(token_bytes(32))
        self._transport.keys = (self._transport._private.public_key().public_bytes_raw(), b"")
        self.public = type(self.public)(self.public.mask, self._transport.keys[0])

    monkeypatch.setattr(sharing.RoundSecrets, "__init__", init)


def replayed(parties: Attacker, first, second, register) -> np.ndarray:
    """The round up to c0's vector; c0 restarts; the same again. Returns what its vectors differ by."""
    offer = parties.offer()
    parties.advertise(offer)
    roster = parties.roster_message()
    parties.share()
    delivery = parties.delivery("c0", parties.names[1:])
    for values in (first, second):
        client = parties.clients["c0"]
        if client.phase is ClientPhase.IDLE:
            client.receive(offer)
            client.receive(roster)
        client.receive(delivery)
        parties.take_vector(client.submit(values))
        parties.clients["c0"] = parties.restarted("c0", register)
    one, two = (np.frombuffer(opened.tail, "<u8") for opened in parties.now.vectors["c0"])
    return one - two


NOTHING = {"x": [0.0, 0.0], "n": 0}


def value_of(difference) -> dict:
    """Of the difference to a vector of which the values are known."""
    encoding = Encoding(SCHEMA, 4)
    return encoding.decode(difference + encoding.encode(NOTHING, np.random.default_rng(0)), 1).values


def test_a_replayed_round_reads_a_client_that_makes_the_same_keys_again(monkeypatch):
    keys_from_a_file(monkeypatch)
    parties = Attacker(4, registers={"c0": Forgetful()})
    values = secret_values(parties.names)
    difference = replayed(parties, values["c0"], NOTHING, Forgetful())
    assert_is_sum(value_of(difference), [values["c0"]])


def test_fresh_keys_defeat_a_replay_even_where_the_register_was_lost():
    parties = Attacker(4, registers={"c0": Forgetful()})
    with pytest.raises(RoundAborted, match="Round 1: the roster lacks this client's advert"):
        replayed(parties, secret_values(parties.names)["c0"], NOTHING, Forgetful())


def test_the_register_defeats_a_replay_even_where_keys_are_the_same(monkeypatch, tmp_path):
    keys_from_a_file(monkeypatch)
    parties = Attacker(4, registers={"c0": FileRegister(tmp_path / "rounds")})
    with pytest.raises(RoundReused, match=r"^Round 1 of session 61747461… was already used here"):
        replayed(parties, secret_values(parties.names)["c0"], NOTHING, FileRegister(tmp_path / "rounds"))


def every_server_message(parties: Attacker, number: int) -> dict[str, bytes]:
    """A whole round; returns what the server sent to c0."""
    sent = {"offer": parties.offer(number)}
    parties.advertise(sent["offer"])
    sent["roster"] = parties.roster_message()
    parties.share()
    sent["delivery"] = parties.delivery("c0", parties.names[1:])
    parties.deliver()
    parties.submit(secret_values(parties.names))
    sent["survivors"] = parties.survivors(parties.names)
    for name in parties.names:
        parties.ask(name, parties.names)
    sent["agreement"] = parties.agreement("c0", parties.names)
    for name in parties.names:
        parties.unmask(name, parties.names)
    return sent


@pytest.mark.parametrize("stage", ["roster", "delivery", "survivors", "agreement"])
def test_a_message_of_an_older_round_is_refused_in_every_stage(stage):
    parties = Attacker(4)
    old = every_server_message(parties, 1)[stage]
    parties.advertise(parties.offer(2))
    client = parties.clients["c0"]
    steps = {
        "roster": lambda: None,
        "delivery": parties.share,
        "survivors": lambda: parties.deliver() or parties.submit(secret_values(parties.names)),
        "agreement": lambda: parties.ask("c0", parties.names),
    }
    for name, step in steps.items():
        step()
        if name == stage:
            break
    before = client.phase
    with pytest.raises(
        MessageError, match=r"^Refused a message of round 1: this client is in round 2 of its"
    ):
        client.receive(old)
    assert client.phase is before


def test_a_message_of_another_session_is_refused():
    parties = Attacker(4)
    parties.advertise(parties.offer(1, session=b"another  session"))
    other = parties.roster_message()
    parties.advertise(parties.offer(1))
    with pytest.raises(MessageError, match="Refused a message of round 1: this client is in round 1 of its"):
        parties.clients["c0"].receive(other)


class Uncritical(Client):
    """Takes the adverts of any round for those of this one."""

    def _verify_cohort(self, state, opened):
        pass


def ghosts(parties: Attacker) -> int:
    """In round 2 c0 is alone; the roster is filled with adverts of round 1. Returns its size."""
    parties.advertise(parties.offer(1))
    old = {name: parties.now.sealed[name] for name in parties.names[1:]}
    parties.advertise(parties.offer(2), ["c0"])
    for sealed in old.values():
        parties.take_advert(sealed)
    parties.share(["c0"])
    return len(parties.clients["c0"]._round.graph.names)


def test_old_adverts_make_a_lone_client_believe_in_a_cohort_where_they_are_not_bound_to_the_offer():
    assert ghosts(Attacker(4, client=Uncritical)) == 4


def test_old_adverts_are_refused_by_name():
    with pytest.raises(RoundAborted, match="Round 2: 'c1' answered another offer than this client") as info:
        ghosts(Attacker(4))
    assert info.value.blame == ("c1",)


def test_the_server_refuses_what_clients_sent_in_an_older_round_or_another_session():
    parties = make_parties(4, SCHEMA)
    values = list(secret_values(parties.names()).values())
    recorded = []
    take = parties.server.receive
    parties.server.receive = lambda message: recorded.append(message) or take(message)
    run_round(parties, values, 1)
    assert len(recorded) == 4 * 5
    parties.server.open(2)
    for message in recorded:
        with pytest.raises(MessageError, match=r"Refused a message of 'c\d' for round 1: round 2 is open"):
            take(message)
    later = type(parties.server)(parties.boss, parties.roster, SCHEMA, policy=parties.server._policy)
    later.open(1)
    for message in recorded:
        with pytest.raises(MessageError, match=r"Refused a message of 'c\d' for round 1: round 1 is open"):
            later.receive(message)


def test_differences_of_fresh_vectors_are_masked():
    """The power of `value_of`: two vectors under different masks give nothing."""
    parties = Attacker(4)
    vectors = []
    for number in (1, 2):
        parties.advertise(parties.offer(number))
        parties.share()
        parties.deliver()
        parties.submit({"c0": NOTHING})
        vectors.append(np.frombuffer(parties.now.vectors["c0"][0].tail, "<u8"))
    with pytest.raises(EncodingError, match="The zero lane of 1 clients is not zero"):
        value_of(vectors[0] - vectors[1])
