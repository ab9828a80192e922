"""An optimizer's plug-ins are verified together, so they stay what they were."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

from privopt import Group, Optimizer, Vector
from privopt.modules import GaussianNoise, ScaffoldClient


def chain() -> Optimizer:
    return Optimizer(
        0.1,
        regularizers=["ridge"],
        modules=["scaffold-client", "adam"],
        groups=[Group("w", lrate_scale=2.0)],
    )


@pytest.mark.parametrize("name", ["modules", "regularizers", "groups"])
@pytest.mark.parametrize("value", [[], (), None])
def test_plug_ins_cannot_be_exchanged_and_the_error_says_what_to_do(name: str, value: Any) -> None:
    opt = chain()
    before = getattr(opt, name)
    with pytest.raises(AttributeError, match=f"Expected an optimizer's {name} to stay.*Build another"):
        setattr(opt, name, value)
    assert getattr(opt, name) is before


def test_plug_ins_are_tuples_so_that_none_is_added_unverified() -> None:
    opt = chain()
    for plugins in (opt.modules, opt.regularizers, opt.groups):
        assert isinstance(plugins, tuple)
    # As a list this would have put noise behind a module that sends, which construction refuses.
    with pytest.raises(AttributeError, match="append"):
        opt.modules.append(GaussianNoise(std=1.0))  # type: ignore[attr-defined]
    assert [module.name for module in opt.modules] == ["scaffold-client", "adam"]


def test_a_list_that_was_given_may_change_afterwards() -> None:
    given: list[Any] = [ScaffoldClient()]
    opt = Optimizer(0.1, modules=given)
    given.append("adam")
    assert len(opt.modules) == 1


def through_pickle(opt: Optimizer) -> Any:
    return pickle.loads(pickle.dumps(opt))  # noqa: S301 - what this process has just written


@pytest.mark.parametrize("way", [copy.deepcopy, through_pickle])
def test_a_copy_steps_as_its_original(way: Any) -> None:
    opt, weights = chain(), Vector.build({"w": np.array([1.0, -2.0])})
    opt.step(weights.full_like(0.5), weights)
    other = way(opt)
    updates = [o.compute_updates(weights.full_like(0.25), weights).coefs["w"] for o in (opt, other)]
    np.testing.assert_array_equal(*updates)


def test_the_repr_shows_lists_as_the_constructor_takes_them() -> None:
    text = repr(Optimizer(0.1, modules=["sign"]))
    assert "regularizers=[]" in text
    assert "modules=[Sign()]" in text
