"""The client under a server, a network and an application that do everything wrong."""

from __future__ import annotations

import threading

import msgspec
import numpy as np
import pytest

from secagg import (
    Client,
    ClientPhase,
    CohortError,
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
    ServerPhase,
    adaptive,
    counted,
    public,
    same,
    summed,
)
from secagg.messages import (
    KINDS,
    MAX_OFFER_BYTES,
    SIGNATURE_BYTES,
    Advert,
    Agreement,
    Consistency,
    Delivery,
    Masked,
    Offer,
    RosterMessage,
    Shares,
    Survivors,
    Unmask,
    open_sealed,
    seal,
)
from secagg.sharing import box_bytes
from tests.secagg.parties import SMALL, advertise, finish, insecure_rounding, make_parties, ready, run_round
from tests.secagg.test_server import BEACON, sparse_parties, well_formed

SCHEMA = Schema(x=summed(1.0, shape=(3,)), n=counted())
VALUES = {"x": [0.1, 0.2, 0.3], "n": 1}
AWAITED = {
    ClientPhase.ADVERTISED: RosterMessage,
    ClientPhase.SHARED: Delivery,
    ClientPhase.SUBMITTED: Survivors,
    ClientPhase.SIGNED: Agreement,
}
BOX = box_bytes(False)
UNDER_WAY = [phase for phase in ClientPhase if phase is not ClientPhase.IDLE]
each_phase = pytest.mark.parametrize("phase", list(ClientPhase), ids=lambda phase: phase.name)


def reach(parties, phase: ClientPhase, round: int = 1) -> dict[str, bytes]:
    """Bring all clients into `phase`; what the server sends them there, which they have not received."""
    server, first = parties.server, parties.clients[0]
    first.abort()
    messages = dict.fromkeys(parties.names(), server.open(round))
    while first.phase is not phase:
        given = {client: client.receive(messages[client.name]) for client in parties.clients}
        if first.phase is ClientPhase.READY:
            if phase is ClientPhase.READY:
                return {}
            given = {client: client.submit(VALUES) for client in parties.clients}
        if first.phase is ClientPhase.ROSTERED:
            if phase is ClientPhase.ROSTERED:
                return {}
            server.draw_graph(BEACON)
            given = {client: client.draw_graph(BEACON) for client in parties.clients}
        for answer in given.values():
            server.receive(answer)
        if server.phase is ServerPhase.UNMASKING:
            return {}
        messages = server.advance()
    return messages


def reopened(parties, data, kind):
    return open_sealed(data, (kind,), {"": parties.boss.public_key}, 10**6)


def altered(parties, data, kind, tail=None, **changes):
    """What a malicious server, with its own good key, can make of one of its messages."""
    opened = reopened(parties, data, kind)
    tail = opened.tail if tail is None else tail
    return seal(parties.boss, msgspec.structs.replace(opened.message, **changes), tail)[0]


def refuse(client, message, match):
    """The message is refused and nothing changes."""
    before = (client.phase, client._round, None if client._round is None else client._round.secrets)
    with pytest.raises(MessageError, match=match):
        client.receive(message)
    assert (client.phase, client._round, None if client._round is None else client._round.secrets) == before


def gives_up(client, message, error, match, blame=()):
    """What the server did sign does not hold: the client gives the round up and forgets its secrets."""
    state = client._round
    with pytest.raises(error, match=match) as info:
        client.receive(message)
    if issubclass(error, RoundAborted):
        assert info.value.blame == blame
    assert client.phase is ClientPhase.IDLE
    assert client._round is None
    assert state.secrets is None
    refuse(client, message, "not one that a party")


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
        (
            Schema(x=summed(2.0, shape=(3,)), n=counted()),
            r"'x' is summed\(bound=2.0, .* there, summed\(bound=1.0, .* here\.",
        ),
        (Schema(x=summed(1.0, shape=(3,))), r"'n' is missing there, counted\(\) here"),
        (Schema(n=counted(), x=summed(1.0, shape=(3,))), "the order of fields differs"),
        (
            Schema(x=summed(1.0, shape=(3,)), n=counted(), spy=summed(1.0)),
            r"'spy' is summed\(bound=1.0\) there, missing here",
        ),
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
    return roster_of(parties, parties.server.advance()["c0"])


def test_a_roster_before_any_offer_is_refused(parties):
    roster = roster_ready(parties)
    fresh = Client(parties.people[0], parties.roster, SCHEMA, policy=SMALL, register=MemoryRegister())
    with pytest.raises(MessageError, match="not one that a party"):
        fresh.receive(resealed(parties, roster))


@pytest.mark.parametrize("changes", [{"round": 2}, {"session": bytes(16)}])
def test_a_roster_of_another_round_is_refused(parties, changes):
    roster = roster_ready(parties)
    with pytest.raises(MessageError, match="this client is in round 1"):
        parties.clients[0].receive(resealed(parties, roster, **changes))
    assert parties.clients[0].receive(resealed(parties, roster))


def test_a_roster_with_doubled_unsorted_or_foreign_adverts_is_refused_and_changes_nothing(parties):
    roster = roster_ready(parties)
    adverts = roster.adverts
    stranger = seal(Identity.generate("x"), msgspec.structs.replace(reopen(parties, adverts[0]), sender="x"))[
        0
    ]
    for bad, message in (
        ([*adverts, adverts[1]], "at most the 4 clients of the pinned roster, got 5"),
        ([*adverts[:3], adverts[1]], "expected each client once"),
        (adverts[::-1], "expected each client once"),
        ([*adverts, stranger], "at most the 4 clients of the pinned roster, got 5"),
        ([*adverts[:3], stranger], "not one that a party"),
        ([b"garbage", *adverts[1:]], "not one that a party"),
        ([*adverts[:-1], adverts[-1][:-1]], "not one that a party"),
    ):
        with pytest.raises(MessageError, match=message):
            parties.clients[0].receive(resealed(parties, roster, adverts=bad))
        assert parties.clients[0].phase is ClientPhase.ADVERTISED
    assert parties.clients[0].receive(resealed(parties, roster))


@pytest.mark.parametrize("which", ["none of it", "nobody's", "another"])
def test_a_roster_without_this_clients_advert_is_given_up(parties, which):
    """Its advert came too late, or was another's of its name: the round goes on without it."""
    roster = roster_ready(parties)
    adverts = list(roster.adverts)
    other = readvert(parties, 0, adverts[0], mask_key=b"\x09" * 32)
    bad = {"none of it": adverts[1:], "nobody's": [], "another": [other, *adverts[1:]]}[which]
    message = resealed(parties, roster, adverts=bad)
    gives_up(parties.clients[0], message, RoundAborted, "the roster lacks this client's advert")


def test_a_cohort_below_the_policy_is_given_up():
    parties = make_parties(6, SCHEMA, policy=Policy(min_clients=5))
    roster = roster_ready(parties)
    with pytest.raises(PolicyError, match=r"roster of 5..131072 clients, got 4"):
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


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mask_kem": b""}, "ML-KEM keys of 1184 bytes, since the round is hybrid"),
        ({"transport_kem": bytes(1183)}, "since the round is hybrid"),
        ({"mask_kem": b"\xff" * 1184}, "not valid"),
        ({"transport_kem": b"\xff" * 1184}, "not valid"),
    ],
    ids=str,
)
def test_a_peer_without_good_encapsulation_keys_ends_a_hybrid_round_with_blame(changes, said):
    """What an honest server would not have let through."""
    parties = make_parties(3, SCHEMA, policy=Policy(min_clients=3, allow_three=True, hybrid=True))
    roster = roster_ready(parties)
    adverts = list(roster.adverts)
    adverts[2] = readvert(parties, 2, adverts[2], **changes)
    with pytest.raises(RoundAborted, match=f"'c2'.*{said}") as info:
        parties.clients[0].receive(resealed(parties, roster, adverts=adverts))
    assert info.value.blame == ("c2",)
    assert parties.clients[0].phase is ClientPhase.IDLE


def test_a_peer_with_encapsulation_keys_ends_a_round_that_is_not_hybrid(parties):
    roster = roster_ready(parties)
    adverts = list(roster.adverts)
    adverts[1] = readvert(parties, 1, adverts[1], mask_kem=bytes(1184), transport_kem=bytes(1184))
    with pytest.raises(RoundAborted, match=r"'c1'.*the round is not hybrid") as info:
        parties.clients[0].receive(resealed(parties, roster, adverts=adverts))
    assert info.value.blame == ("c1",)


def test_a_client_that_insists_on_hybrid_keys_refuses_a_round_without(parties):
    client = Client(
        parties.people[0],
        parties.roster,
        SCHEMA,
        policy=Policy(min_clients=3, allow_three=True, hybrid=True),
        register=MemoryRegister(),
    )
    with pytest.raises(PolicyError, match="hybrid=False, X25519 with ML-KEM-768 wanted"):
        client.receive(parties.server.open(1))
    assert client.phase is ClientPhase.IDLE


def test_two_clients_with_one_key_end_the_round_with_blame(parties):
    roster = roster_ready(parties)
    adverts = list(roster.adverts)
    adverts[3] = readvert(parties, 3, adverts[3], mask_key=reopen(parties, adverts[1]).mask_key)
    with pytest.raises(RoundAborted, match="'c1' and 'c3' share one key") as info:
        parties.clients[0].receive(resealed(parties, roster, adverts=adverts))
    assert info.value.blame == ("c1", "c3")


@pytest.mark.parametrize("kind", list(KINDS), ids=lambda kind: kind.__name__)
@each_phase
def test_each_kind_of_message_is_taken_in_its_phase_and_in_no_other(phase, kind):
    """The table at the head of the module, whole: all kinds in all phases."""
    parties = sparse_parties() if phase is ClientPhase.ROSTERED else make_parties(4, SCHEMA)
    messages = {} if phase is ClientPhase.IDLE else reach(parties, phase)
    client = parties.clients[0]
    if AWAITED.get(phase) is kind:
        answer = client.receive(messages["c0"])
        assert (answer is None) == (kind is Delivery)
        refuse(client, messages["c0"], "not one that a party")
        return
    if kind is Offer:  # In any phase: it ends what was under way.
        parties.server.abort()
        assert client.receive(parties.server.open(5))
        assert client.phase is ClientPhase.ADVERTISED
        return
    state = client._round
    changes = {"session": parties.server.session, "round": 1}
    if state is not None and state.roster and kind is not RosterMessage and hasattr(kind, "roster"):
        changes["roster"] = state.roster
    peers = ((parties.people[0], "c0"), (parties.people[1], "c1"))
    for signer, sender in ((parties.boss, ""), *peers):
        message = msgspec.structs.replace(well_formed(kind, parties, sender), **changes)
        if sender == "" and kind in LATER.get(phase, ()):
            message = msgspec.structs.replace(message, round=2)
            refuse(client, seal(signer, message)[0], "this client is in round 1 of its session")
        else:
            refuse(client, seal(signer, message)[0], "not one that a party")


LATER = {
    ClientPhase.ADVERTISED: (Delivery, Survivors, Agreement),
    ClientPhase.ROSTERED: (Delivery, Survivors, Agreement),
    ClientPhase.SHARED: (Survivors, Agreement),
    ClientPhase.READY: (Survivors, Agreement),
    ClientPhase.SUBMITTED: (Agreement,),
}
"""What a server sends only when it has heard the last of a phase's stage."""


@pytest.mark.parametrize(("phase", "kind"), [(phase, kind) for phase in LATER for kind in LATER[phase]])
def test_a_message_of_a_later_stage_ends_the_round_of_who_was_left_behind(phase, kind):
    """Whether it is for this client or for another: the server hears no answer to this stage any more."""
    parties = sparse_parties() if phase is ClientPhase.ROSTERED else make_parties(4, SCHEMA)
    reach(parties, phase)
    client = parties.clients[0]
    message = msgspec.structs.replace(well_formed(kind, parties, ""), session=parties.server.session, round=1)
    said = f"Round 1: the server is past the stage of this client, which is {phase.value}"
    gives_up(client, seal(parties.boss, message)[0], RoundAborted, said)


@pytest.mark.parametrize("phase", list(AWAITED), ids=lambda phase: phase.name)
def test_what_the_server_did_not_sign_for_this_round_is_refused(parties, phase):
    message = reach(parties, phase)["c0"]
    client, kind = parties.clients[0], AWAITED[phase]
    opened = reopened(parties, message, kind)
    forged = seal(Identity.generate("server"), opened.message, opened.tail)[0]
    by_peer = seal(parties.people[1], msgspec.structs.replace(opened.message, sender="c1"), opened.tail)[0]
    as_server = seal(parties.people[1], opened.message, opened.tail)[0]
    bad = [b"", b"garbage" * 50, message[:-1], message + b"\0", forged, by_peer, as_server]
    for at in (0, 4, 5, 40, 69, 80, len(message) - 1):
        bad.append(message[:at] + bytes([message[at] ^ 1]) + message[at + 1 :])
    for each in bad:
        refuse(client, each, "not one that a party")
    for changes in ({"round": 2}, {"session": bytes(16)}):
        other = altered(parties, message, kind, **changes)
        refuse(client, other, "this client is in round 1 of its session")
    if kind is not RosterMessage:
        other = altered(parties, message, kind, roster=bytes(32))
        refuse(client, other, "about another roster or beacon")
    assert (client.receive(message) is None) == (kind is Delivery)


@pytest.mark.parametrize(
    ("phase", "bitmap", "said"),
    [
        (ClientPhase.SHARED, "present", "not one that"),
        (ClientPhase.SUBMITTED, "survivors", "not one that"),
        (ClientPhase.SIGNED, "signers", "not one that"),
    ],
)
def test_bitmaps_of_another_length_or_with_padding_are_refused(parties, phase, bitmap, said):
    message = reach(parties, phase)["c0"]
    kind, client = AWAITED[phase], parties.clients[0]
    good = getattr(reopened(parties, message, kind).message, bitmap)
    for bits in (b"", good + b"\0", bytes([good[0] | 0x10]), bytes([good[0] | 0x80])):
        refuse(client, altered(parties, message, kind, **{bitmap: bits}), said)
    assert (client.receive(message) is None) == (kind is Delivery)


@pytest.mark.parametrize(
    ("phase", "size", "said"),
    [
        (ClientPhase.SHARED, BOX, rf"expected 3 boxes of {BOX} bytes, got"),
        (ClientPhase.SIGNED, SIGNATURE_BYTES, "expected 3 signatures and 3 receipts, got"),
    ],
)
def test_tails_of_another_length_are_refused(parties, phase, size, said):
    message = reach(parties, phase)["c0"]
    kind, client = AWAITED[phase], parties.clients[0]
    tail = bytes(reopened(parties, message, kind).tail)
    for bad in (b"", tail[:-1], tail + b"\0", tail[:-size], tail + tail[:size]):
        refuse(client, altered(parties, message, kind, bad), said)
    refuse(client, altered(parties, message, kind, bytes(MAX_OFFER_BYTES)), "not one that")
    assert (client.receive(message) is None) == (kind is Delivery)


# Stage 2: the graph.


def test_a_graph_weaker_than_the_policy_is_given_up():
    """Four clients and threshold 3 withstand one colluder, not two."""
    parties = make_parties(4, SCHEMA)
    message = reach(parties, ClientPhase.ADVERTISED)["c0"]
    parties.clients[0]._policy = Policy(min_clients=3, allow_three=True, colluders=2)
    parties.clients[1]._policy = Policy(min_clients=3, allow_three=True, colluders=1)
    gives_up(parties.clients[0], message, PolicyError, "2 \\* threshold > clients \\+ colluders")
    assert parties.clients[1].receive(message)


def test_a_threshold_is_never_below_the_fraction_of_the_offer():
    parties = make_parties(7, SCHEMA)
    reach(parties, ClientPhase.SHARED)
    assert {client._round.threshold for client in parties.clients} == {5}, "two thirds of 7, rounded up"
    assert parties.server._round.threshold == 5


def test_a_sparse_graph_takes_the_consent_of_the_policy():
    parties = sparse_parties()
    offer = parties.server.open(1)
    parties.clients[0]._policy = Policy(min_clients=3, allow_three=True, colluders=0)
    with pytest.raises(PolicyError, match="degree=4, a complete graph wanted"):
        parties.clients[0].receive(offer)
    assert parties.clients[0].phase is ClientPhase.IDLE


def test_a_sparse_graph_that_is_too_weak_is_given_up():
    """Among 33 clients, seven colluders meet in some neighbourhood for certain."""
    parties = sparse_parties()
    reach(parties, ClientPhase.ROSTERED)
    client, state = parties.clients[0], parties.clients[0]._round
    client._policy = Policy(min_clients=3, allow_three=True, sparse=True, colluders=7)
    with pytest.raises(PolicyError, match=r"fails with probability <= 2\^-40, got 2\^0.0 with degree=4"):
        client.draw_graph(BEACON)
    assert (client.phase, client._round, state.secrets) == (ClientPhase.IDLE, None, None)


@each_phase
def test_a_beacon_is_taken_when_a_roster_waits_for_it(phase):
    parties = sparse_parties() if phase is ClientPhase.ROSTERED else make_parties(4, SCHEMA)
    if phase is not ClientPhase.IDLE:
        reach(parties, phase)
    client = parties.clients[0]
    if phase is not ClientPhase.ROSTERED:
        with pytest.raises(PhaseError, match=f"roster that waits for a beacon, this client is {phase.value}"):
            client.draw_graph(BEACON)
        assert client.phase is phase
        return
    for short in (b"", b"x" * 15):
        with pytest.raises(ValueError, match="at least 16 bytes"):
            client.draw_graph(short)
        assert client.phase is phase
    shares = open_sealed(client.draw_graph(BEACON), (Shares,), parties.roster.clients, 10**6)
    assert len(shares.tail) == 4 * BOX, "four neighbours"
    assert client.phase is ClientPhase.SHARED


# Stage 3: shares.


def delivery_of(parties, i=0):
    message = reach(parties, ClientPhase.SHARED)[f"c{i}"]
    return message, bytearray(reopened(parties, message, Delivery).tail)


@pytest.mark.parametrize("at", [0, 40, BOX - 1])
def test_a_box_that_was_altered_ends_the_round_and_its_sender_is_named(parties, at):
    message, boxes = delivery_of(parties)
    boxes[BOX + at] ^= 1
    gives_up(
        parties.clients[0],
        altered(parties, message, Delivery, boxes),
        RoundAborted,
        r"the shares of \['c2'\] for 'c0' do not open",
        ("c2",),
    )
    assert_usable(parties, parties.clients[0])


def test_boxes_that_were_swapped_end_the_round_and_all_their_senders_are_named(parties):
    message, boxes = delivery_of(parties)
    boxes[:BOX], boxes[BOX : 2 * BOX] = boxes[BOX : 2 * BOX], boxes[:BOX]
    swapped = altered(parties, message, Delivery, boxes)
    gives_up(parties.clients[0], swapped, RoundAborted, r"\['c1', 'c2'\] for 'c0'", ("c1", "c2"))


def test_a_box_for_another_receiver_does_not_open(parties):
    """Whole deliveries exchanged, and one box of the right sender meant for somebody else."""
    messages = reach(parties, ClientPhase.SHARED)
    gives_up(parties.clients[0], messages["c1"], RoundAborted, "was another client's", ())
    theirs = bytes(reopened(parties, messages["c3"], Delivery).tail)  # from c0, c1, c2
    mine = bytearray(reopened(parties, messages["c2"], Delivery).tail)  # from c0, c1, c3
    mine[BOX : 2 * BOX] = theirs[BOX : 2 * BOX]
    other = altered(parties, messages["c2"], Delivery, mine)
    gives_up(parties.clients[2], other, RoundAborted, r"\['c1'\] for 'c2'", ("c1",))


def test_a_box_of_an_earlier_round_does_not_open(parties):
    old = delivery_of(parties)[1]
    parties.server.abort()
    message = reach(parties, ClientPhase.SHARED, 2)["c0"]
    replayed = altered(parties, message, Delivery, old)
    gives_up(parties.clients[0], replayed, RoundAborted, "Round 2: the shares of", ())


def test_a_box_of_whoever_was_shown_another_roster_does_not_open():
    """R2, R4: a server that shows two rosters gets boxes that do not open, whatever it says of them."""
    five = make_parties(5, SCHEMA)
    roster = roster_ready(five)
    cut = resealed(five, roster, adverts=roster.adverts[:4])
    first = [
        client.receive(cut if client.name == "c1" else resealed(five, roster)) for client in five.clients
    ]
    with pytest.raises(MessageError, match="another roster or beacon"):
        five.server.receive(first[1])
    # A malicious server takes them all the same: c1 sealed boxes for c0, c2 and c3.
    tails = [bytes(open_sealed(each, (Shares,), five.roster.clients, 10**6).tail) for each in first]
    for_c0 = b"".join(tail[:BOX] for tail in tails[1:])
    state = five.clients[0]._round
    message = Delivery(state.session, 1, "", roster=state.roster, present=b"\x0f")
    forged = seal(five.boss, message, for_c0)[0]
    gives_up(five.clients[0], forged, RoundAborted, r"\['c1'\] for 'c0' do not open", ("c1",))


def test_a_peer_that_seals_nonsense_for_a_client_is_named(parties):
    """A box that opens and holds no shares: what a malicious peer can send."""
    from secagg import shamir

    messages = reach(parties, ClientPhase.ADVERTISED)
    secrets = parties.clients[2]._round.secrets
    seal_box = secrets._transport.seal

    class Malicious:
        def __init__(self, plain):
            self.plain = plain

        def seal(self, name, peer, keys, binding, plain):
            return seal_box(name, peer, keys, binding, self.plain if peer == "c0" else plain)

    outside = np.full(2 * shamir.LIMBS, shamir.PRIME, "<u4").tobytes()
    secrets._transport = Malicious(outside)
    for client in parties.clients:
        parties.server.receive(client.receive(messages[client.name]))
    messages = parties.server.advance()
    gives_up(parties.clients[0], messages["c0"], RoundAborted, r"\['c2'\] for 'c0'", ("c2",))
    assert parties.clients[1].receive(messages["c1"]) is None


def test_too_few_shares_to_unmask_are_given_up(parties):
    """Threshold 3 of 4: this client and one other are too few."""
    message, boxes = delivery_of(parties)
    few = altered(parties, message, Delivery, boxes[:BOX], present=b"\x01")
    match = "2 of this client's holders shared their secrets, threshold is 3"
    gives_up(parties.clients[0], few, CohortError, match, ("c2", "c3"))
    parties.server.abort()
    message = reach(parties, ClientPhase.SHARED, 2)["c0"]
    boxes = bytes(reopened(parties, message, Delivery).tail)
    enough = altered(parties, message, Delivery, boxes[: 2 * BOX], present=b"\x03")
    assert parties.clients[0].receive(enough) is None
    assert parties.clients[0].phase is ClientPhase.READY


# Stage 4: one vector.


@each_phase
def test_submit_works_when_shares_were_delivered(phase):
    parties = sparse_parties() if phase is ClientPhase.ROSTERED else make_parties(4, SCHEMA)
    if phase is not ClientPhase.IDLE:
        reach(parties, phase)
    client = parties.clients[0]
    for submit in (client.submit, lambda values: list(client.submit_parts(values))):
        if phase is ClientPhase.READY:
            break
        expected = RoundReused if phase in (ClientPhase.SUBMITTED, ClientPhase.SIGNED) else PhaseError
        with pytest.raises(expected):
            submit(VALUES)
        assert client.phase is phase
    else:
        return
    sealed = client.submit(VALUES)
    assert open_sealed(sealed, (Masked,), parties.roster.clients, 10**6).message.sender == "c0"
    assert client.phase is ClientPhase.SUBMITTED


def test_submit_works_once_per_round_ever(parties):
    ready(parties)
    for client in parties.clients:
        parties.server.receive(client.submit(VALUES))
    client = parties.clients[0]

    def refused():
        for submit in (client.submit, lambda values: list(client.submit_parts(values))):
            with pytest.raises(RoundReused, match="Round 1 was already submitted"):
                submit(VALUES)

    refused()
    for _ in range(2):
        messages = parties.server.advance()
        for each in parties.clients:
            parties.server.receive(each.receive(messages[each.name]))
        refused()
    assert client.phase is ClientPhase.IDLE
    assert client._round is None, "the keys are gone"
    client.receive(next_offer(parties))
    with pytest.raises(PhaseError, match="this client is advertised"):
        client.submit(VALUES)


def next_offer(parties, round=2):
    parties.server.abort()
    return parties.server.open(round)


def test_parts_give_the_words_that_a_whole_vector_gives(parties):
    """The same values by both ways, all but the masks alike: the sums are."""
    sums = []
    for number, part_words in ((1, None), (2, 1), (3, 2), (4, 5), (5, 100)):
        ready(parties, number)
        for client in parties.clients:
            client._rounding = lambda session, round: np.random.default_rng(7)
            if part_words is None:
                parts = [client.submit(VALUES)]
            else:
                parts = list(client.submit_parts(VALUES, part_words=part_words))
                assert len(parts) == -(-5 // part_words)
            for part in parts:
                parties.server.receive(part)
        sums.append(finish(parties).values["x"])
    for each in sums[1:]:
        assert np.array_equal(each, sums[0])


@pytest.mark.parametrize("event", ["abort", "offer", "close", "failure"])
def test_a_vector_that_was_cut_short_is_never_masked_again(parties, event, monkeypatch):
    ready(parties)
    client, state = parties.clients[0], parties.clients[0]._round
    parts = client.submit_parts(VALUES, part_words=2)
    first = next(parts)
    if event == "abort":
        client.abort()
    elif event == "offer":
        client.receive(next_offer(parties))
    if event == "close":
        parts.close()
    elif event == "failure":

        def broken(self, *args, **kwargs):
            raise MemoryError

        monkeypatch.setattr("secagg.masks.MaskStream.add", broken)
        with pytest.raises(MemoryError):
            next(parts)
        monkeypatch.undo()
    else:
        with pytest.raises(PhaseError, match="round 1 to send a part of, it is over"):
            next(parts)
    with pytest.raises(StopIteration):
        next(parts)
    assert state.secrets is None
    assert client.phase is (ClientPhase.ADVERTISED if event == "offer" else ClientPhase.IDLE)
    if event != "offer":
        with pytest.raises(RoundReused):
            client.submit(VALUES)
    assert len(open_sealed(first, (Masked,), parties.roster.clients, 10**6).tail) == 16


def test_values_for_parts_are_verified_before_the_first(parties):
    ready(parties)
    client = parties.clients[0]
    for bad in ({"x": [0, 0, np.inf], "n": 1}, {"x": [0, 0, 0]}, {"x": [0, 0], "n": 1}):
        with pytest.raises(EncodingError):
            client.submit_parts(bad, part_words=1)
        assert client.phase is ClientPhase.READY
    assert client.submit(VALUES)


# Stage 5: one set of survivors.


def test_the_signed_set_is_the_one_that_the_server_named(parties):
    message = reach(parties, ClientPhase.SUBMITTED)["c0"]
    without = altered(parties, message, Survivors, survivors=b"\x07")
    first, second = parties.clients[0].receive(message), parties.clients[1].receive(without)
    hashes = [open_sealed(m, (Consistency,), parties.roster.clients, 10**4).message for m in (first, second)]
    assert hashes[0].survivors != hashes[1].survivors
    assert parties.clients[0]._round.survivors == ("c0", "c1", "c2", "c3")
    assert parties.clients[1]._round.survivors == ("c0", "c1", "c2")


def test_a_client_signs_one_set_ever(parties):
    """R2: the second set, even the same one again, is refused; so is the round offered anew."""
    message = reach(parties, ClientPhase.SUBMITTED)["c0"]
    client = parties.clients[0]
    client.receive(message)
    for other in (message, altered(parties, message, Survivors, survivors=b"\x07")):
        refuse(client, other, "not one that")
    parties.server.abort()
    again = make_parties(4, SCHEMA)
    again.server._session, again.server._identity = parties.server.session, parties.boss
    with pytest.raises(RoundReused):
        client.receive(again.server.open(1))
    assert client.phase is ClientPhase.SIGNED


def test_a_set_without_this_client_is_given_up(parties):
    message = reach(parties, ClientPhase.SUBMITTED)["c0"]
    late = altered(parties, message, Survivors, survivors=b"\x0e")
    gives_up(parties.clients[0], late, RoundAborted, "counts 'c0' as dropped; its vector came too late")
    with pytest.raises(RoundReused):
        parties.clients[0].submit(VALUES)


def test_a_survivor_whose_shares_never_came_ends_the_round_with_blame():
    """U3 is a part of U2: c3's boxes were kept from this client, so c3 cannot be in its sum."""
    parties = make_parties(4, SCHEMA)
    messages = reach(parties, ClientPhase.SHARED)
    boxes = bytes(reopened(parties, messages["c0"], Delivery).tail)
    messages["c0"] = altered(parties, messages["c0"], Delivery, boxes[: 2 * BOX], present=b"\x03")
    parties.server._round.senders["c0"] = 2  # so many receipts
    for client in parties.clients:
        client.receive(messages[client.name])
        parties.server.receive(client.submit(VALUES))
    message = parties.server.advance()["c0"]
    said = r"counts \['c3'\] as survivors, whose shares it never delivered"
    gives_up(parties.clients[0], message, RoundAborted, said, ("c3",))


def test_too_few_survivors_are_given_up(parties):
    message = reach(parties, ClientPhase.SUBMITTED)["c0"]
    few = altered(parties, message, Survivors, survivors=b"\x09")
    said = "2 of this client's holders survived, threshold is 3"
    gives_up(parties.clients[0], few, CohortError, said, ("c1", "c2"))


def test_too_few_survivors_for_the_policy_are_given_up():
    """Enough for the threshold, and still one honest value among colluders."""
    parties = make_parties(5, SCHEMA)
    message = reach(parties, ClientPhase.SUBMITTED)["c0"]
    for i, (policy, bits) in enumerate(
        [
            (Policy(min_clients=5), b"\x0f"),
            (Policy(min_clients=3, allow_three=True, colluders=3), b"\x0f"),
        ]
    ):
        parties.clients[i]._policy = policy
        few = altered(parties, message, Survivors, survivors=bits)
        said = "has 4 survivors of 5 clients, expected at least 5"
        gives_up(parties.clients[i], few, CohortError, said)
    assert parties.clients[2].receive(altered(parties, message, Survivors, survivors=b"\x0f"))


# Stage 6: an agreement.


def agreement_of(parties):
    message = reach(parties, ClientPhase.SIGNED)["c0"]
    tail = bytes(reopened(parties, message, Agreement).tail)
    end = 3 * SIGNATURE_BYTES  # of as many as the threshold says
    return message, [tail[i : i + SIGNATURE_BYTES] for i in range(0, end, SIGNATURE_BYTES)], tail[end:]


def test_shares_leave_after_an_agreement_and_once(parties):
    message, _, _ = agreement_of(parties)
    client = parties.clients[0]
    unmask = open_sealed(client.receive(message), (Unmask,), parties.roster.clients, 10**6)
    assert len(unmask.tail) == 4 * 36
    assert (client.phase, client._round) == (ClientPhase.IDLE, None)
    refuse(client, message, "not one that")


def test_as_many_signatures_as_the_threshold_are_enough(parties):
    message, signatures, receipts = agreement_of(parties)
    last = parties.server._round.signatures["c3"]
    tail = b"".join([*signatures[1:], last, receipts])
    assert len(signatures) == 3
    assert parties.clients[0].receive(altered(parties, message, Agreement, tail, signers=b"\x0e"))


def test_too_few_signatures_are_given_up(parties):
    message, signatures, receipts = agreement_of(parties)
    two = altered(parties, message, Agreement, b"".join([*signatures[:2], receipts]), signers=b"\x03")
    said = "2 of this client's holders agreed on the survivors, threshold is 3"
    gives_up(parties.clients[0], two, CohortError, said, ("c2", "c3"))


@pytest.mark.parametrize("what", ["flipped", "exchanged", "another set", "another round", "another roster"])
def test_a_signature_that_is_not_of_this_set_ends_the_round_with_blame(parties, what):
    message, signatures, receipts = agreement_of(parties)
    state = parties.clients[0]._round
    right = Consistency(state.session, 1, "c2", roster=state.roster, survivors=state.agreed)
    changes = {
        "another set": {"survivors": b"\x01" * 32},
        "another round": {"round": 2},
        "another roster": {"roster": bytes(32)},
    }
    if what == "flipped":
        signatures[2] = bytes([signatures[2][0] ^ 1]) + signatures[2][1:]
    elif what == "exchanged":
        signatures[2] = signatures[1]
    else:
        other = seal(parties.people[2], msgspec.structs.replace(right, **changes[what]))[0]
        signatures[2] = other[5:69]
        assert seal(parties.people[2], right)[0][5:69] != signatures[2]
    bad = altered(parties, message, Agreement, b"".join([*signatures, receipts]))
    gives_up(parties.clients[0], bad, RoundAborted, "'c2' did not sign the survivors", ("c2",))


def test_a_receipt_that_did_not_come_with_the_box_ends_the_round_with_blame(parties):
    """c2 shows no proof that it opened this client's box, so its vector may lack their mask."""
    message, signatures, receipts = agreement_of(parties)
    wrong = receipts[:16] + bytes([receipts[16] ^ 1]) + receipts[17:]
    bad = altered(parties, message, Agreement, b"".join([*signatures, wrong]))
    gives_up(parties.clients[0], bad, RoundAborted, r"\['c2'\] survived without the shares", ("c2",))


def test_receipts_of_two_neighbours_are_not_interchangeable(parties):
    message, signatures, receipts = agreement_of(parties)
    swapped = receipts[16:32] + receipts[:16] + receipts[32:]
    bad = altered(parties, message, Agreement, b"".join([*signatures, swapped]))
    gives_up(parties.clients[0], bad, RoundAborted, r"\['c1', 'c2'\] survived without", ("c1", "c2"))


def test_signers_who_are_no_survivors_end_the_round_with_blame():
    """c4 dropped; whatever it signed, it does not count."""
    parties = make_parties(5, SCHEMA)
    reach(parties, ClientPhase.READY)
    for client in parties.clients[:4]:
        parties.server.receive(client.submit(VALUES))
    messages = parties.server.advance()
    for client in parties.clients[:4]:
        parties.server.receive(client.receive(messages[client.name]))
    message = parties.server.advance()["c0"]
    state = parties.clients[0]._round
    theirs = Consistency(state.session, 1, "c4", roster=state.roster, survivors=state.agreed)
    tail = bytes(reopened(parties, message, Agreement).tail)
    middle = 3 * SIGNATURE_BYTES
    forged = tail[:middle] + seal(parties.people[4], theirs)[0][5:69] + tail[middle + SIGNATURE_BYTES :]
    bad = altered(parties, message, Agreement, forged, signers=b"\x17")
    gives_up(parties.clients[0], bad, RoundAborted, r"\['c4'\] signed, but are no survivors", ("c4",))


def test_which_shares_leave_follows_from_the_set_that_was_signed():
    """Of a survivor its self seed's, of a dropped peer its mask seed's: compared with what was dealt."""
    parties = make_parties(5, SCHEMA)
    reach(parties, ClientPhase.READY)
    held = {client.name: dict(client._round.secrets._shares) for client in parties.clients}
    for client in parties.clients[:4]:
        parties.server.receive(client.submit(VALUES))
    for _ in range(2):
        messages, answers = parties.server.advance(), {}
        for client in parties.clients[:4]:
            answers[client.name] = client.receive(messages[client.name])
            parties.server.receive(answers[client.name])
    for name, answer in answers.items():
        tail = open_sealed(answer, (Unmask,), parties.roster.clients, 10**6).tail
        given = np.frombuffer(tail, "<u4").reshape(5, -1)
        for place, peer in enumerate(parties.names()):
            self_share, mask_share = held[name][peer]
            assert np.array_equal(given[place], self_share if peer != "c4" else mask_share)
            other = bytes(mask_share if peer != "c4" else self_share)
            assert other not in bytes(tail)
    assert parties.server.result().values["n"] == 4


def test_of_two_threads_that_hand_over_two_sets_one_gets_a_signature(parties):
    """Whatever the transport does: what a client checks still holds when it acts."""
    message = reach(parties, ClientPhase.SUBMITTED)["c0"]
    other = altered(parties, message, Survivors, survivors=b"\x07")
    client, outcomes = parties.clients[0], []
    barrier = threading.Barrier(2)

    def hand(data):
        barrier.wait()
        try:
            outcomes.append(client.receive(data))
        except MessageError:
            outcomes.append(None)

    threads = [threading.Thread(target=hand, args=(data,)) for data in (message, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([each for each in outcomes if each is not None]) == 1


# What may be checked before anything is done.


def test_verify_says_what_receive_would_and_changes_nothing(parties):
    client = parties.clients[0]
    offer = parties.server.open(1)
    assert client.verify(offer) == (parties.server.session, 1)
    opened = opened_offer(parties, offer)
    for bad, error in (
        (offer[:-1], MessageError),
        (make_parties(4, SCHEMA).server.open(1), MessageError),
        (resealed(parties, opened, min_clients=2), PolicyError),
        (resealed(parties, opened, schema=Schema(n=counted()).to_bytes()), SchemaError),
    ):
        with pytest.raises(error):
            client.verify(bad)
        assert client.phase is ClientPhase.IDLE
    assert client.receive(offer), "verify claimed nothing"
    assert client.verify(offer) == (parties.server.session, 1)
    assert client.phase is ClientPhase.ADVERTISED


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
    assert finish(parties).values["n"] == 8


def test_prepared_values_are_what_is_sent(parties):
    ready(parties)
    exact = {"x": [0.1, -0.7, 5.0], "n": 3}
    for client in parties.clients:
        carried = client.prepare(exact)
        np.testing.assert_allclose(carried["x"], [0.1, -0.7, 1.0], atol=1 / 32767)
        parties.server.receive(client.submit())
    result = finish(parties)
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
    messages = reach(parties, ClientPhase.SHARED)
    client = parties.clients[0]
    client.prepare(VALUES)
    for each in parties.clients:
        each.receive(messages[each.name])
        parties.server.receive(each.submit(VALUES, n=7))
    assert finish(parties).values["n"] == 28
    ready(parties, 2)
    with pytest.raises(EncodingError, match="value of field 'x'"):
        client.submit()


@each_phase
def test_values_are_prepared_while_none_were_submitted(phase):
    parties = sparse_parties() if phase is ClientPhase.ROSTERED else make_parties(4, SCHEMA)
    if phase is not ClientPhase.IDLE:
        reach(parties, phase)
    client = parties.clients[0]
    if phase in (ClientPhase.IDLE, ClientPhase.SUBMITTED, ClientPhase.SIGNED):
        with pytest.raises(PhaseError, match=f"round under way to prepare, this client is {phase.value}"):
            client.prepare(VALUES)
    else:
        assert client.prepare(VALUES)["n"] == 1
    assert client.phase is phase


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


@each_phase
def test_abort_drops_the_round_in_any_phase(phase):
    parties = sparse_parties() if phase is ClientPhase.ROSTERED else make_parties(4, SCHEMA)
    if phase is not ClientPhase.IDLE:
        reach(parties, phase)
    client, state = parties.clients[0], parties.clients[0]._round
    for _ in range(2):
        client.abort()
        assert (client.phase, client._round) == (ClientPhase.IDLE, None)
    assert state is None or state.secrets is None
    with pytest.raises((PhaseError, RoundReused)):
        client.submit(VALUES)
    parties.server.abort()
    assert client.receive(parties.server.open(9))


@each_phase
def test_the_next_offer_ends_a_round_that_was_under_way(phase):
    parties = sparse_parties() if phase is ClientPhase.ROSTERED else make_parties(4, SCHEMA)
    if phase is not ClientPhase.IDLE:
        reach(parties, phase)
    state = parties.clients[0]._round
    if phase is not ClientPhase.ROSTERED:
        assert_usable(parties, parties.clients[0])
    else:
        parties.server.abort()
        assert parties.clients[0].receive(parties.server.open(9))
    assert state is None or state.secrets is None


def test_two_clients_do_not_share_state(parties):
    ready(parties)
    a, b = (c.submit(VALUES) for c in parties.clients[:2])
    assert open_sealed(a, (Masked,), parties.roster.clients, 10**6).message.sender == "c0"
    assert a[-24:] != b[-24:], "the same values under different masks"


def test_the_default_rounding_is_fresh_every_time():
    from secagg.client import fresh_rounding

    draws = [
        fresh_rounding(bytes(16), 1).random(dtype=np.float32, out=np.empty(1, np.float32)).item()
        for _ in range(3)
    ]
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


# --- what a caller can find out ---------------------------------------------------------------------------


def test_a_client_says_which_round_it_is_in_and_whose_sum_it_agreed_to(parties):
    first = parties.clients[0]
    assert (first.round, first.survivors) == (None, ())
    messages = reach(parties, ClientPhase.SIGNED, 7)
    assert (first.round, first.survivors) == (7, ("c0", "c1", "c2", "c3"))
    first.receive(messages["c0"])
    assert (first.round, first.survivors) == (None, ("c0", "c1", "c2", "c3"))
    parties.server.abort()
    first.receive(parties.server.open(8))
    assert (first.round, first.survivors) == (8, ())


def test_a_refusal_says_where_the_client_stands_and_whom_it_trusts(parties):
    client, mine = parties.clients[0], parties.roster.fingerprint
    other = make_parties(4, SCHEMA)
    stands = rf"This client is idle and expects Offer, signed by the server of its roster \({mine}\)"
    with pytest.raises(MessageError, match=stands):
        client.receive(other.server.open(1))
    roster = reach(parties, ClientPhase.ADVERTISED)["c0"]
    with pytest.raises(MessageError, match="is advertised and expects RosterMessage or Offer"):
        client.receive(b"noise")
    client.abort()
    with pytest.raises(MessageError, match="is idle and expects Offer"):
        client.receive(roster)


@pytest.mark.parametrize("register", ["rounds.txt", None, MemoryRegister])
def test_what_is_no_register_is_refused_at_once(parties, register):
    if register is MemoryRegister:
        register = object()
    with pytest.raises(TypeError, match=r"FileRegister\(path\)"):
        Client(parties.people[0], parties.roster, SCHEMA, policy=SMALL, register=register)


def test_what_is_no_schema_is_refused_at_once(parties):
    with pytest.raises(SchemaError, match=r"Wrap it: Schema\(fields\)"):
        Client(parties.people[0], parties.roster, dict(SCHEMA), register=MemoryRegister())


def test_many_fields_that_differ_are_not_all_described(parties):
    many = Schema({f"f{i}": counted() for i in range(9)})
    offer = resealed(parties, opened_offer(parties, parties.server.open(1)), schema=many.to_bytes())
    with pytest.raises(SchemaError, match="and 8 more fields") as info:
        parties.clients[0].receive(offer)
    assert len(str(info.value)) < 400
