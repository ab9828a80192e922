"""Steps on frameworks whose arrays cannot be written: compiled code in memory that they are lent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from privopt import Optimizer, OptiModule, Vector
from privopt.backends import named_backend
from privopt.executors import LENT, executor, llvm
from tests.privopt.frameworks import make, wide

FRAMEWORKS = ["jax", "tensorflow"]
SIZE = max(LENT.values())
SHAPES: dict[str, Any] = {"w": (250, 200), "v": (SIZE - 50_000 + 16,), "b": ()}
CHAIN: dict[str, Any] = {"lrate": 0.1, "w_decay": 0.01, "modules": ["l2-global-clipping", "adam"]}


def draw(seed: int, scale: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: np.float32(scale) * rng.standard_normal(s, np.float32) for name, s in SHAPES.items()}


def numbers(vector: Vector) -> np.ndarray:
    return np.array(vector.flatten())


def place(vector: Vector) -> int:
    """Where the entries lie."""
    return int(named_backend(vector.framework).to_numpy(vector.buffers[0]).__array_interface__["data"][0])


def stepped(framework: str, by: str, config: dict[str, Any], steps: int = 3) -> np.ndarray:
    """Weights and states after some steps, with a new round after the first."""
    with executor(by):
        optimizer, weights = Optimizer(**config), make(framework, draw(0))
        for k in range(steps):
            if k < 2:
                optimizer.start_round()
            optimizer.step(make(framework, draw(10 + k)), weights)
    states = [v for p in optimizer.plugins for v in p.__dict__.values() if isinstance(v, Vector)]
    return np.concatenate([numbers(v) for v in [weights, *states]])


@pytest.fixture(params=FRAMEWORKS)
def framework(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(request.param)
    return str(request.param)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The sizes of the passes that compiled code ran."""
    sizes: list[int] = []
    run = llvm.run

    def watched(job: Any) -> Any:
        sizes.append(job.size)
        return run(job)

    monkeypatch.setattr(llvm, "run", watched)
    return sizes


def test_sums_inside_a_step_have_the_bits_of_numpys(framework: str) -> None:
    found: dict[str, Any] = {}

    class Summing(OptiModule):
        name = f"summing-on-{framework}"

        def run(self, gradients: Vector) -> Vector:
            tensors = gradients.norms().values.tolist()
            found[gradients.framework] = [gradients.norm(), gradients.sum(), *tensors]
            return gradients

    for kind in ("numpy", framework):
        with executor("eager" if kind == "numpy" else "auto"):
            Optimizer(lrate=0.1, modules=[Summing()]).step(make(kind, draw(0)), make(kind, draw(1)))
    assert found[framework] == found["numpy"]


@pytest.mark.parametrize(
    "config",
    [
        CHAIN,
        {"lrate": 0.1, "modules": ["momentum", "lookahead"], "regularizers": ["fedprox", "lasso"]},
        {"lrate": 0.1, "modules": ["l2-clipping", "centralize", "lamb", "cautious"]},
    ],
    ids=["adam", "lookahead", "lamb"],
)
def test_steps_give_the_bits_of_numpys(framework: str, config: dict[str, Any], compiled: list[int]) -> None:
    found = stepped(framework, "auto", config)
    assert compiled
    np.testing.assert_array_equal(found, stepped("numpy", "eager", config))


def test_the_frameworks_own_compiler_agrees_to_its_tolerance(framework: str) -> None:
    np.testing.assert_allclose(
        stepped(framework, "auto", CHAIN), stepped(framework, "traced", CHAIN), rtol=2e-6, atol=1e-7
    )


def test_exact_gives_eagers_bits_and_never_comes_here(framework: str, compiled: list[int]) -> None:
    found = stepped(framework, "exact", CHAIN)
    np.testing.assert_array_equal(found, stepped(framework, "eager", CHAIN))
    assert not compiled


def test_a_step_writes_into_the_memory_of_the_step_before(framework: str) -> None:
    optimizer, weights = Optimizer(**CHAIN), make(framework, draw(0))
    grads = make(framework, draw(1))
    adam: Any = optimizer.modules[1]
    for _ in range(2):
        optimizer.step(grads, weights)
    before = [place(v) for v in (weights, adam.m, adam.v)]
    for _ in range(3):
        optimizer.step(grads, weights)
        weights.norm()
        assert [place(v) for v in (weights, adam.m, adam.v)] == before
    assert len(set(before)) == 3


def _jax_alias(array: Any) -> Any:
    return array.addressable_data(0)


def _tensorflow_alias(array: Any) -> Any:
    import tensorflow as tf

    return tf.reshape(tf.identity(array), [1, -1])


ALIASES = {"jax": _jax_alias, "tensorflow": _tensorflow_alias}
HOLDS: dict[str, Callable[[Vector], Any]] = {
    "the arrays": lambda v: v.buffers,
    "an array": lambda v: v.buffers[0],
    "the tensors": lambda v: v.coefs,
    "a tensor": lambda v: v.coefs["w"],
    "a copy": lambda v: v.copy().buffers,
    "another Vector": lambda v: Vector(v.layout, v.buffers, v._backend).buffers,
    "numpy's view": lambda v: v.flatten(),
    "numpy's view of a part": lambda v: v.flatten()[3:70],
    "a buffer": lambda v: v.flatten().data,
    "another array": lambda v: ALIASES[v.framework](v.buffers[0]),
}


def _numbers_of(held: Any) -> list[np.ndarray]:
    if isinstance(held, dict):
        held = tuple(held.values())
    return [np.array(a) for a in (held if isinstance(held, tuple) else (held,))]


@pytest.mark.parametrize("how", HOLDS)
def test_what_somebody_holds_never_changes(framework: str, how: str) -> None:
    optimizer, weights = Optimizer(**CHAIN), make(framework, draw(0))
    grads = make(framework, draw(1))
    adam: Any = optimizer.modules[1]
    for _ in range(2):
        optimizer.step(grads, weights)
    vectors = [weights, adam.m, adam.v, grads]
    held = [HOLDS[how](vector) for vector in vectors]
    kept = [_numbers_of(h) for h in held]
    moved = [numbers(vector) for vector in vectors[:3]]
    for _ in range(2):
        optimizer.step(grads, weights)
        for h, k in zip(held, kept, strict=True):
            for found, expected in zip(_numbers_of(h), k, strict=True):
                np.testing.assert_array_equal(found, expected)
    for vector, old in zip((weights, adam.m, adam.v), moved, strict=True):
        assert (numbers(vector) != old).mean() > 0.9


def test_a_state_that_was_given_out_stays_and_can_be_gone_back_to(framework: str) -> None:
    optimizer, weights = Optimizer(**CHAIN), make(framework, draw(0))
    grads = [make(framework, draw(10 + k)) for k in range(4)]
    for k in range(2):
        optimizer.step(grads[k], weights)
    state, saved = optimizer.get_state(), weights.copy()

    def rest() -> np.ndarray:
        for k in range(2, 4):
            optimizer.step(grads[k], weights)
        return numbers(weights)

    first = rest()
    optimizer.set_state(state)
    weights.assign(saved)
    np.testing.assert_array_equal(rest(), first)


def test_a_computation_under_way_sees_the_values_that_it_was_given() -> None:
    jax = pytest.importorskip("jax")

    def summed(x: Any) -> Any:
        return jax.lax.fori_loop(0, 300, lambda _, y: jax.numpy.sin(y) + x, x)

    slow = jax.jit(summed)
    optimizer, weights = Optimizer(**CHAIN), make("jax", draw(0))
    grads = make("jax", draw(1))
    for _ in range(2):
        optimizer.step(grads, weights)
    expected = np.array(slow(jax.numpy.array(weights.flatten(), copy=True)))
    found = slow(weights.buffers[0])
    for _ in range(3):
        optimizer.step(grads, weights)
    np.testing.assert_array_equal(np.array(found), expected)


def started(framework: str, dtype: str = "float32") -> tuple[Optimizer, dict[str, Vector]]:
    """An optimizer after two steps, with everything that it reads and writes."""
    optimizer, weights = Optimizer(**CHAIN), make(framework, draw(0), dtype)
    grads = make(framework, draw(1), dtype)
    for _ in range(2):
        optimizer.step(grads, weights)
    adam: Any = optimizer.modules[1]
    vectors = {"weights": weights, "gradients": grads, "m": adam.m, "v": adam.v}
    return optimizer, vectors


@pytest.mark.parametrize(("one", "other"), [("v", "m"), ("weights", "m"), ("weights", "gradients")])
def test_two_vectors_may_share_one_array(framework: str, one: str, other: str) -> None:
    found = []
    for kind in (framework, "numpy"):
        optimizer, vectors = started(kind)
        if kind == "numpy":
            vectors[other].assign(vectors[one])
        else:
            vectors[other].buffers = vectors[one].buffers
        for _ in range(3):
            optimizer.step(vectors["gradients"], vectors["weights"])
        found.append([numbers(vector) for vector in vectors.values()])
    np.testing.assert_array_equal(found[0], found[1])


@pytest.mark.parametrize("where", ["llvm.run", "lent._of_numpy", "lent._take"])
def test_a_step_that_fails_leaves_everything_as_it_was(
    framework: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimizer, vectors = started(framework)
    kept = {name: (numbers(v), type(v.buffers[0])) for name, v in vectors.items()}

    def fail(*arguments: Any) -> Any:
        raise MemoryError("made up")

    with monkeypatch.context() as patched:
        patched.setattr(f"privopt.executors.{where}", fail)
        with pytest.raises(MemoryError, match="made up"):
            optimizer.step(vectors["gradients"], vectors["weights"])
    for name, (values, kind) in kept.items():
        assert type(vectors[name].buffers[0]) is kind
        np.testing.assert_array_equal(numbers(vectors[name]), values)
    optimizer.step(vectors["gradients"], vectors["weights"])
    np.testing.assert_array_equal(numbers(vectors["weights"]), stepped_alike("numpy"))


def stepped_alike(framework: str) -> np.ndarray:
    optimizer, vectors = started(framework)
    optimizer.step(vectors["gradients"], vectors["weights"])
    return numbers(vectors["weights"])


def test_what_compiled_code_declines_goes_to_the_frameworks_compiler(
    framework: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimizer, vectors = started(framework)
    expected = stepped_alike(framework)
    monkeypatch.setattr(llvm, "run", lambda job: None)
    optimizer.step(vectors["gradients"], vectors["weights"])
    np.testing.assert_allclose(numbers(vectors["weights"]), expected, rtol=2e-6, atol=1e-7)


def test_of_two_blocks_none_is_written_when_one_fails(
    framework: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with wide(framework):
        arrays: dict[str, np.ndarray] = {"narrow": np.ones(SIZE, np.float32), "wide": np.ones(SIZE)}
        optimizer, weights = Optimizer(lrate=0.5, modules=["momentum"]), make(framework, arrays, None)
        assert len(weights.buffers) == 2
        for _ in range(2):
            optimizer.step(weights.full_like(1.0), weights)
        momentum: Any = optimizer.modules[0]
        before = [numbers(v) for v in (weights, momentum.velocity)]
        run, sizes = llvm.run, []

        def fail(job: Any) -> Any:
            sizes.append(job.size)
            if len(sizes) == 2:
                raise MemoryError("made up")
            return run(job)

        with monkeypatch.context() as patched:
            patched.setattr(llvm, "run", fail)
            with pytest.raises(MemoryError, match="made up"):
                optimizer.step(weights.full_like(1.0), weights)
        for vector, values in zip((weights, momentum.velocity), before, strict=True):
            np.testing.assert_array_equal(numbers(vector), values)
        optimizer.step(weights.full_like(1.0), weights)
        # momentum 0.9: 1, 1.9, 2.71
        np.testing.assert_allclose(numbers(weights), 1 - 0.5 * (1 + 1.9 + 2.71), rtol=1e-6)


def test_float64_stays_float64(framework: str) -> None:
    with wide(framework):
        optimizer, vectors = started(framework, "float64")
        optimizer.step(vectors["gradients"], vectors["weights"])
        found = numbers(vectors["weights"])
    optimizer, vectors = started("numpy", "float64")
    optimizer.step(vectors["gradients"], vectors["weights"])
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, numbers(vectors["weights"]))


@pytest.mark.parametrize(
    ("framework", "by", "times"), [("jax", "auto", 0), ("jax", "llvm", 3), ("tensorflow", "auto", 3)]
)
def test_jax_compiles_small_models_itself_unless_told_otherwise(
    framework: str, by: str, times: int, compiled: list[int]
) -> None:
    pytest.importorskip(framework)
    weights = make(framework, {"w": np.ones(8, np.float32), "b": np.ones((), np.float32)})
    with executor(by):
        optimizer = Optimizer(lrate=0.5)
        for _ in range(3):
            optimizer.step(weights.full_like(1.0), weights)
    np.testing.assert_array_equal(numbers(weights), -0.5)
    assert compiled == [9] * times
