"""What the executors promise beyond eager's numbers: caches, compilers of frameworks, torch's kernels."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from privopt import Optimizer, OptiModule, Vector, executor, executors, state, summation
from privopt.executors import sum_products, torch_fused
from privopt.layout import Block

COMPILER = "_has_llvm"
"""The function of `privopt.executors` that says whether the compiler is installed."""

SHAPES = {"w": (30, 20), "b": (7,), "long": (20000,)}


def arrays(seed: int, dtype: str = "float32") -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {k: rng.standard_normal(s).astype(dtype) for k, s in SHAPES.items()}


def tensors(seed: int, dtype: str = "float32") -> Vector:
    return Vector.build({k: torch.from_numpy(a) for k, a in arrays(seed, dtype).items()})


# ---- sums in one order ------------------------------------------------------------------------------------


def slow_sum(left: np.ndarray, right: np.ndarray) -> float:
    """The order of `privopt.summation` spelled out, one entry at a time."""
    total = 0.0
    for start in range(0, left.size, 4096):
        lanes = [0.0] * 32
        for i in range(start, min(start + 4096, left.size)):
            lanes[(i - start) % 32] += float(left[i]) * float(right[i])
        half = 16
        while half:
            for lane in range(half):
                lanes[lane] += lanes[lane + half]
            half //= 2
        total = lanes[0] if start == 0 else total + lanes[0]
    return total


@pytest.mark.parametrize("size", [0, 1, 31, 32, 33, 4095, 4096, 4097, 8192, 20001])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_sums_follow_the_documented_order(size: int, dtype: str) -> None:
    rng = np.random.default_rng(size)
    x, y = (rng.standard_normal(size).astype(dtype) for _ in range(2))
    assert summation.dot(x, y) == slow_sum(x, y)
    assert summation.total(x) == slow_sum(x, np.ones(size))
    assert summation.dot(x, x) == pytest.approx(float(np.sum(x.astype("float64") ** 2)), rel=1e-13)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_order_holds_across_pieces_and_rows_of_every_length(
    dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summation, "_PIECE", 2 * summation.CHUNK)
    monkeypatch.setattr(summation, "_GROUP", 4 * summation.CHUNK)
    monkeypatch.setattr(summation, "_FOLDED", 4 * summation.LANES)
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal(36_001).astype(dtype) for _ in range(2))
    ones = np.ones(x.size)
    for size in (8192, 8193, 16_384, 16_385, 36_001):
        assert summation.dot(x[:size], y[:size]) == slow_sum(x[:size], y[:size])
    for length in (1, 3, 31, 32, 33, 40, 4095, 4096, 5000, 9000):
        starts = list(range(0, min(x.size, 9 * length), length))
        ends = [*starts[1:], starts[-1] + length]
        left, right = x[: ends[-1]], y[: ends[-1]]
        for ours, theirs, factors in ((left, right, right), (left, left, left), (left, None, ones)):
            found = summation.segment_dots(ours, theirs, starts)
            expected = [slow_sum(ours[a:b], factors[a:b]) for a, b in zip(starts, ends, strict=True)]
            assert found.tolist() == expected, length


@pytest.mark.parametrize("name", ["llvm", "blocked", "auto"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_compiled_and_parallel_sums_are_the_same_bits(name: str, dtype: str) -> None:
    x, y = arrays(0, dtype)["long"], arrays(1, dtype)["long"]
    backend = Vector.build({"x": x})._backend
    where = Block(dtype, "cpu", x.size)
    with executor(name):
        assert sum_products(backend, x, y, where) == slow_sum(x, y)
        assert sum_products(backend, x, x, where) == slow_sum(x, x)
        assert sum_products(backend, x, None, where) == slow_sum(x, np.ones(x.size))


@pytest.mark.parametrize("starts", [[0], [0, 5, 5, 10, 4106, 4107], list(range(0, 20000, 40))])
def test_sums_of_segments_are_the_sums_of_their_entries(starts: list[int]) -> None:
    x, y = arrays(0)["long"], arrays(1)["long"]
    ends = [*starts[1:], x.size]
    found = summation.segment_dots(x, y, starts)
    assert found.tolist() == [summation.dot(x[a:b], y[a:b]) for a, b in zip(starts, ends, strict=True)]
    compiled = pytest.importorskip("privopt.executors.llvm")
    backend, where = Vector.build({"x": x})._backend, Block("float32", "cpu", x.size)
    np.testing.assert_array_equal(compiled.segment_products(backend, x, y, starts, where), found)


# ---- torch's sums -----------------------------------------------------------------------------------------


def exact(products: np.ndarray) -> float:
    return math.fsum(products.tolist())


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 30_000, torch_fused.WIDE + 4099])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_torchs_sums_are_as_good_as_float64_gives_them(size: int, dtype: str) -> None:
    rng = np.random.default_rng(size)
    x, y = (rng.standard_normal(size).astype(dtype) for _ in range(2))
    ours, theirs = torch.from_numpy(x), torch.from_numpy(y)
    wide_x, wide_y = x.astype("float64"), y.astype("float64")
    squares = exact(wide_x * wide_x)
    assert torch_fused.sum_products(ours, ours) == pytest.approx(squares, rel=1e-14)
    assert torch_fused.sum_products(ours, theirs) == pytest.approx(
        exact(wide_x * wide_y), abs=1e-14 * squares
    )
    assert torch_fused.sum_products(ours, None) == pytest.approx(exact(wide_x), abs=1e-14 * squares)


def test_torchs_sum_of_many_equal_entries_does_not_fall_behind() -> None:
    # What happens to a float32 sum of 1e8 entries: beside a large total the next square counts for less.
    # One large entry makes it happen at 3 million: each small square is under half a unit of its last place.
    small, large, count = 1e-3, 64.0, 3_000_000
    x = torch.full((count,), small)
    x[0] = large
    expected = large**2 + (count - 1) * float(np.float32(small)) ** 2
    assert torch_fused.sum_products(x, x) == pytest.approx(expected, rel=1e-13)
    serial = np.cumsum((x * x).numpy(), dtype=np.float32)[-1]
    assert abs(serial / expected - 1) > 5e-4, "The test's own numbers do not show the effect."


@pytest.mark.parametrize("entry", [1e-30, 1e30])
def test_torchs_norms_hold_entries_whose_squares_float32_does_not(entry: float) -> None:
    x = torch.full((50_000,), entry)
    expected = 50_000 * float(np.float32(entry)) ** 2
    assert torch_fused.sum_products(x, x) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_torchs_sums_pass_on_what_is_not_finite(bad: float) -> None:
    x = torch.ones(10_000)
    x[5000] = bad
    np.testing.assert_equal(torch_fused.sum_products(x, x), bad)
    x[6000] = -bad
    np.testing.assert_equal(torch_fused.sum_products(x, None), float("nan"))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_torchs_sums_do_not_depend_on_the_number_of_threads(dtype: str) -> None:
    sizes = [1, 4096, 33_000, 131_072, torch_fused.WIDE, torch_fused.WIDE + 1, 1_700_001]
    rng = np.random.default_rng(0)
    pairs = [[torch.from_numpy(rng.standard_normal(n).astype(dtype)) for _ in range(2)] for n in sizes]
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3, 5, 16):
            torch.set_num_threads(threads)
            found.append(
                [
                    (
                        torch_fused.sum_products(x, x),
                        torch_fused.sum_products(x, y),
                        torch_fused.sum_products(x, None),
                        torch_fused.segment_products(x, x, range(0, len(x), 1 + len(x) // 7)).tolist(),
                        torch_fused.segment_products(x, y, range(0, len(x), 11)).tolist(),
                    )
                    for x, y in pairs
                ]
            )
    finally:
        torch.set_num_threads(before)
    assert all(each == found[0] for each in found)


STARTS = [
    [0],
    [0, 5, 5, 10, 4106, 4107],
    list(range(0, 20_000, 40)),
    list(range(0, 20_000, 5000)),
    [0, 5000, 10_000, 15_000, 19_999, 20_000],
]


@pytest.mark.parametrize("starts", STARTS, ids=len)
def test_torchs_sums_of_segments_are_the_sums_of_their_entries(
    starts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = arrays(0)["long"], arrays(1)["long"]
    pairs = list(zip(starts, [*starts[1:], x.size], strict=True))
    wide_x, wide_y = x.astype("float64"), y.astype("float64")
    ours, theirs = torch.from_numpy(x), torch.from_numpy(y)
    for wide in (torch_fused.WIDE, 8192):  # the second cuts the longer segments
        monkeypatch.setattr(torch_fused, "WIDE", wide)
        for right, other in ((theirs, wide_y), (ours, wide_x), (None, np.ones(x.size))):
            found = torch_fused.segment_products(ours, right, starts)
            expected = [exact(wide_x[a:b] * other[a:b]) for a, b in pairs]
            np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-11)


def test_who_adds_up_is_chosen_by_what_is_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.from_numpy(np.random.default_rng(0).standard_normal(1_000_001).astype("float32"))
    backend, where = Vector.build({"x": x})._backend, Block("float32", "cpu", x.numel())
    in_order, by_torch = summation.dot(x.numpy(), x.numpy()), torch_fused.sum_products(x, x)
    assert in_order != by_torch, "The two orders cannot be told apart by these numbers."
    monkeypatch.setattr(executors, COMPILER, lambda: False)
    expected = {
        "exact": in_order,
        "blocked": in_order,
        "eager": in_order,
        "torch": by_torch,
        "auto": by_torch,
    }
    for name, total in expected.items():
        with executor(name):
            assert executors.sum_products(backend, x, x, where) == total, name
            assert executors.segment_products(backend, x, x, [0], where)[0] == total, name


# ---- compiled passes --------------------------------------------------------------------------------------


def stepped(buffers: dict[str, np.ndarray], name: str = "llvm") -> tuple[np.ndarray, list[str]]:
    """Weights after a step of momentum with these arrays as memory, and who was asked to compute it."""
    from privopt.executors import blocked, llvm

    tried: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for module in (llvm, blocked):
            for way in ("run", "interpret") if module is blocked else ("run",):
                real = getattr(module, way)
                label = module.__name__.rpartition(".")[2]
                patch.setattr(module, way, lambda *a, _r=real, _l=label, **k: _noted(tried, _l, _r(*a, **k)))
        layout = Vector.build({"x": buffers["w"].copy()}).layout
        backend = Vector.build({"x": np.zeros(1)})._backend
        weights, gradients = (Vector(layout, [buffers[k]], backend) for k in "wg")
        with executor(name):
            Optimizer(0.5, modules=["momentum"]).step(gradients, weights)
    return weights.flatten(), tried


def _noted(tried: list[str], label: str, result: Any) -> Any:
    tried.append(label if result is not None else f"{label} refused")
    return result


def unaligned(values: np.ndarray) -> np.ndarray:
    memory = np.zeros(values.nbytes + 1, np.uint8)
    array = memory[1:].view(values.dtype)
    array[:] = values
    return array


def spread_out(values: np.ndarray) -> np.ndarray:
    array = np.zeros(2 * values.size, values.dtype)[::2]
    array[:] = values
    return array


@pytest.mark.parametrize("placed", [unaligned, spread_out])
@pytest.mark.parametrize("which", ["w", "g"])
def test_arrays_that_compiled_code_cannot_take_are_computed_otherwise(placed: Any, which: str) -> None:
    pytest.importorskip("llvmlite")
    w, g = arrays(0)["long"], arrays(1)["long"]
    given = {"w": w.copy(), "g": g.copy()}
    given[which] = placed(given[which])
    found, tried = stepped(given)
    assert tried[0] == "llvm refused"
    assert set(tried[1:]) == {"blocked"}
    np.testing.assert_array_equal(found, w - np.float32(0.5) * g)


@pytest.mark.parametrize("shift", [-7, 1, 300])
def test_targets_that_lie_across_other_arrays_are_computed_otherwise(shift: int) -> None:
    pytest.importorskip("llvmlite")
    memory = np.random.default_rng(0).standard_normal(21000).astype(np.float32)
    w, g = memory[300:20300], memory[300 + shift : 20300 + shift]
    expected = w - np.float32(0.5) * g
    found, tried = stepped({"w": w, "g": g})
    assert tried[0] == "llvm refused"
    np.testing.assert_array_equal(found, expected)


def test_an_array_may_lie_exactly_where_another_does() -> None:
    pytest.importorskip("llvmlite")
    w = np.random.default_rng(0).standard_normal(20000).astype(np.float32)
    expected = w - np.float32(0.5) * w
    found, tried = stepped({"w": w, "g": w[:]})
    assert tried == ["llvm"]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("openmp", [True, False])
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_threads_whosesoever_change_no_bit(openmp: bool, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llvmlite")
    from privopt.executors import threads

    assert threads._parallel() is not None  # torch is loaded, and brought OpenMP
    if not openmp:
        monkeypatch.setattr(threads, "_openmp", False)
    big = {"w": np.random.default_rng(0).standard_normal(300_000).astype(np.float32)}
    results = []
    for number in (count, 1):
        monkeypatch.setattr(threads, "_chosen", number)
        with executor("llvm"):
            optimizer = Optimizer(0.1, modules=["l2-global-clipping", "l2-clipping", "adam"])
            weights = Vector.build(big)
            for _ in range(3):
                optimizer.step(weights.copy(), weights)
        results.append(weights)
    assert results[0].equals(results[1])


def test_nobody_waits_for_a_thread_that_has_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    from privopt.executors import threads

    monkeypatch.setattr(threads, "_chosen", 2)
    begun, go = threading.Event(), threading.Event()
    threads.in_parallel(lambda start, stop: None, 2, 1)  # the thread is there
    threads._pool[0].put(lambda: (begun.set(), go.wait(30), None)[-1])  # and now it is busy
    assert begun.wait(30)
    done: list[int] = []
    threads.in_parallel(lambda start, stop: done.append(start), 5, 1)
    assert done == [0, 1, 2, 3, 4]
    go.set()
    both = threading.Barrier(2, timeout=30)
    threads.in_parallel(lambda start, stop: both.wait() and None, 2, 1)  # one that has begun is waited for


def test_torch_tells_how_many_threads_unless_somebody_did(monkeypatch: pytest.MonkeyPatch) -> None:
    from privopt.executors import threads

    monkeypatch.setattr(threads, "_chosen", None)
    monkeypatch.delenv("PRIVOPT_THREADS", raising=False)
    threads._named.cache_clear()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    assert threads.num_threads() == 5
    monkeypatch.setitem(sys.modules, "torch", None)
    assert threads.num_threads() == min(16, len(os.sched_getaffinity(0)))
    monkeypatch.setattr(threads, "_chosen", 3)
    assert threads.num_threads() == 3


# ---- torch's fused kernels --------------------------------------------------------------------------------


class MyAdam(OptiModule, register=False):
    """Somebody's own Adam: what is recognised is the arithmetic."""

    name = "my-adam"
    rest: float = 0.2
    first: Vector = state(0.0)
    second: Vector = state(0.0)
    count: int = state(0)

    def run(self, gradients: Vector) -> Vector:
        self.count += 1
        self.first = 0.8 * self.first + self.rest * gradients
        self.second = 0.95 * self.second + (1 - 0.95) * gradients * gradients
        corrected = self.first / (1 - 0.8**self.count)
        return corrected / ((self.second / (1 - 0.95**self.count)).sqrt() + 1e-3)


def kernel_calls(monkeypatch: pytest.MonkeyPatch, modules: list[Any], dtype: str = "float32") -> int:
    """How many steps of four ran in torch's kernels; asserts that they ended where eager's do."""
    ran = []
    for kernel in ("_fused_adamw_", "_fused_sgd_"):
        real = getattr(torch, kernel)
        monkeypatch.setattr(torch, kernel, lambda *a, _real=real, **k: (ran.append(1), _real(*a, **k)))
    results = []
    for name in ("eager", "torch"):
        with executor(name):
            optimizer = Optimizer(0.05, 0.01, modules=[m() if callable(m) else m for m in modules])
            weights = tensors(0, dtype)
            for step in range(4):
                optimizer.step(tensors(step + 1, dtype), weights)
        results.append(weights.flatten())
    np.testing.assert_allclose(results[1], results[0], rtol=0, atol=2e-6 if dtype == "float32" else 1e-14)
    return len(ran)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "modules",
    [
        ["adam"],
        [("adam", {"beta_1": 0.8, "beta_2": 0.9, "eps": 1e-3})],
        ["l2-global-clipping", "adam"],
        ["momentum"],
        [("momentum", {"nesterov": True, "beta": 0.7})],
        ["l2-global-clipping", "momentum"],
    ],
    ids=str,
)
def test_chains_that_torch_has_kernels_for_run_in_them(
    modules: list[Any], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert kernel_calls(monkeypatch, modules, dtype) == 4


@pytest.mark.parametrize(
    "modules",
    [
        [("adam", {"amsgrad": True})],
        ["l2-clipping", "adam"],
        ["adam", "sign"],
        ["adabelief"],
        ["ewma"],
        [lambda: MyAdam(rest=0.3)],
    ],
    ids=["amsgrad", "clipped by tensor", "signed", "adabelief", "ewma", "unlike shares"],
)
def test_chains_that_only_look_like_it_do_not(modules: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernel_calls(monkeypatch, modules) == 0


def test_the_arithmetic_is_recognised_whoever_wrote_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernel_calls(monkeypatch, [lambda: MyAdam(rest=1 - 0.8)]) == 4


@pytest.mark.parametrize("module", ["adam", "momentum"])
def test_a_chain_in_several_pieces_leaves_the_gradients_alone(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_fused, "PIECE", 3000)
    modules = ["l2-global-clipping", module]
    assert kernel_calls(monkeypatch, modules) == 4 * -(-sum(a.size for a in arrays(0).values()) // 3000)
    gradients, weights = tensors(1), tensors(0)
    with executor("torch"):
        Optimizer(0.05, modules=modules).step(gradients, weights)
    np.testing.assert_array_equal(gradients.flatten(), tensors(1).flatten())


@pytest.mark.parametrize("step", [1, 2, 7, 1000, 30_000])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.99), (0.9, 0.0), (0.5, 0.5)])
def test_the_step_is_read_off_both_debiasing_factors(step: int, betas: tuple[float, float]) -> None:
    numbers = {"beta_1": betas[0], "beta_2": betas[1]}
    numbers |= {"debias_1": 1 - betas[0] ** step, "debias_2": 1 - betas[1] ** step}
    found = torch_fused._step_of(numbers)
    # Once a factor is 1 in floating point, any step that gives both factors is as good.
    assert found is None or all(1 - b**found == 1 - b**step for b in betas)
    if step < 50 and betas[0] and betas[1]:
        assert found == step
    assert torch_fused._step_of({**numbers, "debias_2": 0.123456}) is None


# ---- compilers of frameworks ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("framework", "modules", "regularizers"),
    [
        ("jax", ["l2-global-clipping", "adam"], ["fedprox"]),
        ("jax", ["l2-clipping", "lamb", "cautious"], []),
        ("jax", ["centralize", "lion", "lookahead"], ["lasso"]),
        ("tensorflow", ["l2-clipping", "centralize", "lamb", "cautious"], ["lasso"]),
    ],
)
def test_traced_steps_agree_with_eager_ones(
    framework: str, modules: list[str], regularizers: list[str]
) -> None:
    pytest.importorskip(framework)

    def vector(seed: int) -> Vector:
        if framework == "jax":
            import jax.numpy as jnp

            return Vector.build({k: jnp.asarray(a) for k, a in arrays(seed).items()})
        import tensorflow as tf

        return Vector.build({k: tf.constant(a) for k, a in arrays(seed).items()})

    results = []
    for name in ("eager", "exact", "auto"):
        with executor(name):
            optimizer = Optimizer(0.05, 0.01, regularizers=regularizers, modules=modules)
            weights = vector(0)
            for step in range(5):
                optimizer.step(vector(step + 1), weights)
        results.append(weights.flatten())
    np.testing.assert_array_equal(results[1], results[0])
    np.testing.assert_allclose(results[2], results[0], rtol=0, atol=2e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler warns of torch's own parts
def test_torch_compile_agrees_with_eager() -> None:
    results = []
    for name in ("eager", "traced"):
        with executor(name):
            optimizer = Optimizer(0.05, 0.01, modules=["l2-clipping", "adam", "cautious"])
            weights = tensors(0)
            for step in range(4):
                optimizer.step(tensors(step + 1), weights)
        results.append(weights.flatten())
    np.testing.assert_allclose(results[1], results[0], rtol=0, atol=2e-6)


# ---- kernels on disk --------------------------------------------------------------------------------------

TRAIN = """
import sys, numpy as np
from privopt import Optimizer, Vector, executor
with executor("llvm"):
    optimizer = Optimizer(0.1, modules=["l2-global-clipping", "momentum"])
    weights = Vector.build({"w": np.linspace(-1, 1, 100_000, dtype=np.float32)})
    for step in range(3):
        optimizer.step(weights.copy(), weights)
print(repr(float(weights.sum())), repr(float(weights.norm())))
"""


def trained(**variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", TRAIN],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout


def test_kernels_are_kept_on_disk_and_mended(tmp_path: Path) -> None:
    pytest.importorskip("llvmlite")
    first = trained(PRIVOPT_CACHE_DIR=str(tmp_path))
    folder = tmp_path / "kernels"
    assert folder.stat().st_mode & 0o077 == 0
    kept = {p: (p.stat().st_ino, p.read_bytes()) for p in folder.iterdir()}
    assert len(kept) == 2  # the norm and the step
    assert trained(PRIVOPT_CACHE_DIR=str(tmp_path)) == first
    assert {p: (p.stat().st_ino, p.read_bytes()) for p in folder.iterdir()} == kept
    for k, (path, (_, data)) in enumerate(kept.items()):  # torn or altered files
        path.write_bytes([data[:-10], data[:40] + bytes([data[40] ^ 1]) + data[41:]][k])
    assert trained(PRIVOPT_CACHE_DIR=str(tmp_path)) == first
    assert {p: p.read_bytes() for p in folder.iterdir()} == {p: data for p, (_, data) in kept.items()}


def test_a_folder_that_others_can_write_to_is_not_used(tmp_path: Path) -> None:
    pytest.importorskip("llvmlite")
    folder = tmp_path / "kernels"
    folder.mkdir()
    folder.chmod(0o777)
    assert trained(PRIVOPT_CACHE_DIR=str(tmp_path)) == trained(PRIVOPT_CACHE_DIR="")
    assert list(folder.iterdir()) == []


def test_the_folder_keeps_a_bounded_number_of_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = pytest.importorskip("privopt.executors.kernels")
    monkeypatch.setenv("PRIVOPT_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(kernels, "KEPT", 3)
    folder = kernels.cache_folder()
    for k in range(6):
        before = set(folder.iterdir())
        kernels.compiled(f"; {k}\ndefine void @kernel(ptr %job) {{\n  ret void\n}}\n", "kernel")
        (new,) = set(folder.iterdir()) - before
        os.utime(new, (k, k))
    assert sorted(p.stat().st_mtime for p in folder.iterdir()) == [3, 4, 5]


def test_importing_privopt_compiles_nothing() -> None:
    code = "import sys, privopt; print('llvmlite' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_missing_compiler_is_named_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, COMPILER, lambda: False)
    with pytest.raises(ImportError, match=r"pip install 'privopt\[fast\]'"), executor("llvm"):
        pass
