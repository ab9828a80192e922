"""Vectors in pieces, results in the caller's arrays: the same numbers, and no second copy in memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secagg import Encoding, EncodingError, Schema, averaged, blocks, counted, summed
from secagg.fields import all_, any_, histogram, maximum, sparse, true_count
from secagg.layout import BLOCK
from tests.secagg.agreement import assert_agrees
from tests.strategies import schemas, values_for


@pytest.fixture
def insecure_words(monkeypatch):
    """Truth values from a seed, so that two encodings can be compared word by word."""

    def seeded():
        rng = np.random.default_rng(5)
        monkeypatch.setattr(blocks, "secret_words", lambda n: rng.integers(1, 2**64, n, np.uint64))

    return seeded


@settings(max_examples=150)
@given(schemas(), st.integers(1, 40), st.integers(1, 300), st.integers(0, 2**32))
def test_chunks_are_the_vector_in_order(schema, n, size, seed):
    encoding = Encoding(schema, n)
    values = values_for(schema, np.random.default_rng(seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "secret_words", lambda count: np.full(count, 7, np.uint64))
        whole = encoding.encode(values, np.random.default_rng(seed))
        chunks = list(encoding.stream(values, np.random.default_rng(seed), size))
    assert np.array_equal(np.concatenate(chunks), whole)
    assert {chunk.size for chunk in chunks[:-1]} <= {size}
    assert 1 <= chunks[-1].size <= size


@pytest.mark.parametrize("size", [1000, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7, 10**9])
def test_chunks_may_be_of_any_size_beside_the_blocks(size, insecure_words):
    schema = Schema(x=summed(1.0, shape=(3 * 3 * BLOCK + 5,)), w=any_((2 * BLOCK,)), y=summed(9, shape=(99,)))
    encoding = Encoding(schema, 4)
    values = values_for(schema, np.random.default_rng(0))
    insecure_words()
    whole = encoding.encode(values, np.random.default_rng(1))
    insecure_words()
    chunks = list(encoding.stream(values, np.random.default_rng(1), size))
    assert np.array_equal(np.concatenate(chunks), whole)
    assert [chunk.size for chunk in chunks[:-1]] == [size] * (len(chunks) - 1)


def test_chunks_can_be_masked_while_the_next_is_made():
    """Each chunk is the caller's own: changing it changes no later one."""
    encoding = Encoding(Schema(x=summed(1.0, shape=(1000,))), 4)
    values = {"x": np.linspace(-1, 1, 1000)}
    whole = encoding.encode(values, np.random.default_rng(1))
    changed = [chunk.copy() for chunk in encoding.stream(values, np.random.default_rng(1), 50)]
    kept = []
    for chunk in encoding.stream(values, np.random.default_rng(1), 50):
        kept.append(chunk.copy())
        chunk[:] = 0
    assert np.array_equal(np.concatenate(kept), np.concatenate(changed))
    assert np.array_equal(np.concatenate(kept), whole)


@pytest.mark.parametrize("size", [0, -1, 2.0, True, None])
def test_chunks_have_a_positive_size(size):
    encoding = Encoding(Schema(n=counted()), 4)
    with pytest.raises(EncodingError, match="words_per_chunk"):
        encoding.stream({"n": 1}, np.random.default_rng(1), size)


@pytest.mark.parametrize(
    ("field", "value", "bad"),
    [
        (summed(1.0, shape=(200_000,)), 0.5, np.nan),
        (summed(1.0, shape=(200_000,)), 0.5, np.inf),
        (summed(5, shape=(200_000,)), 5, 6),
        (counted(9, shape=(200_000,)), 9, -1),
        (sparse(1.0, range(0, 200_000, 7), 200_000), 0.5, np.nan),
        (sparse(1.0, [1, 199_999], 200_000), 0.5, np.nan),
    ],
)
def test_what_cannot_be_carried_is_refused_before_the_first_chunk(field, value, bad):
    encoding = Encoding(Schema(first=any_(), x=field), 4)
    x = np.full(200_000, value)
    for at in (199_999, 199_997):
        x[:] = value
        list(encoding.stream({"first": True, "x": x}, np.random.default_rng(1), 1000))
        x[at] = bad
        if field.kind != "sparse" or at in field.indices:
            with pytest.raises(EncodingError, match="Field 'x': expected"):
                encoding.stream({"first": True, "x": x}, np.random.default_rng(1), 1000)


def test_what_turns_bad_while_it_is_read_raises():
    encoding = Encoding(Schema(x=summed(1.0, shape=(200_000,))), 4)
    x = np.zeros(200_000)
    chunks = encoding.stream({"x": x}, np.random.default_rng(1), 1000)
    next(chunks)
    x[-1] = np.nan
    with pytest.raises(EncodingError, match="Field 'x': expected finite"):
        list(chunks)


@pytest.mark.parametrize("kind", ["real", "sparse", "integer"])
def test_memory_is_bounded_by_the_chunk_whatever_the_model(kind, tmp_path):
    size = 4_000_000
    x = np.memmap(tmp_path / "x", np.int64 if kind == "integer" else np.float32, "w+", shape=(size,))
    x[:: size // 7] = 1
    field = {
        "real": summed(1.0, shape=(size,)),
        "sparse": sparse(1.0, range(0, size, 2), size),
        "integer": summed(1, 2, shape=(size,)),
    }[kind]
    encoding = Encoding(Schema(x=field), 32)
    # One round to import and to allocate whatever is allocated once.
    list(
        Encoding(Schema(x=summed(1.0, shape=(10,))), 3).stream({"x": np.zeros(10)}, np.random.default_rng(1))
    )
    tracemalloc.start()
    total = 0
    for chunk in encoding.stream({"x": x}, np.random.default_rng(1), 1 << 16):
        total += chunk.size
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == encoding.words
    assert peak < 2_500_000, "two chunks of 512 KB and blocks of 128 KB"
    assert 8 * encoding.words > 2 * peak or kind == "integer"


@settings(max_examples=80)
@given(schemas(), st.integers(1, 6), st.integers(0, 2**32), st.booleans())
def test_results_in_the_callers_arrays_are_the_same_results(schema, n, seed, short):
    rng = np.random.default_rng(seed)
    encoding = Encoding(schema, n)
    total = np.sum([encoding.encode(values_for(schema, rng), rng) for _ in range(n)], axis=0, dtype=np.uint64)
    expected = encoding.decode(total, n)
    out = {}
    for name, field in schema.masked.items():
        if field.holds:
            dtype = field.holds[-1 if short else 0]
            out[name] = np.full(field.dims, 77).astype(dtype)
    reduced = encoding.decode(total, n, out)
    assert reduced.clipped == expected.clipped
    assert reduced.bounds == expected.bounds
    for name, array in out.items():
        exact = np.asarray(expected.values[name]).astype(array.dtype)
        tolerance = 3e-6 * np.max(np.abs(exact), initial=0) if array.dtype == np.float32 else 0
        assert_agrees(array, exact, tolerance, name)
        if array.ndim:
            assert np.shares_memory(reduced.values[name], array) or not array.size


def test_a_sum_on_disk_is_decoded_to_disk_in_little_memory(tmp_path):
    size = 3_000_000
    encoding = Encoding(Schema(x=averaged(1.0, "n", shape=(size,)), n=counted(9)), 3)
    total = np.memmap(tmp_path / "sum", np.uint64, "w+", shape=(encoding.words,))
    x = np.linspace(-1, 1, size, dtype=np.float32)
    for weight in (1, 5):
        total += encoding.encode({"x": x, "n": weight}, np.random.default_rng(weight))
    out = np.memmap(tmp_path / "x", np.float32, "w+", shape=(size,))
    tracemalloc.start()
    encoding.decode(total, 2, {"x": out})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000
    np.testing.assert_allclose(out, x, atol=1e-4)


SCHEMA = Schema(x=summed(1.0, shape=(6,)), i=summed(5, shape=(2, 3)), h=histogram([0, 1]), flags=all_((3,)))


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (
            {"x": np.zeros(5)},
            r"'x': expected a contiguous, writable out= array of shape \(6,\) and dtype float64",
        ),
        ({"x": np.zeros(6, np.float16)}, "float64 or float32, got float16"),
        ({"x": np.zeros(6, ">f8")}, "got >f8"),
        ({"x": np.zeros(12)[::2]}, "contiguous"),
        ({"i": np.zeros((2, 3))}, "dtype int64, got float64"),
        ({"flags": np.zeros(3, int)}, "dtype bool"),
        ({"h": np.zeros(1, int)}, "whose result is an array, got 'h'"),
        ({"z": np.zeros(1)}, "got 'z'"),
    ],
)
def test_arrays_that_cannot_hold_a_result_are_refused_before_anything_is_written(out, message):
    encoding = Encoding(SCHEMA, 2)
    words = encoding.encode(values_for(SCHEMA, np.random.default_rng(0)), np.random.default_rng(1))
    fine = {"x": np.full(6, 7.0)} if "x" not in out else {"flags": np.full(3, True)}
    with pytest.raises(EncodingError, match=message):
        encoding.decode(words, 1, fine | out)
    assert all(np.all(array == array.flat[0]) for array in fine.values())
    locked = np.zeros(6)
    locked.flags.writeable = False
    with pytest.raises(EncodingError, match="writable"):
        encoding.decode(words, 1, {"x": locked})


@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize(
    "field",
    [
        summed(2.0, 8, (50,), guard_bits=3),
        summed(9, 8, (50,), guard_bits=5),
        sparse(2.0, range(50), 50, 8, guard_bits=3),
        averaged(2.0, "n", 8, (50,), guard_bits=2),
        counted(9, (50,), guard_bits=4),
        true_count((50,), guard_bits=4),
        histogram(range(50), guard_bits=4, at_most=9),
    ],
)
def test_guard_bits_leave_room_for_levels_that_clients_add(field, n):
    """Extremes at once: every client adds the largest, or the smallest, level that there is room for."""
    schema = Schema(x=field, n=counted(5))
    encoding = Encoding(schema, n)
    plain = Encoding(Schema(x=type(field)(**{**vars_of(field), "guard_bits": 0}), n=counted(5)), n)
    run = encoding.runs[0]
    assert run.width == pytest.approx(plain.runs[0].width + field.guard_bits, abs=1)
    rng = np.random.default_rng(3)
    rows = [values_for(schema, rng) | {"n": 5} for _ in range(n)]
    for sign in (-1, 1):
        words = [encoding.encode(row, np.random.default_rng(i)) for i, row in enumerate(rows)]
        for each in words:
            encoding.add_levels(each, "x", np.full(run.size, sign * run.room))
        noisy = encoding.decode(np.sum(words, axis=0, dtype=np.uint64), n).values["x"]
        quiet = [plain.encode(row, np.random.default_rng(i)) for i, row in enumerate(rows)]
        expected = plain.decode(np.sum(quiet, axis=0, dtype=np.uint64), n).values["x"]
        shift = sign * n * run.room * field.quantum_of("value")
        if field.kind == "averaged":
            shift /= 5 * n
        np.testing.assert_allclose(np.asarray(noisy) - np.asarray(expected), shift, rtol=1e-9)


def vars_of(field) -> dict:
    return {name: getattr(field, name) for name in field.to_dict() if name != "kind"}


def test_levels_beyond_the_room_are_refused_and_change_nothing():
    schema = Schema(x=summed(1.0, 4, (3,), guard_bits=1), y=summed(1.0, shape=(3,)), m=maximum(0, 5))
    encoding = Encoding(schema, 3)
    words = encoding.encode({"x": [0.0] * 3, "y": [0.0] * 3, "m": 2}, np.random.default_rng(1))
    before = words.copy()
    room = encoding.runs[0].room
    assert room == 7, "one guard bit: as many levels again"
    for field, levels, message in (
        ("x", [0, 0, room + 1], "±7"),
        ("x", [0, 0, -room - 1], "±7"),
        ("x", [0, 0], "expected 3 signed integers"),
        ("x", [0.0, 0, 0], "expected 3 signed integers"),
        ("x", np.full(3, 2**64 - 1, np.uint64), "expected 3 signed integers"),
        ("y", [0, 0, 1], "±0"),
        ("m", [0] * 5, "got 'm'"),
        ("z", [0], "got 'z'"),
    ):
        with pytest.raises(EncodingError, match=message):
            encoding.add_levels(words, field, levels)
    assert np.array_equal(words, before)
    with pytest.raises(EncodingError, match="uint64 words"):
        encoding.add_levels(words[:-1], "x", [0, 0, 0])
    encoding.add_levels(words, "x", [7, -7, 0])
    assert encoding.decode(words, 1).values["x"].tolist() == [1.0, -1.0, 0.0]
