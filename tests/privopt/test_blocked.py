"""Programs that numpy runs in blocks, into memory that is there: entry for entry the interpreter's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from privopt import Optimizer, OptiModule, Vector, executor, state, summation
from privopt.backends import named_backend
from privopt.executors import Pass, blocked, num_threads, set_num_threads
from privopt.expression import Instruction, pruned

NUMPY = named_backend("numpy")
SIZE = 2500


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(blocked, "BLOCK", 1000)
    with np.errstate(all="ignore"):  # the tests' own arithmetic meets infinities
        yield


def drawn(seed: int, dtype: str, size: int = SIZE) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(size) * 3
    values[rng.integers(0, size, 20)] = rng.choice([0.0, -0.0, 1.0, np.inf, -np.inf, np.nan, 0.5], 20)
    return values > 0 if dtype == "bool" else values.astype(dtype)


def assert_same_bits(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)
    if found.dtype.kind == "f":
        kept = ~np.isnan(expected)
        np.testing.assert_array_equal(np.signbit(found[kept]), np.signbit(expected[kept]))


def ran(
    code: Sequence[Instruction],
    outputs: Sequence[int],
    arrays: Sequence[np.ndarray],
    into: Sequence[int | None],
    scalars: Sequence[Any] = (),
    points: Sequence[np.ndarray] = (),
    bounds: Any = None,
) -> list[np.ndarray]:
    """Run a program into its own leaves (`into` names them) and compare it with the interpreter on copies."""
    dtypes = dtypes_of(code, arrays, scalars)
    program, leaves, spreads = pruned(list(code), dtypes, tuple(outputs))

    def job(own: Sequence[np.ndarray], targets: Sequence[np.ndarray | None]) -> Pass:
        return Pass(
            backend=NUMPY,
            program=program,
            arrays=[own[k] for k in leaves],
            scalars=scalars,
            points=[points[k] for k in spreads],
            bounds=bounds,
            into=list(targets),
            size=SIZE,
            device="cpu",
        )

    expected = blocked.interpret(job([a.copy() for a in arrays], [None] * len(outputs)), 0, SIZE)
    own = [a.copy() for a in arrays]
    before = [a.copy() for a in arrays]
    targets = [None if k is None else own[k] for k in into]
    with np.errstate(all="raise"):
        found = blocked.run(job(own, targets))
    for array, target, plain in zip(found, targets, expected, strict=True):
        assert target is None or array is target
        assert_same_bits(array, plain)
    for k, array in enumerate(own):
        if k not in into:
            np.testing.assert_array_equal(array, before[k])
    fresh = [a for a, t in zip(found, targets, strict=True) if t is None]
    for k, array in enumerate(fresh):
        assert not any(np.shares_memory(array, other) for other in [*own, *fresh[:k]])
    return found


def dtypes_of(code: Sequence[Instruction], arrays: Sequence[np.ndarray], scalars: Sequence[Any]) -> list[str]:
    """The dtype of each node, found by computing it on nothing."""
    empties: list[np.ndarray] = []
    for op, *operands in code:
        x = [int(k) if not isinstance(k, str) else 0 for k in operands]
        inputs = [] if op in ("leaf", "spread") else [empties[k] if k >= 0 else scalars[-1 - k] for k in x]
        if op == "leaf":
            empties.append(arrays[x[0]][:0])
        elif op in ("spread", "fill"):
            empties.append(np.empty(0, "float32"))
        elif op == "cast":
            empties.append(np.empty(0, "float64" if inputs[0].dtype == np.float32 else "float32"))
        elif op == "where":
            empties.append(np.where(*inputs))
        elif len(x) == 1:
            empties.append(NUMPY.unary(str(op), inputs[0]))
        else:
            empties.append(NUMPY.binary(str(op), *inputs))
    return [e.dtype.name for e in empties]


# ---- outputs that are inputs ------------------------------------------------------------------------------

TWO: list[Instruction] = [("leaf", 0), ("leaf", 1)]
A, B = drawn(0, "float32"), drawn(1, "float32")


def test_a_target_that_a_later_node_reads_keeps_its_values_until_then() -> None:
    code = [*TWO, ("add", 0, 1), ("mul", 0, 1), ("sub", 3, 0)]
    first, second = ran(code, [2, 4], [A, B], [0, 1])
    assert_same_bits(first, A + B)
    assert_same_bits(second, A * B - A)


def test_a_result_that_lies_in_its_target_is_read_from_there() -> None:
    code = [*TWO, ("add", 0, 1), ("mul", 2, 2), ("add", 3, 2)]
    first, second = ran(code, [2, 4], [A, B], [0, 1])
    assert_same_bits(first, A + B)
    assert_same_bits(second, (A + B) * (A + B) + (A + B))


def test_outputs_that_are_each_others_inputs_change_places() -> None:
    first, second = ran(TWO, [1, 0], [A, B], [0, 1])
    assert_same_bits(first, B)
    assert_same_bits(second, A)


def test_three_rotate_while_a_fourth_reads_one_of_them() -> None:
    code: list[Instruction] = [("leaf", 0), ("leaf", 1), ("leaf", 2), ("leaf", 3), ("mul", 0, 3)]
    arrays = [drawn(k, "float64") for k in range(4)]
    found = ran(code, [1, 2, 0, 4], arrays, [0, 1, 2, 3])
    for array, expected in zip(found, [arrays[1], arrays[2], arrays[0], arrays[0] * arrays[3]], strict=True):
        assert_same_bits(array, expected)


def test_one_node_fills_several_targets() -> None:
    code = [*TWO, ("add", 0, 1), ("mul", 2, -1)]
    for array in ran(code, [2, 2, 2], [A, B], [1, None, 0], [2.0]):
        assert_same_bits(array, A + B)
    found = ran(code, [2, 3, 2], [A, B], [0, 1, None], [2.0])
    assert_same_bits(found[1], (A + B) * np.float32(2))


def test_a_leaf_is_written_where_it_lies_and_elsewhere() -> None:
    found = ran([*TWO, ("neg", 0)], [0, 2, 0], [A, B], [0, 1, None])
    assert_same_bits(found[2], A)


@pytest.mark.parametrize("into", [0, 1])
def test_a_choice_is_written_over_either_side_of_it(into: int) -> None:
    code = [*TWO, ("gt", 0, 1), ("where", 2, 0, 1)]
    assert_same_bits(ran(code, [3], [A, B], [into])[0], np.where(A > B, A, B))
    wide, other = A.astype("float64"), B.astype("float64")
    assert_same_bits(ran(code, [3], [wide, other], [into])[0], np.where(wide > other, wide, other))


def test_one_array_under_two_names_is_one_array() -> None:
    code: list[Instruction] = [("leaf", 0), ("leaf", 1), ("neg", 0), ("add", 1, 2)]
    program, _, _ = pruned(code, ["float32"] * 4, (2, 3))
    x, fresh = A.copy(), np.empty_like(A)
    blocked.run(Pass(NUMPY, program, [x, x], [], [], None, [x, fresh], SIZE, "cpu"))
    assert_same_bits(x, -A)
    assert_same_bits(fresh, A + -A)


# ---- dtypes, numbers, segments ----------------------------------------------------------------------------


def test_truth_values_and_both_floats_meet_in_one_program() -> None:
    code = [
        *TWO,
        ("cast", 0),
        ("add", 2, 1),
        ("gt", 3, -1),
        ("where", 4, 3, -2),
        ("cast", 5),
        ("mul", 6, 0),
        ("mul", 4, 0),
    ]
    wide = drawn(2, "float64")
    found = ran(code, [7, 5, 4, 8], [A, wide], [0, 1, None, None], [0.1, -0.0])
    total = A.astype("float64") + wide
    chosen = np.where(total > 0.1, total, -0.0)
    assert_same_bits(found[1], chosen)
    assert_same_bits(found[0], chosen.astype("float32") * A)
    assert_same_bits(found[2], total > 0.1)


def test_numbers_are_rounded_to_the_arrays_precision_and_beyond_its_range_infinite() -> None:
    code: list[Instruction] = [("leaf", 0), ("mul", 0, -1), ("add", 1, -2), ("minimum", 2, -3), ("lt", 0, -1)]
    found = ran(code, [3, 4], [A], [None, None], [0.1, 1e300, 3])
    assert_same_bits(found[0], np.minimum(A * np.float32(0.1) + np.float32(np.inf), np.float32(3)))
    assert_same_bits(found[1], np.float32(0.1) > A)


@pytest.mark.parametrize("dtype", ["int32", "float16", "complex64"])
def test_other_dtypes_are_computed_as_numpy_does(dtype: str) -> None:
    a, b = (np.round(np.nan_to_num(drawn(k, "float64"), posinf=1, neginf=-1)).astype(dtype) for k in (0, 1))
    code = [*TWO, ("mul", 0, 1), ("add", 2, -1), ("div", 3, -2), ("abs", 4), ("sub", 0, -3)]
    found = ran(code, [5, 6], [a, b], [None, 0], [3, 2.5, 1])
    assert_same_bits(found[0], abs((a * b + 3) / 2.5))
    assert_same_bits(found[1], a - 1)


@pytest.mark.parametrize(
    "bounds", [[0, 2500], [0, 999, 1000, 1000, 1700, 2001, 2500], range(0, 2501, 5)], ids=len
)
def test_numbers_by_segment_are_spread_over_blocks_of_one_and_of_many(bounds: Sequence[int]) -> None:
    point = np.random.default_rng(0).standard_normal(len(bounds) - 1)
    code = [*TWO, ("spread", 0), ("mul", 0, 2), ("gt", 2, -1), ("where", 4, 3, 1), ("sqrt", 2)]
    spread = np.repeat(point.astype("float32"), np.diff(bounds))
    found = ran(code, [5, 2, 6], [A, B], [1, None, None], [0.0], [point], np.asarray(bounds, np.int64))
    assert_same_bits(found[0], np.where(spread > 0, A * spread, B))
    assert_same_bits(found[1], spread)
    assert_same_bits(found[2], np.sqrt(spread))


@pytest.mark.parametrize("bounds", [[0, 2500], [0, 1200, 2500]], ids=len)
def test_a_power_by_segment_is_a_power_of_arrays(bounds: Sequence[int]) -> None:
    # numpy takes the square root for the number 0.5, which differs at -0.0 and -inf.
    code: list[Instruction] = [("leaf", 0), ("spread", 0), ("pow", 0, 1)]
    found = ran(code, [2], [A], [0], points=[np.full(len(bounds) - 1, 0.5)], bounds=np.array(bounds))
    assert_same_bits(found[0], np.power(A, np.full(SIZE, 0.5, "float32")))
    assert np.isposinf(found[0][np.isneginf(A)]).all()


def test_a_number_everywhere_is_an_array_where_it_is_kept() -> None:
    code = [*TWO, ("fill", -1), ("add", 0, 2), ("maximum", 2, -2)]
    found = ran(code, [2, 3, 4], [A, B], [1, 0, None], [0.1, 0.2])
    assert_same_bits(found[0], np.full(SIZE, 0.1, "float32"))
    assert_same_bits(found[1], A + np.float32(0.1))
    assert_same_bits(found[2], np.full(SIZE, 0.2, "float32"))


UNARY = ["neg", "abs", "sqrt", "sign", "exp", "log", "isfinite"]
BINARY = ["add", "sub", "mul", "div", "minimum", "maximum", "lt", "le", "gt", "ge", "eq", "ne", "pow"]


@pytest.mark.parametrize("seed", range(150))
def test_random_programs_are_what_the_interpreter_makes_of_them(seed: int) -> None:
    rng = np.random.default_rng(seed)
    arrays = [drawn(k, str(rng.choice(["float32", "float32", "float64"]))) for k in range(4)]
    scalars = [float(x) for x in rng.standard_normal(3)] + [2.0]
    code: list[Instruction] = [("leaf", k) for k in range(4)]
    dtypes = [a.dtype.name for a in arrays]
    for _ in range(int(rng.integers(1, 25))):
        numbers = [k for k, d in enumerate(dtypes) if d != "bool"]
        truths = [k for k, d in enumerate(dtypes) if d == "bool"]
        x, y = (int(rng.choice(numbers)) for _ in range(2))
        z = -1 - int(rng.integers(4))
        step: Instruction
        match int(rng.integers(12)):
            case 0 | 1:
                step = (str(rng.choice(UNARY)), x)
            case 2:
                step = ("cast", x)
            case 3:
                step = ("fill", z)
            case 4:
                step = ("spread", int(rng.integers(2)))
            case 5 | 6 if truths:
                c = int(rng.choice(truths))
                step = ("where", c, *((x, y), (x, z), (z, y))[int(rng.integers(3))])
            case _:
                step = (str(rng.choice(BINARY)), *((x, y), (x, z), (z, y), (x, x))[int(rng.integers(4))])
        code.append(step)
        dtypes = dtypes_of(code, arrays, scalars)
    outputs = [int(k) for k in rng.integers(0, len(code), int(rng.integers(1, 6)))]
    free = list(rng.permutation(4))
    into: list[int | None] = []
    for node in outputs:
        fitting = [k for k in free if arrays[k].dtype.name == dtypes[node]]
        into.append(int(fitting[0]) if fitting and rng.random() < 0.8 else None)
        free = [k for k in free if k != into[-1]]
    cuts = np.sort(rng.integers(0, SIZE, int(rng.integers(0, 6))))
    bounds = np.array([0, *cuts, SIZE], np.int64)
    points = [rng.standard_normal(len(bounds) - 1) for _ in range(2)]
    ran(code, outputs, arrays, into, scalars, points, bounds)


# ---- sums -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [blocked.SHARE, blocked.SHARE + 1, 3 * blocked.SHARE + 5000])
def test_sums_by_several_threads_are_the_bits_of_one(size: int) -> None:
    x, y = (np.random.default_rng(k).standard_normal(size).astype("float32") for k in (0, 1))
    before = num_threads()
    try:
        for threads in (1, 2, 5):
            set_num_threads(threads)
            assert blocked.sum_products(x, y) == summation.dot(x, y)
            assert blocked.sum_products(x, x) == summation.dot(x, x)
            assert blocked.sum_products(x, None) == summation.total(x)
    finally:
        set_num_threads(before)
    assert np.isclose(summation.dot(x, y), float(x.astype("float64") @ y), rtol=1e-10)


# ---- steps ------------------------------------------------------------------------------------------------


class Entangled(OptiModule, register=False):
    """States that are read after they were set, that trade places, and that are masked."""

    name = "entangled"
    a: Vector = state(1.0)
    b: Vector = state(2.0)
    c: Vector = state(0.5)

    def run(self, gradients: Vector, weights: Vector) -> Vector:
        old = self.a
        self.a = self.b * 0.9 + gradients
        self.b = old - weights
        self.c = (self.c > gradients).where(self.c, self.a * old)
        return self.c * gradients.norms() + self.b


def stepped(name: str, framework: str, dtype: str) -> list[np.ndarray]:
    import torch

    def vector(seed: int) -> Vector:
        arrays = {"x": drawn(seed, dtype, 30_000), "y": drawn(seed + 50, dtype, 1_000).reshape(10, 100)}
        arrays = {k: np.nan_to_num(a, posinf=2, neginf=-2) for k, a in arrays.items()}
        return Vector.build(
            arrays if framework == "numpy" else {k: torch.from_numpy(a) for k, a in arrays.items()}
        )

    with executor(name):
        optimizer = Optimizer(0.01, 0.001, modules=["l2-global-clipping", Entangled(), "adam"])
        weights = vector(0)
        for step in range(3):
            optimizer.step(vector(step + 1), weights)
    return [
        weights.flatten(),
        *(v.flatten() for v in vars(optimizer.modules[1]).values() if isinstance(v, Vector)),
    ]


@pytest.mark.parametrize("framework", ["numpy", "torch"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_steps_in_many_blocks_and_threads_are_eagers(framework: str, dtype: str) -> None:
    expected = stepped("eager", framework, dtype)
    before = num_threads()
    try:
        for threads in (1, 2, 5):
            set_num_threads(threads)
            found = stepped("blocked", framework, dtype)
            assert len(found) == 4
            for array, plain in zip(found, expected, strict=True):
                assert_same_bits(np.asarray(array), np.asarray(plain))
    finally:
        set_num_threads(before)


def test_a_step_of_adam_is_planned_once_and_copies_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[Any] = []
    real = blocked._Planner.plan

    def plan(self: Any) -> Any:
        plans.append(real(self))
        return plans[-1]

    monkeypatch.setattr(blocked._Planner, "plan", plan)
    with executor("blocked"):
        optimizer = Optimizer(0.01, modules=["adam"])
        weights = Vector.build({"x": drawn(0, "float32", 3001)})
        for step in range(6):
            optimizer.step(Vector.build({"x": drawn(step, "float32", 3001)}), weights)
    assert len(plans) == 1
    functions = [function for function, _, _ in plans[0].steps]
    assert functions
    assert all(isinstance(function, np.ufunc) for function in functions)
    assert len(plans[0].slots) <= 3
