"""Edges at which arithmetic in the values' own type would go wrong, and the reduction must not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from secagg import (
    Encoding,
    EncodingError,
    Schema,
    adaptive,
    averaged,
    counted,
    maximum,
    minimum,
    moments,
    summed,
)
from secagg.reductions.results import BinCounts


def reduced(schema: Schema, *values: Any) -> Any:
    encoding = Encoding(schema, len(values))
    rng = np.random.default_rng(3)
    total = np.zeros(encoding.words, np.uint64)
    for each in values:
        total += encoding.encode(each, rng)
    return encoding.decode(total, len(values))


@pytest.mark.parametrize("dtype", [np.uint64, np.int64])
def test_extremes_of_integers_beyond_the_precision_of_float64_are_exact(dtype):
    low = 2**62 - 100
    given = [{"x": dtype(low + 3)}, {"x": dtype(low + 7)}, {"x": dtype(low + 50)}]
    assert reduced(Schema(x=maximum(low, 2**62)), *given).values["x"] == low + 50
    assert reduced(Schema(x=minimum(low, 2**62)), *given).values["x"] == low + 3


@pytest.mark.parametrize("dtype", [np.int8, np.int64])
def test_the_smallest_integer_of_a_type_is_clipped_and_counted(dtype):
    smallest = np.iinfo(dtype).min
    found = reduced(Schema(x=moments(100.0)), {"x": np.array([smallest, 5], dtype)})
    assert found.clipped["x"] == 1


@pytest.mark.parametrize("field", [moments(1e5), maximum(-1e5, 1e5), minimum(-1e5, 1e5)])
def test_half_precision_needs_no_bound_that_it_can_hold(field):
    value = np.array(60_000.0, np.float16)
    assert reduced(Schema(x=field), {"x": value}).clipped["x"] == 0


def test_what_weighs_nothing_moves_no_bound():
    schema = Schema(x=averaged(adaptive(1.0), weight="n", shape=(2,)), n=counted())
    small = {"x": [0.1, 0.1], "n": 5}
    quiet = reduced(schema, small, {"x": [0.1, 0.1], "n": 0})
    loud = reduced(schema, small, {"x": [1e30, -1e30], "n": 0})
    assert loud.clipped["x"] == 0
    assert loud.bounds == quiet.bounds


def test_the_last_quantile_is_the_largest_of_any_number_of_values():
    found = BinCounts((0.0, 1.0, 2.0), np.array([2**51, 1]), 0, 0).quantile(1.0)
    assert 1.0 < float(found) <= 2.0


def test_minus_zero_is_zero_to_a_schema():
    assert Schema(x=maximum(-0.0, 1.0)).digest == Schema(x=maximum(0.0, 1.0)).digest


def test_arrays_that_hide_values_are_refused():
    hidden = np.ma.masked_array([1.0, 777.0], mask=[False, True])
    with pytest.raises(EncodingError, match="without a mask"):
        reduced(Schema(x=summed(1000.0, shape=(2,))), {"x": hidden})
