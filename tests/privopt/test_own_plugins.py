"""Plug-ins of one's own: what a step sees to for them, and mistakes told where they are made."""

from __future__ import annotations

import copy
import math
import types
from typing import Any

import numpy as np
import pytest

from privopt import Optimizer, OptiModule, Regularizer, Schedule, Vector, executor, state
from privopt.cli import main
from privopt.testing.inputs import LARGE, SEVERAL, Shapes, gradients


class Keeps(OptiModule, register=False):
    """Keeps everything that a step hands to it, without a copy."""

    name = "keeps"
    seen: Vector | None = state(None)
    at: Vector | None = state(None)
    raw: Vector | None = state(None)
    twice: Vector | None = state(None)
    moved: Vector | None = state(None)
    before: Vector | None = state(None)

    def run(self, gradients: Vector, weights: Vector, raw_gradients: Vector) -> Vector:
        """Pass gradients."""
        self.seen, self.at, self.raw, self.twice = gradients, weights, raw_gradients, self.seen
        return gradients

    def finish(self, updates: Vector, weights: Vector) -> Vector:
        """Pass updates."""
        self.moved, self.before = updates, weights
        return updates


def numbers(vector: Vector) -> Any:
    return np.array(vector.flatten())


def spoil(framework: str, *vectors: Vector) -> None:
    """Write into arrays, where the framework's can be written to."""
    for vector in vectors:
        if framework in ("numpy", "torch"):
            for array in vector.coefs.values():
                array[...] = 7.0


@pytest.mark.parametrize("by", ["eager", "auto", "exact", "blocked"])
@pytest.mark.parametrize("framework", ["numpy", "torch", "jax", "tensorflow"])
@pytest.mark.parametrize("shapes", [SEVERAL, LARGE], ids=["small", "large"])
def test_a_plug_in_may_keep_what_a_step_hands_to_it_without_a_copy(
    shapes: Shapes, framework: str, by: str
) -> None:
    pytest.importorskip(framework)
    keeps = Keeps()
    optimizer = Optimizer(0.5, modules=[keeps, "sign"])
    weights = gradients(1000, shapes, "float32", framework)
    earlier = None
    with executor(by):
        for step in range(3):
            grads = gradients(step, shapes, "float32", framework)
            given, start = numbers(grads), numbers(weights)
            optimizer.step(grads, weights)
            spoil(framework, grads)
            # A step elsewhere, whose memory may be what this step gave up.
            Optimizer(0.5, modules=["adam"]).step(gradients(9, shapes, "float32", framework), weights.copy())
            expected = [given, start, given, earlier, -0.5 * np.sign(given), start]
            for (name, found), value in zip(keeps.get_state().items(), expected, strict=True):
                assert (found is None) == (value is None), name
                assert value is None or np.array_equal(numbers(found), value), (name, step)
            earlier = given


@pytest.mark.parametrize("by", ["eager", "blocked"])
def test_a_state_in_another_framework_than_the_weights_is_refused_in_the_step_that_leaves_it(by: str) -> None:
    torch = pytest.importorskip("torch")

    class Moves(OptiModule, register=False):
        name = "moves"
        seen: Vector | None = state(None)

        def run(self, gradients: Vector) -> Vector:
            self.seen = gradients.to_numpy()
            return gradients

    weights = Vector.build({"w": torch.ones(3)})
    with (
        executor(by),
        pytest.raises(TypeError, match=r"'seen' of 'moves' as a Vector of torch, got one of numpy"),
    ):
        Optimizer(0.1, modules=[Moves()]).step(weights.copy(), weights)
    assert weights.flatten().tolist() == [1.0, 1.0, 1.0]


# ---- declarations --------------------------------------------------------------------------------------


def declared(annotations: dict[str, Any], base: type = OptiModule, **body: Any) -> Any:
    """A module that declares what a test gives it."""

    def run(self: Any, gradients: Vector) -> Vector:
        return gradients

    body = {"name": "declared", "run": run, "__annotations__": annotations, **body}
    return types.new_class("Declared", (base,), {"register": False}, lambda made: made.update(body))


@pytest.mark.parametrize("spelled", ["as types", "as strings"])
@pytest.mark.parametrize(
    ("annotation", "first", "words"),
    [
        (Vector, state(), r"Declared\.m that is Vector, got state\(\)\. Write `m: Vector = state\(0\.0\)`"),
        (
            Vector,
            state(None),
            r"Declared\.m that is Vector, got state\(None\).*or `m: Vector \| None = state",
        ),
        (Vector, state("x"), r"Declared\.m that is Vector, got state\('x'\)"),
        (
            Vector | None,
            state(0.0),
            r"Declared\.m that is Vector \| None, got state\(0\.0\).*or `m: Vector =",
        ),
        (int, state(), r"Declared\.m that is int, got state\(\)\. Write `m: int = state\(0\)`"),
        (int, state(0.5), r"Declared\.m that is int, got state\(0\.5\)"),
        (int, state(None), r"Declared\.m that is int, got state\(None\)"),
        (int, state(True), r"Declared\.m that is int, got state\(True\)"),
        (bool, state(0), r"Declared\.m that is bool, got state\(0\)"),
        (str, state(0), r"Declared\.m that is str, got state\(0\)"),
        (Vector, 0.0, r"Declared\.m to be declared as state, got a parameter.*`m: Vector = state\(0\.0\)`"),
        (Vector | None, None, r"Declared\.m to be declared as state, got a parameter"),
    ],
)
def test_a_declaration_that_contradicts_itself_is_refused_when_the_class_is_made(
    annotation: Any, first: Any, words: str, spelled: str
) -> None:
    if spelled == "as strings":
        annotation = str(annotation).replace("privopt.vector.", "") if annotation is not Vector else "Vector"
        annotation = annotation.removeprefix("<class '").removesuffix("'>")
    with pytest.raises(TypeError, match=words):
        declared({"m": annotation}, m=first)


def test_a_vector_without_state_or_default_is_told_to_be_a_state() -> None:
    with pytest.raises(TypeError, match=r"Declared\.m to be declared as state, got a parameter"):
        declared({"m": "Vector"})


def test_a_state_without_annotation_is_told_with_its_class() -> None:
    with pytest.raises(
        TypeError, match=r"an annotation for Declared\.m, got none\. Write `m: Vector = state"
    ):
        declared({}, m=state(0.0))


@pytest.mark.parametrize(
    ("annotation", "first", "value"),
    [(float, 0, 1), (float | None, None, 0.5), ("Optional[Vector]", None, None), (int | str, "", 3)],
)
def test_what_an_annotation_allows_is_allowed(annotation: Any, first: Any, value: Any) -> None:
    built = declared({"m": annotation}, m=state(first))()
    built.set_state({"m": value})
    assert built.get_state() == {"m": value}


# ---- states are what they are declared to be -----------------------------------------------------------


def module_that_leaves(annotation: str, first: Any, leave: Any) -> OptiModule:
    def run(self: Any, gradients: Vector) -> Vector:
        self.m = leave(self, gradients)
        return gradients

    built: OptiModule = declared({"m": annotation}, m=state(first), run=run)()
    return built


WRONG = [
    (
        "Vector",
        0.0,
        lambda self, g: g.norm(),
        r"Vector in state 'm' of module 'declared', got float.*full_like",
    ),
    ("Vector", 0.0, lambda self, g: None, r"Vector in state 'm' .*got None\. Declare `m: Vector \| None"),
    ("Vector | None", None, lambda self, g: 1.0, r"Vector \| None in state 'm' .*got float"),
    ("float", 0.0, lambda self, g: 2 * g, r"float in state 'm' .*got Vector\. Declare `m: Vector = state"),
    (
        "int",
        0,
        lambda self, g: g.norm(),
        r"int in state 'm' .*got float\. Declare `m: float = state\(0\.0\)`",
    ),
    ("int", 0, lambda self, g: True, r"int in state 'm' .*got bool"),
    ("int", 0, lambda self, g: np.int64(3), r"int in state 'm' .*got int64\. Convert it to int"),
    ("bool", False, lambda self, g: 1, r"bool in state 'm' .*got int"),
    ("str", "", lambda self, g: None, r"str in state 'm' .*got None"),
]


@pytest.mark.parametrize("by", ["eager", "blocked", "run"])
@pytest.mark.parametrize(("annotation", "first", "leave", "words"), WRONG)
def test_a_state_that_is_not_what_it_was_declared_fails_the_step_that_leaves_it(
    annotation: str, first: Any, leave: Any, words: str, by: str
) -> None:
    module = module_that_leaves(annotation, first, leave)
    weights, grads = (Vector.build({"w": np.array([x])}) for x in (8.0, 1.0))
    if by == "run":
        with pytest.raises(TypeError, match=words):
            module.run(grads)
        return
    with executor(by), pytest.raises(TypeError, match=words):
        Optimizer(0.5, modules=[module]).step(grads, weights)
    assert module.get_state() == {"m": first}
    assert weights.flatten() == 8.0


@pytest.mark.parametrize("by", ["eager", "blocked"])
@pytest.mark.parametrize(
    ("annotation", "first", "leave"),
    [
        ("Vector", 0.5, lambda self, g: 2 * g),
        ("Vector | None", None, lambda self, g: None),
        ("Vector | None", None, lambda self, g: g),
        ("float", 0.0, lambda self, g: g.norm()),
        ("float", 0.0, lambda self, g: np.float64(g.norm())),
        ("float", 0.0, lambda self, g: 3),
        ("float | None", None, lambda self, g: 1.5),
        ("int", 0, lambda self, g: self.m + 1),
        ("bool", False, lambda self, g: g.norm() > 1),
        ("Any", None, lambda self, g: (1, "two")),
        # Forgotten in the middle of a step, it starts again.
        ("Vector", 0.5, lambda self, g: (self.reset(), self.m)[1]),
    ],
)
def test_a_state_that_is_what_it_was_declared_passes(
    annotation: str, first: Any, leave: Any, by: str
) -> None:
    module = module_that_leaves(annotation, first, leave)
    optimizer = Optimizer(0.5, modules=[module])
    weights = Vector.build({"w": np.array([8.0])})
    with executor(by):
        for _ in range(3):
            optimizer.step(Vector.build({"w": np.array([1.0])}), weights)
    Optimizer(0.5, modules=[module_that_leaves(annotation, first, leave)]).set_state(optimizer.get_state())


def test_a_state_that_was_never_written_costs_no_error() -> None:
    class Seldom(OptiModule, register=False):
        name = "seldom"
        last: int = state(0)

        def run(self, gradients: Vector) -> Vector:
            return gradients

    weights = Vector.build({"w": np.ones(1)})
    Optimizer(0.5, modules=[Seldom()]).step(weights.copy(), weights)
    assert weights.flatten() == 0.5


# ---- parameters that are set later ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "error", "words"),
    [
        ("beta_1", 2.0, ValueError, r"0 <= beta_1 < 1 for module 'adam', got beta_1=2\.0"),
        ("beta_1", "high", TypeError, r"a number for adam\.beta_1, got 'high'"),
        ("amsgrad", 1, TypeError, r"true or false for adam\.amsgrad"),
        ("beta1", 0.5, AttributeError, r"of module 'adam' to be set, got 'beta1'\. Did you mean 'beta_1'\?"),
        ("beta_l", 0.5, AttributeError, r"got 'beta_l'\. Did you mean 'beta_1'\?"),
        ("stepp", 3, AttributeError, r"got 'stepp'\. Did you mean 'step'\?"),
    ],
)
def test_a_parameter_set_later_is_checked_as_by_the_constructor(
    name: str, value: Any, error: type[Exception], words: str
) -> None:
    optimizer = Optimizer(0.1, modules=["adam"])
    before = optimizer.get_config()
    with pytest.raises(error, match=words):
        setattr(optimizer.modules[0], name, value)
    assert optimizer.get_config() == before


def test_other_spellings_of_parameters_are_told_where_a_plug_in_is_looked_up(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["modules", "adam"]) in (0, None)
    assert "Other spellings that are accepted: beta1 for beta_1, beta2 for beta_2." in capsys.readouterr().out
    built = Optimizer(0.1, modules=[("adam", {"beta1": 0.5})])
    assert built.get_config()["modules"][0][1]["beta_1"] == 0.5


def test_a_parameter_set_later_acts_as_one_given_at_once() -> None:
    later, at_once = Optimizer(0.1, modules=["adam"]), Optimizer(0.1, modules=[("adam", {"beta_1": 0.0})])
    adam: Any = later.modules[0]
    adam.beta_1 = 0  # made a float, as by the constructor
    assert later.get_config() == at_once.get_config()
    grads, found, expected = (Vector.build({"w": np.array([x, -x])}) for x in (1.0, 3.0, 3.0))
    for _ in range(2):
        later.step(grads, found)
        at_once.step(grads, expected)
    assert found.equals(expected)


def test_schedules_check_what_is_set_later_too() -> None:
    optimizer = Optimizer(("exponential", {"base": 0.1, "factor": 0.9}))
    schedule: Any = optimizer.lrate
    with pytest.raises(
        AttributeError, match=r"schedule 'exponential' to be set, got 'bace'\. Did you mean 'base'"
    ):
        schedule.bace = 0.2
    schedule.base = 0.2
    assert optimizer.get_config()["lrate"][1]["base"] == 0.2


def test_a_plug_in_may_keep_names_of_its_own_that_nobody_sets_by_mistake() -> None:
    class Own(OptiModule, register=False):
        name = "own"
        count = 0

        def __post_init__(self) -> None:
            super().__post_init__()
            self.made = 1  # by its constructor

        def run(self, gradients: Vector) -> Vector:
            self.made, self.count, self._seen = 2, self.count + 1, True
            return gradients

    own = copy.deepcopy(Own())
    own.run(Vector.build({"w": np.ones(1)}))
    assert (own.made, own.count) == (2, 1)


# ---- methods -------------------------------------------------------------------------------------------


def method(arguments: str) -> Any:
    made: Any = eval(f"lambda {arguments}: None")
    return made


@pytest.mark.parametrize(
    ("base", "name", "arguments", "words"),
    [
        (
            OptiModule,
            "run",
            "self, g, params",
            r"`weights` and `raw_gradients`, got also 'params', which nobody",
        ),
        (OptiModule, "run", "self", r"Declared\.run to take gradients first, got \(self\)"),
        (OptiModule, "run", "self, weights", r"Declared\.run to take gradients first, got \(self, weights\)"),
        (OptiModule, "run", "self, g, *, params", r"got also 'params'"),
        (
            OptiModule,
            "finish",
            "self, updates",
            r"Declared\.finish to take \(self, updates, weights\).*got \(self, ",
        ),
        (Regularizer, "run", "self, gradients", r"Declared\.run to take \(self, gradients, weights\)"),
        (Schedule, "rate", "self", r"Declared\.rate to take \(self, t\)"),
        (OptiModule, "on_round_end", "self", r"Declared\.on_round_end to take \(self, accepted\)"),
        (OptiModule, "process_aux_var", "self", r"Declared\.process_aux_var to take \(self, aux_var\)"),
        (OptiModule, "on_round_begin", "self", r"got 'on_round_begin', which nobody calls.*'on_round_"),
        (
            OptiModule,
            "on_rooster",
            "self, clients",
            r"got 'on_rooster', which nobody calls\. Did you mean 'on_roster'",
        ),
    ],
)
def test_a_method_that_is_called_otherwise_or_never_is_refused_when_the_class_is_made(
    base: type, name: str, arguments: str, words: str
) -> None:
    with pytest.raises(TypeError, match=words):
        declared({}, base, **{name: method(arguments)})


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("run", "self, g"),
        ("run", "self, gradients, raw_gradients, weights"),
        ("run", "self, *anything, **named"),
        ("run", "self, gradients, scale=1.0"),
        ("finish", "self, updates, weights, scale=1.0"),
        ("finish", "self, *both"),
        ("on_round_end", "self, ok"),
        ("helper", "self, anything"),
    ],
)
def test_methods_that_can_be_called_are_taken_whatever_their_arguments_are_called(
    name: str, arguments: str
) -> None:
    assert declared({}, **{name: method(arguments)}).name == "declared"


# ---- auxiliary variables -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (1, r"an AuxVar for 'scaffold', got int\.$"),
        ([1], r"an AuxVar for 'scaffold', got list\. Combine what clients sent first: sum\(sent\)"),
        (
            {"c0": 1},
            r"an AuxVar for 'scaffold', got dict\. Hand a client its own part: answers\['scaffold'\]\[cl",
        ),
    ],
)
def test_auxiliary_variables_of_another_kind_are_refused_with_what_to_do(given: Any, words: str) -> None:
    for module in ("scaffold-client", "scaffold-server"):
        with pytest.raises(TypeError, match=words):
            Optimizer(0.1, modules=[module]).process_aux_var({"scaffold": given})


# ---- operations that there are none of ---------------------------------------------------------------------


@pytest.mark.parametrize("by", ["eager", "blocked", "run"])
@pytest.mark.parametrize(
    ("compute", "error", "words"),
    [
        (np.tanh, TypeError, r"got numpy\.tanh\. Vectors have .*sqrt.*`v\.unflatten\(f\(v\.flatten\(\)\)\)`"),
        (np.mean, TypeError, r"got numpy\.mean\. Vectors have .*row_means"),
        (np.add.reduce, TypeError, r"got numpy\.add\. Vectors have"),
        (
            lambda g: np.ones(3) * g,
            TypeError,
            r"numpy\.multiply of ndarray and Vector\. `v\.unflatten\(array\)`",
        ),
        (float, TypeError, r"A Vector has no single value\. Use v\.norm\(\)"),
        (math.sqrt, TypeError, r"A Vector has no single value"),
        (lambda g: g.tanh(), AttributeError, r"got \.tanh\. Vectors have"),
    ],
)
def test_an_operation_that_vectors_do_not_have_is_told_with_those_that_they_have(
    compute: Any, error: type[Exception], words: str, by: str
) -> None:
    refuse(compute, error, words, by, np.ones(3))


@pytest.mark.parametrize("by", ["eager", "blocked", "run"])
def test_a_function_of_torch_is_told_the_operations_that_vectors_have(by: str) -> None:
    torch = pytest.importorskip("torch")
    for compute in (torch.tanh, torch.nn.functional.relu, lambda g: torch.where(g > 0, g, g)):
        refuse(compute, TypeError, r"got torch's \w+\. Vectors have", by, torch.ones(3))


def refuse(compute: Any, error: type[Exception], words: str, by: str, array: Any) -> None:
    module = declared({}, run=lambda self, gradients: compute(gradients))()
    weights = Vector.build({"w": array})
    if by == "run":
        with pytest.raises(error, match=words) as caught:
            module.run(weights)
    else:
        with executor(by), pytest.raises(error, match=words) as caught:
            Optimizer(0.5, modules=[module]).step(weights.copy(), weights)
    for word in ("Recorded", "Borrowed"):
        assert word not in str(caught.value), "names of the inside say nothing to a plug-in's author"


def test_what_the_message_advises_works() -> None:
    module = declared({}, run=lambda self, g: g.unflatten(np.tanh(g.flatten())))()
    weights = Vector.build({"w": np.zeros((2, 2)), "b": np.zeros(1)})
    grads = Vector.build({"w": np.array([[1.0, 2.0], [3.0, 4.0]]), "b": np.array([-1.0])})
    found = Optimizer(1.0, modules=[module]).compute_updates(grads, weights).coefs
    assert np.array_equal(found["w"], -np.tanh(grads.coefs["w"]))
    assert np.array_equal(found["b"], -np.tanh(grads.coefs["b"]))
