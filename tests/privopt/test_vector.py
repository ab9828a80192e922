from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from privopt import Layout, PerTensor, Vector
from tests.privopt.frameworks import make, values

SHAPES = [(), (0,), (3,), (2, 3), (1, 0, 2)]


@st.composite
def models(draw: st.DrawFn, dtypes: tuple[str, ...] = ("float32", "float64")) -> dict[str, np.ndarray]:
    names = draw(st.lists(st.text("abc.", min_size=1, max_size=4), min_size=1, max_size=4, unique=True))
    finite = {"min_value": -100.0, "max_value": 100.0, "width": 32}
    return {
        name: draw(
            npst.arrays(
                draw(st.sampled_from(dtypes)), draw(st.sampled_from(SHAPES)), elements=st.floats(**finite)
            )
        )
        for name in names
    }


@pytest.mark.parametrize("framework", ["numpy", "torch"])
@given(arrays=models(("float32", "float64", "float16")))
def test_coefs_give_back_what_build_took(framework: str, arrays: dict[str, np.ndarray]) -> None:
    vector = make(framework, arrays)
    back = values(vector)
    assert list(back) == list(arrays)
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        assert back[name].shape == array.shape
        np.testing.assert_array_equal(back[name], array)
    assert vector.size == sum(a.size for a in arrays.values())
    assert vector.unflatten(vector.flatten()).equals(vector)


OPERATIONS = {
    "a+b": lambda a, b: a + b,
    "a-b": lambda a, b: a - b,
    "a*b": lambda a, b: a * b,
    "a*2": lambda a, b: a * 2,
    "2-a": lambda a, b: 2 - a,
    "3*a": lambda a, b: 3.5 * a,
    "a**2": lambda a, b: a**2,
    "-a": lambda a, b: -a,
    "a/4": lambda a, b: a / 4,
    "np scalar": lambda a, b: np.float64(2.0) * a,
}


@pytest.mark.parametrize("framework", ["numpy", "torch"])
@given(arrays=models(("float32", "float64")))
def test_arithmetic_is_numpys_tensor_by_tensor(framework: str, arrays: dict[str, np.ndarray]) -> None:
    other = {k: np.asarray(a * 0.5 + 1, a.dtype) for k, a in arrays.items()}
    left, right = make(framework, arrays), make(framework, other)
    for name, run in OPERATIONS.items():
        result = values(run(left, right))
        for key, array in arrays.items():
            expected = 2.0 * array if name == "np scalar" else run(array, other[key])
            assert result[key].dtype == array.dtype, "a scalar must not change the dtype"
            np.testing.assert_allclose(result[key], expected, rtol=1e-6, atol=1e-30, err_msg=name)


@pytest.mark.parametrize("framework", ["numpy", "torch"])
@given(arrays=models())
def test_elementwise_functions_are_numpys(framework: str, arrays: dict[str, np.ndarray]) -> None:
    vector = make(framework, arrays)
    for result, expected in [
        (vector.abs().sqrt(), lambda a: np.sqrt(np.abs(a))),
        (vector.sign(), np.sign),
        (vector.clip(-1.0, 2.0), lambda a: np.clip(a, -1, 2)),
        (vector.minimum(vector * 0.5), lambda a: np.minimum(a, a * np.asarray(0.5, a.dtype))),
        ((vector > 0).where(vector, 0.0), lambda a: np.where(a > 0, a, 0)),
        (vector.isfinite().where(vector, 1.0), lambda a: a),
    ]:
        for key, array in arrays.items():
            np.testing.assert_allclose(values(result)[key], expected(array), rtol=1e-6)
            assert values(result)[key].dtype == array.dtype


@pytest.mark.parametrize("framework", ["numpy", "torch"])
@given(arrays=models())
def test_reductions_are_over_all_tensors_in_float64(framework: str, arrays: dict[str, np.ndarray]) -> None:
    vector = make(framework, arrays)
    flat = np.concatenate([a.astype(np.float64).ravel() for a in arrays.values()])
    assert vector.norm() == pytest.approx(np.linalg.norm(flat), rel=1e-12)
    assert vector.sum() == pytest.approx(flat.sum(), rel=1e-12, abs=1e-9)
    assert vector.dot(vector) == pytest.approx(flat @ flat, rel=1e-12)
    norms = vector.norms().to_dict()
    for key, array in arrays.items():
        assert norms[key] == pytest.approx(np.linalg.norm(array.astype(np.float64).ravel()), rel=1e-12)


@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_a_per_tensor_value_scales_each_tensor(framework: str) -> None:
    vector = make(
        framework, {"a": np.ones((2, 2), np.float32), "b": np.ones(3), "c": np.ones((), np.float32)}
    )
    per = PerTensor(vector.layout, np.array([1.0, 2.0, 3.0]))
    result = values(vector * (2 / per))
    np.testing.assert_allclose(result["a"], 2.0)
    np.testing.assert_allclose(result["b"], 1.0)
    np.testing.assert_allclose(result["c"], 2 / 3, rtol=1e-6)
    assert [result[k].dtype.name for k in "abc"] == ["float32", "float64", "float32"]


@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_in_place_forms_write_into_the_same_memory(framework: str) -> None:
    vector = make(framework, {"w": np.array([1.0, 2.0])})
    view = vector.coefs["w"]
    kept = vector
    vector += 1.0
    vector *= vector
    vector -= make(framework, {"w": np.array([1.0, 1.0])})
    vector /= 2
    assert vector is kept
    np.testing.assert_allclose(np.asarray(view), [1.5, 4.0])


def test_torch_parameters_bound_to_the_buffer_move_with_it() -> None:
    model = torch.nn.Linear(3, 2)
    weights = Vector.build(dict(model.named_parameters()))
    for name, parameter in model.named_parameters():
        parameter.data = weights.coefs[name]
    weights += weights.full_like(1.0)
    assert torch.equal(model.bias, weights.coefs["bias"])


def test_bfloat16_and_integers_and_complex_numbers_are_held_as_they_are() -> None:
    half = Vector.build({"w": torch.tensor([1.5, 2.5], dtype=torch.bfloat16)})
    assert (half * 2.0).coefs["w"].dtype == torch.bfloat16
    assert half.norm() == pytest.approx(np.hypot(1.5, 2.5))
    whole = Vector.build({"n": np.array([1, 2, 3])})
    assert (whole + 1).coefs["n"].dtype == np.int64
    assert (whole / 2).coefs["n"].tolist() == [0.5, 1.0, 1.5]
    waves = Vector.build({"z": np.array([1 + 2j])})
    assert (waves * 2).coefs["z"][0] == 2 + 4j


def test_layouts_are_values() -> None:
    a = Vector.build({"x": np.zeros((2, 3), np.float32), "y": np.zeros(1)})
    b = Vector.build({"x": np.ones((2, 3), np.float32), "y": np.ones(1)})
    assert a.layout == b.layout
    assert hash(a.layout) == hash(b.layout)
    assert Layout.from_json(a.layout.to_json()) == a.layout


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"x": np.zeros(2), "z": np.zeros(1)}, "'y' stands where the other has 'z'"),
        ({"x": np.zeros(2), "y": np.zeros(3)}, r"'y' has shape \(1,\), the other's has \(3,\)"),
        ({"x": np.zeros(2)}, "'y' exists in the first only"),
    ],
)
def test_different_layouts_are_refused_and_the_first_difference_named(
    other: dict[str, np.ndarray], words: str
) -> None:
    vector = Vector.build({"x": np.zeros(2), "y": np.zeros(1)})
    with pytest.raises(ValueError, match=words):
        vector + Vector.build(other)


def test_wrong_use_says_what_to_do() -> None:
    vector = Vector.build({"w": np.zeros(2)})
    with pytest.raises(TypeError, match="no single truth value"):
        bool(vector)
    with pytest.raises(TypeError, match="one framework, got numpy and torch"):
        vector + Vector.build({"w": torch.zeros(2, dtype=torch.float64)})
    with pytest.raises(TypeError, match=r"one framework, got numpy and, for 'b', torch"):
        Vector.build({"a": np.zeros(1), "b": torch.zeros(1)})
    with pytest.raises(TypeError, match="array of jax, numpy, tensorflow or torch, got list"):
        Vector.build({"a": [1.0]})
    with pytest.raises(ValueError, match="empty mapping"):
        Vector.build({})
    with pytest.raises(TypeError, match="mapping of names"):
        Vector.build([np.zeros(1)])
    with pytest.raises(ValueError, match="2 entries in one dimension"):
        vector.unflatten(np.zeros(3))
    with pytest.raises(TypeError):
        vector + "text"  # type: ignore[operator]
    with pytest.raises(TypeError, match="Expected numbers"):
        Vector.build({"a": np.array(["x"])})
