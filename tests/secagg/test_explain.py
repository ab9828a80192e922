"""Explain says what leaves, and nothing leaves that it does not say."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secagg import (
    Encoding,
    Schema,
    adaptive,
    averaged,
    counted,
    explain,
    local,
    public,
    reduce_clear,
    same,
    summed,
)
from secagg.fields import all_, any_, histogram, maximum, minimum, moments, quantile, sparse, true_count
from tests.secagg.agreement import assert_agrees
from tests.strategies import schemas, values_for

SCHEMA = Schema(
    {"scaffold.c": summed(adaptive(2.0), bits=20, shape=(1000,))},
    loss=averaged(10.0, weight="n"),
    n=counted(),
    model=same(),
    note=public(),
    cache=local(),
)


def test_every_field_and_every_extra_lane_has_a_line():
    lines = explain(SCHEMA, 8).lines
    assert [line.field for line in lines] == [
        "scaffold.c",
        "scaffold.c (clipped)",
        "scaffold.c (peak)",
        "loss",
        "loss (clipped)",
        "n",
        "model",
        "note",
        "cache",
    ]
    by_field = {line.field: line for line in lines}
    assert by_field["scaffold.c"].quantum == 2.0 / (2**19 - 1)
    assert by_field["scaffold.c"].bits == 23
    assert "weighted by 'n'" in by_field["loss"].learned
    assert "in clear" in by_field["note"].learned
    assert by_field["cache"].learned.startswith("nothing")
    assert by_field["n"].quantum == 1.0


@given(schemas(), st.integers(3, 100))
def test_the_lines_account_for_every_word_but_two(schema, n):
    explanation = explain(schema, n)
    assert sum(line.bytes for line in explanation.lines) == 8 * (explanation.words - 2)
    assert explanation.words == Encoding(schema, n).words
    json.dumps(explanation.to_dicts(), allow_nan=False)
    for name in schema:
        assert name in str(explanation)


def test_the_text_names_what_masks_do_not_protect_from():
    text = str(explain(SCHEMA, 8))
    plain = " ".join(text.split())
    assert "unless all the others of its round pool theirs" in plain
    assert "the 7 others, then learn of a client" in plain
    assert "cohorts differ by one client" in plain
    assert "up to 8 clients" in plain


@given(schemas(), st.integers(1, 1000))
def test_the_text_fits_a_terminal_and_names_everything(schema, n):
    explanation = explain(schema, n)
    text = str(explanation)
    assert max(map(len, text.splitlines())) <= 100
    told = " ".join(text.split())
    for line in explanation.lines:
        assert line.field in told
        assert line.colluders
        assert line.difference


def test_long_names_are_broken_rather_than_cut():
    name = "m" * 60 + "." + "n" * 60
    text = str(explain(Schema({name: summed(adaptive(2.0), shape=(10,))}), 3))
    assert max(map(len, text.splitlines())) <= 100
    pieces = [
        line[:36].strip() for line in text.splitlines() if line[:3] in ("mmm", "nnn") or "nnn" in line[:36]
    ]
    assert name in "".join(pieces).replace(" ", "")


KINDS_OF = {
    "value": Schema(x=summed(5.0, shape=(3,))),
    "entries there": Schema(x=sparse(5.0, [0, 2], 3)),
    "value, exactly": Schema(x=summed(5, shape=(3,))),
    "count, exactly": Schema(x=counted(shape=(3,))),
    "truth value": Schema(x=any_((3,)), y=all_((3,)), z=true_count((3,))),
    "value, to one level": Schema(x=maximum(-5.0, 5.0, shape=(3,)), y=minimum(-5.0, 5.0, shape=(3,))),
    "histogram": Schema(x=histogram(5, (-5, 5), at_most=9), y=quantile(0.5, 5, (-5, 5), at_most=9)),
    "sums of powers": Schema(x=moments(5.0, at_most=9)),
}


@pytest.mark.parametrize("claim", list(KINDS_OF))
def test_colluders_learn_what_it_says(claim):
    """The attack: all others subtract what they sent from the sum, and decode what is left."""
    schema, rng = KINDS_OF[claim], np.random.default_rng(1)
    assert all(claim in line.colluders for line in explain(schema, 9).lines if "(" not in line.field)
    encoding = Encoding(schema, 9)
    rows = [values_for(schema, rng) for _ in range(9)]
    words = [encoding.encode(row, rng) for row in rows]
    total = np.sum(words, axis=0, dtype=np.uint64)
    left = total - np.sum(words[1:], axis=0, dtype=np.uint64)
    found, clear = encoding.decode(left, 1).values, reduce_clear(schema, rows[:1])
    for name in schema:
        assert_agrees(found[name], clear[name], encoding.error_bound(name, 1), name)


def test_two_rounds_tell_what_it_says():
    """The attack: with and without one client, the others unchanged."""
    schema = Schema(
        x=summed(5.0),
        h=histogram([0, 1, 2, 3]),
        low=any_(),
        high=any_(),
        best=maximum(0, 9),
        worst=minimum(0, 9),
    )
    others = [{"x": 1.0, "h": [0.5], "low": False, "high": True, "best": 4, "worst": 4}] * 4
    one = {"x": -3.5, "h": [1.5, 2.5], "low": True, "high": True, "best": 7, "worst": 6}
    encoding = Encoding(schema, 5)

    def played(rows):
        words = [encoding.encode(row, np.random.default_rng(i)) for i, row in enumerate(rows)]
        return encoding.decode(np.sum(words, axis=0, dtype=np.uint64), len(rows)).values

    with_it, without = played([*others, one]), played(others)
    assert abs(with_it["x"] - without["x"] - one["x"]) <= 2 * encoding.error_bound("x", 5)
    assert (with_it["h"].counts - without["h"].counts).tolist() == [0, 1, 1]
    assert (with_it["low"], without["low"]) == (True, False), "it alone holds true"
    assert with_it["high"] == without["high"], "true in both tells nothing of it"
    assert (with_it["best"], without["best"]) == (7, 4), "it alone is above"
    assert with_it["worst"] == without["worst"] == 4, "it is not below, and no more"
