"""Plug-ins of one's own: what a step sees to for them, and mistakes told where they are made."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from privopt import Optimizer, OptiModule, Vector, executor, state
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
