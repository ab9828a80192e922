from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from privopt import Vector
from privopt.checkpoint import dump_state, load_state, read_state, write_atomic, write_state
from tests.contracts import same_state
from tests.privopt.frameworks import FRAMEWORKS, make, values

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
)
KEYS = st.text("abc./_", min_size=1, max_size=4)
ARRAYS = npst.arrays(
    st.sampled_from(["float16", "float32", "float64", "int64", "bool", "complex64", "complex128"]),
    npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
    elements=None,
).filter(lambda a: not np.isnan(a).any() if a.dtype.kind in "fc" else True)
VECTORS = st.dictionaries(KEYS, ARRAYS, min_size=1, max_size=3).map(Vector.build)
STATES = st.recursive(SCALARS | VECTORS, lambda s: st.dictionaries(KEYS, s, max_size=3), max_leaves=6)


@given(state=st.dictionaries(KEYS, STATES, max_size=4))
def test_states_round_trip_bitwise(state: dict[str, object]) -> None:
    data = dump_state(state)
    assert same_state(load_state(data), state)
    assert dump_state(load_state(data)) == data


@given(array=ARRAYS)
def test_arrays_round_trip_with_shape_and_dtype(array: np.ndarray) -> None:
    back = load_state(dump_state({"a": array}))["a"]
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    np.testing.assert_array_equal(back, array)


EVERY_BFLOAT16 = (np.arange(2**16, dtype=np.uint32) << 16).view(np.float32)
"""All bit patterns but those of NaN, whose payload no framework promises to keep."""
EVERY_BFLOAT16 = EVERY_BFLOAT16[~np.isnan(EVERY_BFLOAT16)]


@pytest.mark.parametrize("source", ["torch", "jax", "tensorflow"])
@pytest.mark.parametrize("target", ["torch", "jax", "tensorflow"])
def test_every_bfloat16_comes_back_bit_for_bit_to_any_framework(source: str, target: str) -> None:
    arrays = {"w": EVERY_BFLOAT16, "s": np.array(1.5)}
    live, like = make(source, arrays, "bfloat16"), make(target, arrays, "bfloat16") * 0.0
    data = dump_state({"v": live})
    assert len(data) < 2.1 * live.size + 1000, "two bytes each"
    back = load_state(data)["v"]
    assert dump_state({"v": back}) == data
    there = back.to(like)
    assert there.framework == target
    assert there.layout == live.layout
    found = values(there)["w"].view(np.uint32)
    np.testing.assert_array_equal(found, EVERY_BFLOAT16.view(np.uint32))
    assert dump_state({"v": there}) == data


def test_states_with_bfloat16_as_float32_are_still_read() -> None:
    # Files of before it was stored as its own bits.
    live = Vector.build({"w": torch.tensor([1.5, -2.0], dtype=torch.bfloat16)})
    as_before = safetensors.numpy.save(
        {"/v:w": values(live)["w"]},
        {
            "privopt": json.dumps(
                {"format": "privopt-state-1", "tree": {"v": {"$vector": live.layout.to_json()}}}
            )
        },
    )
    assert load_state(as_before)["v"].to(live).equals(live)


@pytest.mark.parametrize("source", FRAMEWORKS)
@pytest.mark.parametrize("target", FRAMEWORKS)
def test_complex_numbers_come_back_to_any_framework(source: str, target: str) -> None:
    arrays = {"w": np.array([[1 - 2j, -0.0 + 1e-30j]]), "s": np.array(3j), "e": np.ones((0, 2), complex)}
    live, like = make(source, arrays, "complex64"), make(target, arrays, "complex64")
    back = load_state(dump_state({"v": live}))["v"].to(like)
    assert back.framework == target
    assert back.equals(live)
    assert dump_state({"v": back}) == dump_state({"v": live})


@pytest.mark.parametrize("bad", [object(), {"x": {1, 2}}, {"$v": 1}, {3: 1}])
def test_what_cannot_be_saved_is_refused_with_its_place(bad: object) -> None:
    with pytest.raises(TypeError, match="/bad"):
        dump_state({"bad": bad})


@given(data=st.binary(max_size=200))
def test_foreign_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="Expected a state"):
        load_state(data)


@given(position=st.integers(0, 10_000), flip=st.integers(1, 255))
def test_a_damaged_state_is_refused_or_reads_as_data(position: int, flip: int) -> None:
    data = bytearray(dump_state({"v": Vector.build({"w": np.arange(4.0)}), "n": 3, "t": "text"}))
    data[position % len(data)] ^= flip
    with contextlib.suppress(ValueError):
        load_state(bytes(data))


def test_files_are_whole_or_untouched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s"
    write_state(path, {"n": 1})

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, b"new")
    monkeypatch.undo()
    assert read_state(path) == {"n": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["s"]
    path.write_bytes(b"x")
    with pytest.raises(ValueError, match=str(path)):
        read_state(path)
