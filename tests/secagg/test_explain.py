"""Explain says what leaves, and nothing leaves that it does not say."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from secagg import Encoding, Schema, adaptive, averaged, counted, explain, local, public, same, summed
from tests.strategies import schemas

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
    assert "unless all the others" in text
    assert "cohorts differ by one client" in text
    assert "up to 8 clients" in text
