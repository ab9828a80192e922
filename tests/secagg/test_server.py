"""The server under clients and a network that do everything wrong."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec
import numpy as np
import pytest

from secagg import (
    ClientPhase,
    CohortError,
    EncodingError,
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
from secagg.messages import (
    KINDS,
    Advert,
    Agreement,
    Consistency,
    Delivery,
    Masked,
    Message,
    Offer,
    RosterMessage,
    Shares,
    Survivors,
    Unmask,
    open_sealed,
    seal,
)
from secagg.shamir import PRIME
from tests.secagg.parties import (
    SMALL,
    Parties,
    advertise,
    deliver,
    finish,
    make_parties,
    ready,
    run_round,
    submit,
)

SCHEMA = Schema(x=summed(1.0, shape=(3,)), n=counted())
VALUES = {"x": [0.1, 0.2, 0.3], "n": 1}
BEACON = b"a randomness beacon's output"
SPARSE = Policy(min_clients=3, allow_three=True, sparse=True, colluders=0, threshold_fraction=0.8)
"""Graphs of tests are far too small to stand colluders; degree 4 and threshold 4 of 5 stand none."""
AWAITED = {
    ServerPhase.ADVERTS: Advert,
    ServerPhase.SHARES: Shares,
    ServerPhase.VECTORS: Masked,
    ServerPhase.CONSISTENCY: Consistency,
    ServerPhase.UNMASKING: Unmask,
}
FIRST = {phase: position for position, phase in enumerate(AWAITED)}


def reach(
    parties: Parties, phase: ServerPhase, round: int = 1, *, gone: Collection[str] = (), **sent: bytes
) -> dict[str, bytes]:
    """Bring the server into `phase`: everybody answers every stage before it.

    `gone` clients are not heard of in the stage just before `phase`; `sent` replaces what one sends there.
    Returns what each client answers in `phase`, which the server has not received.
    """
    server = parties.server
    offer = server.open(round)
    answers: dict[str, Any] = {client.name: client.receive(offer) for client in parties.clients}
    while server.phase is not phase:
        if server.phase is ServerPhase.BEACON:
            server.draw_graph(BEACON)
            answers = {client.name: client.draw_graph(BEACON) for client in parties.clients}
            continue
        last = FIRST[server.phase] + 1 == FIRST.get(phase)
        for name, answer in answers.items():
            if not (last and name in gone):
                server.receive(sent.get(name, answer) if last else answer)
        messages, answers = server.advance(), {}
        for client in parties.clients:
            if client.name in messages:
                answer = client.receive(messages[client.name])
                answers[client.name] = client.submit(VALUES) if client.phase is ClientPhase.READY else answer
    return answers


def well_formed(kind: type[Message], parties: Parties, sender: str) -> Message:
    """A message of `kind` about the round under way, with everything in it that can be right."""
    state = parties.server._round
    roster = bytes(32) if state is None or not state.roster else state.roster
    agreed = bytes(32) if state is None or not state.agreed else state.agreed
    head = (parties.server.session, 1 if state is None else state.number, sender)
    kem = {"mask_kem": b"", "transport_kem": b""}
    keys = {"mask_key": b"\x09" * 32, "transport_key": b"\x0a" * 32, "context": bytes(32)}
    offer = {"capacity": 4, "min_clients": 3, "threshold_fraction": 1.0, "degree": 0}
    fields: dict[type[Message], dict[str, Any]] = {
        Offer: {"schema": SCHEMA.to_bytes(), **offer, "cipher": "AES-128", "hybrid": False},
        Advert: {"offer": bytes(32), **keys, **kem, "same": {}, "public": {}, "public_bytes": {}},
        RosterMessage: {"adverts": []},
        Shares: {"roster": roster, "seed": bytes(32)},
        Delivery: {"roster": roster, "present": b"\x07"},
        Masked: {"roster": roster, "start": 0, "receipts": b""},
        Survivors: {"roster": roster, "survivors": b"\x0f"},
        Consistency: {"roster": roster, "survivors": agreed},
        Agreement: {"roster": roster, "signers": b"\x0f"},
        Unmask: {"roster": roster, "survivors": agreed},
    }
    return kind(*head, **fields[kind])


def sparse_parties(n: int = 33, degree: int = 4, policy: Policy = SPARSE) -> Parties:
    return make_parties(n, SCHEMA, policy=policy, degree=degree)


@pytest.fixture
def parties():
    return make_parties(4, SCHEMA)


def reopen(parties, sealed, kind=Advert):
    return open_sealed(sealed, (kind,), parties.roster.clients, 10**6).message


def resealed(parties, i, sealed, kind, tail=None, **changes):
    """What a malicious client, with its own good key, can send."""
    opened = open_sealed(sealed, (kind,), parties.roster.clients, 10**6)
    tail = opened.tail if tail is None else tail
    return seal(parties.people[i], msgspec.structs.replace(opened.message, **changes), tail)[0]


def snapshot(server):
    state = server._round
    kept = None
    if state is not None:
        kept = (
            (state.boxes.tobytes(), dict(state.seeds)),
            [sorted(each) for each in (state.adverts, state.vectors, state.signatures)],
            {name: spool.words for name, spool in state.spools.items()},
            state.total.tobytes(),
            state.roster,
            None if state.unmasking is None else (state.unmasking.answered, set(state.unmasking.faulty)),
        )
    return server.phase, server.missing, server.enough, kept


def refuse(server, message, match, sender=None, delivered_by=None):
    before = snapshot(server)
    with pytest.raises(MessageError, match=match) as info:
        server.receive(message, sender=delivered_by)
    assert info.value.sender == sender
    assert snapshot(server) == before, "a refused message changes nothing"


def test_the_identity_must_be_the_rosters_server(parties):
    with pytest.raises(IdentityError, match="roster's server"):
        Server(Identity.generate("server"), parties.roster, SCHEMA, policy=SMALL)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_a_roster_below_the_policy_is_refused_at_once(n):
    with pytest.raises(PolicyError, match=f"roster of 5..131072 clients as the policy says, got {n}"):
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


def test_a_degree_is_even_and_not_negative(parties):
    for degree in (-2, 3, 2.0, True, "4"):
        with pytest.raises(ValueError, match="even number of neighbours"):
            Server(parties.boss, parties.roster, SCHEMA, policy=SMALL, degree=degree)


def calls(server):
    return {
        "open": lambda: server.open(9),
        "advance": server.advance,
        "draw_graph": lambda: server.draw_graph(BEACON),
        "result": server.result,
    }


@pytest.mark.parametrize("phase", list(ServerPhase))
def test_calls_out_of_turn_are_refused_and_change_nothing(phase):
    parties = sparse_parties() if phase is ServerPhase.BEACON else make_parties(4, SCHEMA)
    if phase is not ServerPhase.IDLE:
        reach(parties, phase)
    allowed = {
        ServerPhase.IDLE: {"open"},
        ServerPhase.BEACON: {"draw_graph"},
        ServerPhase.UNMASKING: {"result"},
    }.get(phase, {"advance"})
    before = snapshot(parties.server)
    for name, call in calls(parties.server).items():
        if name not in allowed:
            with pytest.raises(PhaseError, match=phase.value):
                call()
            assert snapshot(parties.server) == before
    parties.server.abort()
    assert snapshot(parties.server)[0] is ServerPhase.IDLE


@pytest.mark.parametrize("kind", list(KINDS), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("phase", list(ServerPhase), ids=lambda phase: phase.name)
def test_each_kind_of_message_is_taken_in_its_phase_and_in_no_other(phase, kind):
    """The table at the head of the module, whole: all kinds in all phases."""
    parties = sparse_parties() if phase is ServerPhase.BEACON else make_parties(4, SCHEMA)
    server = parties.server
    if phase is ServerPhase.IDLE:
        refuse(server, seal(parties.people[0], well_formed(kind, parties, "c0"))[0], "no round is open")
        return
    answers = reach(parties, phase)
    if AWAITED.get(phase) is kind:
        assert server.receive(answers["c0"]) == "c0"
        refuse(server, answers["c0"], "it sent one before", "c0")
        return
    by_client = seal(parties.people[0], well_formed(kind, parties, "c0"))[0]
    if (phase, kind) == (ServerPhase.BEACON, Shares):
        assert server.receive(by_client) == "c0", "kept until the server has the beacon, too"
    elif kind in AWAITED.values():
        refuse(server, by_client, f"none of type {kind.__name__} is expected while {phase.value}", "c0")
    else:
        refuse(server, by_client, "not one that")
    refuse(server, seal(parties.boss, well_formed(kind, parties, ""))[0], "not one that")


@pytest.mark.parametrize("phase", list(AWAITED), ids=lambda phase: phase.name)
def test_what_no_client_of_the_roster_signed_is_refused_in_every_phase(parties, phase):
    answer = reach(parties, phase)["c0"]
    kind, server = AWAITED[phase], parties.server
    opened = open_sealed(answer, (kind,), parties.roster.clients, 10**6)

    def bad(identity=parties.people[0], **changes):
        return seal(identity, msgspec.structs.replace(opened.message, **changes), opened.tail)[0]

    refuse(server, b"", "not one that")
    refuse(server, b"garbage" * 50, "not one that")
    for at in (0, 4, 5, 40, 69, 80, len(answer) - 1):
        refuse(server, answer[:at] + bytes([answer[at] ^ 1]) + answer[at + 1 :], "not one that")
    refuse(server, answer[:-1], "not one that")
    refuse(server, answer + b"\0", "not one that")
    refuse(server, bad(Identity.generate("c0")), "not one that")
    refuse(server, bad(sender="c1"), "not one that")
    refuse(server, bad(sender="stranger"), "not one that")
    refuse(server, bad(sender=""), "not one that")
    refuse(server, bad(round=2), "for round 2: round 1 is open", "c0")
    refuse(server, bad(session=bytes(16)), "round 1 is open", "c0")
    refuse(server, answer, "that 'c1' delivered: expected its own signature", "c0", delivered_by="c1")
    assert server.receive(answer, sender="c0") == "c0"


@pytest.mark.parametrize("phase", list(AWAITED)[1:], ids=lambda phase: phase.name)
def test_answers_about_another_roster_or_set_are_refused(parties, phase):
    answer = reach(parties, phase)["c0"]
    kind, server = AWAITED[phase], parties.server
    refuse(server, resealed(parties, 0, answer, kind, roster=bytes(32)), "another roster or beacon", "c0")
    if kind in (Consistency, Unmask):
        other = resealed(parties, 0, answer, kind, survivors=bytes(32))
        refuse(server, other, "for another set of survivors", "c0")
    assert server.receive(answer) == "c0"


@pytest.mark.parametrize("phase", list(AWAITED), ids=lambda phase: phase.name)
def test_answers_with_another_tail_are_refused(parties, phase):
    answer = reach(parties, phase)["c0"]
    kind, server = AWAITED[phase], parties.server
    tail = bytes(open_sealed(answer, (kind,), parties.roster.clients, 10**6).tail)
    said = {
        ServerPhase.SHARES: "expected 3 boxes, got",
        ServerPhase.VECTORS: f"expected words from 0 on, {len(tail) // 8} in all, got",
        ServerPhase.UNMASKING: "expected 4 shares of 36 bytes, got",
    }
    for other in (b"", tail[:-1], tail + b"\0", tail[:-9], tail + bytes(36), tail + tail, bytes(10**6)):
        if other != tail:
            match = said.get(phase, "not one that") if len(other) < 10**6 else "not one that"
            blamed = "c0" if match != "not one that" else None
            refuse(server, resealed(parties, 0, answer, kind, other), match, blamed)
    assert server.receive(answer) == "c0"


def test_a_message_of_another_type_than_bytes_is_a_type_error(parties):
    parties.server.open(1)
    with pytest.raises(TypeError, match="as bytes, got str"):
        parties.server.receive("text")


def test_messages_without_a_round_are_refused(parties):
    refuse(parties.server, b"x" * 200, "no round is open")


def test_adverts_that_do_not_belong_are_refused(parties):
    server = parties.server
    old = make_parties(4, SCHEMA)
    offer = server.open(1)
    advert = parties.clients[0].receive(offer)

    def bad(**changes):
        return resealed(parties, 0, advert, Advert, **changes)

    refuse(server, offer, "not one that")
    refuse(server, old.clients[0].receive(old.server.open(1)), "not one that")
    refuse(server, bad(offer=bytes(32)), "answers another offer", "c0")
    refuse(server, bad(same={"x": bytes(32)}), "does not declare the fields", "c0")
    refuse(server, bad(public={"x": 1}), "does not declare the fields", "c0")
    refuse(server, bad(mask_key=bytes(32)), "low order", "c0")
    refuse(server, bad(transport_key=b"\x01" + bytes(31)), "low order", "c0")
    refuse(server, bad(mask_kem=bytes(1184), transport_kem=bytes(1184)), "the round is not hybrid", "c0")
    assert server.receive(advert) == "c0"
    refuse(server, bad(mask_key=b"\x09" * 32), "it sent one before", "c0")


def test_a_hybrid_round_takes_adverts_with_good_encapsulation_keys_only():
    policy = Policy(min_clients=3, allow_three=True, hybrid=True)
    parties = make_parties(3, SCHEMA, policy=policy)
    advert = parties.clients[0].receive(parties.server.open(1))
    good = reopen(parties, advert)
    assert len(good.mask_kem) == len(good.transport_kem) == 1184
    for changes, said in (
        ({"mask_kem": b""}, "ML-KEM keys of 1184 bytes, since the round is hybrid"),
        ({"mask_kem": b"", "transport_kem": b""}, "since the round is hybrid"),
        ({"transport_kem": good.transport_kem[:-1]}, "of 1184 bytes"),
        ({"transport_kem": b"\xff" * 1184}, "not valid"),
    ):
        refuse(parties.server, resealed(parties, 0, advert, Advert, **changes), said, "c0")
    assert parties.server.receive(advert) == "c0"


def parts_of(client, part_words=2):
    return list(client.submit_parts(VALUES, part_words=part_words))


def ready_for_parts(n=4):
    """A server that awaits vectors of 5 words, and clients that have sent none."""
    parties = make_parties(n, SCHEMA)
    ready(parties)
    return parties


def test_a_vector_in_parts_enters_the_sum_with_its_last_one():
    parties = ready_for_parts()
    server = parties.server
    first, second, third = parts_of(parties.clients[0])
    for part in (first, second):
        server.receive(part)
        assert server.missing == ("c0", "c1", "c2", "c3")
        assert not server._round.total.any()
    server.receive(third)
    assert server.missing == ("c1", "c2", "c3")
    refuse(server, third, "it sent one before", "c0")
    for client in parties.clients[1:3]:
        server.receive(client.submit(VALUES))
    one, *others = parts_of(parties.clients[3], 4)
    server.receive(one)
    server.receive(*others)
    assert finish(parties).values["n"] == 4


@pytest.mark.parametrize("came", [0, 1, 2])
def test_parts_out_of_order_doubled_or_overlapping_are_refused(came):
    parties = ready_for_parts()
    parts = parts_of(parties.clients[0])
    for part in parts[:came]:
        parties.server.receive(part)
    for place, part in enumerate(parts):
        if place != came:
            refuse(parties.server, part, f"expected words from {2 * came} on, 5 in all", "c0")
    whole = resealed(parties, 0, parts[0], Masked, bytes(40), start=0)
    if came:
        refuse(parties.server, whole, f"expected words from {2 * came} on", "c0")
    over = resealed(parties, 0, parts[0], Masked, bytes(8 * (6 - 2 * came)), start=2 * came)
    refuse(parties.server, over, f"got {8 * (6 - 2 * came)} bytes from word {2 * came} on", "c0")
    refuse(parties.server, resealed(parties, 0, parts[came], Masked, b""), "got 0 bytes", "c0")
    refuse(
        parties.server, resealed(parties, 0, parts[came], Masked, roster=bytes(32)), "another roster", "c0"
    )
    parties.server.receive(parts[came])
    parties.server.abort()


def test_receipts_come_with_the_first_words_and_with_no_others():
    """Sixteen bytes for each of three boxes."""
    parties = ready_for_parts()
    first, second, _ = parts_of(parties.clients[0])
    for receipts in (b"", bytes(32), bytes(47), bytes(64)):
        bad = resealed(parties, 0, first, Masked, receipts=receipts)
        said = f"expected 48 bytes of receipts, got {len(receipts)}"
        refuse(parties.server, bad, said, "c0")
    parties.server.receive(first)
    bad = resealed(parties, 0, second, Masked, receipts=bytes(48))
    refuse(parties.server, bad, "expected 0 bytes of receipts, got 48", "c0")
    parties.server.receive(second)
    parties.server.abort()


def test_each_client_is_shown_the_receipts_of_its_surviving_neighbours():
    """What each sent for the box that it had of this client, in the order of ids."""
    parties = make_parties(5, SCHEMA)
    answers = reach(parties, ServerPhase.VECTORS)
    sent = {name: reopen(parties, answer, Masked).receipts for name, answer in answers.items()}
    for name in ("c0", "c1", "c3", "c4"):
        parties.server.receive(answers[name])
    messages = parties.server.advance()
    for client in parties.clients:
        if client.name in messages:
            parties.server.receive(client.receive(messages[client.name]))
    shown = open_sealed(parties.server.advance()["c3"], (Agreement,), {"": parties.boss.public_key}, 10**6)
    # c0 and c1 had boxes of four others, of which c3 is the third by id; c4 likewise the fourth.
    expected = [sent[name][16 * place : 16 * place + 16] for name, place in (("c0", 2), ("c1", 2), ("c4", 3))]
    assert bytes(shown.tail[4 * 64 :]) == b"".join(expected)
    assert len(set(expected)) == 3


def test_half_a_vector_is_none_of_the_sum():
    """Who vanishes half-way has dropped: the sum is that of the others, exactly."""
    parties = ready_for_parts(5)
    first, second, third = parts_of(parties.clients[2])
    parties.server.receive(first)
    parties.server.receive(second)
    for client in parties.clients:
        if client.name != "c2":
            parties.server.receive(client.submit(VALUES))
    spool = parties.server._round.spools["c2"]
    messages = parties.server.advance()
    assert spool._file.closed, "what came is forgotten"
    refuse(parties.server, third, "none of type Masked is expected", "c2")
    for client in parties.clients:
        if client.name in messages:
            parties.server.receive(client.receive(messages[client.name]))
    messages = parties.server.advance()
    for client in parties.clients:
        if client.name in messages:
            parties.server.receive(client.receive(messages[client.name]))
    result = parties.server.result()
    assert (result.values["n"], result.dropped) == (4, ("c2",))


@pytest.mark.parametrize("end", ["abort", "cohort"])
def test_parts_are_forgotten_with_their_round(end):
    parties = ready_for_parts()
    parties.server.receive(parts_of(parties.clients[0])[0])
    spool = parties.server._round.spools["c0"]
    if end == "abort":
        parties.server.abort()
    else:
        with pytest.raises(CohortError):
            parties.server.advance()
    assert spool._file.closed


def test_shares_out_of_their_range_are_refused(parties):
    answer = reach(parties, ServerPhase.UNMASKING)["c0"]
    tail = np.frombuffer(open_sealed(answer, (Unmask,), parties.roster.clients, 10**6).tail, "<u4")
    for place, value in ((0, PRIME), (tail.size - 1, 2**32 - 1)):
        bad = tail.copy()
        bad[place] = value
        refuse(parties.server, resealed(parties, 0, answer, Unmask, bad), "out of its range", "c0")
    assert parties.server.receive(answer) == "c0"


@pytest.mark.parametrize("phase", list(AWAITED)[1:], ids=lambda phase: phase.name)
def test_who_dropped_before_is_heard_no_more(phase):
    """A message that comes too late, or from a client that was never in the round, is refused."""
    parties = make_parties(5, SCHEMA)
    server = parties.server
    answers = reach(parties, phase, gone={"c4"})
    kind = AWAITED[phase]
    assert server.missing == (tuple(f"c{i}" for i in range(4)))
    late = msgspec.structs.replace(reopen(parties, answers["c0"], kind), sender="c4")
    tail = open_sealed(answers["c0"], (kind,), parties.roster.clients, 10**6).tail
    refuse(server, seal(parties.people[4], late, tail)[0], "not, or no longer, in this round", "c4")
    for answer in answers.values():
        server.receive(answer)
    assert server.missing == ()


@pytest.mark.parametrize("phase", list(AWAITED)[1:], ids=lambda phase: phase.name)
def test_a_late_answer_to_an_earlier_stage_is_refused(phase):
    parties = make_parties(5, SCHEMA)
    before = list(AWAITED)[FIRST[phase] - 1]
    late = {}
    receive = parties.server.receive
    parties.server.receive = lambda message: late.__setitem__("last", message) or receive(message)
    reach(parties, phase, gone={"c0"})
    del parties.server.receive
    # What c4 sent in the stage before, as c0 would have: signed by c0, which was not heard there.
    opened = open_sealed(late["last"], (AWAITED[before],), parties.roster.clients, 10**6)
    message = seal(parties.people[0], msgspec.structs.replace(opened.message, sender="c0"), opened.tail)[0]
    refuse(parties.server, message, f"none of type {AWAITED[before].__name__} is expected while", "c0")


STAGE_NAMES = {
    ServerPhase.ADVERTS: "advertising",
    ServerPhase.SHARES: "sharing",
    ServerPhase.VECTORS: "submitting",
    ServerPhase.CONSISTENCY: "signing",
}


@pytest.mark.parametrize("phase", list(STAGE_NAMES), ids=lambda phase: phase.name)
def test_too_few_answers_end_the_round_and_name_the_missing(phase):
    parties = make_parties(5, SCHEMA)  # threshold 4 of 5; a roster of 3 would do
    server = parties.server
    answers = reach(parties, phase)
    fewest = 3 if phase is ServerPhase.ADVERTS else 4
    for i in range(fewest - 1):
        assert not server.enough
        server.receive(answers[f"c{i}"])
    assert not server.enough
    missing = tuple(f"c{i}" for i in range(fewest - 1, 5))
    assert server.missing == missing
    said = f"Round 1 has {fewest - 1} clients after {STAGE_NAMES[phase]}, expected at least {fewest} "
    with pytest.raises(CohortError, match=said) as info:
        server.advance()
    assert info.value.blame == missing
    assert str(list(missing)) in str(info.value)
    assert isinstance(info.value, RoundAborted)
    assert (server.phase, server.missing, server.enough) == (ServerPhase.IDLE, (), False)
    refuse(server, answers["c4"], "no round is open")
    assert run_round(parties, [VALUES] * 5, 2).values["n"] == 5


@pytest.mark.parametrize("phase", list(STAGE_NAMES), ids=lambda phase: phase.name)
def test_just_enough_answers_let_the_round_go_on(phase):
    parties = make_parties(5, SCHEMA)
    answers = reach(parties, phase)
    for i in (3, 2, 0, 1)[: 3 if phase is ServerPhase.ADVERTS else 4]:
        assert not parties.server.enough
        parties.server.receive(answers[f"c{i}"])
    assert parties.server.enough
    assert parties.server.advance().keys() == answers.keys() - set(parties_missing(answers, phase))


def parties_missing(answers, phase):
    return {"c1", "c4"} if phase is ServerPhase.ADVERTS else {"c4"}


def test_too_few_shares_to_unmask_release_nothing():
    parties = make_parties(5, SCHEMA)
    answers = reach(parties, ServerPhase.UNMASKING)
    for name in ("c0", "c3", "c4"):
        parties.server.receive(answers[name])
        assert not parties.server.enough
    assert parties.server.missing == ("c1", "c2")
    with pytest.raises(CohortError, match="has 3 shares of a client's secret, threshold is 4") as info:
        parties.server.result()
    assert info.value.blame == ("c1", "c2")
    assert parties.server.phase is ServerPhase.IDLE
    refuse(parties.server, answers["c1"], "no round is open")
    assert run_round(parties, [VALUES] * 5, 2).values["n"] == 5


def test_as_many_shares_as_the_threshold_are_enough():
    parties = make_parties(5, SCHEMA)
    answers = reach(parties, ServerPhase.UNMASKING)
    for name in ("c1", "c3", "c4"):
        parties.server.receive(answers[name])
    assert not parties.server.enough
    parties.server.receive(answers["c0"])
    assert parties.server.enough
    assert parties.server.missing == ("c2",)
    result = parties.server.result()
    assert result.values["n"] == 5
    assert result.survivors == ("c0", "c1", "c2", "c3", "c4")
    assert (result.dropped, result.faulty) == ((), ())


def test_missing_and_enough_say_nothing_without_a_round():
    parties = sparse_parties()
    assert (parties.server.missing, parties.server.enough) == ((), False)


def test_clients_that_have_the_beacon_sooner_than_the_server_are_not_lost():
    parties = sparse_parties()
    reach(parties, ServerPhase.BEACON)
    assert (parties.server.missing, parties.server.enough) == (tuple(sorted(parties.names())), False)
    for number, client in enumerate(parties.clients[:3]):
        shares = client.draw_graph(BEACON if number else b"another beacon..")
        assert parties.server.receive(shares) == client.name
        refuse(parties.server, shares, "it sent one before", client.name)
    assert not {client.name for client in parties.clients[:3]} & set(parties.server.missing)
    parties.server.draw_graph(BEACON)
    assert parties.clients[0].name in parties.server.missing, "its beacon was another"
    for client in parties.clients[1:3]:
        assert client.name not in parties.server.missing


def test_a_beacon_that_is_too_short_may_be_corrected():
    parties = sparse_parties()
    reach(parties, ServerPhase.BEACON)
    before = snapshot(parties.server)
    with pytest.raises(ValueError, match="at least 16 bytes"):
        parties.server.draw_graph(b"short")
    assert snapshot(parties.server) == before
    parties.server.draw_graph(BEACON)
    assert parties.server.phase is ServerPhase.SHARES


def test_a_cohort_of_32_needs_no_beacon_whatever_the_degree():
    parties = sparse_parties()
    offer = parties.server.open(1)
    for client in parties.clients[:32]:
        parties.server.receive(client.receive(offer))
    parties.server.advance()
    assert parties.server.phase is ServerPhase.SHARES
    assert parties.server._round.graph.degree == 0


@pytest.mark.parametrize("phase", [ServerPhase.VECTORS, ServerPhase.CONSISTENCY])
def test_enough_in_all_is_not_enough_around_each(phase):
    """Two of c0's five holders lost on a ring: the round can end well only once they are heard of."""
    parties = sparse_parties()
    answers = reach(parties, phase)
    lost = set(parties.server._round.graph.neighbours("c0")[:2])
    for name in answers.keys() - lost:
        parties.server.receive(answers[name])
    assert parties.server.missing == tuple(sorted(lost))
    assert not parties.server.enough
    for name in lost:
        parties.server.receive(answers[name])
    assert parties.server.enough


@pytest.mark.parametrize("phase", [ServerPhase.VECTORS, ServerPhase.CONSISTENCY])
def test_a_client_whose_holders_are_lost_ends_a_sparse_round_and_the_lost_are_named(phase):
    parties = sparse_parties()
    answers = reach(parties, phase)
    lost = set(parties.server._round.graph.neighbours("c0")[:2])
    for name in answers.keys() - lost:
        parties.server.receive(answers[name])
    with pytest.raises(CohortError, match="fewer than threshold=4 of the holders") as info:
        parties.server.advance()
    assert info.value.blame == tuple(sorted(lost))


def test_a_dropped_client_that_cannot_be_unmasked_ends_a_sparse_round_at_once():
    """Its masks with survivors are in the sum, and too few of its holders are left to give its key."""
    parties = sparse_parties(40)
    answers = reach(parties, ServerPhase.VECTORS)
    graph = parties.server._round.graph
    ring = graph._ring
    lost = {ring[0], ring[2]}  # of ring[1]'s holders two; of each survivor's at most two
    for name in answers.keys() - lost:
        parties.server.receive(answers[name])
    with pytest.raises(CohortError) as info:
        parties.server.advance()
    assert info.value.blame == tuple(sorted(lost))


def test_a_sparse_round_survives_one_dropout_in_each_neighbourhood():
    """Of clients on a ring of degree 4 and threshold 4 of 5, every sixth may go, at any stage."""
    for stage in (ServerPhase.SHARES, ServerPhase.VECTORS, ServerPhase.CONSISTENCY, ServerPhase.UNMASKING):
        parties = sparse_parties(36)
        answers = reach(parties, stage)
        ring = parties.server._round.graph._ring
        gone = set(ring[::6])
        for name in answers.keys() - gone:
            parties.server.receive(answers[name])
        while parties.server.phase is not ServerPhase.UNMASKING:
            messages = parties.server.advance()
            for client in parties.clients:
                if client.name in messages:
                    answer = client.receive(messages[client.name])
                    if client.phase is ClientPhase.READY:
                        answer = client.submit(VALUES)
                    parties.server.receive(answer)
        result = parties.server.result()
        lost = gone if FIRST[stage] <= FIRST[ServerPhase.VECTORS] else set()
        assert result.values["n"] == 36 - len(lost)
        assert result.dropped == tuple(sorted(lost))


def test_the_servers_own_policy_judges_the_graph():
    """Five clients and threshold 4 withstand two colluders, not three."""
    good = Policy(min_clients=3, allow_three=True, colluders=2)
    reach(make_parties(5, SCHEMA, policy=good), ServerPhase.SHARES)
    with pytest.raises(PolicyError, match=r"^Expected 2 \* threshold > clients"):
        make_parties(5, SCHEMA, policy=Policy(min_clients=3, allow_three=True, colluders=3))


def test_a_cohort_that_the_policy_cannot_stand_ends_the_round():
    """Ten clients and threshold 7 withstand three colluders; of them only six answer, and 4 of 6 do not."""
    policy = Policy(min_clients=3, allow_three=True, colluders=3)
    parties = make_parties(10, SCHEMA, policy=policy)
    offer = parties.server.open(1)
    for client in parties.clients[:6]:
        parties.server.receive(client.receive(offer))
    with pytest.raises(PolicyError, match=r"Round 1: expected 2 \* threshold > clients"):
        parties.server.advance()
    assert parties.server.phase is ServerPhase.IDLE
    assert run_round(parties, [VALUES] * 10, 2).values["n"] == 10


def test_survivors_must_be_two_more_than_may_collude():
    policy = Policy(min_clients=3, allow_three=True, colluders=3, threshold_fraction=0.7)
    parties = make_parties(8, SCHEMA, policy=policy)  # threshold 6: 2 * 6 > 8 + 3
    assert run_round(parties, [VALUES] * 8, drops={"c0": "vector", "c5": "vector"}).values["n"] == 6
    lenient = make_parties(6, SCHEMA)
    lenient.server._policy = Policy(min_clients=3, allow_three=True, colluders=4, threshold_fraction=5 / 6)
    # By hand: 6 clients, threshold 5 as 5/6 says, 2 * 5 is not above 6 + 4.
    with pytest.raises(PolicyError):
        reach(lenient, ServerPhase.SHARES)


def test_a_model_that_is_not_the_servers_ends_the_round_with_blame(parties):
    offer = parties.server.open(1, context=b"right")
    for i, client in enumerate(parties.clients):
        parties.server.receive(client.receive(offer, context=b"right" if i != 2 else b"wrong"))
    with pytest.raises(RoundAborted, match=r"\['c2'\] hold another context than the server") as info:
        parties.server.advance()
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
        parties.server.advance()
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
        parties.server.advance()


@pytest.mark.parametrize(
    ("word", "said"),
    [(0, "The zero lane of 4 clients is not zero"), (1, "count lane does not say 4")],
)
def test_a_vector_with_other_masks_or_counted_twice_is_found(parties, word, said):
    """A client that masks with anything else makes garbage of the sum; never a wrong result."""
    answers = reach(parties, ServerPhase.VECTORS)
    opened = open_sealed(answers["c0"], (Masked,), parties.roster.clients, 10**6)
    words = np.frombuffer(opened.tail, "<u8").copy()
    words[word] += np.uint64(1)
    answers["c0"] = seal(parties.people[0], opened.message, words)[0]
    for answer in answers.values():
        parties.server.receive(answer)
    with pytest.raises(RoundAborted, match=f"{said}.*Nothing is released"):
        finish(parties)
    assert parties.server.phase is ServerPhase.IDLE
    assert parties.server._round is None
    assert run_round(parties, [VALUES] * 4, 2).values["n"] == 4


def test_a_late_vector_cannot_enter_a_round_that_has_moved_on(parties):
    answers = reach(parties, ServerPhase.VECTORS)
    for name in ("c0", "c1", "c2"):
        parties.server.receive(answers[name])
    assert (parties.server.missing, parties.server.enough) == (("c3",), True)
    parties.server.advance()
    refuse(parties.server, answers["c3"], "none of type Masked is expected while collecting signatures", "c3")
    parties.server.abort()
    refuse(parties.server, answers["c3"], "no round is open")
    parties.server.open(2)
    refuse(parties.server, answers["c3"], "for round 1: round 2 is open", "c3")


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


def test_the_result_says_who_is_in_the_sum_and_who_is_not():
    drops = {"c1": "advert", "c2": "shares", "c4": "vector"}
    lenient = Policy(min_clients=3, allow_three=True, threshold_fraction=0.51, colluders=0)
    parties = make_parties(6, SCHEMA, policy=lenient)
    result = run_round(parties, [VALUES] * 6, drops=drops)
    assert result.survivors == ("c0", "c3", "c5")
    assert result.dropped == ("c2", "c4"), "who never advertised has not dropped"
    assert result.values["n"] == 3


def test_a_wrong_share_to_unmask_is_found_and_its_holder_named():
    parties = make_parties(7, SCHEMA)  # threshold 5: two shares more than needed
    answers = reach(parties, ServerPhase.UNMASKING)
    for name, answer in answers.items():
        if name == "c3":
            opened = open_sealed(answer, (Unmask,), parties.roster.clients, 10**6)
            shares = np.frombuffer(opened.tail, "<u4").copy()
            shares[9 * 2] ^= 1  # of c2's secret
            answer = seal(parties.people[3], opened.message, shares)[0]
        parties.server.receive(answer)
    result = parties.server.result()
    assert result.faulty == ("c3",)
    assert result.values["n"] == 7


def test_wrong_shares_without_spare_ones_release_nothing():
    parties = make_parties(4, SCHEMA)  # threshold 3
    answers = reach(parties, ServerPhase.UNMASKING)
    for name in ("c0", "c1", "c2"):
        opened = open_sealed(answers[name], (Unmask,), parties.roster.clients, 10**6)
        shares = np.frombuffer(opened.tail, "<u4").copy()
        if name == "c1":
            shares[9 * 3] ^= 1
        parties.server.receive(seal(parties.people[int(name[1])], opened.message, shares)[0])
    assert parties.server.enough
    with pytest.raises(RoundAborted, match="the 3 shares of 'c3' do not give its secret back") as info:
        parties.server.result()
    assert info.value.blame == ("c3",)
    assert parties.server._round is None


def test_a_seed_that_is_not_the_one_its_hash_said_is_found():
    """A client that deals shares of something else, or states the hash of something else."""
    parties = make_parties(4, SCHEMA)
    answers = reach(parties, ServerPhase.SHARES)
    answers["c2"] = resealed(parties, 2, answers["c2"], Shares, seed=b"\x01" * 32)
    for answer in answers.values():
        parties.server.receive(answer)
    deliver(parties)
    submit(parties, dict.fromkeys(parties.names(), VALUES))
    with pytest.raises(RoundAborted, match=r"'c2' do not give its secret back.*Nothing is released") as info:
        finish(parties)
    assert info.value.blame == ("c2",)


# --- what the caller gets wrong, and what the machine lacks -----------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        {"threads": 0},
        {"threads": True},
        {"out": {"nothing": np.zeros(2)}},
        {"out": {"x": np.zeros(2)}},
        {"out": {"x": np.zeros(3, np.int64)}},
        {"out": {"x": [0.0, 0.0, 0.0]}},
    ],
)
def test_a_wrong_argument_of_result_loses_no_round(given):
    parties = make_parties(4, SCHEMA)
    answers = reach(parties, ServerPhase.UNMASKING)
    for answer in answers.values():
        parties.server.receive(answer)
    with pytest.raises((ValueError, EncodingError), match=r"xpected"):
        parties.server.result(**given)
    assert parties.server.phase is ServerPhase.UNMASKING
    assert parties.server.result().values["n"] == 4


def test_a_full_disk_is_an_error_and_loses_no_round(tmp_path, monkeypatch):
    """Room for the running sum is taken before a page of it is written: else the process would be killed."""
    parties = make_parties(4, SCHEMA, scratch=tmp_path)
    answers = reach(parties, ServerPhase.SHARES)
    for answer in answers.values():
        parties.server.receive(answer)

    def full(descriptor: int, start: int, size: int) -> None:
        assert size == 8 * parties.server._round.encoding.words
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.posix_fallocate", full)
        with pytest.raises(OSError, match="No space left"):
            parties.server.advance()
    assert parties.server.phase is ServerPhase.SHARES
    deliver(parties)
    submit(parties, dict.fromkeys(parties.names(), VALUES))
    assert finish(parties).values["n"] == 4


@pytest.mark.parametrize("session", [16, "sixteen bytes ok", bytes(15), bytearray(16)])
def test_a_session_of_another_type_is_refused(parties, session):
    with pytest.raises(ValueError, match="Expected a session of 16 bytes"):
        Server(parties.boss, parties.roster, SCHEMA, policy=SMALL, session=session)


@pytest.mark.parametrize("context", [7, "model", [1, 2], None])
def test_a_context_of_another_type_is_refused_and_opens_nothing(parties, context):
    with pytest.raises(TypeError, match="Expected context as bytes"):
        parties.server.open(1, context=context)
    assert parties.server.phase is ServerPhase.IDLE
    assert parties.server.round is None
    parties.server.open(1)
    assert parties.server.round == 1


def test_more_colluders_than_clients_is_a_matter_of_policy():
    policy = Policy(min_clients=3, allow_three=True, colluders=60, sparse=True)
    parties = make_parties(40, SCHEMA, policy=policy, degree=4)
    advertise(parties)
    parties.server.advance()
    with pytest.raises(PolicyError, match="fewer colluders than clients, got colluders=60 of 40"):
        parties.server.draw_graph(bytes(32))
    assert parties.server.phase is ServerPhase.IDLE


def test_a_result_is_shown_in_one_line_without_its_values():
    result = run_round(make_parties(4, SCHEMA), [VALUES] * 4)
    shown = "Result(round=1, 4 survivors, 0 dropped, 0 faulty, fields: x, n, clipped=0)"
    assert repr(result) == shown
    assert hash(result) == hash(result)
    assert result != run_round(make_parties(4, SCHEMA), [VALUES] * 4)


def test_another_form_of_a_key_is_refused(parties):
    """X25519 ignores the top bit: a key that is another's with it set would not look like a double."""
    offer = parties.server.open(1)
    advert = parties.clients[0].receive(offer)
    header = open_sealed(advert, (Advert,), parties.roster.clients, 10**6).message
    for changed in (
        bytes([*header.mask_key[:31], header.mask_key[31] | 0x80]),
        (2**255 - 19).to_bytes(32, "little"),
    ):
        altered, _ = seal(parties.people[0], msgspec.structs.replace(header, mask_key=changed))
        with pytest.raises(MessageError, match="below 2\\^255 - 19"):
            parties.server.receive(altered)
