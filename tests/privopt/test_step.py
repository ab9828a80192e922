"""What a recorded step must get right, each against the eager executor."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from privopt import Optimizer, OptiModule, Regularizer, Vector, executor, set_num_threads, state
from privopt.backends import named_backend
from privopt.executors import num_threads
from privopt.layout import Layout
from tests.contracts import same_state

SHAPES: dict[str, tuple[int, ...]] = {"w": (7, 5), "b": (3,), "scalar": (), "empty": (0, 2), "long": (20000,)}
RECORDED = ["blocked", "llvm", "torch", "exact"]


def vector(seed: int, dtype: str = "float32", framework: str = "numpy", shapes: Any = None) -> Vector:
    rng = np.random.default_rng(seed)
    arrays: dict[str, Any] = {
        k: np.asarray(rng.standard_normal(s), "float32" if dtype == "bfloat16" else dtype)
        for k, s in (shapes or SHAPES).items()
    }
    if framework == "torch":
        arrays = {k: torch.from_numpy(a).to(getattr(torch, dtype)) for k, a in arrays.items()}
    return Vector.build(arrays)


def trained(
    name: str, make: Callable[[], list[OptiModule]], steps: int = 4, **kinds: Any
) -> tuple[Vector, dict[str, Any]]:
    with executor(name):
        optimizer = Optimizer(0.1, 0.01, modules=make())
        weights = vector(0, **kinds)
        for step in range(steps):
            optimizer.step(vector(step + 1, **kinds), weights)
    return weights, optimizer.get_state()


def assert_as_eager(make: Callable[[], list[OptiModule]], **kinds: Any) -> None:
    expected, states = trained("eager", make, **kinds)
    for name in RECORDED:
        weights, found = trained(name, make, **kinds)
        if name == "torch" and kinds.get("framework") == "torch":
            # Its norms are torch's own, which add in another order.
            close = 1e-6 if kinds.get("dtype") != "float64" else 1e-14
            np.testing.assert_allclose(weights.flatten(), expected.flatten(), rtol=close, atol=close)
            continue
        np.testing.assert_array_equal(weights.flatten(), expected.flatten(), err_msg=name)
        assert same_state(found, states), name


class Swap(OptiModule, register=False):
    name = "swap"
    a: Vector = state(1.0)
    b: Vector = state(2.0)

    def run(self, gradients: Vector) -> Vector:
        self.a, self.b = self.b, self.a + gradients
        return self.a - self.b


class Previous(OptiModule, register=False):
    name = "previous"
    before: Vector | None = state(None)
    twice: Vector | None = state(None)

    def run(self, gradients: Vector) -> Vector:
        out = gradients if self.before is None else gradients - self.before
        self.before = self.twice = gradients
        return out


class Rotate(OptiModule, register=False):
    name = "rotate"
    a: Vector = state(1.0)
    b: Vector = state(2.0)
    c: Vector = state(3.0)

    def run(self, gradients: Vector) -> Vector:
        self.a, self.b, self.c = self.b, self.c, self.a
        return gradients + self.a * self.b


class Branch(OptiModule, register=False):
    name = "branch"
    m: Vector = state(0.0)
    large: int = state(0)

    def run(self, gradients: Vector) -> Vector:
        self.m = 0.9 * self.m + gradients
        if (self.m / 2).norm() > 120:
            self.large += 1
            return self.m * 0.5
        return self.m.clip(-1.0, 1.0) + self.m.norms() * gradients


class InPlace(OptiModule, register=False):
    name = "in-place"
    m: Vector = state(0.0)

    def run(self, gradients: Vector) -> Vector:
        m = self.m
        m *= 0.5
        m += gradients  # `self.m` is the same object and sees it
        gradients -= self.m
        kept = gradients.copy()
        gradients *= 0.0
        return kept + gradients


class Numbers(OptiModule, register=False):
    """Reads and writes numbers in the middle of a step."""

    name = "numbers"
    m: Vector = state(0.0)

    def run(self, gradients: Vector) -> Vector:
        doubled = gradients * 2
        views = gradients.coefs
        after = gradients * 3
        views["w"][0, 0] = 100.0
        self.m = self.m + gradients  # with the 100
        assert float(gradients.flatten()[0]) == 100.0
        return doubled + after + float(self.m.coefs["b"][0]) * self.m.to_numpy().to(gradients)


class Wide(OptiModule, register=False):
    """A float64 state of float32 gradients."""

    name = "wide"
    m: Vector | None = state(None)

    def run(self, gradients: Vector) -> Vector:
        wide = gradients.astype("float64")
        self.m = wide if self.m is None else 0.9 * self.m + wide
        return (self.m * 0.1).astype("float32")


class Transcendental(OptiModule, register=False):
    name = "transcendental"
    m: Vector = state(0.1)

    def run(self, gradients: Vector) -> Vector:
        self.m = (gradients.abs() + 1.0).log() + self.m.exp() * 0.1
        return gradients * self.m**1.5 + (gradients.isfinite()).where(gradients**2, 0.0)


class Choose(OptiModule, register=False):
    name = "choose"

    def run(self, gradients: Vector, weights: Vector) -> Vector:
        mask = (gradients > weights).where(gradients, 0.5)
        lower = gradients.minimum(weights).maximum(-1.0)
        return (mask != 0.5).where(lower, weights.sign()) - (weights <= 0.1) * gradients + weights.row_means()


CHAINS: list[list[type[OptiModule]]] = [
    *([c] for c in (Swap, Previous, Rotate, Branch, InPlace, Numbers, Transcendental, Choose)),
    [Previous, Swap, Choose],
]


@pytest.mark.parametrize("framework", ["numpy", "torch"])
@pytest.mark.parametrize("classes", CHAINS, ids=lambda c: "+".join(x.__name__ for x in c))
def test_every_executor_gives_eagers_bits(classes: list[type[OptiModule]], framework: str) -> None:
    for dtype in ("float32", "float64"):
        assert_as_eager(lambda: [c() for c in classes], dtype=dtype, framework=framework)


@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_a_state_may_have_another_dtype_than_the_gradients(framework: str) -> None:
    assert_as_eager(lambda: [Wide()], framework=framework)


@pytest.mark.parametrize(
    ("framework", "dtype"), [("numpy", "float16"), ("torch", "float16"), ("torch", "bfloat16")]
)
def test_low_precision_is_what_the_framework_makes_of_it(framework: str, dtype: str) -> None:
    assert_as_eager(lambda: [Swap(), Branch()], dtype=dtype, framework=framework)


def test_several_dtypes_in_one_model_are_one_step() -> None:
    def mixed(seed: int) -> Vector:
        rng = np.random.default_rng(seed)
        return Vector.build(
            {
                "a": rng.standard_normal(50).astype("float32"),
                "b": rng.standard_normal((4, 4)),
                "c": rng.standard_normal(20000).astype("float32"),
                "d": rng.standard_normal(5).astype("float16"),
            }
        )

    results = []
    for name in ("eager", *RECORDED):
        with executor(name):
            optimizer = Optimizer(0.1, modules=["l2-global-clipping", "l2-clipping", Branch(), "adam"])
            weights = mixed(0)
            for step in range(3):
                optimizer.step(mixed(step + 1), weights)
        results.append(weights)
    for found in results[1:]:
        assert found.layout == results[0].layout
        for name, array in results[0].coefs.items():
            np.testing.assert_array_equal(found.coefs[name], array)


# ---- nothing of the caller's is touched -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["eager", *RECORDED])
def test_states_never_share_memory_with_what_the_caller_holds(name: str) -> None:
    with executor(name):
        optimizer = Optimizer(0.1, modules=[Previous()])
        weights, first = vector(0), vector(1)
        kept = first.copy()
        optimizer.step(first, weights)
        first *= 0.0
        second = vector(2)
        updates = optimizer.compute_updates(second, weights)
    np.testing.assert_array_equal(updates.flatten(), (-(second - kept) * 0.1).flatten())


@pytest.mark.parametrize("name", ["eager", *RECORDED])
@pytest.mark.parametrize("module", [InPlace, Numbers])
def test_gradients_and_weights_of_the_caller_are_never_written(name: str, module: type[OptiModule]) -> None:
    with executor(name):
        grads, weights = vector(1), vector(0)
        before = grads.copy(), weights.copy()
        Optimizer(0.1, modules=[module()]).compute_updates(grads, weights)
    assert grads.equals(before[0])
    assert weights.equals(before[1])


@pytest.mark.parametrize("name", ["eager", *RECORDED])
def test_the_weights_may_be_their_own_gradients(name: str) -> None:
    with executor(name):
        weights = vector(0)
        expected = weights * 0.9
        Optimizer(0.1).step(weights, weights)
    np.testing.assert_allclose(weights.flatten(), expected.flatten(), rtol=1e-6)


@pytest.mark.parametrize("framework", ["numpy", "torch"])
@pytest.mark.parametrize("name", ["eager", *RECORDED])
def test_arrays_that_overlap_are_still_summed_right(name: str, framework: str) -> None:
    """Gradients that are the weights' memory, moved by one entry: no pass may read what it has written."""
    memory = np.arange(40001, dtype=np.float32)
    layout = Layout.of([("w", (40000,), "float32", "cpu")])
    buffer: Any = memory if framework == "numpy" else torch.from_numpy(memory)
    grads, weights = (Vector(layout, [buffer[k : k + 40000]], named_backend(framework)) for k in (0, 1))
    expected = weights.flatten() - np.float32(0.5) * grads.flatten()
    with executor(name):
        Optimizer(0.5).step(grads, weights)
    np.testing.assert_array_equal(weights.flatten(), expected)


@pytest.mark.parametrize("name", ["eager", *RECORDED])
def test_a_state_set_from_outside_counts_and_its_memory_stays_the_users(name: str) -> None:
    class Keep(OptiModule, register=False):
        name = "keep"
        m: Vector = state(0.0)

        def run(self, gradients: Vector) -> Vector:
            self.m = self.m + gradients
            return self.m

    with executor(name):
        module, weights, grads = Keep(), vector(0), vector(1)
        optimizer = Optimizer(1.0, modules=[module])
        optimizer.step(grads, weights)
        mine = grads.full_like(7.0)
        module.m = mine
        updates = optimizer.compute_updates(grads, weights)
        np.testing.assert_array_equal(updates.flatten(), -(7.0 + grads.flatten()))
        assert set(mine.flatten().tolist()) == {7.0}
        module.m *= 2.0  # in place, between steps
        doubled = optimizer.compute_updates(grads, weights)
        np.testing.assert_allclose(
            doubled.flatten(), -(2 * (7.0 + grads.flatten()) + grads.flatten()), rtol=1e-6
        )


# ---- all or nothing ---------------------------------------------------------------------------------------


class Fails(OptiModule, register=False):
    name = "fails"
    error: type[BaseException] | None = None

    def run(self, gradients: Vector) -> Vector:
        gradients.norm()
        if Fails.error is not None:
            raise Fails.error
        return gradients


@pytest.mark.parametrize("name", ["eager", *RECORDED])
@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_a_step_that_fails_changes_nothing(name: str, error: type[BaseException]) -> None:
    with executor(name):
        optimizer = Optimizer(
            ("exponential", {"base": 0.1, "factor": 0.5}),
            regularizers=["fedprox"],
            modules=["adam", InPlace(), "ema-weights", Fails()],
        )
        weights = vector(0)
        optimizer.step(vector(1), weights)
        states, before = optimizer.get_state(), weights.copy()
        Fails.error = error
        try:
            with pytest.raises(error):
                optimizer.step(vector(2), weights)
        finally:
            Fails.error = None
        assert same_state(optimizer.get_state(), states)
        assert weights.equals(before)
        optimizer.step(vector(2), weights)
        assert optimizer.get_state()["lrate"]["steps_taken"] == 2


def test_an_interrupt_while_memory_is_written_waits_until_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    from privopt import recording

    real = recording.run

    def interrupted(job: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        result = real(job)
        os.kill(os.getpid(), signal.SIGINT)
        return result

    def build() -> tuple[Optimizer, Vector]:
        return Optimizer(0.1, modules=["adam"]), vector(0)

    # A shell that runs tests in the background has them ignore the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with executor("blocked"):
        optimizer, weights = build()
        optimizer.step(vector(1), weights)
        twin, other = build()
        twin.step(vector(1), other)
        monkeypatch.setattr(recording, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            optimizer.step(vector(2), weights)
        monkeypatch.setattr(recording, "run", real)
        twin.step(vector(2), other)
    assert weights.equals(other)
    assert same_state(optimizer.get_state(), twin.get_state())
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler


# ---- what is refused --------------------------------------------------------------------------------------


class Undeclared(OptiModule, register=False):
    name = "undeclared"
    inside = False

    def run(self, gradients: Vector) -> Vector:
        self.kept = [gradients * 2] if type(self).inside else gradients * 2
        return gradients


@pytest.mark.parametrize("name", ["eager", *RECORDED])
@pytest.mark.parametrize("inside", [False, True])
def test_an_undeclared_attribute_that_keeps_a_vector_is_an_error(name: str, inside: bool) -> None:
    Undeclared.inside = inside
    module = Undeclared()
    with executor(name), pytest.raises(TypeError, match=r"Declare `kept: Vector \| None = state\(None\)`"):
        Optimizer(0.1, modules=[module]).step(vector(1), vector(0))
    assert not hasattr(module, "kept")


def test_a_vector_smuggled_out_of_a_step_says_so_when_it_is_used() -> None:
    smuggled: list[Vector] = []

    class Smuggle(OptiModule, register=False):
        name = "smuggle"

        def run(self, gradients: Vector) -> Vector:
            out = gradients * 2
            if smuggled:
                out = out + smuggled[0]
            smuggled.append(out)
            return out

    with executor("blocked"):
        optimizer, weights = Optimizer(0.1, modules=[Smuggle()]), vector(0)
        optimizer.step(vector(1), weights)
        with pytest.raises(RuntimeError, match="an earlier step recorded"):
            smuggled[0] + 1
        with pytest.raises(RuntimeError, match="an earlier step recorded"):
            smuggled[0].flatten()
        with pytest.raises(RuntimeError, match="an earlier step recorded"):
            optimizer.step(vector(2), weights)
    assert "Recorded(5 tensors" in repr(smuggled[0])


@pytest.mark.parametrize("name", ["eager", "blocked"])
def test_wrong_results_of_plug_ins_are_named(name: str) -> None:
    class Nothing(OptiModule, register=False):
        name = "nothing"

        def run(self, gradients: Vector) -> Any:
            gradients * 2  # and no return

    class Other(Regularizer, register=False):
        name = "other"

        def run(self, gradients: Vector, weights: Vector) -> Vector:
            return vector(0, shapes={"w": (2,)})

    class Truth(OptiModule, register=False):
        name = "truth"

        def run(self, gradients: Vector) -> Vector:
            return gradients if gradients > 0 else -gradients

    with executor(name):
        with pytest.raises(TypeError, match="a Vector from module 'nothing', got NoneType"):
            Optimizer(0.1, modules=[Nothing()]).step(vector(1), vector(0))
        with pytest.raises(ValueError, match="regularizer 'other' to keep the layout"):
            Optimizer(0.1, regularizers=[Other()]).step(vector(1), vector(0))
        with pytest.raises(TypeError, match="no single truth value"):
            Optimizer(0.1, modules=[Truth()]).step(vector(1), vector(0))


def test_unknown_executors_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"one of the executors \['auto'"), executor("fast"):
        pass
    with pytest.raises(ValueError, match="a positive number of threads, at most 1024, got 0"):
        set_num_threads(0)


# ---- random arithmetic ------------------------------------------------------------------------------------

UNARY = ["neg", "abs", "sqrt", "sign", "isfinite"]
BINARY = ["add", "sub", "mul", "div", "minimum", "maximum", "lt", "le", "gt", "ge", "eq", "ne"]
NUMBERS = st.floats(-3, 3, width=32) | st.sampled_from([0.0, 1.0, 2.0, -1.0, 1e30, float("inf")])


@st.composite
def recipes(draw: st.DrawFn) -> list[tuple[Any, ...]]:
    """Instructions on a growing list of values that starts with gradients, weights and a state."""
    found: list[tuple[Any, ...]] = []
    for size in range(3, 3 + draw(st.integers(1, 10))):
        value = st.integers(0, size - 1)
        kind = draw(st.sampled_from(["unary", "binary", "scalar", "where", "norm", "norms", "rows", "pow"]))
        if kind == "unary":
            found.append((kind, draw(st.sampled_from(UNARY)), draw(value)))
        elif kind == "binary":
            found.append((kind, draw(st.sampled_from(BINARY)), draw(value), draw(value)))
        elif kind == "scalar":
            swap = draw(st.booleans())
            found.append((kind, draw(st.sampled_from(BINARY[:6])), draw(value), draw(NUMBERS), swap))
        elif kind == "where":
            found.append((kind, draw(value), draw(value), draw(value)))
        else:
            found.append((kind, draw(value), draw(st.sampled_from([0.5, 1, 2]))))
    return found


class Cooked(OptiModule, register=False):
    name = "cooked"
    recipe: Any = None
    m: Vector = state(0.5)

    def run(self, gradients: Vector, weights: Vector) -> Vector:
        values = [gradients, weights, self.m]
        for kind, *parts in self.recipe:
            values.append(self._cooked(values, kind, parts))
        self.m = values[-2] * 1.0
        return values[-1] * 1.0

    def _cooked(self, values: list[Vector], kind: str, parts: list[Any]) -> Vector:
        # Arithmetic on truth values is not the subject here.
        def number(k: int) -> Vector:
            value = values[k]
            return value * 1.0 if value.layout.blocks[0].dtype == "bool" else value

        if kind == "unary":
            return number(parts[1])._unary(parts[0])
        if kind == "binary":
            return number(parts[1])._binary(parts[0], number(parts[2]))
        if kind == "scalar":
            return number(parts[1])._binary(parts[0], parts[2], swap=parts[3])
        if kind == "where":
            return (number(parts[0]) > 0).where(number(parts[1]), number(parts[2]))
        value = number(parts[0])
        if kind == "norm":
            return value * (1.0 / (1.0 + value.norm()))
        if kind == "norms":
            return value / (value.norms() + 1.0)
        return value - value.row_means() if kind == "rows" else value ** parts[1]


def assert_cooked_as_eager(name: str, recipe: list[tuple[Any, ...]], dtype: str, long: int) -> None:
    shapes = {"w": (4, 3), "e": (0,), "b": (5,), "long": (long,)}
    results = []
    for chosen in ("eager", name):
        with executor(chosen):
            module = Cooked(recipe)
            optimizer, weights = Optimizer(0.1, modules=[module]), vector(0, dtype, shapes=shapes)
            for step in range(2):
                optimizer.step(vector(step + 1, dtype, shapes=shapes), weights)
            results.append((weights.flatten(), module.m.flatten()))
    for found, expected in zip(*results, strict=True):
        np.testing.assert_array_equal(found, expected)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(recipe=recipes(), dtype=st.sampled_from(["float32", "float64"]))
def test_random_arithmetic_gives_the_same_bits_in_blocks(recipe: list[tuple[Any, ...]], dtype: str) -> None:
    assert_cooked_as_eager("blocked", recipe, dtype, 66000)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(recipe=recipes(), dtype=st.sampled_from(["float32", "float64"]))
def test_random_arithmetic_gives_the_same_bits_compiled(recipe: list[tuple[Any, ...]], dtype: str) -> None:
    pytest.importorskip("llvmlite")
    assert_cooked_as_eager("llvm", recipe, dtype, 400)


# ---- threads and processes --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["blocked", "llvm"])
def test_results_do_not_depend_on_the_number_of_threads(name: str) -> None:
    shapes = {"a": (300_001,), "b": (999,)}
    before, results = num_threads(), []
    try:
        for count in (1, 2, 5):
            set_num_threads(count)
            with executor(name):
                optimizer = Optimizer(0.1, modules=["l2-global-clipping", "l2-clipping", "adam"])
                weights = vector(0, shapes=shapes)
                for step in range(2):
                    optimizer.step(vector(step + 1, shapes=shapes), weights)
            results.append(weights)
    finally:
        set_num_threads(before)
    assert results[1].equals(results[0])
    assert results[2].equals(results[0])


@pytest.mark.parametrize("name", ["blocked", "llvm"])
def test_optimizers_step_in_several_threads_at_once(name: str) -> None:
    shapes = {"a": (150_000,)}
    found: dict[int, Vector] = {}

    def train(seed: int) -> None:
        with executor(name):
            optimizer, weights = Optimizer(0.1, modules=["adam"]), vector(seed, shapes=shapes)
            for step in range(5):
                optimizer.step(vector(100 + step, shapes=shapes), weights)
            found[seed] = weights

    threads = [threading.Thread(target=train, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    parallel = dict(found)
    for seed in range(4):
        train(seed)
        assert found[seed].equals(parallel[seed])


FORKED = """
import os, sys, numpy as np
if sys.argv[1] == "openmp":
    import torch
    torch.ones(300_000).exp()
from privopt import Optimizer, Vector, executor
def train():
    with executor("llvm"):
        optimizer = Optimizer(0.1, modules=["l2-global-clipping", "adam"])
        weights = Vector.build({"w": np.ones(300_000, np.float32)})
        for step in range(3):
            optimizer.step(Vector.build({"w": np.full(300_000, 0.5, np.float32)}), weights)
        return float(weights.sum())
here = train()
if sys.argv[1] == "openmp":
    from privopt.executors import threads
    assert threads.num_threads() == 1 or threads._openmp
child = os.fork()
if child == 0:
    os._exit(0 if train() == here else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize("threads", ["openmp", "own"])
def test_a_forked_process_steps_on(threads: str) -> None:
    pytest.importorskip("llvmlite")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED, threads], capture_output=True, text=True, timeout=120
    )
    assert (done.stdout, done.returncode) == ("0\n", 0), done.stderr
