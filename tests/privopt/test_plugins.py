from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

import dp
from privopt import OptiModule, Vector, list_optim_modules, list_optim_regularizers, state
from privopt.modules import (
    Adam,
    AdamModule,
    GaussianNoise,
    L2Clipping,
    L2GlobalClipping,
    LaplaceNoise,
    Momentum,
)
from privopt.regularizers import FedProx, Lasso, Ridge
from privopt.testing import Subject, check_config, check_plugin, same_state
from tests import contracts
from tests.statistical import assert_distribution, assert_mean, assert_rejects, assert_std

UNIT = st.floats(0, 0.999)
POSITIVE = st.floats(1e-3, 10)
EPS = st.floats(1e-10, 1)
FLAG = st.booleans()
MOMENTS = {"beta_1": UNIT, "beta_2": UNIT, "amsgrad": FLAG, "eps": EPS, "round_reset": FLAG}
CONFIGS = {
    "adabelief": st.fixed_dictionaries(MOMENTS),
    "adagrad": st.fixed_dictionaries({"eps": EPS, "round_reset": FLAG}),
    "adam": st.fixed_dictionaries(MOMENTS),
    "adaptive-clipping-client": st.fixed_dictionaries(
        {"max_norm": POSITIVE, "count_noise": st.floats(0, 10)}
    ),
    "adaptive-clipping-server": st.fixed_dictionaries(
        {"max_norm": POSITIVE, "quantile": st.floats(0, 1), "rate": POSITIVE}
    ),
    "cautious": st.fixed_dictionaries({"eps": EPS}),
    "centralize": st.just({}),
    "clip-value": st.fixed_dictionaries({"max_value": POSITIVE}),
    "elastic-net": st.fixed_dictionaries({"alpha": st.floats(0, 10), "l1_ratio": st.floats(0, 1)}),
    "ema-weights": st.fixed_dictionaries({"beta": UNIT, "round_reset": FLAG}),
    "ewma": st.fixed_dictionaries({"beta": UNIT, "round_reset": FLAG}),
    "feddyn": st.fixed_dictionaries({"alpha": POSITIVE}),
    "feddyn-server": st.fixed_dictionaries({"alpha": POSITIVE}),
    "fedprox": st.fixed_dictionaries({"alpha": st.floats(0, 10)}),
    "gaussian-noise": st.fixed_dictionaries({"std": st.floats(0, 10)}),
    "l2-clipping": st.fixed_dictionaries({"max_norm": POSITIVE}),
    "l2-global-clipping": st.fixed_dictionaries({"max_norm": POSITIVE}),
    "lamb": st.fixed_dictionaries({**MOMENTS, "decay": st.floats(0, 1)}),
    "laplace-noise": st.fixed_dictionaries({"scale": st.floats(0, 10)}),
    "lars": st.fixed_dictionaries({"coefficient": POSITIVE, "decay": st.floats(0, 1), "eps": EPS}),
    "lasso": st.fixed_dictionaries({"alpha": st.floats(0, 10)}),
    "lion": st.fixed_dictionaries({"beta_1": UNIT, "beta_2": UNIT, "round_reset": FLAG}),
    "lookahead": st.fixed_dictionaries(
        {"period": st.integers(1, 10), "alpha": st.floats(0.01, 1), "round_reset": FLAG}
    ),
    "mime-lite-client": st.fixed_dictionaries({"beta": UNIT}),
    "mime-lite-server": st.fixed_dictionaries({"beta": UNIT}),
    "momentum": st.fixed_dictionaries({"beta": UNIT, "nesterov": FLAG, "round_reset": FLAG}),
    "nadam": st.fixed_dictionaries({**MOMENTS, "momentum_decay": st.floats(0, 1)}),
    "normalize": st.fixed_dictionaries({"per_tensor": FLAG, "eps": EPS}),
    "radam": st.fixed_dictionaries(MOMENTS),
    "ridge": st.fixed_dictionaries({"alpha": st.floats(0, 10)}),
    "rmsprop": st.fixed_dictionaries({"beta": UNIT, "eps": EPS, "round_reset": FLAG}),
    "scaffold-client": st.fixed_dictionaries({"option": st.sampled_from([1, 2])}),
    "scaffold-server": st.just({}),
    "schedule-free": st.fixed_dictionaries({"beta": UNIT, "power": st.floats(0, 4), "round_reset": FLAG}),
    "sign": st.just({}),
    "yogi": st.fixed_dictionaries(MOMENTS),
    "yogi-momentum": st.fixed_dictionaries({"beta": UNIT, "round_reset": FLAG}),
}
"""Hyper-parameters of each plug-in, drawn from their ranges."""

ALL = {**list_optim_modules(), **list_optim_regularizers()}
BUILT_IN = {name: cls for name, cls in ALL.items() if cls.__module__.startswith("privopt.")}


def test_every_built_in_plug_in_is_under_contract() -> None:
    assert set(CONFIGS) == set(BUILT_IN)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_config_round_trips_over_the_whole_range_of_each_parameter(name: str) -> None:
    check_config(Subject(BUILT_IN[name]), configs=CONFIGS[name])


# ---- against references -------------------------------------------------------------------------------


def test_regularizers_add_their_terms() -> None:
    contracts.assert_equals_reference(Lasso(alpha=0.3), lambda g, w, t: g + 0.3 * np.sign(w))
    contracts.assert_equals_reference(Ridge(alpha=0.3), lambda g, w, t: g + 0.6 * w)


def test_fedprox_pulls_to_the_weights_of_the_rounds_start() -> None:
    prox = FedProx(alpha=0.5)
    grads, start = (contracts.gradients(i, {"w": (3,)}) for i in (0, 1))
    weights = start.copy()
    prox.on_round_start()
    assert prox.run(grads, weights).equals(grads)
    weights += 1.0  # in place: the reference must not move with it
    assert np.allclose(prox.run(grads, weights).flatten(), grads.flatten() + 0.5)
    prox.on_round_start()
    assert prox.run(grads, weights).equals(grads)


@given(seed=st.integers(0, 1000), max_norm=st.floats(1e-3, 100))
def test_clipping_bounds_norms_and_leaves_small_gradients_alone(seed: int, max_norm: float) -> None:
    grads = contracts.gradients(seed, {"w": (4, 3), "b": (5,), "s": ()})
    whole = L2GlobalClipping(max_norm).run(grads)
    assert whole.norm() <= max_norm * (1 + 1e-14)
    if grads.norm() <= max_norm:
        assert whole.equals(grads)
    each = L2Clipping(max_norm).run(grads)
    for name, norm in each.norms().to_dict().items():
        assert norm <= max_norm * (1 + 1e-14)
        if grads.norms().to_dict()[name] <= max_norm:
            assert np.array_equal(each.coefs[name], grads.coefs[name])
    zero = grads * 0.0
    assert L2Clipping(max_norm).run(zero).equals(zero)
    assert L2GlobalClipping(max_norm).run(zero).equals(zero)


def test_gaussian_noise_has_the_stated_std_and_never_repeats() -> None:
    grads = Vector.build({"w": np.zeros(20_000)})
    noise = GaussianNoise(std=2.71828, source=dp.random.insecure_source(3))
    first, second = noise.run(grads).flatten(), noise.run(grads).flatten()
    assert_mean(first, 0.0, 2.71828)
    assert_std(first, 2.71828)
    assert not np.array_equal(first, second)
    assert GaussianNoise(std=0.0).run(grads).equals(grads)
    assert "Unpriced" in type(noise.event).__name__


def test_laplace_noise_has_the_stated_scale() -> None:
    grads = Vector.build({"w": np.ones(20_000)})
    draws = LaplaceNoise(scale=2.71828, source=dp.random.insecure_source(3)).run(grads).flatten() - 1.0
    assert_distribution(draws, scipy.stats.laplace(scale=2.71828).cdf)
    assert_rejects(assert_distribution, 1.1 * draws, scipy.stats.laplace(scale=2.71828).cdf)
    assert LaplaceNoise(scale=0.0).run(grads).equals(grads)


def test_a_noise_source_is_in_no_config_state_or_repr() -> None:
    noise = GaussianNoise(std=1.0, source=dp.random.insecure_source(12345))
    noise.run(Vector.build({"w": np.zeros(2)}))
    text = repr(noise) + repr(noise.get_config()) + repr(noise.get_state())
    assert "12345" not in text
    assert "source" not in text


def test_round_reset_forgets_the_state() -> None:
    kept, reset = Momentum(beta=0.5), Momentum(beta=0.5, round_reset=True)
    grads = Vector.build({"w": np.ones(2)})
    for module in (kept, reset):
        module.run(grads)
        module.on_round_start()
    assert kept.run(grads).flatten().tolist() == [1.5, 1.5]
    assert reset.run(grads).flatten().tolist() == [1.0, 1.0]


# ---- declaring one's own -------------------------------------------------------------------------------


def test_a_plug_in_of_ones_own_is_registered_configured_and_saved() -> None:
    class Lion(OptiModule):
        """The sign of a momentum."""

        name = "test-lion"
        beta_1: float = 0.9
        beta_2: float = 0.99
        m: Vector = state(0.0)

        def run(self, gradients: Vector) -> Vector:
            update = (self.beta_1 * self.m + (1 - self.beta_1) * gradients).sign()
            self.m = self.beta_2 * self.m + (1 - self.beta_2) * gradients
            return update

    assert list_optim_modules()["test-lion"] is Lion
    assert check_plugin(Lion, frameworks=["numpy"], executors=["blocked"], examples=5) > 20
    memory = np.zeros(17)

    def reference(g: np.ndarray, w: np.ndarray, t: int) -> np.ndarray:
        update = np.sign(0.9 * memory + (1 - 0.9) * g)
        memory[:] = 0.99 * memory + (1 - 0.99) * g
        return update

    contracts.assert_equals_reference(Lion(), reference)


def test_names_are_unique_and_registration_can_be_declined() -> None:
    class Hidden(OptiModule, register=False):
        name = "adam"

    assert list_optim_modules()["adam"] is Adam
    with pytest.raises(TypeError, match=r"'adam' for .*Second.*: privopt.modules.adaptive.Adam has it"):

        class Second(OptiModule):
            name = "adam"

    with pytest.raises(TypeError, match="set `name"):

        class Nameless(OptiModule):
            pass


def test_other_spellings_are_accepted_but_not_twice() -> None:
    assert AdamModule(beta1=0.5).beta_1 == 0.5
    assert Adam.from_config({"beta1": 0.5, "beta2": 0.6}).get_config()["beta_2"] == 0.6
    with pytest.raises(TypeError, match="got both"):
        Adam(beta1=0.5, beta_1=0.5)


@pytest.mark.parametrize(
    ("name", "config", "error", "words"),
    [
        ("adam", {"beta_1": 1.0}, ValueError, r"0 <= beta_1 < 1 for module 'adam', got beta_1=1.0"),
        ("adam", {"beta_1": "x"}, TypeError, r"a number for adam.beta_1, got 'x'"),
        ("adam", {"amsgrad": 1}, TypeError, "true or false for adam.amsgrad"),
        ("adam", {"beta_3": 1}, TypeError, "got 'beta_3'. Did you mean"),
        ("adam", {"eps": float("nan")}, ValueError, "got nan"),
        ("momentum", {"beta": -1}, ValueError, "beta=-1.0"),
        ("l2-clipping", {"max_norm": 0}, ValueError, "max_norm > 0"),
        ("fedprox", {"alpha": -1}, ValueError, "alpha >= 0"),
        ("elastic-net", {"l1_ratio": 1.5}, ValueError, "l1_ratio=1.5"),
        ("adagrad", {"eps": -1}, ValueError, "eps >= 0"),
        ("cautious", {"eps": 0}, ValueError, "0 < eps <= 1"),
        ("clip-value", {"max_value": 0}, ValueError, "max_value > 0"),
        ("ema-weights", {"beta": 1}, ValueError, "0 <= beta < 1"),
        ("lamb", {"decay": -1}, ValueError, "decay >= 0"),
        ("lars", {"coefficient": 0}, ValueError, "coefficient > 0"),
        ("laplace-noise", {"scale": -1}, ValueError, "scale >= 0"),
        ("lion", {"beta_2": 1}, ValueError, "beta_2=1.0"),
        ("lookahead", {"period": 0}, ValueError, "period >= 1"),
        ("lookahead", {"alpha": 0}, ValueError, "0 < alpha <= 1"),
        ("nadam", {"momentum_decay": -1}, ValueError, "momentum_decay >= 0"),
        ("normalize", {"eps": 0}, ValueError, "eps > 0"),
        ("rmsprop", {"eps": -1}, ValueError, "eps >= 0"),
        ("schedule-free", {"power": -1}, ValueError, "power >= 0"),
        ("adam", [1], TypeError, "mapping as config"),
    ],
)
def test_bad_hyper_parameters_are_refused_by_name(name: str, config: object, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        ALL[name].from_config(config)


def test_bad_states_are_refused_whole() -> None:
    adam = Adam()
    adam.run(Vector.build({"w": np.ones(2)}))
    before = adam.get_state()
    with pytest.raises(KeyError, match="'v'"):
        adam.set_state({"m": 1})
    with pytest.raises(ValueError, match="got also"):
        adam.set_state({**before, "more": 1})
    assert same_state(adam.get_state(), before)


def test_gradients_of_the_wrong_type_are_refused() -> None:
    with pytest.raises(TypeError, match="gradients as a Vector for 'adam', got ndarray"):
        Adam().run(np.ones(3))  # type: ignore[arg-type]
