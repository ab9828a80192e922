"""R10: values that do not fit: lanes too narrow for the sum, out of bounds, NaN."""

from __future__ import annotations

import numpy as np
import pytest

from secagg import ClientPhase, Encoding, EncodingError, RoundAborted, Schema, SchemaError, counted, summed
from tests.secagg.parties import make_parties, ready, run_round
from tests.secagg.threats.attacker import Attacker

SCHEMA = Schema(x=summed(1.0, shape=(4,)), n=counted())
N = 40


def sum_of(encoding: Encoding, values, n: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return sum((encoding.encode(values, rng) for _ in range(n)), np.zeros(encoding.words, np.uint64))


def test_lanes_for_two_clients_spoil_their_neighbours_when_forty_are_added():
    """What a server gets that lays lanes out for a smaller cohort than it adds up."""
    values = {"x": [1.0, -1.0, -1.0, -1.0], "n": 1}
    narrow = Encoding(SCHEMA, 2)
    total = sum_of(narrow, values, N)
    narrow.num_clients = N  # the check that n vectors fit, removed
    found = narrow.decode(total, N).values["x"]
    assert found[0] < 2, "a sum of 40, wrapped around"
    assert found[2] != -N, "and its overflow is in the next lane of the word"
    wide = Encoding(SCHEMA, N)
    assert wide.decode(sum_of(wide, values, N), N).values["x"].tolist() == [N, -N, -N, -N]


def test_more_vectors_than_lanes_are_wide_for_are_not_decoded():
    narrow = Encoding(SCHEMA, 2)
    with pytest.raises(EncodingError, match=r"Expected 1\.\.2 clients, got n=3"):
        narrow.decode(sum_of(narrow, {"x": [0.0] * 4, "n": 1}, 3), 3)


def test_a_client_refuses_a_roster_larger_than_the_lanes_were_made_for():
    parties = Attacker(5, SCHEMA)
    parties.advertise(parties.offer(capacity=4))
    with pytest.raises(RoundAborted, match=r"Round 1: the roster has 5 clients, the offer was for 4"):
        parties.share()


def test_a_schema_that_needs_more_than_a_word_is_refused_before_any_round():
    schema = Schema(x=summed(1.0, bits=27, guard_bits=32), n=counted())
    with pytest.raises(SchemaError, match=r"Field 'x' needs 6[5-9] bits a lane .*; a word has 64\. Lower"):
        make_parties(64, schema)


EXTREME = [1e300, -1e300, 5e-324, 1.0]


def test_a_value_out_of_bounds_is_clipped_and_counted():
    parties = make_parties(4, SCHEMA)
    fair = {"x": [0.0] * 4, "n": 1}
    result = run_round(parties, [{"x": EXTREME, "n": 1}, fair, fair, fair])
    assert result.clipped == {"x": 2}
    quantum = SCHEMA["x"].quantum * (1 + 1e-9)
    assert np.abs(result.values["x"] - [1.0, -1.0, 0.0, 1.0]).max() <= 4 * quantum


def test_a_value_cast_without_a_look_spoils_the_sum():
    """What is out of bounds takes the lanes of others along; NaN has no level, and becomes just any."""
    encoding, levels = Encoding(SCHEMA, 4), SCHEMA["x"].levels
    fair = sum_of(encoding, {"x": [0.0] * 4, "n": 1}, 4)
    assert encoding.decode(fair.copy(), 4).values["x"].tolist() == [0.0] * 4
    with np.errstate(invalid="ignore"):
        cast = (np.array([1e5, np.nan]) * levels).astype(np.int64).view(np.uint64)
    fair[2] += cast[0]  # words 0 and 1 are the zero lane and the count
    found = encoding.decode(fair, 4).values["x"]
    assert np.abs(found).max() > 1.0, "the value's own lane"
    assert np.count_nonzero(found) > 1, "and others"
    assert cast[1] << np.uint64(1) == 0, "NaN: nothing that anybody would notice"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_by_the_fields_name_and_nothing_is_masked(bad):
    parties = make_parties(4, SCHEMA)
    ready(parties)
    client = parties.clients[0]
    with pytest.raises(EncodingError, match=r"^Field 'x': .*NaN") as info:
        client.submit(x=[0.1, bad, 0.2, 0.3], n=1)
    assert "0.1" not in str(info.value)
    assert client.phase is ClientPhase.READY
    assert client.submit(x=[0.1, 0.0, 0.2, 0.3], n=1)
