"""A Vector is the same on numpy, torch, jax and tensorflow: one list of operations, run on all of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privopt import Optimizer, PerTensor, Vector
from privopt.backends import named_backend
from privopt.checkpoint import dump_state, load_state
from privopt.executors import executor
from privopt.modules import ScaffoldClient, ScaffoldState
from tests.privopt.frameworks import FRAMEWORKS, array, make, values, wide

SHAPES: dict[str, tuple[int, ...]] = {"w": (2, 3), "b": (), "e": (0,), "v": (5,)}
EPS = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}
EPS |= {"complex64": EPS["float32"], "complex128": EPS["float64"]}
FLOATS = ["float16", "bfloat16", "float32", "float64"]


def model(seed: int, dtype: str) -> dict[str, np.ndarray]:
    """Numbers other than 0 that every dtype of the kind holds exactly, as float64, int64 or complex128."""
    rng = np.random.default_rng(seed)

    def draw(shape: tuple[int, ...]) -> np.ndarray:
        return np.asarray(rng.integers(1, 40, shape) * rng.choice([-1, 1], shape))

    if dtype.startswith("int"):
        return {k: draw(s) for k, s in SHAPES.items()}
    if dtype.startswith("complex"):
        return {k: draw(s) / 8 + 1j * draw(s) / 8 for k, s in SHAPES.items()}
    return {k: draw(s) / 8 for k, s in SHAPES.items()}


def on(framework: str, dtype: str) -> Any:
    if framework == "numpy" and dtype == "bfloat16":
        pytest.skip("numpy has no bfloat16")
    return wide(framework)


def assert_equal(
    result: Vector, expected: dict[str, np.ndarray], ulps: int, like: str, what: str = ""
) -> None:
    found = values(result)
    assert list(found) == list(expected)
    for name, reference in expected.items():
        assert found[name].shape == reference.shape, what
        wide_values = np.asarray(found[name], np.result_type(reference, np.float64))
        rtol = ulps * EPS.get(like, EPS["float64"])
        np.testing.assert_allclose(wide_values, reference, rtol=rtol, err_msg=what)


# The same text runs on Vectors and, through this, on numpy arrays.
def _numpy(name: str) -> Callable[..., Any]:
    return lambda x, *rest: getattr(x, name)(*rest) if isinstance(x, Vector) else getattr(np, name)(x, *rest)


sqrt, exp, log, sign, isfinite, minimum, maximum, clip = map(
    _numpy, ["sqrt", "exp", "log", "sign", "isfinite", "minimum", "maximum", "clip"]
)


def where(condition: Any, left: Any, right: Any) -> Any:
    if isinstance(condition, Vector):
        return condition.where(left, right)
    return np.where(condition, left, right)


Binary = Callable[[Any, Any], Any]
RING: dict[str, Binary] = {
    "a + b": lambda a, b: a + b,
    "a - b": lambda a, b: a - b,
    "a * b": lambda a, b: a * b,
    "a + 3": lambda a, b: a + 3,
    "3 - a": lambda a, b: 3 - a,
    "a - 3": lambda a, b: a - 3,
    "2 * a": lambda a, b: 2 * a,
    "3 + a": lambda a, b: 3 + a,
    "a * True": lambda a, b: a * True,
    "np.int64 * a": lambda a, b: np.int64(2) * a,
    "a ** 2": lambda a, b: a**2,
    "-a": lambda a, b: -a,
    "a == b": lambda a, b: a == b,
    "a != b": lambda a, b: a != b,
    "a == 1": lambda a, b: a == 1,
    "where": lambda a, b: where(a == b, a, b),
    "isfinite": lambda a, b: isfinite(a),
}
ORDER: dict[str, Binary] = {
    "abs": lambda a, b: abs(a),
    "sign": lambda a, b: sign(a),
    "a < b": lambda a, b: a < b,
    "a <= b": lambda a, b: a <= b,
    "a > b": lambda a, b: a > b,
    "a >= 1": lambda a, b: a >= 1,
    "minimum": minimum,
    "maximum": maximum,
    "minimum 1": lambda a, b: minimum(a, 1),
    "maximum 1": lambda a, b: maximum(a, 1),
    "clip": lambda a, b: clip(a, -2, 3),
    "where > 0": lambda a, b: where(a > 0, a, 0),
    "where 0": lambda a, b: where(a > b, 1, b),
}
FIELD: dict[str, Binary] = {
    "a / b": lambda a, b: a / b,
    "a / 3": lambda a, b: a / 3,
    "2.5 * a": lambda a, b: 2.5 * a,
    "2.5 - a": lambda a, b: 2.5 - a,
    "3 / a": lambda a, b: 3 / a,
    "np.float64 * a": lambda a, b: np.float64(2.5) * a,
    "a / np.float32": lambda a, b: a / np.float32(2.5),
    "a ** 2.0": lambda a, b: a**2.0,
    "a ** 3": lambda a, b: a**3,
    "a ** -1": lambda a, b: a**-1.0,
    "a ** 1": lambda a, b: a**1,
    "exp": lambda a, b: exp(a),
}
REALS: dict[str, Binary] = {
    "sqrt": lambda a, b: sqrt(abs(a)),
    "log": lambda a, b: log(abs(a)),
    "** 0.5": lambda a, b: abs(a) ** 0.5,
    "** 1.7": lambda a, b: abs(a) ** 1.7,
    "clip 0.3": lambda a, b: clip(a, -0.25, 0.5),
    "where 0.5": lambda a, b: where(a > b, a, 0.5),
    "masks": lambda a, b: (a > b) * a,
}
KINDS = {"int": RING | ORDER, "complex": RING | FIELD, "float": RING | ORDER | FIELD | REALS}
KINDS["complex"] |= {
    "abs": ORDER["abs"],
    "sign": ORDER["sign"],
    "sqrt": lambda a, b: sqrt(a),
    "log": lambda a, b: log(a),
}


# jax compiles each operation for each dtype, and the import of tensorflow takes its time too.
RARE = {"float16", "float64", "int64", "complex128"}
PAIRS = [
    pytest.param(framework, dtype, marks=[pytest.mark.slow] if framework == "jax" and dtype in RARE else [])
    for framework in FRAMEWORKS
    for dtype in [*FLOATS, "int32", "int64", "complex64", "complex128"]
]


@pytest.mark.parametrize(("framework", "dtype"), PAIRS)
def test_operations_are_numpys_and_a_scalar_changes_no_dtype(framework: str, dtype: str) -> None:
    a, b = model(1, dtype), model(2, dtype)
    with on(framework, dtype):
        x, y = make(framework, a, dtype), make(framework, b, dtype)
        for name, run in KINDS[dtype.removeprefix("b").rstrip("0123456789")].items():
            expected = {k: np.asarray(run(a[k], b[k])) for k in a}
            result = run(x, y)
            assert_equal(result, expected, 16, dtype, name)
            kind = expected["w"].dtype.kind
            own = dtype if kind == a["w"].dtype.kind else {"b": "bool", "f": "float32"}[kind]
            if dtype == "complex128" and kind == "f":
                own = "float64"
            assert [block.dtype for block in result.layout.blocks] == [own], name


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_integers_and_fractions_give_floats(framework: str, dtype: str) -> None:
    a, b = model(1, dtype), model(2, dtype)
    with wide(framework):
        x, y = make(framework, a, dtype), make(framework, b, dtype)
        for name in ["a / b", "a / 3", "2.5 * a", "2.5 - a", "3 / a", "np.float64 * a", "a ** 2.0"]:
            expected = {k: FIELD[name](a[k], b[k]) for k in a}
            assert_equal(FIELD[name](x, y), expected, 16, "float32")
        assert_equal(abs(x).sqrt(), {k: np.sqrt(abs(v)) for k, v in a.items()}, 16, "float32")
        assert (x / 2).layout.blocks[0].dtype.startswith("float")


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("dtype", [*FLOATS, "complex64", "complex128"])
def test_in_place_forms_change_values_and_nothing_else(framework: str, dtype: str) -> None:
    a, b = model(1, dtype), model(2, dtype)
    with on(framework, dtype):
        vector, other = make(framework, a, dtype), make(framework, b, dtype)
        kept, layout, copied = vector, vector.layout, vector.copy()
        vector += other
        vector *= 0.5
        vector -= 1
        vector /= other
        vector *= PerTensor(layout, np.array([1.0, 2.0, 4.0, 8.0]))
        assert vector is kept
        assert vector.layout == layout
        scale = dict(zip(a, [1, 2, 4, 8], strict=True))
        # The sum and its half are exact; what is left rounds three times.
        expected = {k: np.asarray(((a[k] + b[k]) * 0.5 - 1) / b[k] * scale[k]) for k in a}
        assert_equal(vector, expected, 64, dtype)
        assert_equal(copied, a, 0, dtype)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_vectors_copy_assign_fill_convert_and_flatten(framework: str, dtype: str) -> None:
    a, b = model(1, dtype), model(2, dtype)
    with on(framework, dtype):
        vector, other = make(framework, a, dtype), make(framework, b, dtype)
        layout = vector.layout
        copied = vector.copy()
        assert copied.equals(vector)
        vector.assign(other)
        other += 1.0
        assert_equal(vector, b, 0, dtype)
        assert_equal(copied, a, 0, dtype)
        vector.assign(Vector.build(a))
        assert vector.equals(copied), "from another framework and dtype"
        assert vector.layout == layout
        assert_equal(vector.full_like(2.5), {k: np.full(s, 2.5) for k, s in SHAPES.items()}, 0, dtype)
        assert vector.full_like(0).layout == layout
        assert vector.unflatten(vector.flatten()).equals(vector)
        assert vector.unflatten(np.arange(12.0)).coefs["b"] == 6
        there = vector.to_numpy()
        assert there.framework == "numpy"
        assert there.to(vector).equals(vector)
        assert vector.to(vector) is vector
        single = vector.astype("float32")
        assert [block.dtype for block in single.layout.blocks] == ["float32"]
        assert_equal(single, a, 0, dtype)
        assert single.astype(dtype).equals(vector)
        assert repr(vector) == f"Vector(4 tensors, 12 entries, {framework} {dtype})"
        assert {k: tuple(v.shape) for k, v in vector.coefs.items()} == SHAPES
        rebuilt = Vector.build(vector.coefs)
        assert rebuilt.equals(vector)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_values_stay_when_the_arrays_they_came_from_change(framework: str) -> None:
    source = np.arange(100.0, dtype=np.float32)
    like = make(framework, {"x": np.zeros(100, np.float32)})
    vector, moved = like.unflatten(source), Vector.build({"x": source}).to(like)
    source += 1
    if framework != "numpy":
        np.testing.assert_array_equal(vector.flatten(), np.arange(100.0))
    np.testing.assert_array_equal(
        moved.flatten() if framework != "numpy" else np.arange(100.0), np.arange(100.0)
    )


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("dtype", [*FLOATS, "int32", "complex64", "complex128"])
def test_sums_and_norms_are_exact_to_float64_and_the_same_bits_everywhere(framework: str, dtype: str) -> None:
    rng = np.random.default_rng(3)
    arrays = {k: rng.integers(-400, 400, s) / 8 for k, s in {"w": (70, 90), "v": (5,), "b": ()}.items()}
    if dtype.startswith("complex"):
        arrays = {k: a + 1j * a[::-1] if a.ndim else a + 1j for k, a in arrays.items()}
    if dtype == "int32":
        arrays = {k: (8 * a).astype(int) for k, a in arrays.items()}
    with on(framework, dtype):
        vector = make(framework, arrays, dtype)
        flat = np.concatenate([a.ravel() for a in values(vector).values()])
        flat = flat.astype(complex if dtype.startswith("complex") else float)
        squares = float(np.sum(flat.real**2 + flat.imag**2))  # exact: few bits each
        assert vector.dot(vector) == squares
        assert vector.norm() == np.sqrt(squares)
        for name, norm in vector.norms().to_dict().items():
            assert norm == pytest.approx(np.linalg.norm(values(vector)[name].astype(complex)), rel=1e-15)
        if dtype.startswith("complex"):
            with pytest.raises(TypeError, match="real numbers"):
                vector.sum()
            return
        assert vector.sum() == flat.sum()
        shares = vector / 3
        alike = Vector.build(values(shares))
        assert (shares.sum(), shares.norm()) == (alike.sum(), alike.norm())
        np.testing.assert_array_equal(shares.norms().values, alike.norms().values)
        np.testing.assert_array_equal(shares.row_means().values, alike.row_means().values)
        means = [*values(shares)["w"].astype(float).mean(axis=1), *[0.0] * 2]
        np.testing.assert_allclose(shares.row_means().values, means, rtol=1e-9, atol=1e-15)
        centered = shares - shares.row_means()
        assert abs(values(centered)["w"].astype(float).mean(axis=1)).max() < 40 * EPS.get(
            dtype, EPS["float32"]
        )


@pytest.mark.parametrize("framework", ["jax", "tensorflow"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "complex64"])
def test_sums_on_other_devices_are_done_there_in_float64(
    framework: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vector = make(framework, model(1, dtype), dtype)
    other = make(framework, model(2, dtype), dtype)
    here = [vector.norm(), vector.dot(other), *vector.norms().values, *vector.norms().values]
    total = None if dtype == "complex64" else vector.sum()
    module = sys.modules[f"privopt.backends.{framework}"]
    monkeypatch.setattr(module, "_on_cpu", lambda _: False)
    there = [vector.norm(), vector.dot(other), *vector.norms().values, *vector.norms().values]
    np.testing.assert_allclose(there, here, rtol=1e-14)
    if total is not None:
        assert vector.sum() == pytest.approx(total, rel=1e-14)
    assert Vector.build(vector.coefs).equals(vector)


SPECIAL = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.5, np.inf, -np.inf, np.nan]) | st.floats(
    width=32, allow_subnormal=False
)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@settings(max_examples=20, deadline=None)  # jax compiles in the first example
@given(left=st.lists(SPECIAL, min_size=6, max_size=6), right=st.lists(SPECIAL, min_size=6, max_size=6))
def test_nan_infinities_and_signed_zeros_follow_numpy(
    framework: str, left: list[float], right: list[float]
) -> None:
    arrays = [{"x": np.array(side, np.float32)} for side in (left, right)]
    a, b = (make(framework, x) for x in arrays)
    x, y = (x["x"] for x in arrays)
    for run in [
        minimum,
        maximum,
        lambda a, b: minimum(a, 1.0),
        lambda a, b: maximum(a, 0.5),
        lambda a, b: sign(a),
        lambda a, b: isfinite(a),
        lambda a, b: abs(a),
        lambda a, b: -a,
        lambda a, b: a < b,
        lambda a, b: a >= b,
        lambda a, b: a == b,
        lambda a, b: a != b,
        lambda a, b: where(a > b, a, b),
        lambda a, b: clip(a, -1.0, 2.0),
    ]:
        np.testing.assert_array_equal(values(run(a, b))["x"], run(x, y))


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_one_model_may_mix_dtypes(framework: str) -> None:
    dtypes = {"h": "float16", "x": "float32", "d": "float64", "n": "int32", "z": "complex64", "y": "float32"}
    with wide(framework):
        arrays = {k: array(framework, np.array([1, 2, 3]), dtype) for k, dtype in dtypes.items()}
        vector = Vector.build(arrays)
        assert [b.dtype for b in vector.layout.blocks] == [
            "float16",
            "float32",
            "float64",
            "int32",
            "complex64",
        ]
        doubled = vector + vector
        assert doubled.layout == vector.layout
        assert {k: v.dtype.name for k, v in values(doubled).items()} == dtypes
        assert all((v == [2, 4, 6]).all() for v in values(doubled).values())
        assert vector.norm() == pytest.approx(np.sqrt(6 * 14), rel=1e-15)
        np.testing.assert_allclose(vector.norms().values, np.sqrt(14), rtol=1e-15)
        back = load_state(dump_state({"v": vector}))["v"].to(vector)
        assert back.equals(vector)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("shapes", [{"w": ()}, {"w": (0,)}, {"w": (3,)}, {"w": (0, 2), "b": (2, 0, 1)}])
def test_scalars_and_empty_tensors_work(framework: str, shapes: dict[str, tuple[int, ...]]) -> None:
    arrays = {k: np.ones(s, np.float32) for k, s in shapes.items()}
    vector = make(framework, arrays)
    size = sum(a.size for a in arrays.values())
    result = (vector * 3 - vector) / vector.full_like(2.0) + vector * vector.norms()
    assert result.layout == vector.layout
    assert vector.sum() == size
    assert len(vector.norms().values) == len(shapes)
    assert vector.unflatten(vector.flatten()).equals(vector)
    assert vector.row_means().values.shape == (len(vector.layout.rows),)


@pytest.mark.parametrize("framework", ["jax", "tensorflow"])
def test_elementwise_operations_can_be_traced_by_the_frameworks_compiler(framework: str) -> None:
    module, backend = pytest.importorskip(framework), named_backend(framework)

    def run(x: Any, y: Any, scale: Any) -> Any:
        z = backend.binary("add", backend.binary("mul", x, 0.5), backend.binary("mul", y, scale))
        z = backend.where(backend.binary("gt", z, 0.0), z, backend.unary("neg", y))
        z = backend.binary("pow", backend.binary("maximum", z, 0.25), 0.5)
        z = backend.binary("mul", z, backend.binary("lt", x, y))
        z = backend.binary("add", z, backend.full(4, 2.0, "float32", "cpu"))
        z = backend.binary("add", z, backend.repeat(np.array([1.0, 2.0]), [1, 3], "float32", "cpu"))
        return backend.cast(z, "float64" if framework == "tensorflow" else "float16"), backend.copy(x)

    x, y = (array(framework, np.array(v, np.float32)) for v in ([1, -2, 3, 4], [4, 3, -2, 1]))
    compiled = module.jit(run) if framework == "jax" else module.function(run, autograph=False)
    for found, expected in zip(compiled(x, y, 0.25), run(x, y, 0.25), strict=True):
        np.testing.assert_array_equal(found, expected)


# ---- optimizers ------------------------------------------------------------------------------------

EXECUTORS = ["exact", "auto"]


def trained(framework: str, dtype: str) -> tuple[np.ndarray, dict[str, Any]]:
    """Weights and state after two rounds of a chain that uses most of what a Vector can do."""
    shapes = {"w": (4, 3), "b": (3,), "s": ()}
    rng = np.random.default_rng(5)

    def draw() -> Vector:
        return make(framework, {k: rng.standard_normal(s) for k, s in shapes.items()}, dtype)

    optimizer = Optimizer(
        0.1,
        w_decay=0.01,
        regularizers=[("fedprox", {"alpha": 0.1})],
        modules=[
            ("l2-clipping", {"max_norm": 1.5}),
            ScaffoldClient(),
            "adam",
            ("momentum", {"nesterov": True}),
        ],
    )
    weights = draw()
    for _ in range(2):
        optimizer.start_round()
        for _ in range(3):
            optimizer.step(draw(), weights)
        sent = optimizer.collect_aux_var()["scaffold"]
        optimizer.process_aux_var({"scaffold": ScaffoldState(control=sent.delta * 0.5)})
    return weights.flatten(), optimizer.get_state()


@pytest.mark.parametrize("framework", ["torch", "jax", "tensorflow"])
@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 1e-6), ("float64", 1e-13)])
@pytest.mark.parametrize("how", EXECUTORS)
def test_optimizers_take_the_same_steps_on_every_framework(
    framework: str, dtype: str, rtol: float, how: str
) -> None:
    expected, state = trained("numpy", dtype)
    with wide(framework), executor(how):
        found, theirs = trained(framework, dtype)
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol * abs(expected).max())
    for key, plugin in state.items():
        for name, value in plugin.items():
            if isinstance(value, Vector):
                flat = value.flatten()
                assert theirs[key][name].framework == framework
                np.testing.assert_allclose(
                    theirs[key][name].flatten(), flat, rtol=rtol, atol=rtol * abs(flat).max()
                )


@pytest.mark.parametrize("framework", ["torch", "jax", "tensorflow"])
def test_a_saved_state_goes_on_in_another_framework(framework: str) -> None:
    def steps(optimizer: Optimizer, grads: Vector, weights: Vector) -> np.ndarray:
        for _ in range(3):
            optimizer.step(grads, weights)
        return weights.flatten()

    def fresh() -> Optimizer:
        return Optimizer(0.1, modules=["adam", "momentum"])

    arrays = {"w": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)}
    live, weights = fresh(), Vector.build({k: np.ones_like(v) for k, v in arrays.items()})
    steps(live, Vector.build(arrays), weights)
    resumed = fresh()
    resumed.set_state(load_state(dump_state(live.get_state())))
    there = make(framework, {k: np.array(v) for k, v in weights.coefs.items()})
    np.testing.assert_allclose(
        steps(resumed, make(framework, arrays), there),
        steps(live, Vector.build(arrays), weights),
        rtol=1e-6,
    )


# ---- what each framework does its own way ----------------------------------------------------------


def test_a_float64_state_is_refused_by_jax_without_x64_and_taken_with_it() -> None:
    optimizer, arrays = Optimizer(0.1, modules=["momentum"]), {"w": np.ones(3)}
    optimizer.compute_updates(Vector.build(arrays), Vector.build(arrays))
    saved = dump_state(optimizer.get_state())

    def resume(grads: Vector) -> Vector:
        again = Optimizer(0.1, modules=["momentum"])
        again.set_state(load_state(saved))
        return again.compute_updates(grads, grads)

    narrow = make("jax", arrays, "float32")
    with pytest.raises(TypeError, match=r"got 'float64'.*jax_enable_x64.*astype\('float32'\)"):
        resume(narrow)
    with wide("jax"):
        assert resume(make("jax", arrays)).layout.blocks[0].dtype == "float64"
    with pytest.raises(TypeError, match="jax_enable_x64"):
        narrow.astype("int64")
    with pytest.raises(TypeError, match="dtype among"):
        narrow.astype("float7")


def test_jax_arrays_that_are_no_plain_numbers_are_refused_in_words() -> None:
    jax = pytest.importorskip("jax")
    with pytest.raises(TypeError, match="got a tracer"):
        jax.jit(lambda x: Vector.build({"x": x}))(jax.numpy.ones(2))
    for odd in (jax.random.key(0), jax.numpy.ones(2, "float8_e4m3fn")):
        with pytest.raises(TypeError, match="Expected numbers, got a jax array of dtype"):
            Vector.build({"x": odd})


def test_a_vector_outlives_jax_arrays_that_are_donated() -> None:
    jax = pytest.importorskip("jax")
    grown = jax.jit(lambda x: x + 1, donate_argnums=0)
    weights = jax.numpy.ones(1000)
    vector = Vector.build({"w": weights})
    copied = vector.copy()
    grown(weights)
    assert weights.is_deleted()
    view = vector.coefs["w"]
    grown(vector.buffers[0])
    assert copied.sum() == view.sum() == 1000


def test_what_tensorflow_and_keras_hand_out_is_packed_by_value() -> None:
    tf = pytest.importorskip("tensorflow")
    variable = tf.Variable([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.gather(variable, [2, 0, 2]) ** 2)
    sparse = tape.gradient(loss, variable)
    assert isinstance(sparse, tf.IndexedSlices)
    weights, grads = Vector.build({"w": variable}), Vector.build({"w": sparse})
    np.testing.assert_array_equal(grads.coefs["w"], [[2, 4], [0, 0], [20, 24]])
    Optimizer(0.5).step(grads, weights)
    np.testing.assert_array_equal(variable, [[1, 2], [3, 4], [5, 6]])
    variable.assign(weights.coefs["w"])
    np.testing.assert_array_equal(variable, [[0, 0], [3, 4], [-5, -6]])


def test_tensors_that_are_not_dense_eager_numbers_are_refused_in_words() -> None:
    tf = pytest.importorskip("tensorflow")
    with pytest.raises(TypeError, match="got a symbolic one"):
        tf.function(lambda x: Vector.build({"x": x}).sum(), autograph=False)(tf.ones(2))
    for odd, words in [
        (tf.constant(["a"]), "tensorflow array of dtype string"),
        (tf.ragged.constant([[1], [2, 3]]), "dense tensor, got a RaggedTensor"),
        (tf.sparse.from_dense([1, 0]), "dense tensor, got a SparseTensor"),
        (tf.IndexedSlices(tf.ones((1, 2)), tf.constant([0])), "with a dense_shape"),
    ]:
        with pytest.raises(TypeError, match=words):
            Vector.build({"x": odd})


@pytest.mark.parametrize("framework", ["numpy", "jax", "tensorflow"])
def test_fractions_are_not_written_into_integers(framework: str) -> None:
    whole = make(framework, {"n": np.array([1, 2], np.int32)})
    whole += 1
    assert values(whole)["n"].tolist() == [2, 3]
    with pytest.raises(TypeError, match=r"float|same_kind"):
        whole += 0.5
    assert values(whole)["n"].tolist() == [2, 3]


@pytest.mark.parametrize(
    ("framework", "other"), [("jax", "numpy"), ("tensorflow", "jax"), ("torch", "tensorflow")]
)
def test_two_frameworks_do_not_mix(framework: str, other: str) -> None:
    arrays = {"w": np.ones(2, np.float32)}
    a, b = make(framework, arrays), make(other, arrays)
    with pytest.raises(TypeError, match=rf"one framework, got {framework} and {other}.*to\(other\)"):
        a + b
    with pytest.raises(TypeError, match=f"one framework, got {framework} and, for 'b', {other}. Convert"):
        Vector.build({"a": array(framework, arrays["w"]), "b": array(other, arrays["w"])})
    assert (a + b.to(a)).sum() == 4
    with pytest.raises(ValueError, match="tensor 'w' has shape"):
        a + make(framework, {"w": np.ones(3, np.float32)})


@pytest.mark.parametrize("name", ["torch", "jax", "tensorflow"])
def test_a_missing_framework_is_named_with_how_to_install_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, f"privopt.backends.{name}", raising=False)
    with pytest.raises(ImportError, match=rf"pip install privopt\[{name}\]"):
        named_backend(name)


@pytest.mark.slow  # torch imports sympy when it first computes on the meta device
def test_torch_devices_lie_in_blocks_of_their_own() -> None:
    torch = pytest.importorskip("torch")
    vector = Vector.build({"a": torch.ones(2), "m": torch.ones(3, device="meta"), "b": torch.ones(1)})
    assert [(b.device, b.size) for b in vector.layout.blocks] == [("cpu", 3), ("meta", 3)]
    result = -(vector * 2 + vector.full_like(1.0)).abs().sqrt()
    result += vector
    assert result.layout == vector.layout
    assert result.coefs["m"].device.type == "meta"
    assert result.coefs["b"].item() == pytest.approx(1 - 3**0.5)


def subprocess_of(code: str, **environment: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert done.returncode == 0, done.stderr


TWO_DEVICES = """
import sys
import numpy as np
from privopt import Optimizer, Vector
from privopt.checkpoint import dump_state, load_state

def check(one, two):
    grads = Vector.build({"a": one(np.ones(2)), "b": two(np.full(3, 2.0)), "c": one(np.ones(()))})
    weights = grads.copy()
    assert [(b.device, b.size) for b in grads.layout.blocks] == [("cpu", 3), ("cpu:1", 3)]
    assert grads.norm() == (3 + 12) ** 0.5
    optimizer = Optimizer(0.5, regularizers=["fedprox"], modules=["l2-clipping", "adam"])
    for _ in range(2):
        optimizer.step(grads, weights)
    assert weights.layout == grads.layout
    again = Optimizer(0.5, regularizers=["fedprox"], modules=["l2-clipping", "adam"])
    again.set_state(load_state(dump_state(optimizer.get_state())))
    there = again.compute_updates(grads, weights)
    assert there.layout == grads.layout
    assert there.equals(optimizer.compute_updates(grads, weights))
    kept = weights.full_like(0.0)
    apart = weights.to_numpy().coefs | {"b": np.asarray(weights.coefs["b"], np.float64)}
    kept += Vector.build(apart).to(weights)
    assert kept.equals(weights) and kept.layout == grads.layout
    assert (grads * grads.norms()).layout == (grads > 0).where(grads, 0.0).layout == grads.layout
    assert -grads.sqrt().layout.blocks[1].size == -3 and grads.sqrt().layout == grads.layout
    assert grads.astype("float16").layout.blocks[1].device == "cpu:1"
"""
JAX = """
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
devices = jax.devices()
assert len(devices) == 2
check(*(lambda x, d=d: jax.device_put(jnp.asarray(x, "float32"), d) for d in devices))
assert not {"torch", "tensorflow"} & set(sys.modules)
both = jax.device_put(jnp.ones(4), NamedSharding(jax.make_mesh((2,), ("d",)), PartitionSpec("d")))
try:
    Vector.build({"x": both})
except TypeError as error:
    assert "got one on 2 devices" in str(error)
else:
    raise SystemExit("sharded arrays were taken")
"""
TENSORFLOW = """
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
def maker(device):
    def make(x):
        with tf.device(device):
            return tf.constant(np.asarray(x, np.float32))
    return make
check(maker("CPU:0"), maker("CPU:1"))
# tensorflow itself may import others.
assert not {"privopt.backends.torch", "privopt.backends.jax"} & set(sys.modules)
import keras
dense = keras.layers.Dense(2, kernel_initializer="ones")
dense.build((None, 3))
weights = Vector.build({v.name: v for v in dense.trainable_variables})
assert weights.layout.shapes() == {"kernel": (3, 2), "bias": (2,)} and weights.norm() == 6**0.5
"""


def test_jax_devices_lie_in_blocks_of_their_own_and_other_frameworks_stay_unloaded() -> None:
    pytest.importorskip("jax")
    subprocess_of(TWO_DEVICES + JAX, XLA_FLAGS="--xla_force_host_platform_device_count=2")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["exact", "auto"])
def test_tensorflow_devices_lie_in_blocks_of_their_own_and_other_frameworks_stay_unloaded(how: str) -> None:
    pytest.importorskip("tensorflow")
    subprocess_of(TWO_DEVICES + TENSORFLOW, TF_CPP_MIN_LOG_LEVEL="3", PRIVOPT_EXECUTOR=how)
