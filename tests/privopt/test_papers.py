"""Modules beside ten lines from their papers, and what the papers prove about them.

What torch.optim or optax has too is compared with them in test_truth.py; here is what they lack.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from privopt import Optimizer, PerTensor, Vector, list_optim_modules, list_optim_regularizers
from privopt.modules import (
    AdaBelief,
    AdaGrad,
    Adam,
    Centralize,
    EMAWeights,
    Ewma,
    Lamb,
    Lars,
    Lion,
    Lookahead,
    MomentsModule,
    NAdam,
    RAdam,
    ScheduleFree,
    Yogi,
    YogiMomentum,
)
from privopt.regularizers import ElasticNet
from tests import contracts

SHAPES: dict[str, tuple[int, ...]] = {"w": (2, 3), "s": (), "e": (0,), "b": (3,), "k": (2, 2, 3)}
Reference = Callable[[np.ndarray, np.ndarray, int], np.ndarray]


def vector(*entries: float) -> Vector:
    return Vector.build({"w": np.array(entries)})


# ---- the Adam family, with the maximum of AMSGrad -------------------------------------------------------


def family(name: str, beta_1: float, beta_2: float, eps: float, amsgrad: bool) -> Reference:
    """Kingma and Ba's loop, with the line that each paper changes."""
    m, v, v_max, product = np.zeros(1), np.zeros(1), np.zeros(1), 1.0

    def reference(g: np.ndarray, w: np.ndarray, t: int) -> np.ndarray:
        nonlocal m, v, v_max, product
        m = beta_1 * m + (1 - beta_1) * g
        if name == "yogi":
            v = v - (1 - beta_2) * np.sign(v - g**2) * g**2
        elif name == "adabelief":
            v = beta_2 * v + (1 - beta_2) * (g - m) ** 2 + eps
        else:
            v = beta_2 * v + (1 - beta_2) * g**2
        v_max = np.maximum(v_max, v)
        m_hat, v_hat = m / (1 - beta_1**t), (v_max if amsgrad else v) / (1 - beta_2**t)
        if name == "nadam":
            mu, mu_next = (beta_1 * (1 - 0.5 * 0.96 ** (0.004 * i)) for i in (t, t + 1))
            product = product * mu
            m_hat = mu_next * m / (1 - product * mu_next) + (1 - mu) * g / (1 - product)
        if name == "radam":
            rho = 2 / (1 - beta_2) - 1
            rho_t = rho - 2 * t * beta_2**t / (1 - beta_2**t)
            if rho_t <= 5:
                return m_hat
            r = np.sqrt((rho_t - 4) * (rho_t - 2) * rho / ((rho - 4) * (rho - 2) * rho_t))
            return r * m_hat * np.sqrt(1 - beta_2**t) / (np.sqrt(v_hat * (1 - beta_2**t)) + eps)
        return m_hat / (np.sqrt(v_hat) + eps)

    return reference


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("cls", [Adam, Yogi, AdaBelief, NAdam, RAdam])
def test_the_adam_family_follows_its_papers(cls: type[MomentsModule], amsgrad: bool) -> None:
    module = cls(beta_1=0.8, beta_2=0.85, eps=1e-3, amsgrad=amsgrad)
    contracts.assert_equals_reference(module, family(cls.name, 0.8, 0.85, 1e-3, amsgrad))


def test_the_maximum_of_amsgrad_matters_in_these_runs() -> None:
    with pytest.raises(AssertionError, match="Not equal"):
        contracts.assert_equals_reference(
            Adam(beta_1=0.8, beta_2=0.85, eps=1e-3), family("adam", 0.8, 0.85, 1e-3, amsgrad=True)
        )


def test_lamb_with_the_maximum_of_amsgrad_follows_its_paper() -> None:
    adam = family("adam", 0.8, 0.85, 1e-3, amsgrad=True)

    def reference(g: np.ndarray, w: np.ndarray, t: int) -> np.ndarray:
        r = adam(g, w, t) + 0.3 * w
        parts = zip(np.split(r, [12]), np.split(w, [12]), strict=True)  # the tensors of the contract suite
        return np.concatenate([p * np.linalg.norm(q) / np.linalg.norm(p) for p, q in parts])

    module = Lamb(beta_1=0.8, beta_2=0.85, eps=1e-3, amsgrad=True, decay=0.3)
    contracts.assert_equals_reference(module, reference)


def test_the_second_moment_of_yogi_moves_by_bounded_steps() -> None:
    """Zaheer et al. 2018, section 4: the change of v is (1 - beta_2) g^2 in size, however large v is."""
    yogi = Yogi(beta_2=0.9)
    before: Any = None
    for step in range(20):
        g = contracts.gradients(step, {"w": (50,)})
        yogi.run(g)
        if before is not None:
            np.testing.assert_allclose(
                np.abs(yogi.v.flatten() - before), 0.1 * g.flatten() ** 2, rtol=1e-9, atol=1e-15
            )
        before = yogi.v.flatten()


def test_adabelief_takes_long_steps_where_gradients_are_as_expected() -> None:
    """Zhuang et al. 2020, section 2.2: a constant gradient is believed ever more; Adam's step on it is 1."""
    g, t, b1, b2 = 0.5, 200, 0.9, 0.999
    adam, belief = Adam(b1, b2, eps=0.0), AdaBelief(b1, b2, eps=0.0)
    for _ in range(t):
        a, b = adam.run(vector(g)).flatten()[0], belief.run(vector(g)).flatten()[0]
    assert a == pytest.approx(1.0, rel=1e-12)
    # g - m_i = b1^i g, so v is a geometric sum.
    v = (1 - b2) * b1**2 * (b2**t - b1 ** (2 * t)) / (b2 - b1**2)
    assert b == pytest.approx(((1 - b2**t) / v) ** 0.5, rel=1e-12)
    assert b > 5


def test_radam_first_takes_the_steps_of_momentum() -> None:
    """Liu et al. 2020, Algorithm 2: with beta_2 = 0.999 the average is longer than 5 from the sixth."""
    rates = []
    for beta_2 in (0.999, 0.6):
        module = RAdam(beta_1=0.0, beta_2=beta_2)
        rates.append([module.run(vector(0.01)).flatten()[0] for _ in range(8)])
    assert rates[1] == pytest.approx([0.01] * 8)
    assert rates[0][:5] == pytest.approx([0.01] * 5)
    assert 0.01 < rates[0][5] < rates[0][6] < rates[0][7] < 1


def test_nadam_without_decay_of_its_warm_up_has_half_the_momentum() -> None:
    module = NAdam(beta_1=0.8, beta_2=0.5, eps=0.0, momentum_decay=0.0)
    # mu = 0.4 at every step: (0.4 * 0.2 g / (1 - 0.16) + 0.6 g / 0.6) / |g|
    assert module.run(vector(3.0)).flatten()[0] == pytest.approx(0.4 * 0.2 / 0.84 + 1, rel=1e-14)


def test_adagrad_slows_down_by_the_root_of_time_on_a_constant_gradient() -> None:
    module = AdaGrad(eps=0.0)
    steps = [module.run(vector(0.3)).flatten()[0] for _ in range(9)]
    assert steps == pytest.approx([t**-0.5 for t in range(1, 10)], rel=1e-14)


# ---- averages and directions ----------------------------------------------------------------------------


def test_moving_averages_follow_their_recursions() -> None:
    s, y, m = np.zeros(17), np.zeros(17), np.zeros(17)

    def ewma(g: np.ndarray, w: np.ndarray, t: int) -> np.ndarray:
        s[:] = 0.7 * s + (1 - 0.7) * g
        return s

    def yogi(g: np.ndarray, w: np.ndarray, t: int) -> np.ndarray:
        y[:] = y - np.sign(y - g) * (1 - 0.7) * g
        return y

    def lion(g: np.ndarray, w: np.ndarray, t: int) -> np.ndarray:
        u = np.sign(0.7 * m + (1 - 0.7) * g)
        m[:] = 0.4 * m + (1 - 0.4) * g
        return u

    contracts.assert_equals_reference(Ewma(beta=0.7), ewma)
    contracts.assert_equals_reference(YogiMomentum(beta=0.7), yogi)
    contracts.assert_equals_reference(Lion(beta_1=0.7, beta_2=0.4), lion)


def test_rows_of_centralized_gradients_sum_to_zero() -> None:
    grads = contracts.gradients(0, SHAPES)
    out = Centralize().run(grads).coefs
    assert np.abs(out["w"].sum(axis=1)).max() < 1e-15
    assert np.abs(out["k"].sum(axis=(1, 2))).max() < 1e-15
    for name in ("s", "e", "b"):
        assert np.array_equal(out[name], grads.coefs[name])


def test_an_elastic_net_is_the_gradient_of_its_penalty() -> None:
    weights = contracts.gradients(1, SHAPES)
    zero = weights * 0.0
    w = torch.from_numpy(weights.flatten()).requires_grad_()
    penalty = 0.3 * (0.2 * w.abs().sum() + (1 - 0.2) * (w**2).sum())
    [expected] = torch.autograd.grad(penalty, w)
    found = ElasticNet(alpha=0.3, l1_ratio=0.2).run(zero, weights).flatten()
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-14)
    for ratio, name in ((1.0, "lasso"), (0.0, "ridge")):
        other: Any = list_optim_regularizers()[name](alpha=0.3)
        assert ElasticNet(alpha=0.3, l1_ratio=ratio).run(zero, weights).equals(other.run(zero, weights))


# ---- trust ratios ---------------------------------------------------------------------------------------


def test_lars_with_decay_follows_its_paper() -> None:
    """You et al. 2017, Algorithm 1: lambda = eta |w| / (|g| + beta |w|), for each layer."""

    def reference(g: np.ndarray, w: np.ndarray, t: int) -> np.ndarray:
        out = []
        for p, q in zip(np.split(g, [12]), np.split(w, [12]), strict=True):
            local = 0.02 * np.linalg.norm(q) / (np.linalg.norm(p) + 0.3 * np.linalg.norm(q))
            out.append(local * (p + 0.3 * q))
        return np.concatenate(out)

    contracts.assert_equals_reference(Lars(coefficient=0.02, decay=0.3), reference)


@given(seed=st.integers(0, 1000), scale=st.floats(1e-3, 1e3))
def test_the_steps_of_lars_and_lamb_do_not_depend_on_the_gradients_scale(seed: int, scale: float) -> None:
    grads, weights = contracts.gradients(seed, SHAPES), contracts.gradients(seed + 1, SHAPES)
    for module in (Lars(coefficient=0.02), Lamb(eps=0.0)):
        one = contracts.run(module, grads, weights)
        module.reset()
        other = contracts.run(module, grads * scale, weights)
        np.testing.assert_allclose(one.flatten(), other.flatten(), rtol=1e-10, atol=1e-12)
    lengths = contracts.run(Lamb(eps=0.0), grads, weights).norms().to_dict()
    assert lengths == pytest.approx(weights.norms().to_dict(), rel=1e-12)


def test_a_tensor_that_is_zero_moves_all_the_same() -> None:
    grads, zero = vector(3.0, 4.0), vector(0.0, 0.0)
    assert Lars().run(grads, zero).equals(grads)
    assert Lars(decay=0.5).run(zero, grads).flatten() == pytest.approx([1e-3 * 3.0, 1e-3 * 4.0])
    assert Lars().run(zero, grads).equals(zero)
    assert Lars().run(zero, zero).equals(zero)
    assert Lamb(eps=0.0).run(grads, zero).flatten() == pytest.approx([1.0, 1.0])
    assert Lamb().run(zero, grads).equals(zero)


# ---- what acts on updates -------------------------------------------------------------------------------


def test_cautious_steps_follow_their_paper() -> None:
    """Liang et al. 2024, Algorithm 1, with the scale of the published code, tensor by tensor."""
    adam = family("adam", 0.9, 0.7, 1e-3, amsgrad=False)
    weights = contracts.gradients(1000, SHAPES)
    optimizer = Optimizer(0.03, modules=[("adam", {"beta_2": 0.7, "eps": 1e-3}), "cautious"])
    dropped = 0
    for step in range(1, 21):
        grads = contracts.gradients(step, SHAPES)
        u = weights.unflatten(adam(grads.flatten(), weights.flatten(), step)).coefs
        found = optimizer.compute_updates(grads, weights).coefs
        for name, g in grads.coefs.items():
            mask = (u[name] * g > 0).astype(float)
            expected = -0.03 * u[name] * mask / max(mask.mean(), 1e-3) if g.size else u[name]
            np.testing.assert_allclose(found[name], expected, rtol=1e-12, atol=1e-15)
            dropped += int(np.sum(mask == 0))
    assert dropped > 20


@settings(deadline=None)  # an executor may compile in the first step
@given(seed=st.integers(0, 1000))
def test_no_entry_of_a_cautious_step_runs_against_its_gradient(seed: int) -> None:
    weights = contracts.gradients(seed, SHAPES)
    optimizer = Optimizer(0.03, modules=["l2-clipping", "momentum", "cautious"])
    for step in range(3):
        grads = contracts.gradients(seed + 1 + step, SHAPES)
        updates = optimizer.compute_updates(grads, weights)
        assert np.all(updates.flatten() * grads.flatten() <= 0)


def test_tiny_entries_that_agree_are_kept() -> None:
    grads = Vector.build({"w": np.full(4, 1e-30, np.float32)})
    optimizer = Optimizer(1.0, modules=["cautious"])
    assert optimizer.compute_updates(grads, grads).equals(-grads)


def test_averaged_weights_leave_the_training_alone_and_forget_by_rounds() -> None:
    start, ones = vector(1.0, 2.0), vector(1.0, 1.0)
    plain, averaged = start.copy(), start.copy()
    module = EMAWeights(beta=0.5, round_reset=True)
    a, b = Optimizer(0.1, modules=["momentum"]), Optimizer(0.1, modules=["momentum", module])
    seen = []
    for _ in range(3):
        a.step(ones, plain)
        b.step(ones, averaged)
        seen.append(plain.flatten().copy())
    assert averaged.equals(plain)
    assert module.average is not None
    expected = 0.25 * seen[0] + 0.25 * seen[1] + 0.5 * seen[2]
    np.testing.assert_allclose(module.average.flatten(), expected, rtol=1e-14)
    b.start_round()
    b.step(ones, averaged)
    assert module.average.equals(averaged)
    averaged *= 0.0  # in place: the average must not move with it
    assert module.average.norm() > 0


def test_lookahead_goes_back_half_of_the_way_every_second_step() -> None:
    weights = vector(1.0)
    optimizer = Optimizer(1.0, modules=[Lookahead(period=2, alpha=0.5)])
    seen = []
    for _ in range(6):
        optimizer.step(vector(1.0), weights)
        seen.append(weights.flatten()[0])
    assert seen == [0.0, 0.0, -1.0, -1.0, -2.0, -2.0]


def test_slow_weights_do_not_move_with_weights_that_a_loop_of_ones_own_changes_in_place() -> None:
    module, weights, update = Lookahead(period=2, alpha=0.5), vector(1.0), vector(-1.0)
    for _ in range(2):
        weights += module.finish(update, weights)
    assert weights.flatten().tolist() == [0.0]


def test_lookahead_starts_from_each_rounds_weights_where_asked() -> None:
    optimizer = Optimizer(1.0, modules=[Lookahead(period=2, alpha=0.5, round_reset=True)])
    for first in (1.0, 100.0):
        weights = vector(first)
        optimizer.start_round()
        for _ in range(2):
            optimizer.step(vector(1.0), weights)
        assert weights.flatten()[0] == first - 1.0


def test_schedule_free_averages_as_its_paper_says() -> None:
    """Defazio et al. 2024, equations 1 to 3, the mean weighed by a power of the step."""
    beta, power, rate = 0.8, 1.5, 0.03
    weights = contracts.gradients(1000, SHAPES)
    z = x = weights.flatten().copy()
    module = ScheduleFree(beta=beta, power=power)
    optimizer = Optimizer(rate, modules=[module])
    for t in range(1, 21):
        y = (1 - beta) * z + beta * x
        np.testing.assert_allclose(weights.flatten(), y, rtol=1e-12, atol=1e-12)
        grads = contracts.gradients(t, SHAPES)
        z = z - rate * grads.flatten()
        c = t**power / sum(i**power for i in range(1, t + 1))
        x = (1 - c) * x + c * z
        optimizer.step(grads, weights)
        assert module.average is not None
        np.testing.assert_allclose(module.average.flatten(), x, rtol=1e-12, atol=1e-12)


def test_schedule_free_without_interpolation_is_plain_descent_and_its_polyak_mean() -> None:
    free, plain = vector(1.0, -2.0), vector(1.0, -2.0)
    module = ScheduleFree(beta=0.0)
    a, b = Optimizer(0.1, modules=[module]), Optimizer(0.1)
    seen = []
    for _ in range(10):
        a.step(free * 2.0, free)
        b.step(plain * 2.0, plain)
        seen.append(plain.flatten().copy())
    np.testing.assert_allclose(free.flatten(), plain.flatten(), rtol=1e-13)
    assert module.average is not None
    np.testing.assert_allclose(module.average.flatten(), np.mean(seen, axis=0), rtol=1e-13)


# ---- all of them ----------------------------------------------------------------------------------------

STATEFUL = [
    name
    for name, cls in list_optim_modules().items()
    if cls.__module__.startswith("privopt.modules.") and "round_reset" in cls.__dataclass_fields__  # type: ignore[attr-defined]
]


@pytest.mark.parametrize("name", STATEFUL)
def test_a_round_forgets_what_a_module_has_learned_only_where_asked(name: str) -> None:
    cls: Any = list_optim_modules()[name]
    weights = contracts.gradients(0, SHAPES)

    def steps(module: Any, first: int) -> list[np.ndarray]:
        drawn = (contracts.gradients(i, SHAPES) for i in range(first, first + 6))
        return [contracts.run(module, g, weights).flatten() for g in drawn]

    def all_states(module: Any) -> bool:
        fresh = cls().get_state()
        return all(contracts.same_state(value, fresh[key]) for key, value in module.get_state().items())

    kept, forgetful = cls(), cls(round_reset=True)
    for module in (kept, forgetful):
        steps(module, 1)
        module.on_round_start()
    assert not all_states(kept)
    assert all_states(forgetful)
    for a, b in zip(steps(forgetful, 9), steps(cls(), 9), strict=True):
        assert np.array_equal(a, b)


GROUPED = {
    "adabelief": ("beta_1", "beta_2", "eps"),
    "adagrad": ("eps",),
    "adam": ("beta_1", "beta_2", "eps"),
    "cautious": ("eps",),
    "clip-value": ("max_value",),
    "ema-weights": ("beta",),
    "ewma": ("beta",),
    "l2-clipping": ("max_norm",),
    "lamb": ("beta_1", "beta_2", "eps", "decay"),
    "lars": ("coefficient", "decay", "eps"),
    "lion": ("beta_1", "beta_2"),
    "lookahead": ("alpha",),
    "momentum": ("beta",),
    "nadam": ("beta_1", "beta_2", "eps"),
    "radam": ("beta_1", "eps"),
    "rmsprop": ("beta", "eps"),
    "schedule-free": ("beta",),
    "yogi": ("beta_1", "beta_2", "eps"),
    "yogi-momentum": ("beta",),
}
"""Hyper-parameters that may differ between groups of tensors."""


@pytest.mark.parametrize(("name", "key"), [(n, k) for n, keys in GROUPED.items() for k in keys])
def test_hyper_parameters_may_differ_between_tensors(name: str, key: str) -> None:
    """With one value a tensor, each tensor takes the steps that it takes alone with its own value."""
    shapes = {"a": (3,), "b": (2, 2)}
    values = {"a": 0.25, "b": 0.5}
    cls: Any = list_optim_modules()[name]
    together = cls()
    alone = {tensor: cls(**{key: values[tensor]}) for tensor in shapes}
    weights = contracts.gradients(0, shapes)
    # As a step of an optimizer with groups does it: what is set from outside must be a number.
    together.__dict__[key] = PerTensor(weights.layout, np.array(list(values.values())))
    for step in range(1, 8):
        grads = contracts.gradients(step, shapes)
        found = contracts.run(together, grads, weights).coefs
        for tensor, module in alone.items():
            one = (Vector.build({tensor: v.coefs[tensor]}) for v in (grads, weights))
            expected = contracts.run(module, *one).coefs[tensor]
            np.testing.assert_allclose(found[tensor], expected, rtol=1e-12, atol=1e-14)
