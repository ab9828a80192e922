"""Statements: hashes that cannot be linked between rounds, and who is blamed for a difference."""

from __future__ import annotations

from itertools import product

from secagg.cohort import Statement, differing, hash_context, hash_same


def test_hashes_differ_between_sessions_rounds_fields_and_values():
    contexts = {
        hash_context(session, number, context)
        for session, number, context in product((bytes(16), b"s" * 16), (1, 2), (b"", b"model"))
    }
    assert len(contexts) == 8
    values = {
        hash_same(session, number, field, value)
        for session, number, field, value in product(
            (bytes(16), b"s" * 16), (1, 2), ("a", "b"), ("1", 1, 1.0, True, b"1")
        )
    }
    assert len(values) == 2 * 2 * 2 * 5


def statement(context=b"c", **same):
    return Statement(context, same, {})


def test_everybody_alike_differs_in_nothing():
    assert differing({"a": statement(m=b"1"), "b": statement(m=b"1")}) == {}
    assert differing({}) == {}


def test_blame_falls_on_the_minority_or_on_all_when_nobody_can_tell():
    a, b, c = statement(m=b"1"), statement(m=b"2"), statement(b"other", m=b"1")
    assert differing({"x": a, "y": a, "z": b}) == {"field 'm'": {"z"}}
    assert differing({"x": a, "z": b}) == {"field 'm'": {"x", "z"}}
    assert differing({"x": a, "y": a, "z": c}) == {"the context": {"z"}}


def test_a_client_blames_whoever_differs_from_itself():
    a, b = statement(m=b"1"), statement(m=b"2")
    assert differing({"x": a, "y": b, "z": b}, mine=a) == {"field 'm'": {"y", "z"}}
