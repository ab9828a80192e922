"""Compiled steps where others would rather not look: interrupts, forks, odd processors, odd disks."""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from privopt import Optimizer, OptiModule, Vector, executor, state
from privopt.executors import Pass, blocked, threads
from privopt.expression import pruned

llvm = pytest.importorskip("privopt.executors.llvm")
kernels = pytest.importorskip("privopt.executors.kernels")

ADD = """\
define void @add(ptr %job) {{
entry:
  %x = load double, ptr %job, align 8
  %y = fadd double %x, {}.0
  store double %y, ptr %job, align 8
  ret void
}}
"""
"""Adds a number to the one that it is given."""


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_chosen", 2)


def alone(script: str, timeout: float = 60) -> str:
    """What a script prints in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=timeout, check=True
    )
    return done.stdout.strip()


# ---- interrupts and forks ---------------------------------------------------------------------------------


def test_memory_outlives_an_interrupted_pass(two_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    # A thread of our own still writes when the interrupt leaves the call: its memory must be there.
    monkeypatch.setattr(threads, "_parallel", lambda: None)
    started, go_on = threading.Event(), threading.Event()
    memory = np.zeros(1000)
    of_memory = weakref.ref(memory)
    seen = []

    def work(job: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            started.wait(10)
        else:
            started.set()
            go_on.wait(10)
            seen.append(of_memory() is not None)

    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        threads.together(kernels.Kernel(0, work, None), (ctypes.c_int64 * 1)(), 2, memory)
        ended = "by itself"
    except KeyboardInterrupt:
        ended = "by an interrupt"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    del memory
    gc.collect()
    go_on.set()
    rest = threading.Event()
    threads._pool[0].put(rest.set)
    assert rest.wait(10)
    assert (ended, seen) == ("by an interrupt", [True])
    gc.collect()
    assert of_memory() is None


def test_a_child_of_a_process_that_compiles_can_compile() -> None:
    script = f"""
import os, threading, time
os.environ["PRIVOPT_CACHE_DIR"] = ""
from privopt.executors import kernels
text = {ADD!r}
kernels.compiled(text.format(0), "add")

def compile_on():
    for k in range(1, 10**6):
        kernels.compiled(text.format(k), "add")

threading.Thread(target=compile_on, daemon=True).start()
for k in range(3):
    time.sleep(0.01)
    child = os.fork()
    if not child:
        kernels.compiled(text.format(10**7 + k), "add")
        os._exit(0)
    for _ in range(100):
        if os.waitpid(child, os.WNOHANG)[0]:
            break
        time.sleep(0.1)
    else:
        os.kill(child, 9)
        print("hung")
os._exit(0)
"""
    assert alone(script) == ""


def test_a_system_without_threads_to_give_costs_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(number: int) -> Any:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threads, "_chosen", 64)
    monkeypatch.setattr(threads, "_pool", [])
    monkeypatch.setattr(threads, "_started", refused)
    done = []
    threads.in_parallel(lambda start, stop: done.append((start, stop)), 5, 2)
    assert done == [(0, 2), (2, 4), (4, 5)]


# ---- processors -------------------------------------------------------------------------------------------

SUBNORMAL = """
import numpy as np
import torch
from privopt import Optimizer, Vector, executor, set_num_threads
from privopt import Optimizer, OptiModule, Vector, executor, state
from privopt.executors import Pass, blocked, threads
from privopt.expression import pruned
set_num_threads(4)
if {pool!r} == "own":
    threads._parallel = lambda: None
entries = np.arange(1, 1 + (1 << 19), dtype=np.uint32).view(np.float32)

def step(by):
    weights, gradients = Vector.build({{"w": entries}}), Vector.build({{"w": entries}})
    with executor(by):
        Optimizer(lrate=0.5).step(gradients, weights)
    return weights.buffers[0].view(np.uint32)

step("llvm"), step("blocked")  # threads begin to wait before anybody changes the mode
for flush in (True, False, True):
    torch.set_flush_denormal(flush)
    whole = step("eager")
    for by in ("llvm", "blocked"):
        for _ in range(3):
            print(flush, by, np.array_equal(step(by), whole))
"""


@pytest.mark.parametrize("pool", ["openmp", "own"])
def test_all_threads_treat_subnormal_numbers_as_the_caller_does(pool: str) -> None:
    pytest.importorskip("torch")
    lines = alone(SUBNORMAL.format(pool=pool)).splitlines()
    assert len(lines) == 18
    assert [line for line in lines if not line.endswith("True")] == []


# ---- the folder of kernels --------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("PRIVOPT_CACHE_DIR", str(tmp_path))
    mask = os.umask(0o002)
    try:
        found = kernels.cache_folder()
        assert found is not None
        yield found
    finally:
        os.umask(mask)


def test_files_that_others_can_write_are_not_run(folder: Path) -> None:
    kernels._keep("text", b"code")
    assert kernels._kept("text") == b"code"
    (file,) = folder.iterdir()
    file.chmod(0o666)
    assert kernels._kept("text") is None
    kernels._keep("text", b"code")
    assert kernels._kept("text") == b"code"


def test_a_read_only_disk_costs_no_step_and_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels._keep("text", b"code")

    def refused(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EROFS, "Read-only file system")

    for owner, name in ((os, "utime"), (Path, "touch"), (Path, "write_bytes"), (Path, "unlink")):
        monkeypatch.setattr(owner, name, refused)
    assert kernels._kept("text") == b"code"
    kernels._keep("other", b"code")


def test_what_a_killed_process_left_is_removed_in_time(folder: Path) -> None:
    for name, age in ((".k0.o.old", 7200), (".k0.o.new", 0)):
        (folder / name).write_bytes(b"torn")
        then = (folder / name).stat().st_mtime - age
        os.utime(folder / name, (then, then))
    kernels._keep("text", b"code")
    assert sorted(file.name[:4] for file in folder.iterdir()) == [".k0.", kernels._name("text")[:4]]


def test_code_that_nobody_can_call_any_more_is_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRIVOPT_CACHE_DIR", "")
    (kept,) = kernels.compiled(ADD.format(40), "add")
    (spent,) = kernels.compiled(ADD.format(41), "add")
    reference = weakref.ref(spent.owner)
    del spent
    kernels._engine.cache_clear()
    gc.collect()
    assert reference() is None
    number = ctypes.c_double(2.0)
    kept.call(ctypes.byref(number))
    assert number.value == 42.0


# ---- one memory, several names ----------------------------------------------------------------------------


class Exchange(OptiModule):
    """Two states that change places, one of them new."""

    name = "exchange-of-states"
    m: Vector = state(0.0)
    v: Vector = state(1.0)

    def run(self, gradients: Vector, weights: Vector) -> Vector:
        self.m, self.v = 0.5 * self.v + gradients, self.m
        return self.m - 0.1 * weights


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("name", ["eager", "blocked", "llvm"])
def test_a_state_that_is_stepped_on_as_weights_is_one_of_the_two_afterwards(name: str, wrapped: bool) -> None:
    ones = np.ones(5, np.float32)
    optimizer = Optimizer(lrate=1.0, modules=[module := Exchange()])
    with executor(name):
        optimizer.step(Vector.build({"w": ones}), Vector.build({"w": ones}))
        weights = module.m  # 0.5 * 1 + 1
        if wrapped:
            weights = Vector(weights.layout, weights.buffers, weights._backend)
        optimizer.step(Vector.build({"w": ones}), weights)
    # m: 0.5 * v + 1, of v = 0; weights: 1.5 - (1 - 0.1 * 1.5)
    np.testing.assert_allclose(weights.buffers[0], 0.65 * ones, rtol=1e-6)
    np.testing.assert_array_equal(module.m.buffers[0], ones)


@pytest.mark.parametrize("targets", ["one array for both", "two arrays in one place"])
def test_two_outputs_never_share_an_array(targets: str) -> None:
    vector = Vector.build({"x": np.ones(5, np.float32)})
    code = [("leaf", 0), ("leaf", 1), ("add", 0, 1), ("mul", 0, 1)]
    program, _, _ = pruned(code, ["float32"] * 4, (2, 3))
    x, y = np.full(5, 2.0, np.float32), np.full(5, 3.0, np.float32)

    def results(first: Any, second: Any) -> Any:
        return llvm.run(Pass(vector._backend, program, [x, y], [], [], None, [first, second], 5, "cpu"))

    assert results(x, y) is not None  # these addresses are known from now on
    np.testing.assert_array_equal((x, y), [[5.0] * 5, [6.0] * 5])
    assert results(x, x if targets == "one array for both" else x[:]) is None
    np.testing.assert_array_equal((x, y), [[5.0] * 5, [6.0] * 5])


def test_numbers_of_two_sizes_in_one_place_are_refused() -> None:
    program, _, _ = pruned([("leaf", 0), ("cast", 0)], ["float32", "float64"], (1,))
    memory = np.ones(5)
    small = memory.view(np.float32)[:5]
    vector = Vector.build({"x": small})
    assert llvm.run(Pass(vector._backend, program, [small], [], [], None, [memory], 5, "cpu")) is None


@pytest.mark.parametrize("first", ["float16", "float32"])
def test_a_block_that_fails_leaves_the_other_blocks(first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Numbers of 16 bits are not compiled: numpy's operations may fail, be it for memory.
    second = {"float16": "float32", "float32": "float16"}[first]
    weights = Vector.build({"x": np.ones(5, first), "y": np.ones(5, second)})
    gradients = weights.copy()
    optimizer = Optimizer(lrate=0.5, modules=[module := Exchange()])
    with executor("llvm"):
        optimizer.step(gradients, weights)
        before = [vector.copy() for vector in (weights, module.m, module.v)]
        with monkeypatch.context() as patch:
            patch.setattr(blocked, "run", lambda job: np.empty(1 << 56))
            with pytest.raises(MemoryError):
                optimizer.step(gradients, weights)
        assert all(a.equals(b) for a, b in zip(before, (weights, module.m, module.v), strict=True))
        optimizer.step(gradients, weights)
    assert not weights.equals(before[0])


# ---- Vectors of steps that are over -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "use",
    [
        lambda kept, gradients: kept + gradients,
        lambda kept, gradients: gradients - kept,
        lambda kept, gradients: gradients.where(kept, 0.0),
        lambda kept, gradients: gradients.dot(kept),
        lambda kept, gradients: kept.copy() * 2.0,
        lambda kept, gradients: kept.norm(),
        lambda kept, gradients: kept.sum(),
        lambda kept, gradients: kept.norms(),
        lambda kept, gradients: kept.coefs,
        lambda kept, gradients: kept.flatten(),
    ],
)
@pytest.mark.parametrize("name", ["blocked", "llvm"])
def test_a_vector_of_an_earlier_step_says_so_however_it_is_used(name: str, use: Any) -> None:
    shelf: list[Vector] = []

    class Keeper(OptiModule):
        name = "keeper-of-a-vector"

        def run(self, gradients: Vector) -> Vector:
            if shelf:
                use(shelf[0], gradients)
            shelf.append(gradients * 2.0)
            return gradients

    weights = Vector.build({"w": np.ones(5)})
    optimizer = Optimizer(lrate=0.5, modules=[Keeper()])
    with executor(name):
        optimizer.step(weights.copy(), weights)
        with pytest.raises(RuntimeError, match="earlier step"):
            optimizer.step(weights.copy(), weights)
    np.testing.assert_array_equal(weights.buffers[0], np.full(5, 0.5))


# ---- zeros, roots, memory ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_torch_takes_the_same_zero_and_root_in_every_place(dtype: str) -> None:
    zeros = np.tile(np.array([0.0, -0.0], dtype), 37)
    x = np.abs(np.random.default_rng(0).standard_normal(1001)).astype(dtype)
    for bound in (0, -0.0, zeros[::-1].copy()):
        for name in ("minimum", "maximum"):
            sides = [
                getattr(Vector.build({"z": make(zeros)}), name)(
                    Vector.build({"z": make(bound)}) if isinstance(bound, np.ndarray) else bound
                )
                for make in (np.array, torch.tensor)
            ]
            numpys, torchs = (np.signbit(v.flatten()) for v in sides)
            np.testing.assert_array_equal(torchs, numpys)
    root = (Vector.build({"x": torch.from_numpy(x)}) ** 0.5).flatten()
    np.testing.assert_array_equal(root, np.sqrt(x))


def test_memory_that_cannot_be_had_for_one_block_is_missed_before_another_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = {"a": np.ones(20_000, np.float32), "b": np.ones(20_000, np.float64)}
    weights, gradients = Vector.build(made), Vector.build(made)
    backend = type(weights._backend)
    real = backend.full

    def full(self: object, size: int, value: float, dtype: str, device: str) -> np.ndarray:
        if dtype == "float64" and failing:
            raise MemoryError
        return real(self, size, value, dtype, device)  # type: ignore[arg-type]

    failing = False
    monkeypatch.setattr(backend, "full", full)
    optimizer = Optimizer(0.5, modules=["momentum"])
    optimizer.step(gradients, weights)
    optimizer.set_state(optimizer.get_state())  # states set from outside are not written to
    before, state = weights.copy(), optimizer.get_state()
    failing = True
    with pytest.raises(MemoryError):
        optimizer.step(gradients, weights)
    failing = False
    assert weights.equals(before)
    assert optimizer.get_state()["modules.0.momentum"]["velocity"].equals(
        state["modules.0.momentum"]["velocity"]
    )
