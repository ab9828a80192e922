"""Truth values under masks: the result is right, and the sum shows nothing but the result."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from secagg import Encoding, EncodingError, Schema, averaged, blocks, reduce_clear
from secagg.fields import all_, any_, true_count
from tests.statistical import assert_rejects, assert_uniform_bits

SHAPE = (5,)
SECRET = blocks.secret_words
SCHEMA = Schema(any=any_(SHAPE), all=all_(SHAPE), count=true_count(SHAPE))


def rng() -> np.random.Generator:
    return np.random.default_rng(20261121)


def added(encoding: Encoding, rows: list[dict[str, object]]) -> np.ndarray:
    """The sum of the vectors of one round."""
    return np.sum([encoding.encode(row, rng()) for row in rows], axis=0, dtype=np.uint64)


def sums_of(truths: list[bool], size: int = 4_096) -> np.ndarray:
    """What a server sees of `size` entries that all clients hold alike."""
    encoding = Encoding(Schema(x=any_((size,))), len(truths))
    return added(encoding, [{"x": np.full(size, truth)} for truth in truths])[2:]


@given(hnp.arrays(np.bool_, st.tuples(st.integers(1, 8), st.just(5))), st.integers(8, 200))
def test_masked_truth_values_are_those_in_clear_over_any_survivors(truths, n):
    encoding = Encoding(SCHEMA, n)
    rows = [{"any": row, "all": row, "count": row} for row in truths]
    found = encoding.decode(added(encoding, rows), len(rows)).values
    clear = reduce_clear(SCHEMA, rows)
    for name, expected in (("any", truths.any(0)), ("all", truths.all(0)), ("count", truths.sum(0))):
        assert np.array_equal(found[name], expected)
        assert np.array_equal(clear[name], expected)
        assert found[name].dtype == clear[name].dtype == expected.dtype


def test_scalar_truth_values_are_python_numbers():
    schema = Schema(any=any_(), all=all_(), count=true_count())
    encoding = Encoding(schema, 3)
    rows = [{"any": v, "all": v, "count": v} for v in (True, False, np.bool_(True))]
    assert encoding.decode(added(encoding, rows), 3).values == {"any": True, "all": False, "count": 2}
    assert reduce_clear(schema, rows) == {"any": True, "all": False, "count": 2}


def test_false_is_zero_and_true_a_word_of_its_own():
    encoding = Encoding(Schema(x=any_((3,))), 4)
    assert [run.width for run in encoding.runs] == [64], "truth values are never packed"
    first, second = (encoding.encode({"x": [True, False, True]}, rng())[2:] for _ in range(2))
    assert first[1] == second[1] == 0
    assert len({first[0], first[2], second[0], second[2]}) == 4, "a word was used twice"


@pytest.mark.parametrize("truths", [[True], [True, True], [True] * 7, [False, True, False]])
def test_whoever_holds_true_and_however_many_the_sum_is_uniform(truths):
    """A server cannot count or find who is true: every byte of the sum is uniform (chi-square at ALPHA)."""
    assert_uniform_bits(sums_of(truths))


@pytest.mark.parametrize("num_true", [1, 7])
@pytest.mark.parametrize("weak", ["one", "short", "odd"])
def test_words_that_are_not_uniform_would_show_the_count(weak, num_true, monkeypatch):
    """The power of the test above: ones tell how many, short words show it on top, odd words below."""
    weaker = {
        "one": lambda count: np.ones(count, np.uint64),
        "short": lambda count: SECRET(count) >> np.uint64(8),
        "odd": lambda count: SECRET(count) | np.uint64(1),
    }[weak]
    monkeypatch.setattr(blocks, "secret_words", weaker)
    assert_rejects(assert_uniform_bits, sums_of([True] * num_true))


def test_a_word_that_happens_to_be_zero_is_drawn_again(monkeypatch):
    drawn = iter([b"\0" * 16 + b"\1" * 8, b"\0" * 8 + b"\2" * 8, b"\3" * 8])
    asked = []

    def urandom(size):
        asked.append(size)
        return next(drawn)

    monkeypatch.setattr(blocks.os, "urandom", urandom)
    assert [f"{int(word):x}" for word in SECRET(3)] == [
        "303030303030303",
        "202020202020202",
        "101010101010101",
    ]
    assert asked == [24, 16, 8]


def test_the_words_do_not_come_from_the_source_of_rounding():
    """A seed that rounds values predicts no word: two vectors of one seed differ where true."""
    encoding = Encoding(Schema(x=any_((100,))), 3)
    one, two = (encoding.encode({"x": np.full(100, True)}, np.random.default_rng(7)) for _ in range(2))
    assert not np.any(one[2:] == two[2:])


@pytest.mark.parametrize("field", [any_((2,)), all_((2,)), true_count((2,))])
@pytest.mark.parametrize("value", [[1, 0], [1.0, 0.0], ["a", "b"], [None, True]])
def test_what_is_no_truth_value_is_refused_by_name(field, value):
    with pytest.raises(EncodingError, match=r"Field 'flags': expected truth values \(bool\), got dtype"):
        Encoding(Schema(flags=field), 4).encode({"flags": value}, rng())


def test_a_true_count_weighs_means():
    schema = Schema(loss=averaged(8.0, weight="present"), present=true_count())
    rows = [{"loss": 1.0, "present": True}, {"loss": 5.0, "present": False}, {"loss": 2.0, "present": True}]
    encoding = Encoding(schema, 3)
    found = encoding.decode(added(encoding, rows), 3).values
    assert abs(found["loss"] - 1.5) <= encoding.error_bound("loss", 3)
    assert found["present"] == 2
    assert reduce_clear(schema, rows) == {"loss": 1.5, "present": 2}
