from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dp
from privopt import OptiModule, Vector, list_optim_modules, list_optim_regularizers, state
from privopt.modules import Adam, AdamModule, GaussianNoise, L2Clipping, L2GlobalClipping, Momentum
from privopt.regularizers import FedProx, Lasso, Ridge
from tests import contracts
from tests.statistical import assert_mean, assert_std

UNIT = st.floats(0, 0.999)
CONFIGS = {
    "momentum": st.fixed_dictionaries(
        {"beta": UNIT, "nesterov": st.booleans(), "round_reset": st.booleans()}
    ),
    "adam": st.fixed_dictionaries(
        {
            "beta_1": UNIT,
            "beta_2": UNIT,
            "amsgrad": st.booleans(),
            "eps": st.floats(1e-10, 1),
            "round_reset": st.booleans(),
        }
    ),
    "l2-clipping": st.fixed_dictionaries({"max_norm": st.floats(1e-3, 10)}),
    "l2-global-clipping": st.fixed_dictionaries({"max_norm": st.floats(1e-3, 10)}),
    "gaussian-noise": st.fixed_dictionaries({"std": st.floats(0, 10)}),
    "scaffold-client": st.just({}),
    "scaffold-server": st.just({}),
    "fedprox": st.fixed_dictionaries({"alpha": st.floats(0, 10)}),
    "lasso": st.fixed_dictionaries({"alpha": st.floats(0, 10)}),
    "ridge": st.fixed_dictionaries({"alpha": st.floats(0, 10)}),
}
ALL = {**list_optim_modules(), **list_optim_regularizers()}
BUILT_IN = {name: cls for name, cls in ALL.items() if cls.__module__.startswith("privopt.")}


def test_every_built_in_plug_in_is_under_contract() -> None:
    assert set(CONFIGS) == set(BUILT_IN)


@pytest.mark.parametrize("name", list(CONFIGS))
@given(data=st.data())
def test_config_round_trips_with_non_default_values(name: str, data: st.DataObject) -> None:
    contracts.assert_config_round_trips(BUILT_IN[name], data.draw(CONFIGS[name]))


@pytest.mark.parametrize("shapes", contracts.SHAPES, ids=str)
@pytest.mark.parametrize("name", list(CONFIGS))
def test_state_resumes_bitwise(name: str, shapes: dict[str, tuple[int, ...]]) -> None:
    contracts.assert_state_resumes_bitwise(BUILT_IN[name], {}, shapes)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shapes", contracts.SHAPES, ids=str)
@pytest.mark.parametrize("name", list(CONFIGS))
def test_layout_and_dtype_are_kept(name: str, shapes: dict[str, tuple[int, ...]], dtype: str) -> None:
    contracts.assert_keeps_layout(BUILT_IN[name], {}, shapes, dtype)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_numpy_and_torch_agree(name: str) -> None:
    contracts.assert_frameworks_agree(BUILT_IN[name], {}, {"w": (3, 2), "b": (3,)})


# ---- against references -------------------------------------------------------------------------------


def torch_updates(make: object, grads: list[Vector], start: Vector) -> list[np.ndarray]:
    """Parameters after each step of a torch optimizer."""
    params = [torch.nn.Parameter(torch.from_numpy(a.copy())) for a in start.coefs.values()]
    optimizer = make(params)  # type: ignore[operator]
    out = []
    for grad in grads:
        for p, g in zip(params, grad.coefs.values(), strict=True):
            p.grad = torch.from_numpy(g.copy())
        optimizer.step()
        out.append(np.concatenate([p.detach().numpy().ravel() for p in params]))
    return out


@pytest.mark.parametrize(
    ("module", "make"),
    [
        (Momentum(beta=0.8), lambda p: torch.optim.SGD(p, lr=0.03, momentum=0.8)),
        (
            Momentum(beta=0.7, nesterov=True),
            lambda p: torch.optim.SGD(p, lr=0.03, momentum=0.7, nesterov=True),
        ),
        (Adam(beta_1=0.85, beta_2=0.97, eps=1e-5), lambda p: torch.optim.Adam(p, 0.03, (0.85, 0.97), 1e-5)),
        (
            Adam(beta_1=0.85, beta_2=0.6, eps=1e-5, amsgrad=True),
            lambda p: torch.optim.Adam(p, 0.03, (0.85, 0.6), 1e-5, amsgrad=True),
        ),
    ],
    ids=["momentum", "nesterov", "adam", "amsgrad"],
)
def test_trajectories_equal_torch_optim(module: OptiModule, make: object) -> None:
    from privopt import Optimizer

    shapes = {"w": (4, 3), "b": (5,)}
    start = contracts.gradients(0, shapes)
    grads = [contracts.gradients(i, shapes) for i in range(1, 21)]
    ours, optimizer = start.copy(), Optimizer(0.03, modules=[module])
    for grad, expected in zip(grads, torch_updates(make, grads, start), strict=True):
        optimizer.step(grad, ours)
        np.testing.assert_allclose(ours.flatten(), expected, rtol=1e-12, atol=1e-12)


def test_decoupled_decay_converts_to_adamw_as_documented() -> None:
    from privopt import Optimizer

    shapes = {"w": (4, 3), "b": (5,)}
    start = contracts.gradients(0, shapes)
    grads = [contracts.gradients(i, shapes) for i in range(1, 21)]
    ours = start.copy()
    optimizer = Optimizer(0.02, w_decay=0.02 * 0.3, modules=[("adam", {"beta_2": 0.999, "eps": 1e-8})])
    theirs = torch_updates(lambda p: torch.optim.AdamW(p, 0.02, weight_decay=0.3), grads, start)
    for grad, expected in zip(grads, theirs, strict=True):
        optimizer.step(grad, ours)
        np.testing.assert_allclose(ours.flatten(), expected, rtol=1e-12, atol=1e-12)


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
        name = "test-lion"
        beta_1: float = 0.9
        beta_2: float = 0.99
        m: Vector = state(0.0)

        def run(self, gradients: Vector) -> Vector:
            update = (self.beta_1 * self.m + (1 - self.beta_1) * gradients).sign()
            self.m = self.beta_2 * self.m + (1 - self.beta_2) * gradients
            return update

    assert list_optim_modules()["test-lion"] is Lion
    contracts.assert_config_round_trips(Lion, {"beta_1": 0.5, "beta_2": 0.25})
    contracts.assert_state_resumes_bitwise(Lion, {}, {"w": (3,)})
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
    assert contracts.same_state(adam.get_state(), before)


def test_gradients_of_the_wrong_type_are_refused() -> None:
    with pytest.raises(TypeError, match="gradients as a Vector for 'adam', got ndarray"):
        Adam().run(np.ones(3))  # type: ignore[arg-type]
