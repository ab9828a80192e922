"""Reductions and schemas: what is accepted, what is refused and how, and lossless JSON."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import secagg
from secagg import (
    Schema,
    SchemaError,
    adaptive,
    averaged,
    counted,
    local,
    maximum,
    moments,
    public,
    reduce_clear,
    same,
    summed,
)
from secagg.reductions import reduction_from_dict, verify_reduction, with_shape
from tests.strategies import FIELDS, schemas


@given(FIELDS)
def test_reductions_survive_json(reduction):
    config = json.loads(json.dumps(reduction.to_dict()))
    assert reduction_from_dict(config) == reduction
    assert hash(reduction_from_dict(config)) == hash(reduction)
    assert reduction.disclosure


@given(schemas())
def test_schemas_survive_their_bytes(schema):
    again = Schema.from_bytes(schema.to_bytes())
    assert again == schema
    assert again.digest == schema.digest
    assert list(again) == list(schema)
    assert hash(again) == hash(schema)


def test_the_order_of_fields_and_every_parameter_are_in_the_digest():
    digests = {
        schema.digest
        for schema in (
            Schema(a=summed(1.0), b=counted()),
            Schema(b=counted(), a=summed(1.0)),
            Schema(a=summed(1), b=counted()),
            Schema(a=summed(1.0, 17), b=counted()),
            Schema(a=summed(1.0, shape=()), b=counted()),
            Schema(a=averaged(1.0), b=counted()),
            Schema(a=averaged(1.0, "b"), b=counted()),
            Schema(a=summed(adaptive()), b=counted()),
            Schema(a=summed(adaptive()), b=counted()).with_bounds({"a": 1.0}),
        )
    }
    assert len(digests) == 9


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: summed(-1.0), r"summed bound > 0 and finite, got -1.0"),
        (lambda: summed(0.0), "got 0.0"),
        (lambda: summed(math.nan), "got nan"),
        (lambda: averaged(math.inf), "averaged bound > 0 and finite, got inf"),
        (lambda: summed(1e-300), "Rescale the values"),
        (lambda: summed("1"), "to be a number, got str"),
        (lambda: summed(True), "to be a number, got bool"),
        (lambda: summed(1.0, bits=1), r"summed bits to be an integer in 2..28, got 1"),
        (lambda: summed(1.0, bits=29), "got 29"),
        (lambda: summed(1.0, bits=16.0), "got 16.0"),
        (lambda: summed(3, bits=63), r"2..62, got 63"),
        (lambda: summed(40_000), r"Raise bits to 17, or write bound=40000.0"),
        (lambda: summed(0), r"a bound of at least 1, got bound=0: .* Leave out a field that is always zero"),
        (lambda: summed(-3), r"at least 1, got bound=-3"),
        (lambda: summed(2**70), r"got bound=\d+\. Write bound=\d+\.0 if the values are real"),
        (lambda: summed(1.0, shape=(-1,)), r"summed shape to be an integer in 0"),
        (lambda: summed(1.0, shape="ab"), "tuple of integers, got str"),
        (lambda: counted(at_most=0), "counted at_most"),
        (lambda: counted(at_most=2**63), "counted at_most"),
        (lambda: counted(at_most=1.5), "got 1.5"),
        (lambda: adaptive(2.0, at_most=1.0), r"at_most=1.0, got 2.0"),
        (lambda: adaptive(0.0), "adaptive initial > 0"),
        (lambda: averaged(1.0, weight=3), "averaged weight to be a name"),
        (lambda: Schema({"1x": counted()}), "a field name to be a name"),
        (lambda: Schema({"x" * 129: counted()}), "at most 128"),
        (lambda: Schema({"x y": counted()}), "'x y'"),
        (lambda: Schema({3: counted()}), "got 3"),
        (lambda: Schema({"a": counted()}, a=counted()), r"\['a'\] twice"),
        (lambda: Schema(x=averaged(1.0, "n")), r"weight 'n' of field 'x'.*got no such field"),
        (lambda: Schema(x=averaged(1.0, "n"), n=summed(1.0)), "got a 'summed' field"),
        (lambda: Schema(x=averaged(1.0, "n"), n=counted(shape=(2,))), r"of shape \(2,\)"),
    ],
)
def test_what_cannot_be_carried_is_refused_where_it_is_declared(make, message):
    with pytest.raises(SchemaError, match=message):
        make()


@pytest.mark.parametrize("kind", ["union", "concatenated", "argmax", "product"])
def test_reductions_that_no_sum_carries_are_refused_with_alternatives(kind):
    marker = getattr(secagg, kind)()
    with pytest.raises(
        TypeError, match=rf"'{kind}' cannot be carried by a masked sum \(field 'names'\)\. .*public\(\)"
    ):
        Schema(names=marker)
    with pytest.raises(TypeError, match=r"\(field 'names' of ControlVariate\)"):
        verify_reduction("names", marker, "ControlVariate")


def test_the_refusal_reads_as_the_sketch_says():
    with pytest.raises(TypeError) as info:
        verify_reduction("names", secagg.union(), "ControlVariate")
    assert str(info.value) == (
        "'union' cannot be carried by a masked sum (field 'names' of ControlVariate). "
        "Count them: counted(); mark which of a known universe are there: any_(shape=(size,)); or publish "
        "them: public()."
    )


@pytest.mark.parametrize("value", [3.0, None, "summed", summed])
def test_a_field_without_a_reduction_is_refused(value):
    with pytest.raises(TypeError, match="Expected a reduction for field 'x'"):
        Schema(x=value)


def test_what_a_refusal_of_a_bound_suggests_is_accepted():
    assert summed(40_000, bits=17).limit == 40_000
    assert summed(float(2**70)).limit == 2**70
    assert maximum(0.0, 2**20).levels == 256
    assert maximum(0, 2**16 - 1).levels == 2**16


def test_one_float_limit_declares_reals_and_moments_are_real_always():
    assert not maximum(0, 1.0).integer
    assert maximum(0, 1).integer
    assert moments(10) == moments(10.0)
    assert moments(10).reduce([[0.5], [1.0]]).mean == 0.75


def test_int_bounds_declare_integers_and_float_bounds_reals():
    assert summed(5).integer
    assert summed(np.int32(5)) == summed(5)
    assert not summed(5.0).integer
    assert summed(5).quantum == 1.0
    assert summed(5.0, bits=4).quantum == 5 / 7


def test_clear_reductions_are_the_plain_formulas():
    a, b = np.array([1.0, 2.0]), np.array([0.5, -4.0])
    assert summed(9.0).reduce([a, b]).tolist() == [1.5, -2.0]
    assert summed(9).reduce([2, -5]) == -3
    assert isinstance(summed(9).reduce([2, -5]), int)
    assert averaged(9.0).reduce([a, b]).tolist() == [0.75, -1.0]
    assert averaged(9.0, "n").reduce([1.0, 4.0], [2, 1]) == 2.0
    assert math.isnan(averaged(9.0, "n").reduce([1.0, 4.0], [0, 0]))
    assert counted().reduce([1, 2, 3]) == 6
    assert counted().reduce([[1, 0], [2, 5]]).tolist() == [3, 5]
    assert same().reduce(["a", "a"]) == "a"
    assert public().reduce([1, 2]) == (1, 2)
    assert local().reduce([1, 2]) is None
    with pytest.raises(ValueError, match="they differ"):
        same().reduce(["a", "b"])
    with pytest.raises(ValueError, match="they differ"):
        same().reduce([1, True])
    with pytest.raises(ValueError, match="values of 'n'"):
        averaged(9.0, "n").reduce([1.0])


def test_reduce_clear_names_what_is_missing():
    schema = Schema(x=summed(1.0), n=counted(), secret=local())
    assert reduce_clear(schema, [{"x": 1.0, "n": 1}, {"x": 0.5, "n": 2}]) == {"x": 1.5, "n": 3}
    with pytest.raises(SchemaError, match="field 'n' from client number 1"):
        reduce_clear(schema, [{"x": 1.0, "n": 1}, {"x": 0.5}])
    with pytest.raises(ValueError, match="at least one client"):
        reduce_clear(schema, [])


def test_a_schema_of_any_size_is_no_way_to_exhaust_memory():
    with pytest.raises(SchemaError, match="at most 4096 fields, got 4097"):
        Schema({f"f{i}": local() for i in range(4097)})
    with pytest.raises(SchemaError, match="at most 1048576 bytes"):
        Schema({f"f{'x' * 100}{i}": summed(adaptive(), shape=(1,) * 50) for i in range(4000)})


def test_resolve_fills_shapes_once():
    schema = Schema(x=summed(1.0), n=counted(), m=same())
    resolved = schema.resolve({"x": (2, 3)})
    assert resolved["x"].shape == (2, 3)
    assert resolved["n"].dims == ()
    assert resolved.resolve({"x": (2, 3)}) == resolved
    with pytest.raises(SchemaError, match=r"Field 'x': Expected shape \(2, 3\) as declared, got \(3,\)"):
        resolved.resolve({"x": (3,)})
    with pytest.raises(SchemaError, match="got one of 'y'"):
        schema.resolve({"y": (3,)})
    with pytest.raises(SchemaError, match=r"Field 'm'.*has no shape"):
        schema.resolve({"m": (3,)})
    assert with_shape(counted(), (2,)).shape == (2,)


def test_bounds_move_below_their_cap_only():
    schema = Schema(x=summed(adaptive(1.0, at_most=4.0)), y=summed(1.0))
    assert schema.adaptive_bounds() == {"x": 1.0}
    moved = schema.with_bounds({"x": 4.0})
    assert moved.adaptive_bounds() == {"x": 4.0}
    assert moved["x"].quantum == 4 / 32767
    assert moved != schema
    assert moved.base() == schema
    with pytest.raises(SchemaError, match=r"at_most=4.0, got 4.1"):
        schema.with_bounds({"x": 4.1})
    with pytest.raises(SchemaError, match="got one of 'y'"):
        schema.with_bounds({"y": 2.0})


def test_a_schema_is_a_read_only_mapping():
    schema = Schema(x=summed(1.0), n=counted())
    assert list(schema) == ["x", "n"]
    assert len(schema) == 2
    assert repr(schema) == "Schema(x: summed(bound=1.0), n: counted())"
    assert schema != {"x": 1}
    assert list(schema.masked) == ["x", "n"]


GOOD = Schema(x=summed(1.0), n=counted()).to_bytes()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        GOOD[:-1],
        GOOD + b" ",
        GOOD.replace(b'"bits":16', b'"bits":1e99'),
        GOOD.replace(b'"bits":16', b'"bits":99'),
        GOOD.replace(b'"bits":16', b'"more":16'),
        GOOD.replace(b'"summed"', b'"union"'),
        GOOD.replace(b'"summed"', b"7"),
        GOOD.replace(b'"summed"', b'["summed"]'),
        GOOD.replace(b'"shape":null', b'"shape":[1e400]'),
        GOOD.replace(b'"bound":1.0', b'"bound":NaN'),
        GOOD.replace(b'"bound":1.0', b'"bound":{"initial":1.0}'),
        GOOD.replace(b'"bound":1.0', b'"bound":{"a":1.0}'),
        GOOD.replace(b'["x"', b"[[1]"),
        b'{"fields":[["x",[]]],"version":1}',
        GOOD.replace(b'"version":1', b'"version":2'),
        b"x" * (2**20 + 1),
    ],
)
def test_bytes_that_are_no_canonical_schema_are_refused(data):
    assert data != GOOD
    with pytest.raises(SchemaError):
        Schema.from_bytes(data)


@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_but_schema_error(data):
    with pytest.raises(SchemaError):
        Schema.from_bytes(data)


@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_a_changed_byte_is_another_schema_or_none(at, change):
    data = bytearray(GOOD)
    data[at] ^= change
    try:
        other = Schema.from_bytes(bytes(data))
    except SchemaError:
        return
    assert other.digest != Schema.from_bytes(GOOD).digest
