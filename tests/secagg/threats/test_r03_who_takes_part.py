"""R3: a server that makes up the others, or the rules."""

from __future__ import annotations

import msgspec
import pytest

from secagg import (
    Client,
    Identity,
    IdentityError,
    MemoryRegister,
    MessageError,
    Policy,
    PolicyError,
    Roster,
    RoundAborted,
)
from secagg import client as client_module
from secagg.messages import _DECODERS, Advert, Opened, _digest, open_sealed, seal
from tests.secagg.threats.attacker import FOUR, Attacker, assert_is_sum, secret_values


def unpinned(data, kinds, keys, limit):
    """Opens adverts without asking whose signature they carry."""
    if kinds != (Advert,):
        return open_sealed(data, kinds, keys, limit)
    view = memoryview(data)
    header = bytes(view[73:])
    return Opened(_DECODERS[Advert].decode(header), view[:0], _digest(1, bytes(view[69:]), view[:0]))


def substituted() -> tuple[Attacker, dict]:
    """c0 knows c1 to c3 by their true keys; in between stand three that the server made up."""
    parties = Attacker(4, corrupt=["c1", "c2", "c3"])
    true = {name: Identity.generate(name).public_key for name in ("c1", "c2", "c3")}
    pinned = Roster(parties.boss.public_key, {"c0": parties.people["c0"].public_key, **true})
    parties.clients["c0"] = Client(
        parties.people["c0"], pinned, parties.schema, policy=FOUR, register=MemoryRegister()
    )
    return parties, secret_values(parties.names)


def read_by_the_others(parties: Attacker, values) -> dict:
    """The others' shares of c0's self-mask seed, and their own mask keys, are all that it takes."""
    parties.advertise(parties.offer())
    parties.share()
    parties.deliver()
    parties.submit(values, ["c0"])
    return parties.learn(["c0"])


def test_substituted_keys_read_a_client_that_trusts_whom_the_server_names(monkeypatch):
    monkeypatch.setattr(client_module, "open_sealed", unpinned)
    parties, values = substituted()
    assert_is_sum(read_by_the_others(parties, values), [values["c0"]])


def test_substituted_keys_are_refused():
    parties, values = substituted()
    with pytest.raises(MessageError, match="Refused a message: it is not one that a party of the roster"):
        read_by_the_others(parties, values)


def one_under_three_names(roster_type) -> tuple[Attacker, dict]:
    parties = Attacker(4, corrupt=["c1", "c2", "c3"])
    mallory = parties.people["c1"]
    raw = bytes.fromhex(mallory._private.private_bytes_raw().hex())
    parties.people |= {name: Identity(name, raw) for name in ("c2", "c3")}
    parties.roster = roster_type(
        parties.boss.public_key, {name: person.public_key for name, person in parties.people.items()}
    )
    parties.clients = {name: parties.restarted(name) for name in parties.names}
    return parties, secret_values(parties.names)


def test_one_party_under_three_names_reads_the_fourth_where_a_key_may_stand_twice():
    class Unverified(Roster):
        def __post_init__(self):
            pass

    parties, values = one_under_three_names(Unverified)
    assert_is_sum(read_by_the_others(parties, values), [values["c0"]])


def test_a_roster_that_lists_one_key_twice_is_refused():
    with pytest.raises(IdentityError, match=r"got the key of 'c1' again for 'c2': one party would count twi"):
        one_under_three_names(Roster)


def test_one_ephemeral_key_for_two_clients_is_refused():
    """Two pinned identities that share what they make: one of them would not be there at all."""
    parties = Attacker(4)
    parties.advertise(parties.offer())
    one, two = (parties.now.adverts[name].message for name in ("c1", "c2"))
    twin = msgspec.structs.replace(two, mask_key=one.mask_key)
    parties.take_advert(seal(parties.people["c2"], twin)[0])
    with pytest.raises(RoundAborted, match="'c1' and 'c2' share one key") as info:
        parties.share(["c0"])
    assert info.value.blame == ("c1", "c2")


def test_a_party_that_nobody_enrolled_is_refused():
    parties = Attacker(4)
    parties.advertise(parties.offer())
    sybil = msgspec.structs.replace(parties.now.adverts["c1"].message, sender="c9", mask_key=bytes(range(32)))
    parties.take_advert(seal(parties.people["c1"], msgspec.structs.replace(sybil, sender="c1"))[0])
    sealed = seal(Identity.generate("c9"), sybil)[0]
    parties.now.sealed["c9"] = sealed
    parties.now.adverts["c9"] = unpinned(sealed, (Advert,), {}, 10**6)
    with pytest.raises(MessageError, match="expected at most the 4 clients of the pinned roster, got 5"):
        parties.share(["c0"])
    del parties.now.sealed["c3"], parties.now.adverts["c3"]
    with pytest.raises(MessageError, match="it is not one that a party of the roster signed"):
        parties.share(["c0"])


class Obedient(Policy):
    """Takes whatever it is offered."""

    __slots__ = ()

    def verify_offer(self, _):
        pass

    def verify_cohort(self, *_):
        pass

    def verify_graph(self, *_):
        pass


RULES = {"min_clients": 1, "threshold_fraction": 0.01}


def cohort_of_one(parties: Attacker, values) -> dict:
    """c0 and one client of the server's, which holds all shares that are needed: its own."""
    parties.advertise(parties.offer(**RULES), ["c0", "c1"])
    parties.share()
    parties.deliver()
    parties.submit(values, ["c0"])
    return parties.learn(["c0"])


def test_rules_that_the_server_dictates_read_a_client_without_a_policy():
    parties = Attacker(4, corrupt=["c1"], policy=Obedient(min_clients=4))
    values = secret_values(parties.names)
    assert_is_sum(cohort_of_one(parties, values), [values["c0"]])


def test_rules_that_are_weaker_than_the_policy_are_refused_with_all_reasons():
    parties = Attacker(4, corrupt=["c1"])
    reasons = r"min_clients=1, at least 4 wanted; threshold_fraction=0\.010, at least 0\.667 wanted"
    with pytest.raises(PolicyError, match=f"Round 1: the server's offer is weaker .*: {reasons}"):
        cohort_of_one(parties, secret_values(parties.names))
    assert parties.clients["c0"].receive(parties.offer()), "nothing was claimed for it"


def test_a_cohort_that_is_smaller_than_what_was_offered_is_refused():
    parties = Attacker(6, corrupt=["c1"])
    parties.advertise(parties.offer(min_clients=6), parties.names[:4])
    with pytest.raises(PolicyError, match=r"Round 1: expected a roster of 6\.\.131072 clients, got 4"):
        parties.share(["c0"])


@pytest.mark.parametrize("kind", ["threshold", "capacity"])
def test_an_offer_is_signed_so_nobody_else_can_dictate(kind):
    parties = Attacker(4)
    offer = bytearray(parties.offer())
    offer[-20 if kind == "threshold" else -40] ^= 1
    with pytest.raises(MessageError, match="it is not one that a party of the roster signed"):
        parties.clients["c0"].receive(bytes(offer))
