"""Faults that people who tried to break a step have found, each with the smallest case that showed it."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import weakref
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dp
from privopt import Group, Optimizer, OptiModule, Vector, executor, state
from privopt.layout import Layout
from privopt.modules import GaussianNoise
from privopt.schedules import Exponential
from tests.contracts import same_state
from tests.privopt.test_step import RECORDED, Rotate, Swap, vector

EVERY = ["eager", *RECORDED]


class Twin(OptiModule, register=False):
    """One value kept twice, and changed apart."""

    name = "twin"
    a: Vector | None = state(None)
    b: Vector | None = state(None)

    def run(self, gradients: Vector) -> Vector:
        if self.a is None or self.b is None:
            self.a = self.b = gradients * 2
        else:
            self.a, self.b = self.a + 1.0, self.b * 0.5
        return self.a - self.b


def stepped(name: str, optimizer: Optimizer, seed: int = 0) -> tuple[Vector, dict[str, Any]]:
    with executor(name):
        weights = vector(seed, framework="torch")
        for step in range(5):
            optimizer.step(vector(step + 1, framework="torch"), weights)
    return weights, optimizer.get_state()


@pytest.mark.parametrize(
    ("modules", "regularizers"),
    [([Swap], []), ([Rotate], []), ([Twin], []), (["lookahead"], []), ([], [("fedprox", {"alpha": 1.0})])],
)
def test_a_compiler_that_hands_inputs_back_aliases_nothing(
    modules: list[Any], regularizers: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch.compile returns an output that is an input as that tensor; this compiler does nothing else."""
    from privopt.executors import traced

    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    traced._framework.cache_clear()
    results = []
    for name in ("eager", "traced"):
        made = [m() if isinstance(m, type) else m for m in modules]
        results.append(stepped(name, Optimizer(0.1, modules=made, regularizers=regularizers)))
    traced._framework.cache_clear()
    np.testing.assert_allclose(results[1][0].flatten(), results[0][0].flatten(), rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", EVERY)
def test_one_value_in_two_states_is_two_arrays(name: str) -> None:
    memory = np.arange(40001, dtype=np.float32)
    layout = Layout.of([("w", (40000,), "float32", "cpu")])
    backend = Vector.build({"w": memory})._backend
    grads, weights = (Vector(layout, [memory[k : k + 40000]], backend) for k in (0, 1))
    module = Twin()
    with executor(name):
        Optimizer(1e-3, modules=[module]).step(grads, weights)
    assert isinstance(module.a, Vector)
    assert isinstance(module.b, Vector)
    assert not np.shares_memory(module.a.buffers[0], module.b.buffers[0])


@pytest.mark.parametrize("name", EVERY)
def test_a_state_of_another_layout_is_refused_before_anything_is_written(name: str) -> None:
    class Small(OptiModule, register=False):
        name = "small"
        kept: Vector | None = state(None)

        def run(self, gradients: Vector) -> Vector:
            self.kept = Vector.build({"x": np.full(3, 7.0, "float32")})
            return gradients

    module, weights = Small(), vector(0)
    with (
        executor(name),
        pytest.raises(ValueError, match="state 'kept' of 'small' to have the model's layout"),
    ):
        Optimizer(0.1, modules=[module]).step(vector(1), weights)
    assert module.kept is None
    assert weights.equals(vector(0))


POOL = """
import pickle, sys
import numpy as np
from privopt import Vector
vector, layout = pickle.loads(bytes.fromhex(sys.argv[1]))
mine = Vector.build({"w": np.ones(3), "b": np.zeros(2)})
assert mine.layout is vector.layout is layout and {mine.layout: 1}[layout] == 1
print((mine + vector).sum())
"""


def test_vectors_and_optimizers_survive_copies_pickles_and_other_processes() -> None:
    mine = Vector.build({"w": np.ones(3), "b": np.zeros(2)})
    assert (mine + copy.deepcopy(mine)).sum() == 6.0
    sent = pickle.dumps((mine, mine.layout)).hex()
    done = subprocess.run([sys.executable, "-c", POOL, sent], capture_output=True, text=True, check=True)
    assert done.stdout == "6.0\n"
    optimizer, weights = Optimizer(0.1, modules=["adam"]), mine.copy()
    optimizer.step(mine, weights)
    for again in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):  # noqa: S301 - our own bytes
        other = weights.copy()
        again.step(mine, other)
        expected = weights.copy()
        copy.deepcopy(optimizer).step(mine, expected)
        assert other.equals(expected)


@pytest.mark.parametrize(
    ("modules", "kept"),
    [(["momentum", "ema-weights"], "average"), (["lookahead"], "slow"), (["schedule-free"], "average")],
)
def test_averages_of_frozen_weights_are_the_frozen_weights(modules: list[str], kept: str) -> None:
    noise = GaussianNoise(std=1.0, source=dp.random.insecure_source(3))
    optimizer = Optimizer(0.1, 0.1, modules=[noise, *modules], groups=[Group("b", frozen=True)])
    weights = vector(0, "float64")
    start = weights.coefs["b"].copy()
    for step in range(20):
        optimizer.step(vector(step + 1, "float64"), weights)
    np.testing.assert_array_equal(weights.coefs["b"], start)
    np.testing.assert_allclose(getattr(optimizer.modules[-1], kept).coefs["b"], start, rtol=1e-12)


def test_noise_on_frozen_weights_counts_for_no_norm() -> None:
    noise = GaussianNoise(std=100.0, source=dp.random.insecure_source(3))
    optimizer = Optimizer(1.0, modules=[noise, "l2-global-clipping"], groups=[Group("long", frozen=True)])
    assert optimizer.compute_updates(vector(1), vector(0)).norm() == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("number", [signal.SIGALRM, signal.SIGTERM, signal.SIGUSR1])
def test_any_signal_waits_until_memory_is_written(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    from privopt import recording

    def mixed(seed: int) -> Vector:
        rng = np.random.default_rng(seed)
        return Vector.build({"a": rng.standard_normal(9).astype("float32"), "b": rng.standard_normal(4)})

    real = recording.run

    def interrupted(job: Any) -> Any:
        result = real(job)
        os.kill(os.getpid(), number)
        return result

    def late(*arguments: object) -> None:
        raise TimeoutError

    before = signal.signal(number, late)
    try:
        with executor("blocked"):
            optimizer, twin = (Optimizer(0.1, modules=["adam"]) for _ in range(2))
            weights, other = mixed(0), mixed(0)
            twin.step(mixed(1), other)
            monkeypatch.setattr(recording, "run", interrupted)
            with pytest.raises(TimeoutError):
                optimizer.step(mixed(1), weights)
    finally:
        signal.signal(number, before)
    assert weights.equals(other)
    assert same_state(optimizer.get_state(), twin.get_state())


@pytest.mark.parametrize("name", EVERY)
def test_read_only_weights_are_refused_and_nothing_moves(name: str) -> None:
    weights = Vector.build({"a": np.ones(5, np.float32), "b": np.ones(5)})
    weights.buffers[1].flags.writeable = False
    optimizer = Optimizer(0.1, modules=["momentum"])
    with executor(name), pytest.raises(ValueError, match="weights that can be written, got a read-only"):
        optimizer.step(weights.copy(), weights)
    assert weights.sum() == 10.0
    assert optimizer.get_state() == Optimizer(0.1, modules=["momentum"]).get_state()


class Truths(OptiModule, register=False):
    name = "truths"

    def run(self, gradients: Vector, weights: Vector) -> Vector:
        both = ((gradients > 0) + (weights > 0)) * 1.0
        return both * gradients + (weights < 0) * 0.1 * gradients


@pytest.mark.parametrize("framework", ["numpy", "torch"])
@pytest.mark.parametrize("name", RECORDED)
def test_truth_values_in_arithmetic_are_what_the_framework_makes_of_them(name: str, framework: str) -> None:
    results = []
    for chosen in ("eager", name):
        with executor(chosen):
            updates = Optimizer(0.1, modules=[Truths()]).compute_updates(
                vector(1, framework=framework), vector(0, framework=framework)
            )
        results.append(updates.flatten())
    np.testing.assert_array_equal(results[1], results[0])


def test_layouts_that_nobody_holds_are_freed() -> None:
    kept = weakref.ref(Vector.build({"once": np.ones((3, 4321))}).layout.rows)
    layout = weakref.ref(Vector.build({"once": np.ones(4321)}).layout)
    gc.collect()
    assert kept() is None
    assert layout() is None


HOMELESS = """
import pwd, numpy as np
def nobody(uid): raise KeyError(uid)
pwd.getpwuid = nobody
from privopt import Optimizer, Vector, executor
with executor("llvm"):
    weights = Vector.build({"w": np.ones(100, np.float32)})
    Optimizer(0.5).step(weights.copy(), weights)
print(weights.sum())
"""


@pytest.mark.parametrize("damage", [b"\xff\xfe\x00", b"", b"\0" * 400])
def test_damaged_kernels_and_users_without_a_home_cost_no_step(damage: bytes, tmp_path: Path) -> None:
    pytest.importorskip("llvmlite")
    environment = {k: v for k, v in os.environ.items() if k not in ("HOME", "XDG_CACHE_HOME")}
    for round_ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", HOMELESS],
            env={**environment, "PRIVOPT_CACHE_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
        )
        assert done.stdout == "50.0\n", done.stderr
        for path in (tmp_path / "kernels").glob("k*.o"):
            path.write_bytes(damage)
        assert list((tmp_path / "kernels").glob("k*.o")), round_


def test_a_user_without_a_home_computes_in_memory() -> None:
    pytest.importorskip("llvmlite")
    names = ("HOME", "XDG_CACHE_HOME", "PRIVOPT_CACHE_DIR")
    environment = {k: v for k, v in os.environ.items() if k not in names}
    done = subprocess.run([sys.executable, "-c", HOMELESS], env=environment, capture_output=True, text=True)
    assert done.stdout == "50.0\n", done.stderr


@pytest.mark.parametrize("name", RECORDED)
def test_a_vector_of_an_earlier_step_is_refused_as_a_state_and_as_a_result(name: str) -> None:
    box: list[Vector] = []

    class Stale(OptiModule, register=False):
        name = "stale"
        m: Vector | None = state(None)
        finishing: bool = False

        def run(self, gradients: Vector) -> Vector:
            if box and not self.finishing:
                self.m = box[0]
            box.append(gradients * 5.0)
            return gradients

        def finish(self, updates: Vector, weights: Vector) -> Vector:
            return box[0] if self.finishing and len(box) > 1 else updates

    for finishing in (False, True):
        box.clear()
        with executor(name):
            optimizer, weights = Optimizer(0.1, modules=[Stale(finishing)]), vector(0)
            optimizer.step(vector(1), weights)
            with pytest.raises(RuntimeError, match="an earlier step recorded"):
                optimizer.step(vector(2), weights)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("wrap", [lambda v: deque([v]), lambda v: [(v, 1)], lambda v: {"a": {"b": [v]}}])
def test_vectors_deep_inside_undeclared_attributes_are_found(name: str, wrap: Any) -> None:
    class Deep(OptiModule, register=False):
        name = "deep"

        def run(self, gradients: Vector) -> Vector:
            self.history = wrap(gradients)
            return gradients

    with executor(name), pytest.raises(TypeError, match="Vector of this step in 'history'"):
        Optimizer(0.1, modules=[Deep()]).step(vector(1), vector(0))


def test_a_second_thread_in_one_optimizer_is_refused() -> None:
    inside, done = threading.Event(), threading.Event()
    errors: list[BaseException] = []

    class Waits(OptiModule, register=False):
        name = "waits"

        def run(self, gradients: Vector) -> Vector:
            inside.set()
            assert done.wait(20)
            return gradients

    optimizer, weights = Optimizer(0.1, modules=[Waits()]), vector(0)
    first = threading.Thread(target=lambda: optimizer.step(vector(1), weights))
    first.start()
    assert inside.wait(20)
    try:
        optimizer.step(vector(1), weights)
    except RuntimeError as error:
        errors.append(error)
    done.set()
    first.join()
    assert "one step of an optimizer at a time" in str(errors[0])
    optimizer.step(vector(1), weights)  # its turn came back


def test_rates_set_between_steps_count() -> None:
    optimizer, ones = Optimizer(1.0), vector(0).full_like(1.0)
    optimizer.lrate = Exponential(base=0.5, factor=0.5)
    moves = [-optimizer.compute_updates(ones, ones).buffers[0][0] for _ in range(3)]
    assert moves == [0.5, 0.25, 0.125]
    assert optimizer.get_state()["lrate"]["steps_taken"] == 3
    with pytest.raises(ValueError, match="lrate >= 0"):
        optimizer.lrate = float("nan")
    optimizer.w_decay = 0.5
    assert optimizer.get_config()["w_decay"] == 0.5


def test_one_schedule_given_twice_counts_for_each_rate_alone() -> None:
    shared = Exponential(base=0.5, factor=0.5)
    first, second = Optimizer(shared, groups=[Group("b", lrate=shared)]), Optimizer(shared)
    ones = vector(0).full_like(1.0)
    for rate in (0.5, 0.25, 0.125):
        for optimizer in (first, second):
            assert set(optimizer.compute_updates(ones, ones).flatten().tolist()) == {-rate}
    again = Optimizer.from_config(first.get_config())
    again.set_state(first.get_state())
    assert again.current_lrate == 0.125


def test_numpys_reductions_are_refused_with_what_to_use() -> None:
    v = vector(0)
    for call in (np.mean, np.median, np.linalg.norm, np.sum, np.stack):
        with pytest.raises(TypeError, match=r"reductions sum, dot, norm"):
            call([v, v] if call is np.stack else v)
    with pytest.raises(TypeError, match=r"Use \.flatten\(\) for one array"):
        np.asarray(v)


def test_names_in_the_wrong_list_say_where_they_go() -> None:
    with pytest.raises(ValueError, match="'fedprox' is a regularizer: give it where regularizers go"):
        Optimizer(0.1, modules=["fedprox"])
    with pytest.raises(ValueError, match="'adam' with the optimizer's w_decay"):
        Optimizer(0.1, modules=["adamw"])
    with pytest.raises(TypeError, match=r"dict\(model\.named_parameters\(\)\)"):
        Vector.build(torch.nn.Linear(2, 1))  # type: ignore[arg-type]  # the mistake


def test_a_hyper_parameter_changed_later_counts_in_groups_too() -> None:
    optimizer = Optimizer(1.0, modules=["momentum"], groups=[Group("b", settings={"beta": 0.5})])
    ones, moves = vector(0).full_like(1.0), []
    for beta in (0.9, 0.0):
        optimizer.modules[0].beta = beta  # type: ignore[attr-defined]  # momentum's
        moves.append(optimizer.compute_updates(ones, ones).coefs)
    np.testing.assert_allclose(moves[1]["w"], -1.0)
    np.testing.assert_allclose(moves[1]["b"], -1.5)


def test_numbers_per_tensor_end_up_in_no_plain_state() -> None:
    optimizer = Optimizer(0.1, modules=["schedule-free"], groups=[Group("b", settings={"power": 2.0})])
    before = optimizer.get_state()
    with pytest.raises(TypeError, match="a plain number in state 'total' of 'schedule-free'"):
        optimizer.step(vector(1), vector(0))
    assert same_state(optimizer.get_state(), before)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"step": -1}, ValueError, "a count of at least 0 for state 'step' of module 'adam', got -1"),
        ({"step": 2.5}, TypeError, "Expected int for state 'step' of module 'adam', got float"),
        ({"step": True}, TypeError, "got bool"),
        ({"step": "7"}, TypeError, "got str"),
        ({"m": "abc"}, TypeError, "Expected Vector for state 'm'"),
        ({"m": None}, TypeError, "got NoneType"),
        ({"m": np.ones(23)}, TypeError, "got ndarray"),
    ],
)
def test_states_that_cannot_be_are_refused_whole(
    change: dict[str, Any], error: type[Exception], words: str
) -> None:
    optimizer = Optimizer(0.1, modules=["momentum", "adam"])
    optimizer.step(vector(1), vector(0))
    good = optimizer.get_state()
    changed = {**good, "modules.1.adam": {**good["modules.1.adam"], **change}}
    changed["modules.0.momentum"] = {"velocity": vector(9)}
    with pytest.raises(error, match=words):
        optimizer.set_state(changed)
    assert same_state(optimizer.get_state(), good)


def test_a_nan_rate_is_no_state() -> None:
    optimizer = Optimizer(Exponential())
    good = optimizer.get_state()
    with pytest.raises(ValueError, match="a number for state 'last_rate'"):
        optimizer.set_state({"lrate": {**good["lrate"], "last_rate": float("nan")}})


def test_a_state_that_can_be_changed_in_place_is_refused_at_its_declaration() -> None:
    with pytest.raises(TypeError, match="declare a state for each"):
        state([])


@pytest.mark.parametrize("name", ["l2-clipping", "l2-global-clipping"])
def test_a_nan_gradient_passes_no_clip_unclipped(name: str) -> None:
    """As torch.nn.utils.clip_grad_norm_ has it: what a NaN norm scales is NaN."""
    grads = Vector.build({"w": np.array([np.nan, 1e6, -1e6])})
    found = Optimizer(1.0, modules=[name]).compute_updates(grads, grads)
    assert np.isnan(found.flatten()).all()
    zeros = grads.full_like(0.0)
    assert Optimizer(1.0, modules=[name]).compute_updates(zeros, grads).norm() == 0.0


def test_a_noise_source_is_a_keyword_and_two_modules_draw_apart() -> None:
    assert GaussianNoise(0.5).std == 0.5
    source = dp.random.insecure_source(7)
    optimizer = Optimizer(1.0, modules=[GaussianNoise(source=source), GaussianNoise(source=source)])
    alone = Optimizer(1.0, modules=[GaussianNoise(source=source)])
    zeros = vector(0).full_like(0.0)
    both, one = (o.compute_updates(zeros, zeros).flatten() for o in (optimizer, alone))
    assert not np.allclose(both, 2 * one)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"PRIVOPT_EXECUTOR": ""}, ""),
        ({"PRIVOPT_EXECUTOR": "NUMBA"}, "PRIVOPT_EXECUTOR: Expected one of the executors"),
        (
            {"PRIVOPT_EXECUTOR": "blocked", "PRIVOPT_THREADS": "abc"},
            "Expected PRIVOPT_THREADS to be a number",
        ),
        ({"PRIVOPT_EXECUTOR": "blocked", "PRIVOPT_THREADS": "0"}, "from 1 to 1024, got '0'"),
    ],
)
def test_variables_of_the_environment_are_named_when_they_are_wrong(
    variables: dict[str, str], words: str
) -> None:
    code = (
        "import numpy as np; from privopt import Optimizer, Vector\n"
        "v = Vector.build({'w': np.ones(5)}); Optimizer(0.1).step(v.copy(), v)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **variables}, capture_output=True, text=True
    )
    assert words in done.stderr
    assert (done.returncode == 0) == (words == "")
