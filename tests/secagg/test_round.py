"""Whole rounds: what comes out of the masks is what combining in clear gives, to the declared precision.

Whoever drops, at whatever stage: the result is the exact reduction over the survivors, or the round fails as
a whole and says why.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import secagg.messages
from secagg import (
    ClientPhase,
    CohortError,
    Encoding,
    MessageError,
    Policy,
    Result,
    RoundAborted,
    Schema,
    ServerPhase,
    adaptive,
    averaged,
    counted,
    local,
    public,
    reduce_clear,
    same,
    summed,
)
from tests.secagg.agreement import assert_agrees
from tests.secagg.parties import STAGES, Parties, finish, make_parties, ready, run_round
from tests.strategies import schemas, values_for

BEACON = b"a randomness beacon's output"


@pytest.fixture(autouse=True, scope="module")
def each_signature_is_verified_once() -> Iterator[None]:
    """Everybody in the process verifies the same adverts: the pure function that does it may remember."""
    with pytest.MonkeyPatch.context() as patch:
        remembered = functools.lru_cache(2**14)(secagg.messages.verify_signature)
        patch.setattr("secagg.messages.verify_signature", remembered)
        yield


def assert_reduced(encoding, got, clear, n):
    assert got.keys() == encoding.schema.masked.keys()
    for name, value in got.items():
        assert_agrees(value, clear[name], encoding.error_bound(name, n), name)


@dataclass
class Played:
    """How a round went: its result or its error, and what each client gave up with."""

    result: Result | None = None
    error: RoundAborted | None = None
    gave_up: dict[str, RoundAborted] = field(default_factory=dict)


def play(
    parties: Parties,
    values: Sequence[Mapping[str, Any]],
    drops: Mapping[str, str],
    beacons: Mapping[str, bytes] | None = None,
) -> Played:
    """A round in which `drops` says from which stage on a client is heard of no more.

    A client that gives up is one more dropout. `beacons` are those that differ from the server's.
    """
    server, played = parties.server, Played()
    given = {client.name: each for client, each in zip(parties.clients, values, strict=True)}
    offer = server.open(1)
    try:
        answers = {client.name: client.receive(offer) for client in parties.clients}
        for stage in STAGES:
            for name, answer in answers.items():
                if STAGES.index(drops.get(name, "unmask")) > STAGES.index(stage) or name not in drops:
                    refusable(server, answer, name in (beacons or {}))
            if server.phase is ServerPhase.UNMASKING:
                break
            messages, answers = server.advance(), {}
            waiting = server.phase is ServerPhase.BEACON
            if waiting:
                server.draw_graph(BEACON)
            for client in parties.clients:
                if client.name in messages:
                    try:
                        answer = client.receive(messages[client.name])
                        if waiting:
                            answer = client.draw_graph((beacons or {}).get(client.name, BEACON))
                        if client.phase is ClientPhase.READY:
                            answer = client.submit(given[client.name])
                    except RoundAborted as error:
                        played.gave_up[client.name] = error
                    else:
                        answers[client.name] = answer
        played.result = server.result()
    except RoundAborted as error:
        played.error = error
    assert server.phase is ServerPhase.IDLE
    return played


def refusable(server, answer, may_be_refused):
    """Deliver an answer; of a client with another beacon the server takes nothing after the roster."""
    if not may_be_refused:
        server.receive(answer)
        return
    with contextlib.suppress(MessageError):
        server.receive(answer)


def drawn_drops(names: Sequence[str], rng: np.random.Generator) -> dict[str, str]:
    """Who drops when; few in some rounds, many in others, none in one of four."""
    rate = float(rng.choice([0.0, 0.05, 0.15, 0.4]))
    return {name: STAGES[int(rng.integers(len(STAGES)))] for name in names if rng.random() < rate}


def left_after(names: Sequence[str], drops: Mapping[str, str]) -> list[list[str]]:
    """Who is heard of in each stage."""
    return [
        [name for name in names if name not in drops or STAGES.index(drops[name]) > place]
        for place in range(len(STAGES))
    ]


def expected_to_finish(names: Sequence[str], drops: Mapping[str, str], fraction: Fraction) -> bool:
    """The rule of a complete graph, in exact arithmetic: enough of the cohort in every stage.

    Three at least must be in the sum; of them, as many as the threshold says must sign and unmask.
    """
    heard = left_after(names, drops)
    threshold = math.ceil(fraction * len(heard[0]))
    return (
        len(heard[0]) >= 3
        and all(len(each) >= max(3, threshold) for each in heard[1:3])
        and all(len(each) >= threshold for each in heard[3:5])
    )


def one_case(
    schema: Schema, n: int, seed: int, *, degree: int = 0, hybrid: bool = False, percent: int = 67
) -> Played:
    """A random round, held against the reduction in clear."""
    rng = np.random.default_rng(seed)
    policy = Policy(
        min_clients=3,
        allow_three=True,
        threshold_fraction=percent / 100,
        colluders=0,
        sparse=degree > 0,
        hybrid=hybrid,
        cipher="AES-256" if rng.random() < 0.1 else "AES-128",
    )
    parties = make_parties(n, schema, policy=policy, degree=degree)
    values = [values_for(schema, rng) for _ in range(n)]
    names = parties.names()
    drops = drawn_drops(names, rng)
    played = play(parties, values, drops)
    heard = left_after(names, drops)
    sparse = degree > 0 and len(heard[0]) > 32
    if not sparse:
        assert (played.result is not None) == expected_to_finish(names, drops, Fraction(percent, 100))
        assert not played.gave_up, "the server ends what cannot go on before a client has to"
    if not drops:
        assert played.result is not None
    if played.result is None:
        assert played.error is not None
        assert str(played.error).startswith("Round 1 ") or sparse
        assert played.error.blame, "who is missing is named"
        assert set(played.error.blame) <= drops.keys() | played.gave_up.keys() or sparse
        return played
    result = played.result
    survivors = sorted(set(heard[2]) - played.gave_up.keys())
    if sparse:
        assert set(result.survivors) <= set(heard[2])
    else:
        assert list(result.survivors) == survivors
    assert (set(result.dropped) | set(result.survivors)) == set(heard[0])
    assert result.faulty == ()
    clear = [values[names.index(name)] for name in result.survivors]
    assert_reduced(Encoding(schema, n), result.values, reduce_clear(schema, clear), len(clear))
    assert set(result.clipped.values()) <= {0}
    assert result.bounds.keys() == schema.adaptive_bounds().keys()
    return played


SEEDS = st.integers(0, 2**32)
PERCENTS = st.sampled_from([51, 60, 67, 80, 100])


@given(schemas(), st.integers(3, 8), SEEDS, PERCENTS)
@settings(max_examples=120)
def test_a_round_is_exact_over_its_survivors_or_fails_as_a_whole(schema, n, seed, percent):
    one_case(schema, n, seed, percent=percent)


@given(schemas(), st.integers(3, 6), SEEDS, PERCENTS)
@settings(max_examples=25)
def test_a_hybrid_round_is_exact_over_its_survivors_or_fails_as_a_whole(schema, n, seed, percent):
    one_case(schema, n, seed, percent=percent, hybrid=True)


@given(schemas(), st.integers(33, 36), SEEDS)
@settings(max_examples=6)
def test_a_sparse_round_is_exact_over_its_survivors_or_fails_as_a_whole(schema, n, seed):
    one_case(schema, n, seed, degree=8, percent=70)


@pytest.mark.slow
@given(schemas(), st.integers(3, 12), SEEDS, PERCENTS)
@settings(max_examples=1_300)
def test_many_rounds_are_exact_or_fail_as_a_whole(schema, n, seed, percent):
    one_case(schema, n, seed, percent=percent)


@pytest.mark.slow
@given(schemas(), st.integers(17, 60), SEEDS, PERCENTS)
@settings(max_examples=60)
def test_large_rounds_are_exact_or_fail_as_a_whole(schema, n, seed, percent):
    one_case(schema, n, seed, percent=percent)


@pytest.mark.slow
@given(schemas(), st.integers(3, 8), SEEDS, PERCENTS)
@settings(max_examples=400)
def test_many_hybrid_rounds_are_exact_or_fail_as_a_whole(schema, n, seed, percent):
    one_case(schema, n, seed, percent=percent, hybrid=True)


@pytest.mark.slow
@given(schemas(), st.integers(33, 60), SEEDS, st.sampled_from([4, 8, 12]), st.booleans())
@settings(max_examples=150)
def test_many_sparse_rounds_are_exact_or_fail_as_a_whole(schema, n, seed, degree, hybrid):
    one_case(schema, n, seed, degree=degree, percent=80, hybrid=hybrid and n < 40)


@given(schemas(), st.integers(1, 12), st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_encoding_alone_equals_the_clear_reduction_and_forgets_the_order(schema, n, seed):
    rng = np.random.default_rng(seed)
    encoding = Encoding(schema, n + int(rng.integers(0, 30)))
    values = [values_for(schema, rng) for _ in range(n)]
    encoded = [encoding.encode(v, rng) for v in values]
    total = np.sum(encoded, axis=0, dtype=np.uint64)
    reduced = encoding.decode(total, n)
    assert_reduced(encoding, reduced.values, reduce_clear(schema, values), n)
    shuffled = np.sum([encoded[i] for i in rng.permutation(n)], axis=0, dtype=np.uint64)
    again = encoding.decode(shuffled, n)
    for name, value in reduced.values.items():
        assert_agrees(value, again.values[name], 0, name)


def test_drawn_dropouts_end_rounds_and_let_them_go_on():
    """The property tests above see both: of the same draws, by the rule alone."""
    outcomes = []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        names = [f"c{i}" for i in range(int(rng.integers(3, 13)))]
        drops = drawn_drops(names, rng)
        outcomes.append((bool(drops), expected_to_finish(names, drops, Fraction(67, 100))))
    assert 0.3 < np.mean([finished for _, finished in outcomes]) < 0.9
    assert sum(dropped and finished for dropped, finished in outcomes) > 40


SPARSE = Policy(min_clients=3, allow_three=True, threshold_fraction=0.7, colluders=0, sparse=True)
COUNT = Schema(n=counted(), x=summed(1.0, shape=(4,)))


def sparse_round(beacons: Mapping[str, bytes], drops: Mapping[str, str] | None = None) -> Played:
    """35 clients of degree 8, each worth another count."""
    parties = make_parties(35, COUNT, policy=SPARSE, degree=8)
    values = [{"n": 2**i, "x": np.zeros(4)} for i in range(20)] + [{"n": 0, "x": np.zeros(4)}] * 15
    return play(parties, values, drops or {}, beacons)


def test_a_client_with_another_beacon_is_a_dropped_client():
    played = sparse_round({"c3": b"another beacon's output"})
    assert played.result is not None
    assert played.result.values["n"] == 2**20 - 1 - 2**3
    assert "c3" in played.result.dropped


def test_beacons_that_differ_give_no_wrong_sum():
    """Whoever disagrees is not in the sum. Four of 35 may stand too close on the ring for it to come out."""
    odd = {f"c{i}": b"another beacon's output" for i in range(4)}
    for _ in range(4):
        played = sparse_round(odd)
        if played.result is None:
            assert isinstance(played.error, CohortError)
        else:
            assert played.result.values["n"] == 2**20 - 1 - 0b1111
            assert set(odd).isdisjoint(played.result.survivors)


@pytest.mark.parametrize("several", [34, 35])
def test_a_server_whose_beacon_nearly_nobody_has_gets_nothing(several):
    odd = {f"c{i}": b"another beacon's output" for i in range(several)}
    played = sparse_round(odd)
    assert isinstance(played.error, CohortError)
    assert played.error.blame == tuple(sorted(odd))


def test_a_server_that_draws_another_graph_gets_no_boxes():
    """It may name any beacon: what clients sign is bound to the one that each of them fetched."""
    parties = make_parties(33, COUNT, policy=SPARSE, degree=8)
    offer = parties.server.open(1)
    for client in parties.clients:
        parties.server.receive(client.receive(offer))
    messages = parties.server.advance()
    parties.server.draw_graph(b"a beacon that the server likes")
    for client in parties.clients:
        client.receive(messages[client.name])
        with pytest.raises(MessageError, match="another roster or beacon"):
            parties.server.receive(client.draw_graph(BEACON))
    with pytest.raises(CohortError, match="has 0 clients after sharing") as info:
        parties.server.advance()
    assert info.value.blame == tuple(sorted(parties.names()))


def test_the_same_roster_and_beacon_give_all_the_same_graph():
    parties = make_parties(33, COUNT, policy=SPARSE, degree=8)
    offer = parties.server.open(1)
    for client in parties.clients:
        parties.server.receive(client.receive(offer))
    messages = parties.server.advance()
    parties.server.draw_graph(BEACON)
    graphs = {parties.server._round.graph}
    for client in parties.clients[::4]:
        client.receive(messages[client.name])
        client.draw_graph(BEACON)
        graphs.add(client._round.graph)
    assert len(graphs) == 1
    assert graphs.pop().degree == 8


@pytest.mark.parametrize("stage", STAGES)
def test_several_may_drop_at_once_at_any_stage(stage):
    """Of 9 clients and threshold 6, three; a fourth is one too many, but before the cohort is fixed."""
    policy = Policy(min_clients=3, allow_three=True)
    for count in (1, 3, 4):
        parties = make_parties(9, COUNT, policy=policy)
        drops = {f"c{2 * i}": stage for i in range(count)}
        values = [{"n": 2**i, "x": np.zeros(4)} for i in range(9)]
        played = play(parties, values, drops)
        if count == 4 and stage != "advert":
            assert isinstance(played.error, CohortError)
            assert played.error.blame == tuple(sorted(drops))
            continue
        assert played.result is not None
        gone = drops if stage in STAGES[:3] else {}
        assert played.result.values["n"] == 511 - sum(2 ** int(name[1]) for name in gone)
        assert played.result.dropped == (() if stage == "advert" else tuple(sorted(gone)))


def test_dropouts_at_every_stage_of_one_round():
    policy = Policy(min_clients=3, allow_three=True, threshold_fraction=0.55, colluders=0)
    parties = make_parties(12, COUNT, policy=policy)
    values = [{"n": 2**i, "x": np.zeros(4)} for i in range(12)]
    drops = dict(zip(("c1", "c3", "c5", "c7", "c9"), STAGES, strict=True))
    played = play(parties, values, drops)
    assert played.result is not None
    assert played.result.dropped == ("c3", "c5")
    assert played.result.values["n"] == 4095 - 2 - 8 - 32


def test_three_rounds_of_one_run_with_every_kind_of_field():
    schema = Schema(
        {"scaffold.delta": summed(adaptive(1.0), bits=20, shape=(100,))},
        update=averaged(1.0, weight="n", shape=(3, 7)),
        loss=averaged(10.0),
        n=counted(at_most=1000),
        labels=counted(shape=(10,)),
        step=summed(5),
        model=same(),
        note=public(),
        cache=local(),
    )
    parties = make_parties(5, schema)
    rng = np.random.default_rng(0)
    for number in (3, 4, 9):
        values = [
            {
                "scaffold.delta": rng.normal(0, 0.1, 100).astype(np.float32),
                "update": rng.uniform(-1, 1, (3, 7)),
                "loss": 2.5,
                "n": 10 + i,
                "labels": rng.integers(0, 9, 10),
                "step": -3,
            }
            for i in range(5)
        ]
        declared = [{"model": "linear", "note": f"hello from {i}"} for i in range(5)]
        result = run_round(parties, values, number, context=b"weights", declared=declared)
        clear = reduce_clear(schema, [{**v, **d} for v, d in zip(values, declared, strict=True)])
        encoding = Encoding(schema, 5)
        assert_reduced(encoding, result.values, {k: clear[k] for k in schema.masked}, 5)
        assert result.round == number
        assert result.public == {"note": {f"c{i}": f"hello from {i}" for i in range(5)}}
        assert result.values["step"] == -15
        assert result.values["n"] == 60


def test_bounds_adapt_and_clients_follow_the_offer():
    parties = make_parties(4, Schema(x=summed(adaptive(1.0, at_most=8.0), shape=(50,))))
    big = [{"x": np.full(50, 5.0)}] * 4
    bounds = []
    for number in range(1, 6):
        result = run_round(parties, big, number)
        bounds.append(result.bounds["x"])
    assert bounds == sorted(bounds), "what is clipped makes room"
    assert bounds[0] > 1.0
    assert bounds[-1] == 8.0, "the cap"
    assert parties.server.schema.adaptive_bounds() == {"x": 8.0}
    np.testing.assert_allclose(result.values["x"], 20.0, atol=4 * 8 / 32767)
    small = [{"x": np.full(50, 0.01)}] * 4
    for number in range(6, 20):
        result = run_round(parties, small, number)
    assert 0.02 <= result.bounds["x"] <= 0.08, "a few times what is needed"
    for number in range(20, 30):
        result = run_round(parties, [{"x": np.zeros(50)}] * 4, number)
    assert 0 < result.bounds["x"] < 1e-4


def test_values_out_of_bounds_are_clipped_and_counted_over_all_clients():
    parties = make_parties(3, Schema(x=summed(1.0, shape=(4,)), y=averaged(2.0)))
    values = [
        {"x": [0.5, 1.5, -7.0, 1.0], "y": 3.0},
        {"x": [0, 0, 0, 9.0], "y": -1.0},
        {"x": np.zeros(4), "y": 0},
    ]
    result = run_round(parties, values)
    assert result.clipped == {"x": 3, "y": 1}
    np.testing.assert_allclose(result.values["x"], [0.5, 1.0, -1.0, 2.0], atol=3 / 32767)
    assert abs(result.values["y"] - 1 / 3) < 2.0 / 32767


def test_aes_256_rounds_work_when_server_and_clients_insist_on_it():
    policy = Policy(min_clients=3, allow_three=True, cipher="AES-256")
    parties = make_parties(3, Schema(n=counted()), policy=policy)
    assert run_round(parties, [{"n": i} for i in range(3)]).values == {"n": 3}


def test_the_transcript_binds_vectors_and_order_of_arrival_does_not_matter():
    schema = Schema(x=summed(1.0, shape=(5,)))
    values = [{"x": np.full(5, 0.1 * i)} for i in range(4)]
    parties = make_parties(4, schema)
    ready(parties)
    messages = [c.submit(v) for c, v in zip(parties.clients, values, strict=True)]
    for message in reversed(messages):
        parties.server.receive(message)
    first = finish(parties)
    assert len(first.transcript) == 32
    second = run_round(parties, values, 2)
    assert first.transcript != second.transcript
    np.testing.assert_allclose(first.values["x"], 0.6, atol=4 / 32767)


def test_with_replayable_rounding_two_runs_give_bitwise_the_same_sums():
    schema = Schema(x=summed(1.0, shape=(200,)))
    values = [{"x": np.linspace(-1, 1, 200) * (i + 1) / 5} for i in range(4)]
    a, b = (run_round(make_parties(4, schema), values).values["x"] for _ in range(2))
    assert np.array_equal(a, b)


def test_memory_of_a_client_stays_near_its_output():
    import tracemalloc

    size = 2_000_000
    parties = make_parties(3, Schema(x=summed(1.0, shape=(size,))))
    ready(parties)
    x = np.zeros(size, np.float32)
    tracemalloc.start()
    try:
        message = parties.clients[0].submit(x=x)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        parties.server.receive(message)
        grown = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert len(message) <= 2.6672 * size
    assert peak <= 2 * len(message) + 2_000_000, "the words, the message, and blocks"
    assert grown <= 500_000, "the server adds in place"
