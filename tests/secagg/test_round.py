"""Whole rounds: what comes out of the masks is what combining in clear gives, to the declared precision."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secagg import (
    Encoding,
    Policy,
    RoundAborted,
    Schema,
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
from tests.secagg.parties import make_parties, ready, run_round
from tests.strategies import schemas, values_for


def assert_reduced(encoding, got, clear, n):
    assert got.keys() == encoding.schema.masked.keys()
    for name, value in got.items():
        assert_agrees(value, clear[name], encoding.error_bound(name, n), name)


@given(schemas(), st.integers(3, 12), st.integers(0, 2**32))
@settings(max_examples=120, deadline=None)
def test_masked_sum_equals_the_clear_reduction(schema, n, seed):
    rng = np.random.default_rng(seed)
    parties = make_parties(n, schema)
    values = [values_for(schema, rng) for _ in range(n)]
    result = run_round(parties, values)
    assert_reduced(Encoding(schema, n), result.values, reduce_clear(schema, values), n)
    assert result.survivors == tuple(sorted(parties.names()))
    assert set(result.clipped.values()) <= {0}
    assert result.bounds.keys() == schema.adaptive_bounds().keys()


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
    assert bounds == [2.0, 4.0, 8.0, 8.0, 8.0]
    assert parties.server.schema.adaptive_bounds() == {"x": 8.0}
    np.testing.assert_allclose(result.values["x"], 20.0, atol=4 * 8 / 32767)
    small = [{"x": np.full(50, 0.01)}] * 4
    for number in range(6, 20):
        result = run_round(parties, small, number)
    assert math.isclose(result.bounds["x"], 0.04, rel_tol=0.01)
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
    first = parties.server.result()
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


@pytest.mark.parametrize("missing", [0, 2])
def test_a_missing_client_aborts_the_round_and_the_next_one_works(missing):
    parties = make_parties(4, Schema(n=counted()))
    ready(parties)
    for i, client in enumerate(parties.clients):
        if i != missing:
            parties.server.receive(client.submit(n=1))
    assert parties.server.missing == (f"c{missing}",)
    with pytest.raises(
        RoundAborted, match=rf"round 1 lacks|Round 1 lacks the vectors of \['c{missing}'\]"
    ) as info:
        parties.server.result()
    assert info.value.blame == (f"c{missing}",)
    assert run_round(parties, [{"n": 2}] * 4, 2).values["n"] == 8
