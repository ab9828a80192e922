"""The client under a server, a network and an application that do everything wrong."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from secagg import (
    Client,
    ClientPhase,
    Encoding,
    EncodingError,
    Identity,
    IdentityError,
    MemoryRegister,
    MessageError,
    PhaseError,
    Policy,
    PolicyError,
    RegisterError,
    Roster,
    RoundAborted,
    RoundReused,
    Schema,
    SchemaError,
    adaptive,
    counted,
    public,
    same,
    summed,
)
from secagg.messages import Advert, Masked, Offer, RosterMessage, open_sealed, seal
from tests.secagg.parties import SMALL, advertise, insecure_rounding, make_parties, ready, run_round

SCHEMA = Schema(x=summed(1.0, shape=(3,)), n=counted())
VALUES = {"x": [0.1, 0.2, 0.3], "n": 1}


@pytest.fixture
def parties():
    return make_parties(4, SCHEMA)


def opened_offer(parties, data) -> Offer:
    return open_sealed(data, (Offer,), {"": parties.boss.public_key}, 10**6).message


def resealed(parties, message, **changes):
    """What a malicious server, with its own good key, can send."""
    return seal(parties.boss, msgspec.structs.replace(message, **changes))[0]


def roster_of(parties, data) -> RosterMessage:
    return open_sealed(data, (RosterMessage,), {"": parties.boss.public_key}, 10**6).message


def reopen(parties, sealed) -> Advert:
    return open_sealed(sealed, (Advert,), parties.roster.clients, 10**6).message


def readvert(parties, i, sealed, **changes):
    """What a malicious client, with its own good key, can send."""
    return seal(parties.people[i], msgspec.structs.replace(reopen(parties, sealed), **changes))[0]


def assert_usable(parties, client, round=9):
    """The round after: whatever happened, the client works."""
    parties.server.abort()
    result = run_round(parties, [VALUES] * len(parties.clients), round)
    assert result.values["n"] == len(parties.clients)


def test_the_identity_must_be_the_pinned_one(parties):
    for identity in (Identity.generate("c0"), Identity.generate("stranger")):
        with pytest.raises(IdentityError, match=f"roster to list {identity.name!r}"):
            Client(identity, parties.roster, SCHEMA, register=MemoryRegister())


def test_offers_of_another_server_are_refused(parties):
    mallory = make_parties(4, SCHEMA)
    with pytest.raises(MessageError):
        parties.clients[0].receive(mallory.server.open(1))
    assert parties.clients[0].phase is ClientPhase.IDLE


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (Schema(x=summed(2.0, shape=(3,)), n=counted()), r"fields \['x'\] differ"),
        (Schema(x=summed(1.0, shape=(3,))), r"fields \['n'\] differ"),
        (Schema(n=counted(), x=summed(1.0, shape=(3,))), "the order of fields differs"),
        (Schema(x=summed(1.0, shape=(3,)), n=counted(), spy=summed(1.0)), r"fields \['spy'\] differ"),
    ],
)
def test_an_offer_for_another_schema_is_refused_and_named(parties, schema, message):
    offer = resealed(parties, opened_offer(parties, parties.server.open(1)), schema=schema.to_bytes())
    with pytest.raises(SchemaError, match=message):
        parties.clients[0].receive(offer)
    assert parties.clients[0].phase is ClientPhase.IDLE
    assert_usable(parties, parties.clients[0])


def test_an_offer_whose_schema_is_garbage_is_refused(parties):
    offer = resealed(parties, opened_offer(parties, parties.server.open(1)), schema=b"garbage")
    with pytest.raises(SchemaError):
        parties.clients[0].receive(offer)


def test_a_bound_over_the_cap_is_refused_and_one_below_accepted():
    schema = Schema(x=summed(adaptive(1.0, at_most=4.0)))
    parties = make_parties(3, schema)
    offer = opened_offer(parties, parties.server.open(1))
    over = schema.to_bytes().replace(b'"now":null', b'"now":5.0')
    with pytest.raises(SchemaError, match=r"at_most=4\.0, got 5\.0"):
        parties.clients[0].receive(resealed(parties, offer, schema=over))
    raised = Schema(x=summed(adaptive(1.0, at_most=8.0))).to_bytes()
    with pytest.raises(SchemaError, match="'x'"):
        parties.clients[0].receive(resealed(parties, offer, schema=raised))
    moved = resealed(parties, offer, schema=schema.with_bounds({"x": 4.0}).to_bytes())
    assert parties.clients[0].receive(moved)


@pytest.mark.parametrize(
    "changes", [{"min_clients": 2}, {"threshold_fraction": 0.5}, {"capacity": 2}, {"capacity": 2**20}]
)
def test_an_offer_weaker_than_the_policy_is_refused_before_the_round_is_claimed(parties, changes):
    good = parties.server.open(1)
    with pytest.raises(PolicyError, match="Round 1"):
        parties.clients[0].receive(resealed(parties, opened_offer(parties, good), **changes))
    assert parties.clients[0].receive(good), "the same round, honestly offered, is still open"


def test_a_replayed_offer_is_refused_even_after_a_restart(parties):
    register = MemoryRegister()
    client = Client(parties.people[0], parties.roster, SCHEMA, policy=SMALL, register=register)
    offer = parties.server.open(1)
    client.receive(offer)
    with pytest.raises(RoundReused, match="Round 1"):
        client.receive(offer)
    assert client.phase is ClientPhase.ADVERTISED, "a replay does not end the round under way"
    again = Client(parties.people[0], parties.roster, SCHEMA, policy=SMALL, register=register)
    with pytest.raises(RoundReused):
        again.receive(offer)


def test_one_session_and_round_offered_twice_with_other_content_is_refused(parties):
    offer = opened_offer(parties, parties.server.open(1))
    parties.clients[0].receive(resealed(parties, offer))
    with pytest.raises(RoundReused):
        parties.clients[0].receive(resealed(parties, offer, min_clients=4))


def test_a_register_that_fails_keeps_the_client_out(parties):
    class Broken:
        def claim(self, session, round):
            raise RegisterError("damaged")

    client = Client(parties.people[0], parties.roster, SCHEMA, policy=SMALL, register=Broken())
    with pytest.raises(RegisterError):
        client.receive(parties.server.open(1))
    assert client.phase is ClientPhase.IDLE


DECLARING = Schema(model=same(), note=public(), n=counted())


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({}, r"fields \['model', 'note'\], got \[\]"),
        ({"model": "a"}, r"got \['model'\]"),
        ({"model": "a", "note": "b", "n": 1}, r"got \['model', 'n', 'note'\]"),
        ({"model": None, "note": "b"}, "Field 'model': expected a declared str.*got NoneType"),
        ({"model": np.float32(1), "note": "b"}, "got float32"),
        ({"model": "a", "note": "x" * 4097}, "Field 'note': expected at most 4096 characters"),
        ({"model": "a", "note": bytes(4097)}, "at most 4096"),
        ({"model": 2**63, "note": "b"}, "integer of 64 bits"),
        ({"model": "a", "note": "\ud800"}, "Field 'note': expected text that UTF-8 can carry"),
    ],
)
def test_declared_values_are_checked_before_the_round_is_claimed(declared, message):
    parties = make_parties(3, DECLARING)
    offer = parties.server.open(1)
    with pytest.raises(EncodingError, match=message):
        parties.clients[0].receive(offer, declared=declared)
    assert parties.clients[0].receive(offer, declared={"model": "a", "note": "b"})


def test_too_much_declared_in_all_is_refused_before_the_round_is_claimed():
    schema = Schema({f"p{i}": public() for i in range(20)})
    parties = make_parties(3, schema)
    offer = parties.server.open(1)
    with pytest.raises(EncodingError, match="advert of at most 65536 bytes"):
        parties.clients[0].receive(offer, declared=dict.fromkeys(schema, "x" * 4000))
    assert parties.clients[0].receive(offer, declared=dict.fromkeys(schema, "x"))


@pytest.mark.parametrize("value", ["text", "ü", 3, -(2**63), 1.5, True, b"\x00\xff"])
def test_public_values_of_every_type_arrive(value):
    parties = make_parties(3, Schema(v=public(), n=counted()))
    result = run_round(parties, [{"n": 1}] * 3, declared=[{"v": value}] * 3)
    assert result.public == {"v": dict.fromkeys(["c0", "c1", "c2"], value)}
    assert type(result.public["v"]["c0"]) is type(value)


def roster_ready(parties):
    advertise(parties)
    return roster_of(parties, parties.server.close_adverts())


def test_a_roster_before_any_offer_is_refused(parties):
    roster = roster_ready(parties)
    fresh = Client(parties.people[0], parties.roster, SCHEMA, policy=SMALL, register=MemoryRegister())
    with pytest.raises(MessageError, match="none is expected in phase idle"):
        fresh.receive(resealed(parties, roster))


def test_a_second_roster_is_refused(parties):
    message = resealed(parties, roster_ready(parties))
    parties.clients[0].receive(message)
    with pytest.raises(MessageError, match="none is expected in phase ready"):
        parties.clients[0].receive(message)
    assert parties.clients[0].phase is ClientPhase.READY


@pytest.mark.parametrize("changes", [{"round": 2}, {"session": bytes(16)}])
def test_a_roster_of_another_round_is_refused(parties, changes):
    roster = roster_ready(parties)
    with pytest.raises(MessageError, match="this client is in round 1"):
        parties.clients[0].receive(resealed(parties, roster, **changes))
    assert parties.clients[0].receive(resealed(parties, roster)) is None


def test_a_roster_with_doubled_unsorted_foreign_or_missing_adverts_is_refused_and_changes_nothing(parties):
    roster = roster_ready(parties)
    adverts = roster.adverts
    stranger = seal(Identity.generate("x"), msgspec.structs.replace(reopen(parties, adverts[0]), sender="x"))[
        0
    ]
    for bad, message in (
        ([*adverts, adverts[1]], "expected each client once"),
        (adverts[::-1], "expected each client once"),
        (adverts[1:], "lacks this client's advert"),
        ([], "lacks this client's advert"),
        ([*adverts, stranger], "not one that a party"),
        ([b"garbage", *adverts], "not one that a party"),
        ([*adverts[:-1], adverts[-1][:-1]], "not one that a party"),
        (
            [readvert(parties, 0, adverts[0], mask_key=b"\x09" * 32), *adverts[1:]],
            "lacks this client's advert",
        ),
    ):
        with pytest.raises(MessageError, match=message):
            parties.clients[0].receive(resealed(parties, roster, adverts=bad))
        assert parties.clients[0].phase is ClientPhase.ADVERTISED
    assert parties.clients[0].receive(resealed(parties, roster)) is None


def test_a_cohort_below_the_policy_is_given_up():
    parties = make_parties(6, SCHEMA, policy=Policy(min_clients=5))
    roster = roster_ready(parties)
    with pytest.raises(PolicyError, match=r"roster of 5..65536 clients, got 4"):
        parties.clients[0].receive(resealed(parties, roster, adverts=roster.adverts[:4]))
    assert parties.clients[0].phase is ClientPhase.IDLE
    with pytest.raises(PhaseError):
        parties.clients[0].submit(VALUES)
    assert_usable(parties, parties.clients[0])


def test_a_cohort_over_the_capacity_of_the_lanes_is_given_up(parties):
    offer = resealed(parties, opened_offer(parties, parties.server.open(1)), capacity=3)
    adverts = [client.receive(offer) for client in parties.clients]
    message = RosterMessage(session=parties.server.session, round=1, sender="", adverts=adverts)
    with pytest.raises(RoundAborted, match="4 clients, the offer was for 3"):
        parties.clients[0].receive(seal(parties.boss, message)[0])
    assert parties.clients[0].phase is ClientPhase.IDLE


@pytest.mark.parametrize("changes", [{"offer": bytes(32)}, {"round": 2}, {"session": bytes(16)}])
def test_a_peer_that_answered_another_offer_ends_the_round_with_blame(parties, changes):
    roster = roster_ready(parties)
    adverts = list(roster.adverts)
    adverts[2] = readvert(parties, 2, adverts[2], **changes)
    with pytest.raises(RoundAborted, match="'c2' answered another offer") as info:
        parties.clients[0].receive(resealed(parties, roster, adverts=adverts))
    assert info.value.blame == ("c2",)
    assert parties.clients[0].phase is ClientPhase.IDLE
    assert_usable(parties, parties.clients[0])


def test_different_models_are_refused_by_every_client_with_blame(parties):
    offer = parties.server.open(1)
    adverts = [c.receive(offer, context=b"A" if i != 1 else b"B") for i, c in enumerate(parties.clients)]
    message = RosterMessage(session=parties.server.session, round=1, sender="", adverts=adverts)
    sealed = seal(parties.boss, message)[0]
    for i, client in enumerate(parties.clients):
        with pytest.raises(RoundAborted, match="the context") as info:
            client.receive(sealed)
        assert info.value.blame == (("c1",) if i != 1 else ("c0", "c2", "c3"))


def test_a_same_field_that_differs_is_named_with_blame():
    parties = make_parties(3, DECLARING)
    offer = parties.server.open(1)
    declared = [{"model": "a", "note": ""}, {"model": "a", "note": ""}, {"model": "b", "note": ""}]
    adverts = [c.receive(offer, declared=d) for c, d in zip(parties.clients, declared, strict=True)]
    message = RosterMessage(session=parties.server.session, round=1, sender="", adverts=adverts)
    with pytest.raises(RoundAborted, match=r"field 'model': \['c2'\]") as info:
        parties.clients[0].receive(seal(parties.boss, message)[0])
    assert info.value.blame == ("c2",)


@pytest.mark.parametrize(
    "changes", [{"same": {"spy": bytes(32)}}, {"public": {"spy": 1}}, {"public_bytes": {"spy": b""}}]
)
def test_a_peer_that_declares_other_fields_ends_the_round_with_blame(parties, changes):
    roster = roster_ready(parties)
    adverts = list(roster.adverts)
    adverts[1] = readvert(parties, 1, adverts[1], **changes)
    with pytest.raises(RoundAborted, match="did not declare the fields") as info:
        parties.clients[0].receive(resealed(parties, roster, adverts=adverts))
    assert info.value.blame == ("c1",)


@pytest.mark.parametrize("key", [bytes(32), b"\x01" + bytes(31)])
def test_a_peer_with_a_key_of_low_order_ends_the_round_with_blame(parties, key):
    roster = roster_ready(parties)
    adverts = list(roster.adverts)
    adverts[3] = readvert(parties, 3, adverts[3], mask_key=key)
    with pytest.raises(RoundAborted, match=r"'c3'.*low order") as info:
        parties.clients[0].receive(resealed(parties, roster, adverts=adverts))
    assert info.value.blame == ("c3",)
    assert parties.clients[0].phase is ClientPhase.IDLE


def test_two_clients_with_one_key_end_the_round_with_blame(parties):
    roster = roster_ready(parties)
    adverts = list(roster.adverts)
    adverts[3] = readvert(parties, 3, adverts[3], mask_key=reopen(parties, adverts[1]).mask_key)
    with pytest.raises(RoundAborted, match="'c1' and 'c3' share one key") as info:
        parties.clients[0].receive(resealed(parties, roster, adverts=adverts))
    assert info.value.blame == ("c1", "c3")


def test_different_rosters_for_different_clients_spoil_the_sum_and_show_in_the_server(parties):
    """R2, R4: a server that shows two rosters gets two vectors masked for different rounds of keys."""
    five = make_parties(5, SCHEMA)
    roster = roster_ready(five)
    five.clients[0].receive(resealed(five, roster, adverts=roster.adverts[:4]))
    for client in five.clients[1:]:
        client.receive(resealed(five, roster))
    with pytest.raises(MessageError, match="masked for another roster"):
        five.server.receive(five.clients[0].submit(VALUES))
    five.server.receive(five.clients[1].submit(VALUES))


def test_submit_needs_a_roster(parties):
    client = parties.clients[0]
    with pytest.raises(PhaseError, match="this client is idle"):
        client.submit(VALUES)
    advertise(parties)
    with pytest.raises(PhaseError, match="this client is advertised"):
        client.submit(VALUES)


def test_submit_works_once_per_round_ever(parties):
    ready(parties)
    client = parties.clients[0]
    client.submit(VALUES)
    for _ in range(2):
        with pytest.raises(RoundReused, match="Round 1 was already submitted"):
            client.submit(VALUES)
    assert client.phase is ClientPhase.IDLE
    assert client._round is None, "the keys are gone"


def test_a_value_that_cannot_be_encoded_may_be_corrected(parties):
    ready(parties)
    client = parties.clients[0]
    with pytest.raises(EncodingError, match="'x': expected finite"):
        client.submit(x=[np.nan, 0, 0], n=1)
    with pytest.raises(EncodingError, match="field 'n'"):
        client.submit(x=[0, 0, 0])
    assert client.phase is ClientPhase.READY
    for other in parties.clients:
        parties.server.receive(other.submit(VALUES, n=2))
    assert parties.server.result().values["n"] == 8


def test_prepared_values_are_what_is_sent(parties):
    ready(parties)
    exact = {"x": [0.1, -0.7, 5.0], "n": 3}
    for client in parties.clients:
        carried = client.prepare(exact)
        np.testing.assert_allclose(carried["x"], [0.1, -0.7, 1.0], atol=1 / 32767)
        parties.server.receive(client.submit())
    result = parties.server.result()
    np.testing.assert_allclose(
        result.values["x"], np.sum([carried_of(i, exact) for i in range(4)], axis=0), rtol=1e-12
    )
    assert result.values["n"] == 12
    assert result.clipped == {"x": 4}


def carried_of(i, values):
    """What client `i` of the fixture says it carries in round 1, by its replayable rounding."""
    encoding = Encoding(SCHEMA, 4)
    return encoding.decode(encoding.encode(values, insecure_rounding(i)(b"", 1)), 1).values["x"]


def test_prepared_values_may_be_replaced_and_die_with_their_round(parties):
    advertise(parties)
    client = parties.clients[0]
    client.prepare(VALUES)
    message = parties.server.close_adverts()
    for each in parties.clients:
        each.receive(message)
        parties.server.receive(each.submit(VALUES, n=7))
    assert parties.server.result().values["n"] == 28
    with pytest.raises(PhaseError, match="round under way to prepare"):
        client.prepare(VALUES)
    ready(parties, 2)
    with pytest.raises(EncodingError, match="value of field 'x'"):
        client.submit()


def test_a_failure_while_masking_still_uses_the_round_up(parties, monkeypatch):
    ready(parties)

    def broken(self, words):
        raise MemoryError

    monkeypatch.setattr("secagg.masks.Masks.apply", broken)
    with pytest.raises(MemoryError):
        parties.clients[0].submit(VALUES)
    monkeypatch.undo()
    with pytest.raises(RoundReused):
        parties.clients[0].submit(VALUES)


def test_abort_drops_the_round(parties):
    ready(parties)
    parties.clients[0].abort()
    assert parties.clients[0].phase is ClientPhase.IDLE
    with pytest.raises(PhaseError):
        parties.clients[0].submit(VALUES)
    parties.clients[0].abort()
    assert_usable(parties, parties.clients[0])


@pytest.mark.parametrize("stage", ["advertised", "ready"])
def test_the_next_offer_ends_a_round_that_was_under_way(parties, stage):
    advertise(parties) if stage == "advertised" else ready(parties)
    assert_usable(parties, parties.clients[0])


def test_a_refused_message_changes_nothing_in_any_phase(parties):
    def refuse_all():
        phase, state = parties.clients[0].phase, parties.clients[0]._round
        for data in (b"", b"garbage" * 20, parties.clients[1].name.encode()):
            with pytest.raises(MessageError):
                parties.clients[0].receive(data)
        assert (parties.clients[0].phase, parties.clients[0]._round) == (phase, state)

    refuse_all()
    advertise(parties)
    refuse_all()
    message = parties.server.close_adverts()
    for client in parties.clients:
        client.receive(message)
    refuse_all()
    masked = parties.clients[1].submit(VALUES)
    with pytest.raises(MessageError):
        parties.clients[0].receive(masked)
    for client in (parties.clients[0], *parties.clients[2:]):
        parties.server.receive(client.submit(VALUES))
    parties.server.receive(masked)
    assert parties.server.result().values["n"] == 4


def test_two_clients_do_not_share_state(parties):
    ready(parties)
    a, b = (c.submit(VALUES) for c in parties.clients[:2])
    assert open_sealed(a, (Masked,), parties.roster.clients, 10**6).message.sender == "c0"
    assert a[-24:] != b[-24:], "the same values under different masks"


def test_the_default_rounding_is_fresh_every_time():
    from secagg.client import fresh_rounding

    draws = [fresh_rounding(bytes(16), 1).random() for _ in range(3)]
    assert len(set(draws)) == 3


def test_the_pinned_roster_is_what_counts_not_the_servers():
    """R3: a server that adds a client of its own to the roster is refused by all others."""
    parties = make_parties(4, SCHEMA)
    sybil = Identity.generate("sybil")
    widened = Roster(parties.boss.public_key, {**parties.roster.clients, "sybil": sybil.public_key})
    double = Client(sybil, widened, SCHEMA, policy=SMALL, register=MemoryRegister())
    offer = parties.server.open(1)
    adverts = [client.receive(offer) for client in parties.clients]
    message = RosterMessage(
        session=parties.server.session, round=1, sender="", adverts=[*adverts, double.receive(offer)]
    )
    with pytest.raises(MessageError):
        parties.clients[0].receive(seal(parties.boss, message)[0])
