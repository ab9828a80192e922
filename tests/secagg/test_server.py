"""The server under clients and a network that do everything wrong."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from secagg import (
    CohortError,
    Identity,
    IdentityError,
    MessageError,
    PhaseError,
    Policy,
    PolicyError,
    RoundAborted,
    RoundReused,
    Schema,
    SchemaError,
    Server,
    ServerPhase,
    counted,
    public,
    same,
    summed,
)
from secagg.messages import Advert, Masked, open_sealed, seal
from tests.secagg.parties import SMALL, advertise, make_parties, ready, run_round

SCHEMA = Schema(x=summed(1.0, shape=(3,)), n=counted())
VALUES = {"x": [0.1, 0.2, 0.3], "n": 1}


@pytest.fixture
def parties():
    return make_parties(4, SCHEMA)


def resealed(parties, i, sealed, kind, **changes):
    """What a malicious client, with its own good key, can send."""
    opened = open_sealed(sealed, (kind,), parties.roster.clients, 10**6)
    return seal(parties.people[i], msgspec.structs.replace(opened.message, **changes), opened.tail)[0]


def snapshot(server):
    state = server._round
    return (
        server.phase,
        server.missing,
        None if state is None else (sorted(state.adverts), sorted(state.vectors), state.total.tobytes()),
    )


def refuse(server, message, match, sender=None):
    before = snapshot(server)
    with pytest.raises(MessageError, match=match) as info:
        server.receive(message)
    assert info.value.sender == sender
    assert snapshot(server) == before, "a refused message changes nothing"


def test_the_identity_must_be_the_rosters_server(parties):
    with pytest.raises(IdentityError, match="roster's server"):
        Server(Identity.generate("server"), parties.roster, SCHEMA, policy=SMALL)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_a_roster_below_the_policy_is_refused_at_once(n):
    with pytest.raises(PolicyError, match=f"roster of 5..65536 clients as the policy says, got {n}"):
        make_parties(n, SCHEMA, policy=Policy())


def test_a_schema_that_would_overflow_is_refused_at_once():
    with pytest.raises(SchemaError, match="'n' needs"):
        make_parties(5, Schema(n=counted(2**62)))


def test_a_session_has_sixteen_bytes_and_is_fresh_by_default(parties):
    with pytest.raises(ValueError, match="16 bytes, got 3"):
        Server(parties.boss, parties.roster, SCHEMA, policy=SMALL, session=b"abc")
    assert make_parties(4, SCHEMA, session=b"s" * 16).server.session == b"s" * 16
    assert parties.server.session != make_parties(4, SCHEMA).server.session


@pytest.mark.parametrize("round", [-1, 2**53, 1.0, True, "1"])
def test_rounds_are_numbered(parties, round):
    with pytest.raises(ValueError, match="Expected round to be an integer"):
        parties.server.open(round)


def test_rounds_only_go_forward(parties):
    parties.server.open(5)
    parties.server.abort()
    for number in (5, 4, 0):
        with pytest.raises(RoundReused, match=f"Round {number} is not after round 5"):
            parties.server.open(number)
    parties.server.open(6)


def test_calls_out_of_turn_are_refused_and_change_nothing(parties):
    server = parties.server
    for call in (server.close_adverts, server.result):
        with pytest.raises(PhaseError):
            call()
    advertise(parties)
    with pytest.raises(PhaseError, match="Finish with result"):
        server.open(2)
    with pytest.raises(PhaseError, match=r"Expected phase 'collecting masked vectors' for result\(\)"):
        server.result()
    assert server.phase is ServerPhase.ADVERTS
    message = server.close_adverts()
    with pytest.raises(PhaseError):
        server.close_adverts()
    for client in parties.clients:
        client.receive(message)
        server.receive(client.submit(VALUES))
    assert server.result().values["n"] == 4
    with pytest.raises(PhaseError):
        server.result()


def test_messages_without_a_round_are_refused(parties):
    refuse(parties.server, b"x" * 200, "no round is open")


def test_adverts_that_do_not_belong_are_refused(parties):
    server = parties.server
    old = make_parties(4, SCHEMA)
    offer = server.open(1)
    advert = parties.clients[0].receive(offer)

    def bad(**changes):
        return resealed(parties, 0, advert, Advert, **changes)

    refuse(server, b"", "not one that")
    refuse(server, b"garbage" * 50, "not one that")
    refuse(server, offer, "not one that")
    refuse(server, advert[:-1], "not one that")
    refuse(server, old.clients[0].receive(old.server.open(1)), "not one that")
    refuse(server, seal(Identity.generate("c0"), reopen(parties, advert))[0], "not one that")
    refuse(server, resealed(parties, 0, advert, Advert, sender="c1"), "not one that")
    refuse(server, bad(round=2), "for round 2: round 1 is open", "c0")
    refuse(server, bad(session=bytes(16)), "round 1 is open", "c0")
    refuse(server, bad(offer=bytes(32)), "answers another offer", "c0")
    refuse(server, bad(same={"x": bytes(32)}), "does not declare the fields", "c0")
    refuse(server, bad(public={"x": 1}), "does not declare the fields", "c0")
    refuse(server, bad(mask_key=bytes(32)), "low order", "c0")
    assert server.receive(advert) == "c0"
    refuse(server, advert, "it sent one before", "c0")
    refuse(server, bad(mask_key=b"\x09" * 32), "it sent one before", "c0")


def reopen(parties, sealed, kind=Advert):
    return open_sealed(sealed, (kind,), parties.roster.clients, 10**6).message


def test_vectors_that_do_not_belong_are_refused(parties):
    server = parties.server
    advertise(parties)
    advert = parties.server._round.sealed["c0"]
    message = server.close_adverts()
    for client in parties.clients:
        client.receive(message)
    vector = parties.clients[0].submit(VALUES)
    opened = open_sealed(vector, (Masked,), parties.roster.clients, 10**6)

    def bad(tail=opened.tail, **changes):
        return seal(parties.people[0], msgspec.structs.replace(opened.message, **changes), tail)[0]

    refuse(server, vector[:-8], "not one that")
    refuse(server, vector[:-1] + bytes([vector[-1] ^ 1]), "not one that")
    refuse(server, advert, "none of type Advert is expected while collecting masked vectors", "c0")
    refuse(server, bad(round=2), "for round 2", "c0")
    refuse(server, bad(session=bytes(16)), "round 1 is open", "c0")
    refuse(server, bad(roster=bytes(32)), "masked for another roster", "c0")
    refuse(server, bad(tail=bytes(opened.tail)[:-8]), "words, got", "c0")
    refuse(server, bad(tail=bytes(opened.tail)[:-1]), "words, got", "c0")
    refuse(server, bad(tail=bytes(opened.tail) + bytes(8)), "words, got", "c0")
    refuse(server, bad(tail=b""), "words, got", "c0")
    refuse(server, bad(tail=bytes(10**6)), "not one that")
    assert server.receive(vector) == "c0"
    refuse(server, vector, "it sent one before", "c0")
    refuse(server, bad(), "it sent one before", "c0")


def test_a_vector_before_the_roster_is_refused(parties):
    ready(parties)
    vector = parties.clients[0].submit(VALUES)
    parties.server.abort()
    parties.server.open(2)
    refuse(parties.server, vector, "for round 1: round 2 is open", "c0")
    early = resealed(parties, 0, vector, Masked, round=2)
    refuse(parties.server, early, "none of type Masked is expected while collecting adverts", "c0")


def test_a_listed_client_outside_the_cohort_is_refused(parties):
    offer = parties.server.open(1)
    for client in parties.clients[:3]:
        parties.server.receive(client.receive(offer))
    message = parties.server.close_adverts()
    for client in parties.clients[:3]:
        client.receive(message)
    vector = parties.clients[0].submit(VALUES)
    opened = open_sealed(vector, (Masked,), parties.roster.clients, 10**6)
    stranger = msgspec.structs.replace(opened.message, sender="c3")
    refuse(parties.server, seal(parties.people[3], stranger, opened.tail)[0], "not in the roster", "c3")
    parties.server.receive(vector)
    for client in parties.clients[1:3]:
        parties.server.receive(client.submit(VALUES))
    assert parties.server.result().survivors == ("c0", "c1", "c2")


def test_too_few_adverts_end_the_round_and_name_the_missing(parties):
    offer = parties.server.open(1)
    for client in parties.clients[:2]:
        parties.server.receive(client.receive(offer))
    assert parties.server.missing == ("c2", "c3")
    with pytest.raises(
        CohortError, match=r"has 2 clients, min_clients is 3. Missing: \['c2', 'c3'\]"
    ) as info:
        parties.server.close_adverts()
    assert info.value.blame == ("c2", "c3")
    assert isinstance(info.value, RoundAborted)
    assert parties.server.phase is ServerPhase.IDLE
    assert run_round(parties, [VALUES] * 4, 2).values["n"] == 4


def test_a_model_that_is_not_the_servers_ends_the_round_with_blame(parties):
    offer = parties.server.open(1, context=b"right")
    for i, client in enumerate(parties.clients):
        parties.server.receive(client.receive(offer, context=b"right" if i != 2 else b"wrong"))
    with pytest.raises(RoundAborted, match=r"\['c2'\] hold another context than the server") as info:
        parties.server.close_adverts()
    assert info.value.blame == ("c2",)
    assert run_round(parties, [VALUES] * 4, 2, context=b"right").values["n"] == 4


@pytest.mark.parametrize(
    ("values", "blame"),
    [("aaab", ("c3",)), ("aabb", ("c0", "c1", "c2", "c3")), ("abcc", ("c0", "c1")), ("abcd", None)],
)
def test_a_same_field_that_differs_ends_the_round_and_blames_the_minority(values, blame):
    parties = make_parties(4, Schema(model=same(), n=counted()))
    advertise(parties, declared=[{"model": v} for v in values])
    with pytest.raises(RoundAborted, match="field 'model'") as info:
        parties.server.close_adverts()
    assert info.value.blame == (blame or ("c0", "c1", "c2", "c3"))


def test_a_public_field_stated_twice_is_refused():
    parties = make_parties(4, Schema(note=public(), n=counted()))
    advert = parties.clients[0].receive(parties.server.open(1), declared={"note": "text"})
    both = resealed(parties, 0, advert, Advert, public_bytes={"note": b"bytes"})
    refuse(parties.server, both, "does not declare the fields", "c0")


def test_one_key_for_two_clients_ends_the_round(parties):
    offer = parties.server.open(1)
    adverts = [client.receive(offer) for client in parties.clients]
    copied = reopen(parties, adverts[0]).mask_key
    adverts[1] = resealed(parties, 1, adverts[1], Advert, mask_key=copied)
    for advert in adverts:
        parties.server.receive(advert)
    with pytest.raises(RoundAborted, match="'c0' and 'c1' share one key"):
        parties.server.close_adverts()


def test_a_vector_with_wrong_masks_is_found_by_the_zero_lane(parties):
    """A client that masks with anything else makes garbage of the sum; never a wrong result."""
    ready(parties)
    vectors = [client.submit(VALUES) for client in parties.clients]
    opened = open_sealed(vectors[0], (Masked,), parties.roster.clients, 10**6)
    words = np.frombuffer(opened.tail, "<u8").copy()
    words[0] += np.uint64(1)
    vectors[0] = seal(parties.people[0], opened.message, words)[0]
    for vector in vectors:
        parties.server.receive(vector)
    with pytest.raises(RoundAborted, match=r"The zero lane of 4 clients is not zero.*Nothing is released"):
        parties.server.result()
    assert parties.server.phase is ServerPhase.IDLE
    assert run_round(parties, [VALUES] * 4, 2).values["n"] == 4


def test_a_client_that_counts_itself_twice_is_found_by_the_count_lane(parties):
    ready(parties)
    vectors = [client.submit(VALUES) for client in parties.clients]
    opened = open_sealed(vectors[0], (Masked,), parties.roster.clients, 10**6)
    words = np.frombuffer(opened.tail, "<u8").copy()
    words[1] += np.uint64(1)
    vectors[0] = seal(parties.people[0], opened.message, words)[0]
    for vector in vectors:
        parties.server.receive(vector)
    with pytest.raises(RoundAborted, match="count lane does not say 4"):
        parties.server.result()


def test_a_late_vector_cannot_enter_a_round_that_was_aborted(parties):
    ready(parties)
    vectors = [client.submit(VALUES) for client in parties.clients]
    for vector in vectors[:3]:
        parties.server.receive(vector)
    with pytest.raises(RoundAborted):
        parties.server.result()
    refuse(parties.server, vectors[3], "no round is open")
    parties.server.open(2)
    refuse(parties.server, vectors[3], "for round 1: round 2 is open", "c3")


def test_the_server_keeps_one_running_sum_and_no_vector(parties):
    ready(parties)
    total = parties.server._round.total
    for client in parties.clients:
        parties.server.receive(client.submit(VALUES))
        assert parties.server._round.total is total
    assert {len(digest) for digest in parties.server._round.vectors.values()} == {32}


def test_a_schema_without_masked_fields_still_counts_its_clients():
    parties = make_parties(3, Schema(note=public()))
    result = run_round(parties, [{}] * 3, declared=[{"note": i} for i in range(3)])
    assert result.values == {}
    assert result.public == {"note": {"c0": 0, "c1": 1, "c2": 2}}


def test_a_resumed_server_goes_on_with_session_and_bounds(parties):
    first = run_round(parties, [VALUES] * 4, 1)
    again = Server(parties.boss, parties.roster, SCHEMA, policy=SMALL, session=parties.server.session)
    parties.server = again
    with pytest.raises(RoundReused):
        parties.clients[0].receive(again.open(1))
    again.abort()
    assert run_round(parties, [VALUES] * 4, 2).values["n"] == first.values["n"]


def test_the_repr_says_where_it_stands(parties):
    assert repr(parties.server) == "Server(phase=idle)"
    advertise(parties)
    assert repr(parties.server) == "Server(phase=collecting adverts, round=1, missing=0)"
