"""Encoding: exact zeros and integers, unbiased rounding, no overflow, and refusals that name the field."""

from __future__ import annotations

import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secagg import (
    Encoding,
    EncodingError,
    Schema,
    SchemaError,
    averaged,
    counted,
    histogram,
    local,
    maximum,
    moments,
    sparse,
    summed,
)
from secagg.layout import BLOCK, Run
from tests.statistical import assert_mean, assert_rejects
from tests.strategies import schemas, values_for


@pytest.fixture
def rng():
    return np.random.default_rng(20261121)


@given(schemas(), st.integers(1, 1000))
def test_runs_tile_the_vector_and_every_value_has_its_own_bits(schema, n):
    encoding = Encoding(schema, n)
    used = np.zeros(encoding.words, np.uint64)
    used[:2] = 2**64 - 1  # The zero lane and the count lane are whole words.
    for run in encoding.runs:
        seen = np.zeros(run.size, int)
        for block, lanes in run.blocks():
            for where, shift in lanes:
                count = where.stop - where.start
                bits = np.uint64((2**run.width - 1) << shift)
                assert shift + run.width <= 64
                taken = used[block.start : block.start + count]
                assert not np.any(taken & bits), "two lanes overlap"
                taken |= bits
                seen[where] += 1
        assert np.all(seen == 1), "a value is not carried once"
        if run.carrier == "truth":
            assert run.width == 64, "a truth value is a whole word"
            continue
        assert n * run.top < 2**run.width, "the largest sum does not fit"
        assert run.width == 1 or n * run.top >= 2 ** (run.width - 1), "the lane is wider than it must be"


def test_sixteen_bits_and_up_to_32_clients_give_three_values_a_word():
    encoding = Encoding(Schema(x=summed(1.0, shape=(30_000,))), 32)
    assert encoding.runs[0].width == 21
    assert encoding.runs[0].lanes_per_word == 3
    assert encoding.runs[0].words == 10_000


@pytest.mark.parametrize("n", [1, 3, 32, 1000])
@pytest.mark.parametrize("sign", [-1, 1])
def test_extremes_of_every_client_at_once_do_not_overflow(n, sign, rng):
    schema = Schema(
        x=summed(1.0, bits=16, shape=(100,)),
        i=summed(2**31, bits=40, shape=(3,)),
        m=averaged(3.0, "w", bits=16, shape=(50,)),
        w=counted(at_most=2**20),
        c=counted(at_most=2**30, shape=(2,)),
    )
    encoding = Encoding(schema, n)
    one = {
        "x": np.full(100, sign * 1e30),
        "i": np.full(3, sign * 2**31),
        "m": np.full(50, sign * 3.0),
        "w": 2**20,
        "c": [2**30, 0],
    }
    words = encoding.encode(one, rng)
    total = words * np.uint64(n)
    reduced = encoding.decode(total, n)
    assert reduced.values["x"].tolist() == [pytest.approx(sign * n)] * 100
    assert reduced.values["i"].tolist() == [sign * n * 2**31] * 3
    assert reduced.values["m"].tolist() == [pytest.approx(sign * 3.0)] * 50
    assert reduced.values["w"] == n * 2**20
    assert reduced.values["c"].tolist() == [n * 2**30, 0]
    assert reduced.clipped == {"x": 100 * n, "m": 0}


@pytest.mark.parametrize(
    ("schema", "n", "message"),
    [
        (
            Schema(x=summed(2**50, bits=60)),
            2**14,
            r"Field 'x' needs 66 bits a lane \(bits=60, 16384 clients\)",
        ),
        (
            Schema(x=averaged(1.0, "n", bits=28), n=counted(2**40)),
            31,
            r"'x' needs 73 bits a lane \(bits=28, 31 clients, weights up to 1099511627776\).*Lower bits of "
            r"'x' by 9, or at_most of 'n' by a factor 512",
        ),
        (
            Schema(n=counted(2**60)),
            100,
            r"'n' needs 67 bits a lane \(at_most=1152921504606846976, 100 clients\)",
        ),
    ],
)
def test_a_schema_that_could_overflow_is_refused_with_bits_and_remedy(schema, n, message):
    with pytest.raises(SchemaError, match=message):
        Encoding(schema, n)


def test_a_sum_that_fits_a_word_but_not_the_integers_it_is_read_as_is_refused(rng):
    """3 · 2^62 has 64 bits, and is negative as an int64."""
    encoding = Encoding(Schema(n=counted(2**62)), 1)
    assert encoding.decode(encoding.encode({"n": 2**62}, rng), 1).values == {"n": 2**62}
    with pytest.raises(SchemaError, match=r"'n' needs 65 bits a lane .* Lower at_most of 'n' by a factor 2"):
        Encoding(Schema(n=counted(2**62)), 3)


@pytest.mark.parametrize("n", [0, -1, 2.0, True])
def test_the_number_of_clients_is_a_positive_integer(n):
    with pytest.raises(SchemaError, match="num_clients"):
        Encoding(Schema(n=counted()), n)


@pytest.mark.parametrize("bits", [2, 8, 16, 28])
def test_zero_and_the_bounds_are_exact(bits, rng):
    encoding = Encoding(Schema(x=summed(0.1, bits=bits, shape=(30_000,))), 5)
    for value in (0.0, 0.1, -0.1):
        reduced = encoding.decode(encoding.encode({"x": np.full(30_000, value)}, rng), 1)
        assert np.all(reduced.values["x"] == value), value
        assert reduced.clipped == {"x": 0}


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble, np.int16, bool])
def test_every_real_dtype_is_carried(dtype, rng):
    encoding = Encoding(Schema(x=summed(2.0, shape=(3,))), 4)
    x = np.array([0, 1, 1], dtype)
    np.testing.assert_allclose(
        encoding.decode(encoding.encode({"x": x}, rng), 1).values["x"], [0, 1, 1], atol=1e-4
    )


def test_non_contiguous_arrays_are_carried(rng):
    encoding = Encoding(Schema(x=summed(2.0, shape=(3, 2))), 4)
    x = np.arange(12).reshape(2, 6)[:, ::2].T / 6
    got = encoding.decode(encoding.encode({"x": x}, rng), 1).values["x"]
    np.testing.assert_allclose(got, x, atol=1e-4)


@pytest.mark.parametrize("bits", [4, 16, 28])
def test_rounding_is_unbiased_inside_the_bounds(bits, rng):
    n = 200_000
    field = summed(1.0, bits=bits, shape=(n,))
    encoding = Encoding(Schema(x=field), 5)
    for value in (0.3, -0.61803, 0.001 * field.quantum):
        got = encoding.decode(encoding.encode({"x": np.full(n, value)}, rng), 1).values["x"]
        levels = np.unique(got)
        assert len(levels) <= 2, "one of the two neighbouring levels"
        assert np.ptp(levels) <= 1.001 * field.quantum
        fraction = value / field.quantum - np.floor(value / field.quantum)
        std = field.quantum * np.sqrt(fraction * (1 - fraction))
        assert_mean(got, value, std)
        assert_rejects(assert_mean, got, value + 0.1 * std, std)


def test_rounding_to_nearest_would_be_rejected(rng):
    """The power of the test above: a deterministic rounding is biased."""
    field = summed(1.0, bits=4)
    value = 0.3
    nearest = np.full(200_000, np.round(value / field.quantum) * field.quantum)
    assert_rejects(assert_mean, nearest, value, field.quantum / 2)


def test_each_client_adds_less_than_one_quantum(rng):
    field = summed(1.0, bits=8, shape=(50_000,))
    encoding = Encoding(Schema(x=field), 5)
    x = rng.uniform(-1, 1, 50_000)
    error = encoding.decode(encoding.encode({"x": x}, rng), 1).values["x"] - x
    assert 0.9 * field.quantum < np.max(np.abs(error)) < field.quantum


def test_blocks_change_nothing(rng):
    """Sizes around the block: what is in the first block and in the last comes back in its place."""
    for size in (3 * BLOCK - 1, 3 * BLOCK, 3 * BLOCK + 1, 7 * BLOCK + 5):
        encoding = Encoding(Schema(x=summed(2**40, bits=42, shape=(size,)), y=summed(9, shape=(size,))), 4)
        x, y = np.arange(size) - size // 2, np.arange(size) % 19 - 9
        got = encoding.decode(encoding.encode({"x": x, "y": y}, rng), 1).values
        assert np.array_equal(got["x"], x)
        assert np.array_equal(got["y"], y)


def test_a_weight_of_zero_removes_a_client_even_where_the_largest_weight_is_one(rng):
    encoding = Encoding(Schema(x=averaged(1.0, "n"), n=counted(at_most=1)), 3)
    words = [encoding.encode({"x": x, "n": n}, rng) for x, n in ((0.5, 1), (-1.0, 0), (0.25, 1))]
    reduced = encoding.decode(np.sum(words, axis=0, dtype=np.uint64), 3)
    assert abs(reduced.values["x"] - 0.375) <= encoding.error_bound("x", 3)


def test_a_mean_without_weight_is_nan_and_no_error(rng):
    encoding = Encoding(Schema(x=averaged(1.0, "n", shape=(2,)), y=averaged(1.0, "n"), n=counted()), 3)
    words = encoding.encode({"x": [0.5, 1.0], "y": 0.1, "n": 0}, rng)
    values = encoding.decode(words, 1).values
    assert np.isnan(values["x"]).all()
    assert np.isnan(values["y"])


SCHEMA = Schema(
    {"a.b": summed(1.0, shape=(2,))}, n=counted(at_most=9), i=summed(5), m=averaged(1.0, "n"), l=local()
)
FINE = {"a.b": [0.0, 1.0], "n": 3, "i": -5, "m": 0.5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"a.b": [0.0, np.nan]},
            "Field 'a.b': expected finite numbers, got NaN or infinity, first at index 1",
        ),
        ({"a.b": None}, r"'a.b': expected shape \(2,\), got None. Give it a value"),
        ({"a.b": [np.inf, 0.0]}, "'a.b': expected finite"),
        ({"a.b": [-np.inf, 0.0]}, "'a.b': expected finite"),
        ({"a.b": [[0.0, 1.0]]}, r"'a.b': expected shape \(2,\), got shape \(1, 2\)"),
        ({"a.b": 1.0}, r"'a.b': expected shape \(2,\), got shape \(\)"),
        ({"a.b": ["x", "y"]}, "'a.b': expected real numbers, got dtype <U1"),
        ({"a.b": [1j, 0]}, "'a.b': expected real numbers, got dtype complex128"),
        ({"a.b": [object(), 0]}, "'a.b': expected real numbers, got dtype object"),
        ({"a.b": [[1], [1, 2]]}, r"'a.b': expected an array of numbers, got list\.$"),
        ({"n": 3.0}, r"'n': .* \(it is counted\), got dtype float64. Pass integers, or declare summed"),
        ({"n": 10}, r"'n': expected integers in 0..9, got one outside"),
        ({"n": -1}, r"'n': expected integers in 0..9"),
        ({"n": 2**64}, "'n': expected integers .*, got dtype object"),
        ({"n": 2**64 - 1}, r"'n': expected integers in 0..9"),
        ({"i": 6}, r"'i': expected integers in -5..5"),
        (
            {"i": 1.5},
            r"\(its bound is an int\), got dtype float64. Write bound=5.0 where .*, or pass integers",
        ),
        ({"m": np.nan}, r"'m': expected finite numbers, got NaN or infinity\.$"),
        ({"zzz": 1}, r"got also \['zzz'\]"),
    ],
)
def test_values_that_cannot_be_carried_are_refused_by_field(change, message, rng):
    encoding = Encoding(SCHEMA, 4)
    encoding.encode(FINE, rng)
    with pytest.raises(EncodingError, match=message) as info:
        encoding.encode({**FINE, **change}, rng)
    assert "0.5" not in str(info.value), "an error never shows a value"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_bad_value_among_many_is_found_wherever_it_stands(bad, rng):
    encoding = Encoding(Schema(x=summed(1.0, shape=(50_000,))), 4)
    for at in (0, 1, 16_385, 33_333, 49_999):
        x = np.zeros(50_000, np.float32)
        x[at] = bad
        with pytest.raises(EncodingError, match=rf"'x': expected finite .*, first at index {at}\.$"):
            encoding.encode({"x": x}, rng)
        with pytest.raises(EncodingError, match=rf", first at index {at}\.$"):
            encoding.stream({"x": x}, rng)


@pytest.mark.parametrize(
    ("field", "shape"),
    [
        (summed(1.0, shape=(30, 700)), (30, 700)),
        (maximum(0.0, 1.0, levels=4, shape=(30, 70)), (30, 70)),
        (moments(1.0, shape=(70,)), (30, 70)),
        (histogram([0.0, 1.0], shape=(7, 10)), (4, 7, 10)),
        (sparse(1.0, range(0, 20_000, 5), 20_000), (20_000,)),
        (sparse(1.0, range(0, 20_000, 5), 20_000), (4_000,)),
        (sparse(1.0, [10, 900, 1000], 2_000), (2_000,)),
    ],
)
def test_the_first_bad_value_is_named_by_its_index(field, shape, rng):
    encoding = Encoding(Schema(x=field), 4)
    x = np.zeros(shape)
    places = [0, x.size // 2, x.size - 1] if field.kind != "sparse" else [1000, x.size // 2]
    for flat in places[1:]:
        x.flat[flat] = np.nan  # What is last, or in sparse not carried, is not the first.
    for at in reversed(places[:2]):
        x.flat[at] = np.inf
        index = np.unravel_index(at, shape)
        named = str(at) if len(shape) == 1 else re.escape(str(tuple(map(int, index))))
        with pytest.raises(EncodingError, match=rf"got NaN or infinity, first at index {named}\.$"):
            encoding.encode({"x": x}, rng)


class Recording:
    """As a tensor that records gradients: numpy gets no array of it."""

    def __array__(self, *_args, **_kwargs):
        raise RuntimeError("Can't call numpy() on Tensor that requires grad.")

    def detach(self):
        return np.zeros(2)


def test_a_tensor_that_gives_no_array_is_told_how(rng):
    with pytest.raises(EncodingError, match=r"of numbers, got Recording\. Give it as \.detach\(\)\.cpu\(\)"):
        Encoding(SCHEMA, 4).encode({**FINE, "a.b": Recording()}, rng)


def test_a_parameter_is_told_how(rng):
    torch = pytest.importorskip("torch")
    parameter = torch.nn.Parameter(torch.zeros(2))
    with pytest.raises(EncodingError, match=r"'a.b': .*, got Parameter\. Give it as \.detach\(\)\.cpu\(\)"):
        Encoding(SCHEMA, 4).encode({**FINE, "a.b": parameter}, rng)
    Encoding(SCHEMA, 4).encode({**FINE, "a.b": parameter.detach().cpu()}, rng)


def test_the_largest_floats_are_clipped_without_a_warning(rng):
    encoding = Encoding(Schema(x=summed(1e-6, shape=(3,))), 4)
    reduced = encoding.decode(encoding.encode({"x": [1.7e308, -1.7e308, 0.0]}, rng), 1)
    assert reduced.values["x"].tolist() == [1e-6, -1e-6, 0.0]
    assert reduced.clipped == {"x": 2}


class AlwaysUp:
    """The largest draw, every time."""

    def random(self, *, dtype, out):
        out[:] = 1 - 2.0**-24


def test_no_rounding_leaves_the_bounds_whatever_the_bound(rng):
    """The scale is rounded to float64, so a value at its bound may be scaled to just above the top level."""
    for bound in rng.uniform(0.1, 10.0, 2_000):
        encoding = Encoding(Schema(x=summed(float(bound), bits=28, shape=(2,))), 4)
        reduced = encoding.decode(encoding.encode({"x": [bound, -bound]}, AlwaysUp()), 1)
        assert reduced.values["x"][0] <= bound * (1 + 1e-15)
        assert reduced.values["x"][1] >= -bound
        assert reduced.clipped == {"x": 0}


def test_a_weight_out_of_range_is_refused_before_it_weighs(rng):
    encoding = Encoding(Schema(m=averaged(1.0, "n", shape=(2,)), n=counted(at_most=9)), 4)
    for weight in (10, -1):
        with pytest.raises(EncodingError, match=r"'n': expected integers in 0..9"):
            encoding.encode({"m": [0.5, 0.5], "n": weight}, rng)


def test_a_missing_field_is_named(rng):
    with pytest.raises(EncodingError, match="Expected a value of field 'i'"):
        Encoding(SCHEMA, 4).encode({k: v for k, v in FINE.items() if k != "i"}, rng)


def test_local_values_are_not_even_read(rng):
    class Unreadable:
        def __array__(self, *args, **kwargs):
            raise AssertionError("a local value was read")

    encoding = Encoding(SCHEMA, 4)
    with_local = encoding.encode({**FINE, "l": Unreadable()}, np.random.default_rng(1))
    assert np.array_equal(with_local, encoding.encode(FINE, np.random.default_rng(1)))


def test_a_sum_whose_zero_or_count_lane_is_off_is_refused(rng):
    encoding = Encoding(SCHEMA, 4)
    words = encoding.encode(FINE, rng)
    bad = words.copy()
    bad[0] = 1
    with pytest.raises(EncodingError, match="zero lane of 1 clients"):
        encoding.decode(bad, 1)
    with pytest.raises(EncodingError, match="count lane does not say 2"):
        encoding.decode(words, 2)
    with pytest.raises(EncodingError, match=r"1..4 clients, got n=5"):
        encoding.decode(words, 5)
    with pytest.raises(EncodingError, match="uint64 words"):
        encoding.decode(words[:-1], 1)
    with pytest.raises(EncodingError, match="uint64 words"):
        encoding.decode(words.astype(np.int64), 1)


@given(st.integers(0, 2**32), schemas())
@settings(max_examples=50)
def test_decoding_garbage_never_crashes(seed, schema):
    """A malicious client can spoil a sum, but not the process that decodes it."""
    rng = np.random.default_rng(seed)
    encoding = Encoding(schema, 7)
    words = rng.integers(0, 2**64, encoding.words, dtype=np.uint64)
    words[0], words[1] = 0, 7
    reduced = encoding.decode(words, 7)
    for name, bound in reduced.bounds.items():
        assert 0 < bound <= schema[name].bound.at_most


def test_values_depend_on_the_rounding_source_only_below_a_quantum(rng):
    encoding = Encoding(SCHEMA, 4)
    values = values_for(SCHEMA, rng)
    a, b = (encoding.decode(encoding.encode(values, np.random.default_rng(s)), 1).values for s in (1, 2))
    assert np.max(np.abs(a["a.b"] - b["a.b"])) <= SCHEMA["a.b"].quantum
    assert a["i"] == b["i"]


def test_reprs_are_short():
    assert "words=" in repr(Encoding(SCHEMA, 4))
    assert Run("x", "value", 5, 2, 1, 32, 0).words == 3


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
@pytest.mark.parametrize("bound", [0.1, 1 / 3, 0.7, 1.0007, 1e-30, 65503.0])
def test_whatever_is_beyond_the_bound_is_counted_exactly_in_every_type(dtype, bound, rng):
    """The nearest float32 to a bound may be beyond it: comparisons in that type would not see it."""
    kind = np.dtype(dtype)
    nearest = kind.newbyteorder("=").type(bound)
    with np.errstate(over="ignore", under="ignore"):
        around = [nearest, np.nextafter(nearest, type(nearest)(0)), np.nextafter(nearest, type(nearest)(1e4))]
    values = np.array([sign * value for value in around for sign in (1, -1)], kind)
    values = values[np.isfinite(values)]
    beyond = sum(abs(Fraction(float(value))) > Fraction(bound) for value in values)
    encoding = Encoding(Schema(x=summed(bound, shape=values.shape), m=moments(bound)), 3)
    found = encoding.decode(encoding.encode({"x": values, "m": values}, rng), 1)
    assert found.clipped == {"x": beyond, "m": beyond}


def test_an_integer_out_of_range_is_named_by_its_place(rng):
    encoding = Encoding(Schema(n=counted(at_most=9, shape=(2, 3))), 3)
    with pytest.raises(EncodingError, match=re.escape("0..9, got one outside, first at index (1, 2).")):
        encoding.encode({"n": [[1, 2, 3], [4, 5, 10]]}, rng)
    with pytest.raises(EncodingError, match=re.escape("first at index (0, 1)")):
        list(encoding.stream({"n": np.array([[1, -2, 3], [4, 5, 10]], np.int8)}, rng))


def test_a_shape_that_does_not_fit_is_answered_with_what_would(rng):
    with pytest.raises(
        EncodingError, match=re.escape("got shape (4,). Reshape the value, or declare shape=(4,)")
    ):
        Encoding(Schema(x=summed(1.0, shape=(3,))), 3).encode({"x": np.zeros(4)}, rng)
    with pytest.raises(EncodingError, match=r"or fill it with Schema\.resolve"):
        Encoding(Schema(x=summed(1.0)), 3).encode({"x": np.zeros(4)}, rng)


def test_what_is_no_schema_is_refused_with_the_remedy():
    with pytest.raises(SchemaError, match=re.escape("Wrap it: Schema(fields)")):
        Encoding({"x": summed(1.0)}, 3)
