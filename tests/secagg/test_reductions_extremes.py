"""The largest, the smallest, and sums over public indices: their results, their precision, what they show."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secagg import Encoding, EncodingError, Schema, SchemaError, adaptive, reduce_clear
from secagg.fields import maximum, minimum, sparse, summed
from secagg.reductions import reduction_from_dict
from tests.statistical import assert_uniform_bits


def added(field, clients, capacity=None):
    encoding = Encoding(Schema(x=field), capacity or len(clients))
    words = [encoding.encode({"x": x}, np.random.default_rng(i)) for i, x in enumerate(clients)]
    return encoding, np.sum(words, axis=0, dtype=np.uint64)


def found(field, clients, capacity=None):
    encoding, total = added(field, clients, capacity)
    return encoding.decode(total, len(clients)).values["x"]


@given(
    st.lists(st.floats(-2.0, 5.0), min_size=1, max_size=6),
    st.integers(2, 300),
    st.sampled_from([(-2.0, 5.0), (-2.5, 7.1), (-1e3, 1e3)]),
)
def test_the_largest_is_never_understated_and_the_smallest_never_overstated(values, levels, limits):
    low, high = limits
    step = (high - low) / (levels - 1)
    largest = found(maximum(low, high, levels), values)
    smallest = found(minimum(low, high, levels), values)
    assert max(values) <= largest < max(values) + step * (1 + 1e-9)
    assert min(values) - step * (1 + 1e-9) < smallest <= min(values)
    for result in (largest, smallest):
        level = (result - low) / step
        assert abs(level - round(level)) < 1e-6, "the result is one of the levels"


@given(st.lists(st.integers(-7, 9), min_size=1, max_size=6), st.integers(6, 50))
def test_integers_are_exact(values, capacity):
    assert found(maximum(-7, 9), values, capacity) == max(values)
    assert found(minimum(-7, 9), values, capacity) == min(values)


def test_every_level_of_a_grid_is_its_own():
    field = maximum(0.1, 0.7, 7)
    grid = np.linspace(0.1, 0.7, 7)
    assert [found(field, [x]) for x in grid] == grid.tolist()
    assert [found(minimum(0.1, 0.7, 7), [x]) for x in grid] == grid.tolist()
    assert found(field, [np.nextafter(grid[3], 1)]) == grid[4]
    assert found(minimum(0.1, 0.7, 7), [np.nextafter(grid[3], 0)]) == grid[2]


def test_entries_have_extremes_of_their_own():
    rng = np.random.default_rng(1)
    clients = [rng.integers(0, 20, (3, 4)) for _ in range(5)]
    assert np.array_equal(found(maximum(0, 20, shape=(3, 4)), clients), np.max(clients, axis=0))
    assert np.array_equal(found(minimum(0, 20, shape=(3, 4)), clients), np.min(clients, axis=0))


@pytest.mark.parametrize(("kind", "expected"), [(maximum, 1.0), (minimum, -1.0)])
def test_reals_beyond_the_limits_are_clipped_and_counted(kind, expected):
    encoding, total = added(kind(-1.0, 1.0), [5.0, -5.0, 0.5])
    reduced = encoding.decode(total, 3)
    assert reduced.values["x"] == expected
    assert reduced.clipped == {"x": 2}


@pytest.mark.parametrize("value", [10, -1, 2**40])
def test_integers_beyond_the_limits_are_refused(value):
    for kind in (maximum, minimum):
        with pytest.raises(EncodingError, match=r"'x': expected integers in 0..9, got one outside"):
            found(kind(0, 9), [value])
    with pytest.raises(EncodingError, match=r"integers \(its limits are ints\), got dtype float64"):
        found(maximum(0, 9), [1.5])
    for bad in (math.nan, math.inf):
        with pytest.raises(EncodingError, match="expected finite"):
            found(minimum(0.0, 9.0), [bad])


@pytest.mark.parametrize("clients", [[3], [3, 3, 3], [3, 1, 0], [0, 0, 3, 2, 2]])
def test_the_sum_shows_the_largest_and_nothing_of_the_others(clients):
    """Words up to the largest are uniform, whoever and however many reach them; beyond they are zero."""
    size = 2_000
    _, total = added(maximum(0, 5, shape=(size,)), [np.full(size, value) for value in clients])
    words = total[2:].reshape(size, 5)
    assert np.all(words[:, 3:] == 0)
    assert_uniform_bits(words[:, :3].reshape(-1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: maximum(1, 1), "maximum with low < high, got 1 and 1"),
        (lambda: minimum(2.0, 1.0), "minimum with low < high"),
        (lambda: maximum(0, 9, levels=5), r"levels=10, one for each, got 5.*write low=0.0"),
        (lambda: maximum(0, 2**20), r"high - low < 65536, as each integer .*, got 1048576\. Write low=0\.0"),
        (lambda: maximum(-5, 2**20, levels=9), r"high - low < 65536"),
        (lambda: minimum(0.0, 1.0, levels=2**17), r"levels to be an integer in 2..65536"),
        (lambda: maximum(0.0, 1.0, levels=1), "got 1"),
        (lambda: maximum(0.0, 1.0, levels=2.5), "got 2.5"),
        (lambda: maximum(0.0, math.inf), "maximum high to be finite"),
        (lambda: maximum(math.nan, 1.0), "maximum low to be finite"),
        (lambda: maximum("a", 1.0), "maximum low to be a number, got str"),
        (lambda: maximum(0, 2**70), "maximum high to be an integer"),
        (lambda: sparse(1.0, [], 5), "at least one sparse index"),
        (lambda: sparse(1.0, range(3, 3), 5), "at least one"),
        (lambda: sparse(1.0, [2, 1], 5), "ascending order"),
        (lambda: sparse(1.0, [1, 1], 5), "ascending order"),
        (lambda: sparse(1.0, range(5, 0, -1), 6), "to be an integer in 0"),
        (lambda: sparse(1.0, [-1, 1], 5), "each sparse index to be an integer in 0"),
        (lambda: sparse(1.0, [0.5], 5), "got 0.5"),
        (lambda: sparse(1.0, "12", 5), "integers or a range, got str"),
        (lambda: sparse(1.0, [0, 5], 5), "a flat array of more than 5 entries for sparse indices"),
        (lambda: sparse(1.0, [0, 1], (2, 2)), "flat array"),
        (lambda: Encoding(Schema(x=sparse(1.0, [0])), 3), r"size of a sparse field. Declare size="),
        (
            lambda: reduction_from_dict({"kind": "sparse", "bound": 1.0, "indices": {"range": [0, 1]}}),
            "range",
        ),
        (
            lambda: reduction_from_dict({"kind": "sparse", "bound": 1.0, "indices": {"range": [0, 9, 0]}}),
            "1..",
        ),
        (lambda: reduction_from_dict({"kind": "sparse", "bound": 1.0, "indices": {"r": []}}), "as a list"),
        (lambda: reduction_from_dict({"kind": "sparse", "bound": 1.0, "indices": 5}), "got int"),
        (lambda: reduction_from_dict({"kind": "maximum", "low": 0}), "description of a 'maximum' field"),
        (lambda: reduction_from_dict({"kind": "true_count", "at_most": 5}), "got also"),
        (lambda: reduction_from_dict({"kind": "quantile", "q": [{}], "edges": [0, 1]}), "got dict"),
        (lambda: reduction_from_dict({"kind": "histogram", "edges": [[0], [1]]}), "got list"),
        (lambda: reduction_from_dict({"kind": "histogram", "edges": {}}), "edges, got {}"),
        (lambda: reduction_from_dict({"kind": "any", "shape": {}}), "tuple of integers"),
        (lambda: reduction_from_dict({"kind": "any", "shape": [[1]]}), "got"),
        (lambda: reduction_from_dict({"kind": ["any"]}), "of kind"),
    ],
)
def test_what_cannot_be_carried_is_refused_where_it_is_declared(make, message):
    with pytest.raises(SchemaError, match=message):
        make()


# ---- sparse ---------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(st.data(), st.integers(1, 400))
def test_sums_at_the_indices_and_zero_elsewhere(data, size):
    indices = sorted(data.draw(st.sets(st.integers(0, size - 1), min_size=1)))
    rng = np.random.default_rng(0)
    clients = [rng.integers(-9, 9, size) for _ in range(3)]
    expected = np.zeros(size, int)
    for client in clients:
        for index in indices:
            expected[index] += client[index]
    field = sparse(9, indices, size)
    assert np.array_equal(found(field, clients), expected)
    alone = [client[indices] for client in clients]
    assert np.array_equal(found(field, [clients[0], alone[1], alone[2]]), expected)
    assert np.array_equal(
        reduce_clear(Schema(x=field), [{"x": x} for x in (clients[0], *alone[1:])])["x"], expected
    )


def test_only_the_indices_travel_and_what_is_elsewhere_is_not_looked_at():
    field = sparse(1.0, range(10, 1_000_000, 1000), 1_000_000)
    encoding = Encoding(Schema(x=field), 3)
    assert encoding.words == 2 + math.ceil(1000 / 3) + 1
    x = np.full(1_000_000, np.nan)
    x[10::1000] = 0.5
    reduced = encoding.decode(encoding.encode({"x": x}, np.random.default_rng(0)), 1)
    assert reduced.clipped == {"x": 0}
    assert np.array_equal(np.flatnonzero(reduced.values["x"]), np.arange(10, 1_000_000, 1000))


def test_the_words_are_those_of_a_sum_of_the_entries():
    """Sparse is an index, not another code: the same words as `summed` of the entries alone."""
    rng = np.random.default_rng(3)
    x = rng.uniform(-1, 1, 50_000).astype(np.float32)
    places = np.sort(rng.choice(50_000, 20_000, replace=False))
    one = Encoding(Schema(x=sparse(1.0, places, 50_000)), 9).encode({"x": x}, np.random.default_rng(5))
    other = Encoding(Schema(x=summed(1.0, shape=(20_000,))), 9).encode(
        {"x": x[places]}, np.random.default_rng(5)
    )
    assert np.array_equal(one, other)


def test_a_range_of_indices_is_short_in_the_schema_however_long():
    ranged = Schema(x=sparse(1.0, range(0, 2**39, 3), 2**39))
    assert len(ranged.to_bytes()) < 300
    assert bool(Schema.from_bytes(ranged.to_bytes()) == ranged)
    # 2^39 is 2 modulo 3, so the last index is 2^39 - 2. (No `==` for pytest to take apart, term by term.)
    again = Schema(x=sparse(1.0, range(0, 2**39 - 1, 3), 2**39))
    assert bool(again == ranged), "the same indices, however the range was written"


def test_sparse_bounds_adapt_and_shapes_come_later():
    schema = Schema(x=sparse(adaptive(1.0), [0, 3]))
    with pytest.raises(SchemaError, match="flat array of more than 3 entries"):
        schema.resolve({"x": (3,)})
    schema = schema.resolve({"x": (4,)})
    encoding = Encoding(schema, 3)
    reduced = encoding.decode(encoding.encode({"x": [0.0, 0, 0, 3.0]}, np.random.default_rng(0)), 1)
    assert reduced.bounds == {"x": 2.0}
    assert schema.with_bounds({"x": 2.0})["x"].limit == 2.0
    with pytest.raises(
        EncodingError, match=r"expected shape \(4,\), or \(2,\) for the indices alone, got shape \(3,\)"
    ):
        encoding.encode({"x": np.zeros(3)}, np.random.default_rng(0))
