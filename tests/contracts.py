"""Contract suites: what every plug-in must do, whoever wrote it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

import dp
from privopt import Vector
from privopt.checkpoint import dump_state, load_state
from privopt.plugin import OptiModule, Plugin, Regularizer

SHAPES: list[dict[str, tuple[int, ...]]] = [{"w": ()}, {"w": (0,), "b": (2,)}, {"w": (3, 2), "b": (3,)}]


def gradients(seed: int, shapes: dict[str, tuple[int, ...]], dtype: str = "float64") -> Vector:
    rng = np.random.default_rng(seed)
    return Vector.build({k: np.asarray(rng.standard_normal(s), dtype) for k, s in shapes.items()})


def run(plugin: Plugin, grads: Vector, weights: Vector) -> Vector:
    if isinstance(plugin, Regularizer):
        return plugin.run(grads, weights)
    assert isinstance(plugin, OptiModule)
    given = {"weights": weights, "raw_gradients": grads}
    return plugin.finish(plugin.run(grads, **{name: given[name] for name in plugin.takes}), weights)


def same_state(left: Any, right: Any) -> bool:
    if isinstance(left, Vector):
        return isinstance(right, Vector) and left.equals(right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same_state(left[k], right[k]) for k in left)
    return bool(left == right)


def build(cls: type[Plugin], config: dict[str, Any]) -> Plugin:
    from privopt.modules import NoiseModule

    if issubclass(cls, NoiseModule):
        return cls(**config, source=dp.random.insecure_source(7))
    return cls(**config)


def assert_config_round_trips(cls: type[Plugin], config: dict[str, Any]) -> None:
    plugin = build(cls, config)
    through = json.loads(json.dumps(plugin.get_config()))
    again = cls.from_config(through)
    assert again.get_config() == plugin.get_config()
    for key, value in config.items():
        assert plugin.get_config()[key] == value


def assert_state_resumes_bitwise(cls: type[Plugin], config: dict[str, Any], shapes: dict[str, Any]) -> None:
    """Steps, save through bytes, go on in a fresh plug-in: the same numbers as without the stop."""
    live = build(cls, config)
    weights = gradients(99, shapes)
    live.on_round_start()
    for step in range(3):
        run(live, gradients(step, shapes), weights)
    fresh = build(cls, config)
    fresh.set_state(load_state(dump_state(live.get_state())))
    assert same_state(fresh.get_state(), live.get_state())
    for step in range(3, 6):
        a, b = (run(p, gradients(step, shapes), weights) for p in (live, fresh))
        assert a.equals(b)
    assert same_state(fresh.get_state(), live.get_state())


def assert_keeps_layout(
    cls: type[Plugin], config: dict[str, Any], shapes: dict[str, Any], dtype: str
) -> None:
    plugin = build(cls, config)
    grads, weights = gradients(0, shapes, dtype), gradients(1, shapes, dtype)
    before = grads.copy(), weights.copy()
    for _ in range(2):
        out = run(plugin, grads, weights)
        assert out.layout == grads.layout
    assert grads.equals(before[0]), "a plug-in must not write into the gradients it was given"
    assert weights.equals(before[1])


def assert_frameworks_agree(cls: type[Plugin], config: dict[str, Any], shapes: dict[str, Any]) -> None:
    import torch

    def to_torch(v: Vector) -> Vector:
        return Vector.build({k: torch.from_numpy(np.array(a)) for k, a in v.coefs.items()})

    ours, theirs = build(cls, config), build(cls, config)
    weights = gradients(5, shapes)
    for step in range(3):
        grads = gradients(step, shapes)
        a = run(ours, grads, weights)
        b = run(theirs, to_torch(grads), to_torch(weights)).to_numpy()
        np.testing.assert_allclose(a.flatten(), b.flatten(), rtol=1e-12, atol=1e-14)


def assert_equals_reference(
    plugin: Plugin, reference: Callable[[np.ndarray, np.ndarray, int], np.ndarray], steps: int = 20
) -> None:
    """`reference(gradient, weights, step)` is a slow version from the paper, with its own memory."""
    shapes = {"w": (4, 3), "b": (5,)}
    weights = gradients(1000, shapes)
    for step in range(1, steps + 1):
        grads = gradients(step, shapes)
        out = run(plugin, grads, weights).flatten()
        np.testing.assert_allclose(
            out, reference(grads.flatten(), weights.flatten(), step), rtol=1e-12, atol=1e-12
        )
