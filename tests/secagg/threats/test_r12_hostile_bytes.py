"""R12: bytes that run code, fill memory or recurse. `tests.secagg.fuzzing` throws a million at the rest."""

from __future__ import annotations

import pickle
import tracemalloc

import msgspec
import pytest

from secagg import MessageError, Schema, SchemaError, Server, messages
from secagg.messages import MAGIC, Advert, RosterMessage, _digest, _signed, open_sealed, seal
from tests.secagg.parties import make_parties
from tests.secagg.threats.attacker import SCHEMA, Attacker

RAN: list[str] = []


def run(code: str) -> None:
    """What an attacker names in a pickle: any function that can be imported."""
    RAN.append(code)


class Bomb:
    """What it is when it is unpickled is for its author to say."""

    def __reduce__(self):
        return run, ("code of a message",)


class Unpickling(Server):
    """A server that lets the message say how it is to be read."""

    def receive(self, message, *, sender=None):
        return super().receive(pickle.loads(message), sender=sender)  # noqa: S301  # the attack


def test_a_message_that_is_a_pickle_runs_code_in_a_server_that_loads_it():
    honest = make_parties(3, SCHEMA)
    server = Unpickling(honest.boss, honest.roster, SCHEMA, policy=honest.server._policy)
    server.open(1)
    RAN.clear()
    with pytest.raises(TypeError):
        server.receive(pickle.dumps(Bomb()))
    assert RAN == ["code of a message"]


def test_a_message_that_is_a_pickle_is_bytes_like_any_others():
    honest = make_parties(3, SCHEMA)
    offer = honest.server.open(1)
    RAN.clear()
    bomb = pickle.dumps(Bomb())
    for data in (bomb, MAGIC + b"\x01" + bytes(64) + len(bomb).to_bytes(4, "little") + bomb):
        for machine in (honest.server, honest.clients[0]):
            with pytest.raises(MessageError, match="Refused a message: it is not one that a party of the ro"):
                machine.receive(data)
    assert RAN == []
    assert honest.clients[0].receive(offer)


HUGE = {
    "a list of 2^32 - 1": b"\xdd\xff\xff\xff\xff",
    "a map of 2^32 - 1": b"\xdf\xff\xff\xff\xff",
    "a string of 4 GB": b"\xdb\xff\xff\xff\xff",
    "bytes of 4 GB": b"\xc6\xff\xff\xff\xff",
    "lists in lists": b"\x91" * 60_000,
}


def signed(identity, header: bytes) -> bytes:
    """Any header at all, with a good signature: what an enrolled party that is malicious can send."""
    length = len(header).to_bytes(4, "little")
    digest = _digest(1, length + header, memoryview(b""))
    return MAGIC + b"\x01" + identity.sign(_signed(digest)) + length + header


@pytest.mark.parametrize("what", HUGE)
def test_a_header_that_claims_to_be_huge_takes_no_memory_even_with_a_good_signature(what):
    honest = make_parties(3, SCHEMA)
    honest.server.open(1)
    data = signed(honest.people[0], HUGE[what])
    tracemalloc.start()
    with pytest.raises(MessageError, match="it is not one that a party of the roster signed"):
        honest.server.receive(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**18


def test_a_list_that_claims_to_be_huge_fills_memory_where_its_length_is_believed():
    tracemalloc.start()
    believed = [None] * int.from_bytes(b"\x00\xff\xff\xff", "big")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(believed) == 2**24 - 1
    assert peak > 2**26


def test_a_schema_nested_thousands_deep_is_a_refusal_and_no_crash():
    deep = b'{"fields":' + b"[" * 100_000 + b"]" * 100_000 + b',"version":1}'
    with pytest.raises(SchemaError, match="Expected the canonical bytes of a schema, got something else"):
        Schema.from_bytes(deep)
    parties = Attacker(4)
    with pytest.raises(SchemaError, match="Expected the canonical bytes of a schema, got something else"):
        parties.clients["c0"].receive(parties.offer(schema=deep))


def test_a_roster_of_more_adverts_than_clients_is_refused_before_a_signature_is_verified(monkeypatch):
    parties = Attacker(4)
    parties.advertise(parties.offer())
    sealed = parties.now.sealed["c1"]
    many = parties.sign(_roster(parties, [sealed] * 1_000))
    verified = []
    check = messages.verify_signature
    monkeypatch.setattr(messages, "verify_signature", lambda *given: verified.append(1) or check(*given))
    with pytest.raises(MessageError, match="expected at most the 4 clients of the pinned roster, got 1000"):
        parties.clients["c0"].receive(many)
    assert len(verified) == 1, "the roster's own"


def _roster(parties, adverts):
    return RosterMessage(*parties.head(), adverts=adverts)


def test_a_field_that_its_type_does_not_allow_is_refused_under_a_good_signature():
    parties = Attacker(4)
    parties.advertise(parties.offer())
    advert = parties.now.adverts["c1"].message
    person = parties.people["c1"]
    for change in (
        {"round": -1},
        {"round": 2**53},
        {"mask_key": b"short"},
        {"sender": "x" * 129},
        {"session": b""},
    ):
        data = seal(person, msgspec.structs.replace(advert, **change))[0]
        with pytest.raises(MessageError):
            open_sealed(data, (Advert,), parties.roster.clients, 10**6)
