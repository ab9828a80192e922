"""Moments, histograms and quantiles against numpy and exact arithmetic, and their edges."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from secagg import Encoding, EncodingError, Schema, SchemaError, counted, maximum, reduce_clear, summed
from secagg.fields import histogram, moments, quantile
from secagg.reductions import BinCounts, PowerSums
from tests.statistical import assert_mean, assert_rejects


def summed_up(field, clients, capacity=None, weights=None):
    """The result of one round without masks."""
    schema = Schema(x=field, w=counted())
    encoding = Encoding(schema, capacity or len(clients))
    weights = weights or [1] * len(clients)
    words = [
        encoding.encode({"x": x, "w": w}, np.random.default_rng(i))
        for i, (x, w) in enumerate(zip(clients, weights, strict=True))
    ]
    reduced = encoding.decode(np.sum(words, axis=0, dtype=np.uint64), len(clients))
    return reduced.values["x"], reduced.clipped


# ---- moments --------------------------------------------------------------------------------------------


def test_moments_are_those_of_all_values_together():
    rng = np.random.default_rng(1)
    clients = [rng.normal(2.0, 1.5, size) for size in (1000, 1, 0, 333)]
    pooled = np.concatenate(clients)
    found, clipped = summed_up(moments(10.0, order=4, bits=28), clients)
    assert clipped == {"x": 0}
    assert found.count == 1334
    assert found.mean == pytest.approx(pooled.mean(), abs=1e-6)
    assert found.variance == pytest.approx(pooled.var(), abs=1e-5)
    assert found.std == pytest.approx(pooled.std(), abs=1e-5)
    assert found.central(3) == pytest.approx(stats.moment(pooled, 3), abs=1e-4)
    assert found.central(4) == pytest.approx(stats.moment(pooled, 4), abs=1e-3)
    assert found.raw(4) == pytest.approx(np.mean(pooled**4), abs=1e-4)
    assert found.order == 4


def test_moments_of_each_entry_and_of_weighed_values():
    rng = np.random.default_rng(2)
    rows = [rng.uniform(-1, 1, (m, 2, 3)) for m in (5, 1, 9)]
    found, _ = summed_up(moments(1.0, bits=28, shape=(2, 3)), rows)
    pooled = np.concatenate(rows)
    np.testing.assert_allclose(found.mean, pooled.mean(0), atol=1e-6)
    np.testing.assert_allclose(found.variance, pooled.var(0), atol=1e-6)
    weights = [3, 0, 7]
    found, _ = summed_up(moments(1.0, bits=28, weight="w"), [0.5, 0.9, -0.25], weights=weights)
    assert found.count == 10
    assert found.mean == pytest.approx(np.average([0.5, 0.9, -0.25], weights=weights), abs=1e-6)


def test_the_error_of_a_client_is_one_quantum_however_many_values_it_has():
    field = moments(1.0, order=2, bits=6)
    x = np.full(10_000, 0.3)
    for seed in range(20):
        encoding = Encoding(Schema(x=field), 3)
        found = encoding.decode(encoding.encode({"x": x}, np.random.default_rng(seed)), 1).values["x"]
        assert abs(found.sums[0] - 3000) <= 1 / 31
        assert abs(found.sums[1] - 900) <= 1 / 31


def test_sums_of_powers_are_rounded_without_bias():
    field = moments(1.0, order=2, bits=4, shape=(50_000,))
    x = np.array([np.full(50_000, 0.3), np.full(50_000, -0.11)])
    encoding = Encoding(Schema(x=field), 3)
    found = encoding.decode(encoding.encode({"x": x}, np.random.default_rng(4)), 1).values["x"]
    for power, expected in ((1, 0.19), (2, 0.1021)):
        part = expected * 7 - math.floor(expected * 7)
        std = math.sqrt(part * (1 - part)) / 7
        assert_mean(found.sums[power - 1], expected, std)
        assert_rejects(assert_mean, found.sums[power - 1], expected + 0.05 * std, std)


def test_levels_too_large_for_a_float32_are_rounded_in_the_last_place():
    """2^20 values at 28 bits: levels of 2^47, more than float32 or a float64 with 24 bits more can hold."""
    field = moments(1.0, order=1, bits=28)
    values = np.full(2**20, 2.0**-27 * 5 / 3)
    encoding = Encoding(Schema(x=field), 3)
    found = encoding.decode(encoding.encode({"x": values}, np.random.default_rng(0)), 1).values["x"]
    exact = Fraction(float(values[0])) * 2**20
    assert abs(Fraction(found.sums[0]) - exact) <= Fraction(1, 2**27 - 1)


@pytest.mark.parametrize("n", [1, 7])
def test_moments_of_extremes_do_not_overflow(n):
    field = moments(2.0, order=8, bits=12, at_most=100, shape=(2,))
    for value in (-2.0, 2.0, 0.0, -1e300, 1e300):
        found, clipped = summed_up(field, [np.full((100, 2), value)] * n)
        inside = float(np.clip(value, -2, 2))
        np.testing.assert_allclose(found.sums[:, 0], [100 * n * inside**k for k in range(1, 9)], rtol=1e-12)
        assert clipped == {"x": 200 * n if abs(value) > 2 else 0}


def test_clipped_entries_are_counted_over_all_clients():
    found, clipped = summed_up(moments(1.0), [[0.5, 2.0, -3.0], [9.0], 0.1])
    assert clipped == {"x": 3}
    assert found.count == 5
    assert found.sums[0] == pytest.approx(0.5 + 1 - 1 + 1 + 0.1, abs=1e-4)


def test_no_values_have_no_moments_and_raise_nothing():
    found, _ = summed_up(moments(1.0, order=3, shape=(2,)), [np.zeros((0, 2))] * 2)
    assert found.count == 0
    for value in (found.mean, found.variance, found.std, found.central(3)):
        assert np.isnan(value).all()
    found, _ = summed_up(moments(1.0, weight="w"), [0.5, 0.5], weights=[0, 0])
    assert math.isnan(found.mean)


def test_a_variance_is_never_negative():
    found, _ = summed_up(moments(1000.0, bits=8), [[999.9] * 3] * 5)
    assert found.variance >= 0.0
    assert PowerSums(3, np.array([3.0, 2.9])).variance == 0.0
    with pytest.raises(ValueError, match=r"power in 1..2, got 3"):
        found.central(3)
    with pytest.raises(ValueError, match="got 0"):
        found.raw(0)


# ---- histograms -----------------------------------------------------------------------------------------


@given(
    st.lists(st.lists(st.integers(-6, 18), max_size=20), min_size=1, max_size=5),
    st.sets(st.integers(-4, 16), min_size=2, max_size=6).map(sorted),
)
def test_counts_are_numpys_and_nothing_is_lost(clients, edges):
    pooled = np.array([x for client in clients for x in client], float)
    found, clipped = summed_up(histogram(edges, at_most=20), clients)
    assert np.array_equal(found.counts, np.histogram(pooled, edges)[0])
    assert found.below == np.count_nonzero(pooled < edges[0])
    assert found.above == np.count_nonzero(pooled > edges[-1])
    assert found.total == pooled.size
    assert clipped == {}


def test_bins_are_closed_below_and_the_last_on_both_sides():
    found, _ = summed_up(
        histogram([0.0, 1.0, 2.0]), [[0.0, 1.0, 2.0, np.nextafter(0, -1), np.nextafter(2, 3)]]
    )
    assert (found.counts.tolist(), found.below, found.above) == ([1, 2], 1, 1)


def test_values_of_other_types_fall_into_the_bins_of_their_value():
    found, _ = summed_up(histogram(4, (0, 8)), [np.float32([1.0, 7.5])])
    assert found.counts.tolist() == [1, 0, 0, 1]
    for dtype in (np.int8, np.uint64, bool):
        found, _ = summed_up(histogram([0, 1, 2]), [np.array([0, 1, 1], dtype)])
        assert found.counts.tolist() == [1, 2]


def test_each_entry_has_a_histogram_of_its_own():
    rng = np.random.default_rng(3)
    rows = [rng.uniform(0, 10, (m, 3)) for m in (40, 70_000)]
    found, _ = summed_up(histogram(5, (1, 9), shape=(3,)), rows)
    pooled = np.concatenate(rows)
    for entry in range(3):
        assert np.array_equal(found.counts[entry], np.histogram(pooled[:, entry], 5, (1, 9))[0])
        assert found.below[entry] == np.count_nonzero(pooled[:, entry] < 1)
    assert np.asarray(found).shape == (3, 7)
    assert found.total.tolist() == [70_040] * 3


def test_more_values_than_declared_are_refused():
    field = histogram([0, 1], at_most=3)
    summed_up(field, [[0.1] * 3])
    with pytest.raises(
        EncodingError, match=r"'x': expected shape \(\), or \(m,\) of m <= 3 values, got shape \(4,\)"
    ):
        summed_up(field, [[0.1] * 4])
    with pytest.raises(EncodingError, match=r"or \(m, 2\) of m <= 1 values, got shape \(2, 2\)"):
        summed_up(histogram([0, 1], at_most=1, shape=(2,)), [np.zeros((2, 2))])


# ---- quantiles ------------------------------------------------------------------------------------------


@given(
    st.lists(st.lists(st.floats(-1, 11), max_size=12), min_size=1, max_size=5),
    st.floats(0, 1),
    st.integers(1, 40),
)
def test_a_quantile_is_within_one_bin_of_the_exact_one(clients, q, bins):
    pooled = np.array([x for client in clients for x in client])
    field = quantile(q, bins, (0.0, 10.0), at_most=12)
    found, _ = summed_up(field, clients)
    clear = reduce_clear(Schema(x=field), [{"x": x} for x in clients])["x"]
    if not pooled.size:
        assert math.isnan(found)
        assert math.isnan(clear)
        return
    # The definition, by counting: no value below it covers a share q.
    exact = min(
        v
        for v in pooled
        if Fraction(int(np.sum(pooled <= v)), pooled.size) >= Fraction(q) * (1 - Fraction(1, 2**48))
    )
    if exact < 0:
        assert found == clear == -math.inf
    elif exact > 10:
        assert found == clear == math.inf
    else:
        assert clear == exact
        assert abs(found - exact) <= 10 / bins


def test_quantiles_of_a_known_distribution():
    rng = np.random.default_rng(4)
    clients = [rng.standard_normal(20_000) for _ in range(5)]
    found, _ = summed_up(quantile([0.05, 0.5, 0.95], 200, (-4.0, 4.0)), clients)
    np.testing.assert_allclose(found, stats.norm.ppf([0.05, 0.5, 0.95]), atol=0.03)


def test_quantiles_of_several_shares_and_entries_have_both_shapes():
    rows = [np.arange(20.0).reshape(10, 2), np.arange(20.0, 40.0).reshape(10, 2)]
    found, _ = summed_up(quantile([0.0, 0.5, 1.0], 40, (0.0, 40.0), shape=(2,)), rows)
    assert found.shape == (3, 2)
    np.testing.assert_allclose(found, [[0, 1], [18, 19], [38, 39]], atol=1)
    found, _ = summed_up(quantile(0.5, 40, (0.0, 40.0), shape=(2,)), rows)
    assert found.shape == (2,)


def test_a_share_that_is_no_binary_fraction_means_itself():
    """0.07 of 100 values is 7 of them, though 0.07 * 100 is more than 7 in floating point."""
    assert 0.07 * 100 > 7
    counts = BinCounts(tuple(range(101)), np.ones(100, np.int64), 0, 0)
    for percent in range(1, 101):
        assert counts.quantile(percent / 100) == percent - 0.5
        exact = quantile(percent / 100, 100, (0, 100)).reduce([np.arange(100) + 0.5])
        assert exact == percent - 0.5


def test_quantiles_outside_the_edges_are_infinite_and_within_one_bin_they_interpolate():
    counts = BinCounts((0.0, 10.0), np.array([4]), 3, 3)
    assert counts.quantile([0.0, 0.3, 1.0]).tolist() == [-math.inf, -math.inf, math.inf]
    assert counts.quantile([0.4, 0.5, 0.6, 0.7]).tolist() == [1.25, 3.75, 6.25, 8.75]
    assert math.isnan(BinCounts((0.0, 1.0), np.array([0]), 0, 0).quantile(0.5))


def test_results_are_compared_by_their_numbers():
    one, other = (PowerSums(3, np.array([1.0, v])) for v in (2.0, 3.0))
    assert one == PowerSums(3, np.array([1.0, 2.0]))
    assert one != other
    assert one != (3, 1.0, 2.0)
    assert BinCounts((0.0, 1.0), np.array([1]), 0, 0) != BinCounts((0.0, 1.0), np.array([1]), 1, 0)
    with pytest.raises(TypeError, match="unhashable"):
        hash(one)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: moments(0.0), "moments bound > 0"),
        (lambda: moments(1.0, order=0), r"moments order to be an integer in 1..8, got 0"),
        (lambda: moments(1.0, order=9), "got 9"),
        (lambda: moments(1.0, bits=29), r"moments bits to be an integer in 2..28"),
        (lambda: moments(1.0, at_most=0), "moments at_most"),
        (lambda: moments(1.0, at_most=7, weight="n"), r"where weight= weighs one value a client, .* got 7"),
        (lambda: moments(1.0, weight="1n"), "moments weight to be a name"),
        (lambda: Schema(x=moments(1.0, weight="n")), r"weight 'n' of field 'x'.*no such field"),
        (lambda: histogram([1.0]), r"2 to 16385 edges, got 1 of them"),
        (lambda: histogram(range(20_000)), "edges, got"),
        (lambda: histogram([0, 2, 1]), "ascending order"),
        (lambda: histogram([0, 0]), "ascending order"),
        (lambda: histogram([0, math.nan]), "each edge of histogram to be finite"),
        (lambda: histogram([0, math.inf]), "to be finite"),
        (lambda: histogram(["a", "b"]), "to be a number, got str"),
        (lambda: histogram("ab"), "edges, got 'ab'"),
        (lambda: histogram(np.zeros((2, 2))), "to be a number, got list"),
        (lambda: histogram(np.array(3.0)), "edges, got 3.0"),
        (lambda: histogram(5), r"range=\(first, last edge\) of 5 histogram bins, got None"),
        (lambda: histogram(0, (0, 1)), r"histogram bins to be an integer in 1..16384, got 0"),
        (lambda: histogram(5, (1, 0)), "ascending order"),
        (lambda: histogram(5, (1, math.inf)), "histogram range to be finite"),
        (lambda: histogram([0, 1], (0, 1)), "only where bins= is a number"),
        (lambda: histogram([0, 1], at_most=2**63), "histogram at_most"),
        (lambda: histogram([0, 1], guard_bits=33), "histogram guard_bits"),
        (lambda: quantile(1.5, [0, 1]), r"shares in 0..1, got 1.5"),
        (lambda: quantile(-0.1, [0, 1]), "got -0.1"),
        (lambda: quantile([], [0, 1]), r"got \[\]"),
        (lambda: quantile("x", [0, 1]), "quantile q to be a number, got str"),
        (lambda: quantile(math.nan, [0, 1]), "quantile q to be finite"),
        (
            lambda: Encoding(Schema(x=moments(1.0, bits=28, at_most=2**40)), 2),
            r"'x' needs 69 bits a lane \(bits=28, at_most=1099511627776, 2 clients\).*"
            r"Lower bits of 'x' by 5, or at_most of 'x' by a factor 32",
        ),
        (
            lambda: Encoding(Schema(x=histogram([0, 1], at_most=2**60)), 16),
            r"'x' needs 65 bits a lane \(at_most=1152921504606846976, 16 clients\).*of 'x' by a factor 2",
        ),
    ],
)
def test_what_cannot_be_carried_is_refused_where_it_is_declared(make, message):
    with pytest.raises(SchemaError, match=message):
        make()


def test_values_far_beyond_a_tiny_bound_are_clipped_without_an_overflow():
    encoding = Encoding(Schema(x=moments(1e-30)), 3)
    values = np.array([1e300, -1e300, 5e-31])
    found = encoding.decode(encoding.encode({"x": values}, np.random.default_rng(0)), 1)
    assert found.clipped == {"x": 2}
    assert found.values["x"].mean == pytest.approx(5e-31 / 3, abs=1e-35)


@pytest.mark.parametrize("q", [1.5, -0.1, math.nan, [0.5, 2.0]])
def test_a_quantile_of_no_share_is_refused(q):
    counts = histogram([0.0, 1.0, 2.0]).reduce([[0.5, 1.5]])
    with pytest.raises(ValueError, match=r"shares in \[0, 1\]"):
        counts.quantile(q)


@pytest.mark.skipif(np.finfo(np.longdouble).max <= np.finfo(np.float64).max, reason="no longer float here")
def test_a_long_float_beyond_float64_is_refused_as_infinite_by_every_field():
    for field in (histogram([0.0, 1.0]), moments(1.0), maximum(0.0, 1.0, levels=3), summed(1.0)):
        with pytest.raises(EncodingError, match="NaN or infinity"):
            Encoding(Schema(x=field), 3).encode({"x": np.longdouble("1e400")}, np.random.default_rng(0))
