"""An extremum over many rounds: right for one cohort, and over as soon as the cohort is another."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secagg import CohortError, Encoding, EncodingError, PhaseError, RoundAborted, Schema, SchemaError
from secagg.bitwise import BitwiseExtreme


def searched(values, *limits, **options):
    """The result of all rounds, each a sum of encoded answers; and the server's view of it."""
    names = [f"c{i}" for i in range(len(values))]
    clients = [BitwiseExtreme(*limits, **options) for _ in names]
    server = BitwiseExtreme(*limits, **options)
    encoding = Encoding(Schema(bit=server.field), len(names))
    view = []
    for _ in range(server.rounds):
        answers = [client.answer(value) for client, value in zip(clients, values, strict=True)]
        words = [encoding.encode({"bit": answer}, np.random.default_rng(0)) for answer in answers]
        found = encoding.decode(np.sum(words, axis=0, dtype=np.uint64), len(names)).values["bit"]
        view.append(found)
        for party in (*clients, server):
            party.learn(found, names)
    results = [party.result() for party in (*clients, server)]
    assert all(np.array_equal(result, results[0]) for result in results)
    return results[0], view


@given(st.lists(st.integers(-1000, 3000), min_size=1, max_size=6), st.booleans())
def test_integers_are_exact(values, smallest):
    found, view = searched(values, -1000, 3000, smallest=smallest)
    assert found == (min if smallest else max)(values)
    assert len(view) == 12


@given(
    st.lists(st.floats(-1.0, 2.0), min_size=1, max_size=5),
    st.integers(1, 40),
    st.booleans(),
    st.floats(2.0, 1e9),
)
def test_reals_are_on_the_safe_side_and_less_than_a_level_off(values, bits, smallest, high):
    found, view = searched(values, -1.0, high, smallest=smallest, bits=bits)
    step = (high + 1.0) / (2**bits - 1)
    slack = 1e-9 * step + 1e-15 * high
    if smallest:
        assert min(values) - step - slack < found <= min(values)
    else:
        assert max(values) <= found < max(values) + step + slack
    assert len(view) == bits


def test_entries_have_extremes_of_their_own():
    rng = np.random.default_rng(1)
    values = [rng.integers(0, 255, (3, 2)) for _ in range(4)]
    assert np.array_equal(searched(values, 0, 255, shape=(3, 2))[0], np.max(values, axis=0))
    assert np.array_equal(searched(values, 0, 255, shape=(3, 2), smallest=True)[0], np.min(values, axis=0))


@given(st.lists(st.integers(0, 63), min_size=1, max_size=5), st.lists(st.integers(0, 63), max_size=5))
def test_the_results_of_the_rounds_tell_the_largest_and_nothing_else(values, others):
    """Whatever else the cohort holds, below the same largest value, the server sees the same bits."""
    largest = max(values)
    again = [*(min(value, largest) for value in others), largest]
    assert searched(values, 0, 63)[1] == searched(again, 0, 63)[1]


@pytest.mark.parametrize("changed", [["a"], ["a", "b", "c"], ["a", "c"], []])
def test_a_cohort_that_changes_ends_the_search(changed):
    search = BitwiseExtreme(0, 255)
    search.answer(200)
    search.learn(True, ["a", "b"])
    search.answer(200)
    with pytest.raises(CohortError, match="cohort of the first round in round 2 of 8") as info:
        search.learn(True, changed)
    assert set(info.value.blame) == set(changed) ^ {"a", "b"}
    for call in (lambda: search.answer(200), lambda: search.learn(True, ["a", "b"]), search.result):
        with pytest.raises(PhaseError, match="is failed"):
            call()


def test_what_a_changed_cohort_would_tell():
    """The attack that is refused: the bits of a client that left, and then those of the others below them."""
    values = {"a": 0b1000, "b": 0b0111}
    bits, known = [], 0
    for place in (3, 2, 1, 0):
        cohort = values if place == 3 else {"b": values["b"]}
        bits.append(any(value >> place == (known >> place) | 1 for value in cohort.values()))
        known |= bits[-1] << place
    assert known == 0b1000, "the value of a client that is not in the last cohort"
    assert known not in {"b": values["b"]}.values()


def test_a_server_that_denies_a_bit_is_found_by_whoever_holds_it():
    search = BitwiseExtreme(0, 15)
    assert search.answer(9) is True
    with pytest.raises(RoundAborted, match=r"answered true, and the result says that nobody did"):
        search.learn(False, ["a", "b"])
    with pytest.raises(PhaseError):
        search.answer(9)
    unaware = BitwiseExtreme(0, 15)
    assert unaware.answer(5) is False
    unaware.learn(True, ["a", "b"])
    assert unaware.answer(5) is False, "below the largest it is silent, whatever follows"
    unaware.learn(True, ["a", "b"])
    assert unaware.answer(5) is False


def test_a_value_stays_the_same_over_the_rounds():
    search = BitwiseExtreme(0, 15)
    search.answer(3)
    with pytest.raises(EncodingError, match="same value in every round"):
        search.answer(4)
    search.learn(True, ["a", "b"])
    assert search.answer(3) is False


def test_bits_beyond_the_last_level_are_of_no_value():
    search = BitwiseExtreme(0, 5)
    for _ in range(3):
        search.learn(True, ["a", "b"])
    with pytest.raises(RoundAborted, match="those of no level"):
        search.result()


@pytest.mark.parametrize("value", [16, -1, 1.5, math.nan, "x", [1, 2], True])
def test_values_beyond_the_limits_are_refused_without_being_shown(value):
    with pytest.raises(EncodingError, match="xpected integers") as info:
        BitwiseExtreme(0, 15).answer(value)
    assert "1.5" not in str(info.value)
    for real in (math.nan, math.inf, 15.5):
        with pytest.raises(EncodingError, match="expected"):
            BitwiseExtreme(0.0, 15.0).answer(real)


def test_values_of_any_precision_are_held_against_the_limits_in_full():
    search = BitwiseExtreme(0.0, 1e5, bits=20)
    assert search.answer(np.float16(60_000.0)) is True
    assert search.answer(np.float32(60_000.0)) is True
    low = 2**62 - 100
    assert searched([np.uint64(low + 50), np.uint64(low + 7)], low, 2**62)[0] == low + 50


def test_results_of_another_form_are_refused_and_change_nothing():
    search = BitwiseExtreme(0, 15)
    for found in (1, [True], None):
        with pytest.raises(EncodingError, match=r"truth values of shape \(\)"):
            search.learn(found, ["a", "b"])
    with pytest.raises(PhaseError, match="after 0 of 4 rounds"):
        search.result()
    assert repr(search) == "BitwiseExtreme(largest in 0..15, 0 of 4 rounds)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 1), "low < high, got 1 and 1"),
        ((0.0, math.inf), "a limit to be finite"),
        ((0, 2**70), "a limit to be an integer"),
        (("a", 1.0), "to be a number, got str"),
    ],
)
def test_limits_without_levels_are_refused(arguments, message):
    with pytest.raises(SchemaError, match=message):
        BitwiseExtreme(*arguments)
    with pytest.raises(SchemaError, match=r"bits to be an integer in 1..48, got 49"):
        BitwiseExtreme(0.0, 1.0, bits=49)
