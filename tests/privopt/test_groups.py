from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

from privopt import Group, Optimizer, Vector, executor
from privopt.checkpoint import dump_state, load_state
from privopt.schedules import Exponential
from tests.contracts import same_state

NAMES = ["embed.weight", "body.weight", "body.bias", "head.weight", "head.bias"]
EXECUTORS = ["eager", "blocked", "llvm"]


def vector(seed: int, framework: str = "numpy") -> Vector:
    rng = np.random.default_rng(seed)
    arrays = {name: rng.standard_normal((4, 3) if "weight" in name else 3) for name in NAMES}
    if framework == "torch":
        return Vector.build({k: torch.from_numpy(a) for k, a in arrays.items()})
    return Vector.build(arrays)


@pytest.mark.parametrize("name", EXECUTORS)
def test_groups_equal_torchs_parameter_groups(name: str) -> None:
    """AdamW with a rate and a decay of its own for each kind of layer, 20 steps."""
    groups = [
        Group(r"head\.", lrate=0.1),
        Group(r"body\.", lrate_scale=0.5),
        Group(r".*bias", w_decay=0.0),
        Group("embed", settings={"adam.eps": 1e-3, "beta_1": 0.5}),
    ]
    weights = vector(0, "torch")
    ours = weights.copy()
    params = {k: torch.nn.Parameter(v.clone()) for k, v in weights.coefs.items()}
    rates = {"embed": 0.02, "body": 0.01, "head": 0.1}
    theirs = torch.optim.AdamW(
        [
            {
                "params": [p],
                "lr": (rate := rates[k.split(".")[0]]),
                # torch multiplies its decay by the rate, we do not.
                "weight_decay": 0.0 if "bias" in k else 0.004 / rate,
                "eps": 1e-3 if k.startswith("embed") else 1e-7,
                "betas": (0.5 if k.startswith("embed") else 0.9, 0.99),
            }
            for k, p in params.items()
        ]
    )
    with executor(name):
        optimizer = Optimizer(0.02, 0.004, modules=["adam"], groups=groups)
        for step in range(20):
            grads = vector(step + 1, "torch")
            optimizer.step(grads, ours)
            for k, p in params.items():
                p.grad = grads.coefs[k].clone()
            theirs.step()
    for k, p in params.items():
        np.testing.assert_allclose(ours.coefs[k], p.detach(), rtol=0, atol=1e-12)
    assert optimizer.modules[0].get_config()["eps"] == 1e-7


@pytest.mark.parametrize("name", EXECUTORS)
def test_frozen_tensors_do_not_move_and_count_for_nothing(name: str) -> None:
    with executor(name):
        optimizer = Optimizer(
            0.1, 0.01, regularizers=["ridge"], modules=["l2-global-clipping", "momentum", "lookahead"],
            groups=[Group("embed", frozen=True)],
        )  # fmt: skip
        without = Optimizer(
            0.1, 0.01, regularizers=["ridge"], modules=["l2-global-clipping", "momentum", "lookahead"]
        )
        weights = vector(0)
        part = Vector.build({k: v for k, v in weights.coefs.items() if not k.startswith("embed")})
        start = weights.copy()
        for step in range(8):
            grads = vector(step + 1)
            rest = Vector.build({k: v for k, v in grads.coefs.items() if not k.startswith("embed")})
            grads.coefs["embed.weight"][:] = [np.nan, np.inf, 1e300]
            optimizer.step(grads, weights)
            without.step(rest, part)
    np.testing.assert_array_equal(weights.coefs["embed.weight"], start.coefs["embed.weight"])
    # The others go where they go in a model without it: it counts for no norm either.
    for name, array in part.coefs.items():
        np.testing.assert_allclose(weights.coefs[name], array, rtol=1e-13)
        assert not np.array_equal(array, start.coefs[name])


def test_frozen_gradients_count_for_no_norm() -> None:
    weights, grads = vector(0), vector(1)
    part = {k: v for k, v in grads.coefs.items() if not k.startswith("embed")}
    frozen = Optimizer(1.0, modules=["l2-global-clipping"], groups=[{"match": "embed", "frozen": True}])
    alone = Optimizer(1.0, modules=["l2-global-clipping"])
    found = frozen.compute_updates(grads, weights).coefs
    expected = alone.compute_updates(Vector.build(part), Vector.build(part)).coefs
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-14)
    assert not found["embed.weight"].any()


def test_a_groups_schedule_runs_beside_the_optimizers_and_is_saved() -> None:
    def make() -> Optimizer:
        return Optimizer(
            ("linear", {"base": 0.1, "duration": 10}),
            w_decay=("exponential", {"base": 0.01, "factor": 0.5}),
            groups=[Group("head", lrate=Exponential(base=1.0, factor=0.5)), Group("body", lrate_scale=0.5)],
        )

    weights, ones = vector(0), vector(0).full_like(1.0)
    live, moves = make(), []
    for _ in range(3):
        before = weights.copy()
        live.step(ones, weights)
        moves.append({k: float((v - before.coefs[k]).flat[0]) for k, v in weights.coefs.items()})
        decay = 0.01 * 0.5 ** (len(moves) - 1) * before.coefs["embed.weight"].flat[0]
        rate = 0.1 * (1 - (len(moves) - 1) / 10)
        np.testing.assert_allclose(moves[-1]["embed.weight"], -rate - decay, rtol=1e-12)
        body = 0.01 * 0.5 ** (len(moves) - 1) * before.coefs["body.bias"].flat[0]
        np.testing.assert_allclose(moves[-1]["body.bias"], -0.5 * rate - body, rtol=1e-12)
        head = 0.01 * 0.5 ** (len(moves) - 1) * before.coefs["head.bias"].flat[0]
        np.testing.assert_allclose(moves[-1]["head.bias"], -(0.5 ** (len(moves) - 1)) - head, rtol=1e-12)
    assert sorted(live.get_state()) == ["groups.0.lrate", "lrate", "w_decay"]
    resumed = Optimizer.from_config(json.loads(json.dumps(live.get_config())))
    assert resumed.get_config() == live.get_config()
    resumed.set_state(load_state(dump_state(live.get_state())))
    other = weights.copy()
    live.step(ones, weights)
    resumed.step(ones, other)
    assert weights.equals(other)
    assert same_state(live.get_state(), resumed.get_state())


def test_later_groups_override_setting_by_setting_and_scales_multiply() -> None:
    groups = [
        Group(".*", lrate=2.0, lrate_scale=0.5),
        Group("body", lrate_scale=0.5, w_decay=0.0),
        Group(".*bias", lrate=3.0),
    ]
    weights, ones = vector(0).full_like(1.0), vector(0).full_like(1.0)
    updates = Optimizer(1.0, 0.25, groups=groups).compute_updates(ones, weights).coefs
    expected = {"embed.weight": 1.25, "body.weight": 0.5, "body.bias": 0.75, "head.weight": 1.25}
    for name, value in expected.items():
        np.testing.assert_allclose(updates[name], -value, rtol=1e-15)
    np.testing.assert_allclose(updates["head.bias"], -1.75, rtol=1e-15)


@pytest.mark.parametrize("name", EXECUTORS)
def test_a_setting_may_differ_in_modules_with_norms(name: str) -> None:
    groups = [Group("head", settings={"max_norm": 0.1})]
    with executor(name):
        optimizer = Optimizer(1.0, modules=["l2-clipping"], groups=groups)
        found = optimizer.compute_updates(vector(1), vector(0))
    norms = found.norms().to_dict()
    np.testing.assert_allclose(norms["head.weight"], 0.1, rtol=1e-12)
    np.testing.assert_allclose(norms["body.weight"], 1.0, rtol=1e-12)


@pytest.mark.parametrize(
    ("groups", "error", "words"),
    [
        ([Group("heads")], ValueError, r"group 'heads' to match a tensor, got none of embed.weight, body"),
        ([Group("head", settings={"eps": 1e-3})], ValueError, "got 'adam' and 'rmsprop'"),
        ([Group("head", settings={"lr": 1e-3})], ValueError, "own the setting 'lr', got none"),
        ([Group("head", settings={"adam.beta_1": 2.0})], ValueError, "0 <= beta_1 < 1"),
        ([Group("head", settings={"adam.amsgrad": True})], TypeError, "cannot differ between tensors"),
    ],
)
def test_groups_that_cannot_work_are_refused_before_a_step(
    groups: list[Group], error: type[Exception], words: str
) -> None:
    weights = vector(0)
    before = weights.copy()
    with pytest.raises(error, match=words):
        Optimizer(0.1, modules=["adam", "rmsprop"], groups=groups).step(vector(1), weights)
    assert weights.equals(before)


def test_a_setting_that_a_branch_reads_says_that_it_cannot_differ() -> None:
    optimizer = Optimizer(
        0.1, modules=["l2-global-clipping"], groups=[Group("head", settings={"max_norm": 0.5})]
    )
    with pytest.raises(TypeError, match="cannot differ between groups"):
        optimizer.step(vector(1), vector(0))
    assert optimizer.modules[0].get_config() == {"max_norm": 1.0}


def test_a_later_group_thaws_what_an_earlier_one_froze() -> None:
    weights = vector(0).full_like(1.0)
    groups = [Group(".*", frozen=True), Group("head", frozen=False)]
    updates = Optimizer(1.0, groups=groups).compute_updates(weights, weights).coefs
    assert {name for name, array in updates.items() if array.any()} == {"head.weight", "head.bias"}


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"match": "("}, ValueError, "a regular expression"),
        ({"match": 3}, TypeError, "match as a string"),
        ({"match": "a", "lrate": -1.0}, ValueError, "lrate >= 0"),
        ({"match": "a", "lrate_scale": float("nan")}, ValueError, "lrate_scale >= 0 and finite"),
        ({"match": "a", "lrate_scale": "cosine"}, TypeError, "a number for lrate_scale"),
        ({"match": "a", "frozen": "yes"}, TypeError, "frozen to be true or false"),
        ({"match": "a", "settings": ["eps"]}, TypeError, "settings as"),
        ({"match": "a", "rate": 1.0}, TypeError, "a group's keys among"),
        ({"lrate": 1.0}, TypeError, "with a match"),
    ],
)
def test_groups_are_checked_when_they_are_made(
    arguments: dict[str, object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        Optimizer(0.1, groups=[arguments])


def test_a_list_is_asked_for() -> None:
    with pytest.raises(TypeError, match="a list of groups"):
        Optimizer(0.1, groups=Group("a"))  # type: ignore[arg-type]  # the mistake
    with pytest.raises(TypeError, match="got 'head'"):
        Optimizer(0.1, groups=["head"])  # type: ignore[list-item]  # the mistake


# ---- two plug-ins of one name ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXECUTORS)
def test_of_two_modules_with_one_name_the_place_says_which_is_meant(name: str) -> None:
    """Momentum of momentum, written out: in the head the second one has a beta of its own."""
    with executor(name):
        optimizer = Optimizer(
            0.1,
            modules=["momentum", ("momentum", {"beta": 0.8})],
            groups=[Group("head", settings={"modules.1.momentum.beta": 0.25})],
        )
        assert set(optimizer.get_state()) == {"modules.0.momentum", "modules.1.momentum"}, "the same keys"
        ours = vector(0)
        theirs = {k: a.copy() for k, a in ours.coefs.items()}
        first, second = ({k: np.zeros_like(a) for k, a in theirs.items()} for _ in range(2))
        for step in range(6):
            grads = vector(step + 1)
            optimizer.step(grads, ours)
            for k, g in grads.coefs.items():
                first[k] = 0.9 * first[k] + g
                second[k] = (0.25 if k.startswith("head") else 0.8) * second[k] + first[k]
                theirs[k] -= 0.1 * second[k]
    for k, a in ours.coefs.items():
        np.testing.assert_allclose(a, theirs[k], rtol=1e-12)


def test_of_two_regularizers_with_one_name_the_place_says_which_is_meant() -> None:
    groups = [Group(".*bias", settings={"regularizers.0.ridge.alpha": 0.0})]
    optimizer = Optimizer(
        1.0, regularizers=[("ridge", {"alpha": 2.0}), ("ridge", {"alpha": 0.5})], groups=groups
    )
    weights = vector(0)
    updates = optimizer.compute_updates(weights.full_like(0.0), weights).coefs
    for k, w in weights.coefs.items():
        # The gradient of alpha * w^2 is 2 * alpha * w.
        np.testing.assert_allclose(updates[k], -2 * (0.5 if "bias" in k else 2.5) * w, rtol=1e-12)
    again = Optimizer.from_config(json.loads(json.dumps(optimizer.get_config())))
    assert again.groups == optimizer.groups


@pytest.mark.parametrize(
    ("key", "says"),
    [
        (
            "momentum.beta",
            "got 'momentum' and 'momentum'. Write 'modules.0.momentum.beta' or 'modules.2.momentum.beta'.",
        ),
        (
            "beta",
            "got 'momentum' and 'rmsprop' and 'momentum'. "
            "Write 'modules.0.momentum.beta' or 'rmsprop.beta' or 'modules.2.momentum.beta'.",
        ),
        (
            "modules.1.momentum.beta",
            "got none. Settings: ['modules.0.momentum.beta', 'modules.2.momentum.beta', 'ridge.alpha', ",
        ),
        ("modules.3.momentum.beta", "got none."),
        ("modules.beta", "got none."),
        ("modules.0.beta", "got none."),
    ],
)
def test_a_setting_that_names_none_or_several_says_how_each_is_spelled(key: str, says: str) -> None:
    modules = ["momentum", "rmsprop", "momentum"]
    with pytest.raises(ValueError, match=re.escape(f"own the setting {key!r}, {says}")):
        Optimizer(0.1, regularizers=["ridge"], modules=modules, groups=[Group("head", settings={key: 0.5})])


@pytest.mark.parametrize("key", ["rmsprop.beta", "modules.1.rmsprop.beta", "modules.1.rmsprop.eps", "eps"])
def test_a_place_is_accepted_where_the_name_would_do(key: str) -> None:
    modules = ["momentum", "rmsprop", "momentum"]
    Optimizer(0.1, modules=modules, groups=[Group("head", settings={key: 0.5})]).verify(vector(0).layout)
