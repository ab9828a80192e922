from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import dp
from privopt import Group, Optimizer, OptiModule, Vector, build_federation, state
from privopt.checkpoint import dump_state, load_state, read_state, write_state
from privopt.modules import GaussianNoise, ScaffoldClient, ScaffoldState
from tests.contracts import gradients, same_state
from tests.privopt.frameworks import array as as_framework

SHAPES = {"w": (3, 2), "b": (3,)}
CHAIN = [("l2-global-clipping", {"max_norm": 0.5}), "adam", "momentum"]


def test_one_step_follows_the_documented_formula() -> None:
    grads, weights = gradients(0, SHAPES), gradients(1, SHAPES)
    updates = Optimizer(0.1, w_decay=0.01, regularizers=[("ridge", {"alpha": 0.5})]).compute_updates(
        grads, weights
    )
    expected = -(0.1 * (grads.flatten() + weights.flatten()) + 0.01 * weights.flatten())
    np.testing.assert_allclose(updates.flatten(), expected, rtol=1e-14)


def test_plug_ins_run_in_order_regularizers_first() -> None:
    grads, weights = gradients(0, SHAPES), gradients(1, SHAPES)
    optimizer = Optimizer(1.0, regularizers=["lasso", "ridge"], modules=["l2-clipping", "momentum"])
    expected = grads
    for plugin in Optimizer(1.0, regularizers=["lasso", "ridge"]).regularizers:
        expected = plugin.run(expected, weights)
    for module in Optimizer(1.0, modules=["l2-clipping", "momentum"]).modules:
        expected = module.run(expected)
    assert optimizer.compute_updates(grads, weights).equals(-expected)
    assert [p.name for p in optimizer.plugins] == ["lasso", "ridge", "l2-clipping", "momentum"]


def test_compute_updates_changes_no_argument_and_step_moves_the_weights_in_place() -> None:
    grads, weights = gradients(0, SHAPES), gradients(1, SHAPES)
    before = grads.copy(), weights.copy()
    optimizer = Optimizer(0.1, modules=CHAIN, regularizers=["fedprox"])
    optimizer.compute_updates(grads, weights)
    assert grads.equals(before[0])
    assert weights.equals(before[1])
    view = weights.coefs["w"]
    optimizer.step(grads, weights)
    assert not np.array_equal(view, before[1].coefs["w"])


@pytest.mark.parametrize("stop", [1, 4, 7])
def test_stop_and_resume_through_bytes_is_bitwise(stop: int) -> None:
    def make() -> Optimizer:
        return Optimizer(0.1, w_decay=0.01, regularizers=["fedprox"], modules=["scaffold-client", *CHAIN])

    def train(optimizer: Optimizer, weights: Vector, steps: range) -> None:
        for step in steps:
            if step % 4 == 0:
                optimizer.start_round()
            optimizer.step(gradients(step, SHAPES), weights)

    live, weights = make(), gradients(99, SHAPES)
    train(live, weights, range(9))
    first, resumed = make(), gradients(99, SHAPES)
    train(first, resumed, range(stop))
    second = Optimizer.from_config(json.loads(json.dumps(first.get_config())))
    second.set_state(load_state(dump_state(first.get_state())))
    train(second, resumed, range(stop, 9))
    assert resumed.equals(weights)
    assert same_state(second.get_state(), live.get_state())


def test_config_is_json_and_builds_an_equal_optimizer() -> None:
    optimizer = Optimizer(1, w_decay=0.5, regularizers=["fedprox", ("lasso", {"alpha": 0.3})], modules=CHAIN)
    config = json.loads(json.dumps(optimizer.get_config()))
    assert Optimizer.from_config(config).get_config() == optimizer.get_config()
    assert config["version"] == 1
    with pytest.raises(ValueError, match="version 1, got 2"):
        Optimizer.from_config({**config, "version": 2})
    with pytest.raises(TypeError, match=r"got also \['lr'\]"):
        Optimizer.from_config({**config, "lr": 2})


def test_a_step_that_raises_leaves_every_state_as_it_was() -> None:
    class Breaks(OptiModule, register=False):
        name = "breaks"
        count: int = state(0)

        def run(self, gradients: Vector) -> Vector:
            self.count += 1
            if self.count == 2:
                raise RuntimeError("on purpose")
            return gradients

    optimizer = Optimizer(0.1, regularizers=["fedprox"], modules=["adam", Breaks(), "momentum"])
    weights = gradients(9, SHAPES)
    optimizer.step(gradients(0, SHAPES), weights)
    before, kept = optimizer.get_state(), weights.copy()
    with pytest.raises(RuntimeError, match="on purpose"):
        optimizer.step(gradients(1, SHAPES), weights)
    assert same_state(optimizer.get_state(), before)
    assert weights.equals(kept)


def test_get_state_is_a_snapshot() -> None:
    optimizer = Optimizer(0.1, modules=["momentum"])
    optimizer.step(gradients(0, SHAPES), gradients(1, SHAPES))
    snapshot = optimizer.get_state()
    kept = snapshot["modules.0.momentum"]["velocity"].copy()
    optimizer.step(gradients(2, SHAPES), gradients(1, SHAPES))
    assert snapshot["modules.0.momentum"]["velocity"].equals(kept)


def test_set_state_of_other_plug_ins_is_refused_and_changes_nothing() -> None:
    optimizer, other = Optimizer(0.1, modules=["momentum"]), Optimizer(0.1, modules=["adam"])
    optimizer.step(gradients(0, SHAPES), gradients(1, SHAPES))
    before = optimizer.get_state()
    with pytest.raises(KeyError, match="Were the plug-ins changed"):
        optimizer.set_state(other.get_state())
    with pytest.raises(KeyError, match="velocity"):
        optimizer.set_state({"modules.0.momentum": {}})
    assert same_state(optimizer.get_state(), before)


def test_aux_vars_reach_their_counterparts_only() -> None:
    optimizer = Optimizer(0.1, modules=["scaffold-client"])
    control = gradients(3, SHAPES)
    optimizer.process_aux_var({"scaffold": ScaffoldState(control=control)})
    module = optimizer.modules[0]
    assert isinstance(module, ScaffoldClient)
    assert module.server.equals(control)
    with pytest.raises(ValueError, match=r"for \['scaffold'\], got 'mime'"):
        optimizer.process_aux_var({"mime": ScaffoldState(control=control)})
    assert Optimizer(0.1).collect_aux_var() == {}


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Optimizer(-1.0), ValueError, "lrate >= 0 and finite, got lrate=-1.0"),
        (lambda: Optimizer("x"), ValueError, "a known schedule, got .x."),
        (lambda: Optimizer(True), TypeError, "a number for lrate"),
        (lambda: Optimizer(1.0, w_decay=float("inf")), ValueError, "w_decay"),
        (lambda: Optimizer(1.0, modules="adam"), TypeError, r"a list of modules.*\['adam'\]"),
        (lambda: Optimizer(1.0, modules=["adamm"]), ValueError, "Did you mean 'adam'"),
        (lambda: Optimizer(1.0, modules=[("adam", {"x": 1})]), TypeError, "got 'x'"),
        (lambda: Optimizer(1.0, modules=[3]), TypeError, "an instance, a name, or"),
        (lambda: Optimizer(1.0, modules=["fedprox"]), ValueError, "known module, got 'fedprox'"),
        (
            lambda: Optimizer(1.0, modules=[Optimizer(1.0, regularizers=["fedprox"]).regularizers[0]]),
            TypeError,
            "got the regularizer 'fedprox'",
        ),
        (lambda: Optimizer(1.0, modules=["scaffold-client"] * 2), ValueError, "one module per aux_name"),
        (lambda: Optimizer(1.0, modules=["scaffold-client", "gaussian-noise"]), ValueError, "noise before"),
    ],
)
def test_what_cannot_work_is_refused_at_construction(make: object, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        make()  # type: ignore[operator]


def test_noise_before_scaffold_is_the_right_order() -> None:
    noise = GaussianNoise(std=1.0, source=dp.random.insecure_source(0))
    assert Optimizer(1.0, modules=[noise, "scaffold-client"]).modules[0] is noise


def test_wrong_gradients_are_refused() -> None:
    optimizer, weights = Optimizer(0.1, modules=["adam"]), gradients(0, SHAPES)
    with pytest.raises(ValueError, match="same layout: tensor 'v' stands where the other has 'w'"):
        optimizer.compute_updates(gradients(0, {"v": (1,)}), weights)
    with pytest.raises(TypeError, match="gradients as a Vector, got dict"):
        optimizer.compute_updates({}, weights)


@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_packing_writes_named_arrays_into_the_vectors_memory(framework: str) -> None:
    grads, other = gradients(0, SHAPES), gradients(1, SHAPES)
    if framework == "torch":
        grads, other = (
            Vector.build({k: torch.from_numpy(a) for k, a in v.coefs.items()}) for v in (grads, other)
        )
    memory = grads.buffers[0]
    assert grads.pack(dict(reversed(other.coefs.items()))).equals(other)
    assert grads.buffers[0] is memory or framework == "torch"
    assert memory[0] == other.buffers[0][0]
    before = grads.copy()
    with pytest.raises(ValueError, match=r"none of \['b'\] and also \['c'\]"):
        grads.pack({"w": other.coefs["w"], "c": other.coefs["b"]})
    with pytest.raises(ValueError, match=r"'b' of shape \(3,\), got \(3, 2\)"):
        grads.pack({"w": other.coefs["w"], "b": other.coefs["w"]})
    with pytest.raises(TypeError, match=f"an array of {framework} for 'b', got list"):
        grads.pack({"w": other.coefs["w"], "b": [1.0, 2.0, 3.0]})
    assert grads.equals(before)


def test_integers_among_the_weights_are_named() -> None:
    weights = Vector.build({"w": np.ones(2), "count": np.ones((), np.int64)})
    with pytest.raises(TypeError, match=r"got 'count' of dtype int64\. Leave it out"):
        Optimizer(0.1).step(weights, weights)


def test_a_state_follows_a_model_that_is_spread_over_other_dtypes() -> None:
    values = gradients(0, SHAPES)
    spread = Vector.build({"w": values.coefs["w"], "b": values.coefs["b"].astype("float32")})
    moved = values.to(spread)
    assert moved.layout == spread.layout
    assert moved.equals(spread)
    with pytest.raises(ValueError, match="tensor 'b' has shape"):
        values.to(Vector.build({"w": np.ones((3, 2)), "b": np.ones(4)}))


def test_numpys_functions_take_vectors_and_refuse_arrays_beside_them() -> None:
    v = gradients(0, SHAPES).abs()
    for name in ("sqrt", "exp", "log", "negative", "absolute", "sign"):
        found = getattr(np, name)(v)
        np.testing.assert_array_equal(found.flatten(), getattr(np, name)(v.flatten()))
    np.testing.assert_array_equal(np.minimum(v, 0.5).flatten(), np.minimum(v.flatten(), 0.5))
    np.testing.assert_array_equal((np.float64(2) / v).flatten(), 2 / v.flatten())
    np.testing.assert_array_equal((np.float64(0.5) < v).flatten(), v.flatten() > 0.5)
    with pytest.raises(TypeError, match=r"got numpy\.multiply of ndarray and Vector"):
        np.ones(3) * v
    with pytest.raises(TypeError, match=r"got numpy\.sin\. Vectors have"):
        np.sin(v)


class Plain(OptiModule, register=False):
    name = "plain"

    def run(self, gradients: Vector) -> Vector:
        return gradients


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Optimizer(lr=0.1), "Optimizer among lrate, .* got 'lr'. Did you mean 'lrate'"),
        (lambda: Optimizer(0.1, weight_decay=1.0), "'w_decay'. It is not multiplied by the rate"),
        (lambda: Optimizer(0.1, moduls=[]), "got 'moduls'. Did you mean 'modules'"),
        (lambda: Group("a", lr=0.1), "Group among match, .* got 'lr'. Did you mean 'lrate'"),
        (lambda: Optimizer("0.1"), "lrate as a number, without quotes, got '0.1'"),
        (lambda: Optimizer(0.1, modules=("adam", {"eps": 1.0})), r"Wrap it: \[\('adam', {'eps': 1.0}\)\]"),
        (lambda: Optimizer(0.1, modules=7), "list of modules, got 7"),
        (lambda: Optimizer(0.1, modules=[Plain]), r"got the class Plain. Write Plain\(\)"),
        (lambda: Optimizer(0.1).verify({"w": 1}), "a Vector or its layout, got dict"),
        (
            lambda: build_federation(
                {"c": 1}, client_optimizer=Optimizer(0.1), server_optimizer=Optimizer(1.0)
            ),
            "client_optimizer as a function that makes one.*got Optimizer. Write client_optimizer=lambda",
        ),
        (
            lambda: build_federation({"c": 1}, client_optimizer=Optimizer, server_optimizer=Optimizer),
            "server_optimizer as an Optimizer, got type",
        ),
        (lambda: Optimizer(0.1).set_state(None), "as `get_state` gives it, got NoneType"),
    ],
)
def test_what_other_libraries_would_take_is_answered_with_what_to_write(
    make: Callable[[], object], words: str
) -> None:
    with pytest.raises(TypeError, match=words):
        make()


def test_a_regularizer_among_the_modules_is_called_one_and_nothing_else() -> None:
    with pytest.raises(ValueError, match=r"give it where regularizers go\.$"):
        Optimizer(0.1, modules=["fedprox"])


def test_a_state_of_other_plug_ins_is_told_without_the_quotes_of_a_key() -> None:
    for other in ({}, {"modules.0.adam": {}}):
        with pytest.raises(KeyError) as caught:
            Optimizer(0.1, modules=["adam"]).set_state(other)
        assert str(caught.value).startswith("Expected ")


def test_a_restored_state_of_another_model_is_called_so() -> None:
    one, other = (Vector.build({name: np.ones(2)}) for name in "ab")
    optimizer = Optimizer(0.1, modules=["adam"])
    optimizer.step(one, one.copy())
    again = Optimizer(0.1, modules=["adam"])
    again.set_state(optimizer.get_state())
    with pytest.raises(ValueError, match=r"state 'm' of module 'adam' .* 'a' .* 'b'.* restored"):
        again.step(other, other.copy())
    again.reset()
    again.step(other, other.copy())


@pytest.mark.parametrize(("ours", "theirs"), [("jax", "numpy"), ("numpy", "jax"), ("torch", "numpy")])
@pytest.mark.parametrize("module", ["momentum", "l2-global-clipping"])
def test_gradients_and_weights_of_two_frameworks_are_refused_as_in_a_sum(
    ours: str, theirs: str, module: str
) -> None:
    gradients, weights = (
        Vector.build({"w": as_framework(name, np.ones(2, np.float32))}) for name in (ours, theirs)
    )
    optimizer = Optimizer(0.1, modules=[module])
    with pytest.raises(TypeError) as summed:
        gradients + weights
    for step in (optimizer.step, optimizer.compute_updates):
        with pytest.raises(TypeError) as stepped:
            step(gradients, weights)
        assert str(stepped.value) == str(summed.value)
    optimizer.step(gradients.to(weights), weights)


def test_float32_gradients_step_float64_weights_which_keep_their_dtype() -> None:
    weights, gradients = Vector.build({"w": np.ones(2)}), Vector.build({"w": np.full(2, 0.1, np.float32)})
    optimizer = Optimizer(0.5, w_decay=0.25, modules=["momentum"])
    updates = optimizer.compute_updates(gradients, weights)
    assert [v.layout.blocks[0].dtype for v in (updates, weights)] == ["float64", "float64"]
    kept = optimizer.get_state()["modules.0.momentum"]
    assert {v.layout.blocks[0].dtype for v in kept.values() if isinstance(v, Vector)} == {"float32"}
    # A product of float32 gradients and a rate is a float32; the decay is computed in float64.
    expected = np.float64(np.float32(-0.5) * np.float32(0.1)) - 0.25
    np.testing.assert_array_equal(updates.coefs["w"], expected)


@pytest.mark.parametrize("framework", ["jax", "tensorflow"])
def test_a_run_goes_on_from_a_file_in_frameworks_whose_arrays_cannot_be_written(
    framework: str, tmp_path: Path
) -> None:
    def fresh() -> Vector:
        return Vector.build({"w": as_framework(framework, np.linspace(-1, 1, 4).astype(np.float32))})

    weights, optimizer = fresh(), Optimizer(0.1, modules=["adam"])
    gradients = weights.full_like(0.25)
    optimizer.step(gradients, weights)
    write_state(tmp_path / "run", {"opt": optimizer.get_state(), "weights": weights})
    saved = read_state(tmp_path / "run")
    assert saved["weights"].framework == "numpy"
    again, restored = Optimizer(0.1, modules=["adam"]), fresh().assign(saved["weights"])
    again.set_state(saved["opt"])
    optimizer.step(gradients, weights)
    again.step(gradients, restored)
    assert restored.framework == framework
    assert restored.equals(weights)


def test_what_is_no_vector_is_refused_with_what_to_write() -> None:
    vector = Vector.build({"w": np.ones(2)})
    for call, words in (
        (lambda: vector.to("jax"), r"devices to take over, got 'jax' \(str\). Write .to\(weights\)"),
        (lambda: vector.assign({"w": np.ones(2)}), "Expected a Vector, got dict"),
        (lambda: vector.unflatten([1.0, 2.0]), "numpy array of 2 entries, got list"),
    ):
        with pytest.raises(TypeError, match=words):
            call()
