"""Every reduction: what masks give is what combining in clear gives, over any clients and any survivors."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secagg import Encoding, EncodingError, Schema, SchemaError, reduce_clear
from secagg.reductions import KINDS, reduction_from_dict
from tests.secagg.agreement import assert_agrees
from tests.strategies import FIELDS, schemas, value_for, values_for


@settings(max_examples=150)
@given(schemas(), st.integers(1, 7), st.integers(0, 2**32), st.data())
def test_masked_and_clear_agree_over_any_survivors(schema, survivors, seed, data):
    rng = np.random.default_rng(seed)
    encoding = Encoding(schema, data.draw(st.integers(survivors, 500)))
    rows = [values_for(schema, rng) for _ in range(survivors)]
    total = np.sum([encoding.encode(row, rng) for row in rows], axis=0, dtype=np.uint64)
    reduced = encoding.decode(total, survivors)
    clear = reduce_clear(schema, rows)
    assert list(reduced.values) == list(schema.masked)
    assert not any(reduced.clipped.values())
    for name, field in schema.masked.items():
        bound = encoding.error_bound(name, survivors)
        assert_agrees(reduced.values[name], clear[name], bound, repr(field))
        exact = field.integer and field.kind != "averaged"
        if exact or field.kind in ("counted", "true_count", "any", "all", "histogram"):
            assert np.all(np.asarray(bound) == 0)


@settings(max_examples=50)
@given(schemas(), st.integers(0, 2**32))
def test_one_client_is_its_own_sum(schema, seed):
    """The least cohort that a vector decodes over: what `Client.prepare` tells its caller."""
    rng = np.random.default_rng(seed)
    encoding = Encoding(schema, 1)
    row = values_for(schema, rng)
    found = encoding.decode(encoding.encode(row, rng), 1).values
    clear = reduce_clear(schema, [row])
    for name in schema.masked:
        assert_agrees(found[name], clear[name], encoding.error_bound(name, 1), name)


@settings(max_examples=200)
@given(FIELDS)
def test_descriptions_are_lossless_and_strict(field):
    described = json.loads(json.dumps(field.to_dict(), allow_nan=False))
    again = reduction_from_dict(described)
    assert again == field
    assert again.to_dict() == field.to_dict()
    assert Schema(x=field, weight=KINDS["counted"]()) == Schema.from_bytes(
        Schema(x=field, weight=KINDS["counted"]()).to_bytes()
    )
    for key in described:
        with pytest.raises(ValueError, match="Expected"):
            reduction_from_dict({**described, key: {"surprise": [None]}})
    with pytest.raises(ValueError, match="got also"):
        reduction_from_dict({**described, "more": 1})


@given(FIELDS.filter(lambda field: field.masked), st.integers(0, 2**32))
def test_no_error_shows_a_value_and_each_names_its_field(field, seed):
    schema = Schema(secret=field, weight=KINDS["counted"]())
    encoding = Encoding(schema, 3)
    rng = np.random.default_rng(seed)
    values = {"weight": 1, "secret": value_for(field, rng)}
    encoding.encode(values, rng)
    kinds = field.accepts[0]
    bad = [np.full((2, 3, 4, 5), 1), np.full(field.dims, "4711"), np.full(field.dims, 4711j)]
    if "f" in kinds and field.size and (field.kind != "sparse" or 0 in field.indices):
        bad += [np.full(field.dims, worst) for worst in (np.nan, np.inf, -np.inf)]
    for value in bad:
        if np.size(value) == 0:
            continue
        with pytest.raises(EncodingError, match="Field 'secret': expected") as info:
            encoding.encode({**values, "secret": value}, rng)
        assert "4711" not in str(info.value)
        with pytest.raises(EncodingError, match="Field 'secret': expected"):
            encoding.stream({**values, "secret": value}, rng)


@settings(max_examples=100)
@given(FIELDS.filter(lambda field: field.masked), st.integers(1, 400), st.integers(0, 2**32))
def test_all_clients_at_one_extreme_overflow_nothing(field, n, seed):
    """The largest capacity, all of it used, every client at the same end of what its field carries."""
    schema = Schema(x=field, weight=KINDS["counted"](7))
    encoding = Encoding(schema, n)
    for row in (extreme(field, -1), extreme(field, 1)):
        values = {"x": row, "weight": 7}
        # One client n times over: truth values would cancel only if n times a word were 0.
        words = encoding.encode(values, np.random.default_rng(seed)) * np.uint64(n)
        found = encoding.decode(words, n).values["x"]
        if field.kind in ("any", "all", "maximum", "minimum") and n % 2 == 0:
            continue  # Even multiples of one word may vanish, as sums of n words of their own do not.
        clear = reduce_clear(schema, [values] * n)["x"]
        assert_agrees(found, clear, encoding.error_bound("x", n), repr(field))


def extreme(field, sign):
    """One client's values, all at the lower or the upper end."""
    dims = field.dims
    if field.kind in ("true_count", "any", "all"):
        return np.full(dims, sign > 0)
    if field.kind == "counted":
        return np.full(dims, field.at_most if sign > 0 else 0)
    if field.kind in ("histogram", "quantile"):
        return np.full((field.at_most, *dims), field.edges[-1 if sign > 0 else 0])
    if field.kind in ("maximum", "minimum"):
        return np.full(dims, field.high if sign > 0 else field.low)
    if field.kind == "moments":
        return np.full(dims if field.weight else (field.at_most, *dims), sign * field.bound)
    return np.full(dims, sign * (int(field.limit) if field.integer else field.limit))


JUNK = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.just(10**400),
        st.floats(),
        st.text(max_size=3),
        st.just("n"),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["range", "initial", "at_most", "kind"]), inner, max_size=3),
    ),
    max_leaves=5,
)


@settings(max_examples=300)
@given(FIELDS, st.data())
def test_a_description_with_junk_in_it_is_refused_or_a_description(field, data):
    described = field.to_dict()
    key = data.draw(st.sampled_from(sorted(described)))
    described[key] = data.draw(JUNK)
    try:
        found = reduction_from_dict(described)
    except SchemaError:
        return
    assert reduction_from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False))) == found
