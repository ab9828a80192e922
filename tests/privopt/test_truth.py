"""Whole training runs beside torch.optim's and optax's, in float64, with unusual hyper-parameters.

A run is 20 steps on tensors of all sorts of shapes; gradients depend on the weights, so that what is wrong
once stays wrong. Where another library places eps differently, the test says so in the arguments.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from privopt import Optimizer, Vector
from tests import contracts

SHAPES: dict[str, tuple[int, ...]] = {"w": (2, 3), "s": (), "e": (0,), "b": (3,), "k": (2, 2, 3)}
STEPS = 20
LRATE = 0.03
Arrays = dict[str, np.ndarray]
Run = list[Arrays]
"""The weights after each step."""


def start() -> Arrays:
    return {name: np.array(a) for name, a in contracts.gradients(0, SHAPES).coefs.items()}


@functools.cache
def _noise(step: int) -> Vector:
    return contracts.gradients(step, SHAPES)


def gradient(step: int, weights: Arrays) -> Arrays:
    return {name: _noise(step).coefs[name] + 0.3 * np.sin(w) for name, w in weights.items()}


def ours(optimizer: Optimizer) -> Run:
    weights, run = Vector.build(start()), []
    for step in range(1, STEPS + 1):
        optimizer.step(Vector.build(gradient(step, weights.coefs)), weights)
        run.append({name: np.array(a) for name, a in weights.coefs.items()})
    return run


def with_module(name: str, /, lrate: float = LRATE, w_decay: float = 0.0, **config: Any) -> Optimizer:
    return Optimizer(lrate, w_decay, modules=[(name, config)])


def assert_same(left: Run, right: Run) -> None:
    for step, (a, b) in enumerate(zip(left, right, strict=True), 1):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_allclose(
                a[name], b[name], rtol=1e-12, atol=1e-12, err_msg=f"{name}, step {step}"
            )
    # A run that stands still would be equal to anything that does.
    assert np.abs(left[-1]["w"] - left[-2]["w"]).max() > 1e-6


def assert_equal(state: Vector, expected: Arrays) -> None:
    assert state.coefs.keys() == expected.keys()
    for name, a in state.coefs.items():
        np.testing.assert_allclose(a, expected[name], rtol=1e-12, atol=1e-12, err_msg=name)


# ---- torch.optim ---------------------------------------------------------------------------------------


@pytest.fixture
def _doubles() -> Iterator[None]:
    """torch.optim keeps its scalars, NAdam's product of momenta say, in the default dtype."""
    kept = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(kept)


def torch_run(
    make: Callable[[Any], torch.optim.Optimizer], after: Callable[[Any], None] | None = None
) -> Run:
    params = {name: torch.nn.Parameter(torch.from_numpy(a)) for name, a in start().items()}
    optimizer, run = make(params.values()), []
    for step in range(1, STEPS + 1):
        grads = gradient(step, {name: p.detach().numpy() for name, p in params.items()})
        for name, p in params.items():
            p.grad = torch.from_numpy(np.array(grads[name]))
        optimizer.step()
        run.append({name: p.detach().numpy().copy() for name, p in params.items()})
        if after is not None:
            after(params)
    return run


T = torch.optim
TORCH: dict[str, tuple[Callable[[], Optimizer], Callable[[Any], torch.optim.Optimizer]]] = {
    "sgd": (lambda: Optimizer(LRATE), lambda p: T.SGD(p, LRATE)),
    "sgd, l2 penalty": (
        lambda: Optimizer(LRATE, regularizers=[("ridge", {"alpha": 0.2})]),
        lambda p: T.SGD(p, LRATE, weight_decay=0.4),
    ),
    "momentum": (lambda: with_module("momentum", beta=0.8), lambda p: T.SGD(p, LRATE, momentum=0.8)),
    "nesterov": (
        lambda: with_module("momentum", beta=0.7, nesterov=True),
        lambda p: T.SGD(p, LRATE, momentum=0.7, nesterov=True),
    ),
    "adagrad": (lambda: with_module("adagrad", eps=1e-3), lambda p: T.Adagrad(p, LRATE, eps=1e-3)),
    "rmsprop": (
        lambda: with_module("rmsprop", beta=0.8, eps=1e-3),
        lambda p: T.RMSprop(p, LRATE, alpha=0.8, eps=1e-3),
    ),
    "rmsprop, momentum": (
        lambda: Optimizer(LRATE, modules=[("rmsprop", {"beta": 0.8}), ("momentum", {"beta": 0.6})]),
        lambda p: T.RMSprop(p, LRATE, alpha=0.8, eps=1e-7, momentum=0.6),
    ),
    "adam": (
        lambda: with_module("adam", beta_1=0.85, beta_2=0.97, eps=1e-5),
        lambda p: T.Adam(p, LRATE, (0.85, 0.97), 1e-5),
    ),
    "amsgrad": (
        lambda: with_module("adam", beta_1=0.85, beta_2=0.6, eps=1e-5, amsgrad=True),
        lambda p: T.Adam(p, LRATE, (0.85, 0.6), 1e-5, amsgrad=True),
    ),
    "adamw": (
        lambda: with_module("adam", beta_2=0.999, eps=1e-8, w_decay=LRATE * 0.3),
        lambda p: T.AdamW(p, LRATE, weight_decay=0.3),
    ),
    "nadam": (
        lambda: with_module("nadam", beta_1=0.8, beta_2=0.9, eps=1e-4, momentum_decay=0.3),
        lambda p: T.NAdam(p, LRATE, (0.8, 0.9), 1e-4, momentum_decay=0.3),
    ),
    "nadam, decoupled decay": (
        lambda: with_module("nadam", w_decay=LRATE * 0.3),
        lambda p: T.NAdam(p, LRATE, weight_decay=0.3, decoupled_weight_decay=True),
    ),
    "radam, dividing from the tenth step": (
        lambda: with_module("radam", beta_1=0.8, beta_2=0.9, eps=1e-2),
        lambda p: T.RAdam(p, LRATE, (0.8, 0.9), 1e-2),
    ),
    "radam, never dividing": (
        lambda: with_module("radam", beta_1=0.8, beta_2=0.6),
        lambda p: T.RAdam(p, LRATE, (0.8, 0.6)),
    ),
    "radam, decoupled decay": (
        lambda: with_module("radam", w_decay=LRATE * 0.3),
        lambda p: T.RAdam(p, LRATE, weight_decay=0.3, decoupled_weight_decay=True),
    ),
}


@pytest.mark.usefixtures("_doubles")
@pytest.mark.parametrize("name", TORCH)
def test_runs_equal_torch_optim(name: str) -> None:
    mine, theirs = TORCH[name]
    assert_same(ours(mine()), torch_run(theirs))


def test_values_are_clipped_as_torch_clips_them() -> None:
    grads = contracts.gradients(0, SHAPES)
    params = [torch.nn.Parameter(torch.from_numpy(np.array(a))) for a in grads.coefs.values()]
    for p in params:
        p.grad = p.detach().clone()
    torch.nn.utils.clip_grad_value_(params, 0.4)
    clipped = Optimizer(1.0, modules=[("clip-value", {"max_value": 0.4})]).compute_updates(grads, grads)
    for p, a in zip(params, clipped.coefs.values(), strict=True):
        assert p.grad is not None
        assert np.array_equal(-a, p.grad.numpy())


@pytest.mark.usefixtures("_doubles")
def test_averaged_weights_equal_torchs_averaged_model() -> None:
    model = torch.nn.ParameterDict({name: torch.from_numpy(a) for name, a in start().items()})
    averaged = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.8)
    )

    def after(params: Any) -> None:
        with torch.no_grad():
            for name, p in params.items():
                model[name].copy_(p)
        averaged.update_parameters(model)

    theirs = torch_run(lambda p: T.SGD(p, LRATE, momentum=0.8), after)
    optimizer = Optimizer(LRATE, modules=[("momentum", {"beta": 0.8}), ("ema-weights", {"beta": 0.8})])
    assert_same(ours(optimizer), theirs)
    average: Any = optimizer.modules[-1]
    assert_equal(average.average, {name: averaged.module[name].detach().numpy() for name in SHAPES})


# ---- optax ---------------------------------------------------------------------------------------------


def optax_run(
    transform: Any,
    wrap: Callable[[Any], Any] = lambda params: params,
    trained: Callable[[Any], Any] = lambda params: params,
    evaluated: Callable[[Any, Any], Any] = lambda state, params: params,
) -> tuple[Run, Arrays]:
    """The run of an optax transformation, and the weights that it would be evaluated with.

    `wrap`, `trained` and `evaluated` are for those with several sets of weights.
    """
    jax, optax = pytest.importorskip("jax"), pytest.importorskip("optax")
    with jax.enable_x64(True):
        params = wrap({name: jax.numpy.asarray(a) for name, a in start().items()})
        state, run, update = transform.init(params), [], jax.jit(transform.update)
        for step in range(1, STEPS + 1):
            here = {name: np.asarray(p) for name, p in trained(params).items()}
            grads = {name: jax.numpy.asarray(g) for name, g in gradient(step, here).items()}
            updates, state = update(grads, state, params)
            params = optax.apply_updates(params, updates)
            run.append({name: np.asarray(p) for name, p in trained(params).items()})
        return run, {name: np.asarray(a) for name, a in evaluated(state, params).items()}


def direction(name: str, /, **config: Any) -> Callable[[], Optimizer]:
    return lambda: with_module(name, **config)


def stepped(transform: Callable[[Any], Any], lrate: float = LRATE) -> Callable[[Any], Any]:
    return lambda optax: optax.chain(transform(optax), optax.scale(-lrate))


OPTAX: dict[str, tuple[Callable[[], Optimizer], Callable[[Any], Any]]] = {
    "ewma": (direction("ewma", beta=0.8), stepped(lambda o: o.ema(0.8, debias=False))),
    "rmsprop": (
        direction("rmsprop", beta=0.8, eps=1e-3),
        stepped(lambda o: o.scale_by_rms(0.8, 1e-3, eps_in_sqrt=False)),
    ),
    "yogi, both moments starting at zero": (
        direction("yogi", beta_1=0.8, beta_2=0.7, eps=1e-3),
        stepped(lambda o: o.scale_by_yogi(0.8, 0.7, eps=1e-3, initial_accumulator_value=0.0)),
    ),
    "lion, decoupled decay": (
        direction("lion", beta_1=0.8, beta_2=0.7, w_decay=LRATE * 0.3),
        lambda o: o.lion(LRATE, b1=0.8, b2=0.7, weight_decay=0.3),
    ),
    "adabelief, eps in both places": (
        direction("adabelief", beta_1=0.8, beta_2=0.7, eps=1e-5),
        lambda o: o.adabelief(LRATE, b1=0.8, b2=0.7, eps=1e-5, eps_root=1e-5),
    ),
    "lamb, with decay": (
        direction("lamb", beta_1=0.8, beta_2=0.7, eps=1e-3, decay=0.3),
        lambda o: o.lamb(LRATE, b1=0.8, b2=0.7, eps=1e-3, weight_decay=0.3),
    ),
    "lars": (
        lambda: Optimizer(
            1.0, modules=[("lars", {"coefficient": 0.02, "eps": 0.1}), ("momentum", {"beta": 0.8})]
        ),
        lambda o: o.lars(1.0, trust_coefficient=0.02, eps=0.1, momentum=0.8),
    ),
    "lars, nesterov, decay outside the ratio": (
        lambda: Optimizer(
            1.0,
            regularizers=[("ridge", {"alpha": 0.15})],
            modules=[("lars", {"coefficient": 0.02}), ("momentum", {"beta": 0.8, "nesterov": True})],
        ),
        lambda o: o.lars(1.0, weight_decay=0.3, trust_coefficient=0.02, momentum=0.8, nesterov=True),
    ),
    "sign": (direction("sign"), lambda o: o.sign_sgd(LRATE)),
    "clip-value": (direction("clip-value", max_value=0.4), stepped(lambda o: o.clip(0.4))),
    "l2-global-clipping": (
        direction("l2-global-clipping", max_norm=2.0),
        stepped(lambda o: o.clip_by_global_norm(2.0)),
    ),
    "centralize": (direction("centralize"), stepped(lambda o: o.centralize())),
    "normalize": (direction("normalize", eps=1e-2), stepped(lambda o: o.normalize_by_update_norm(eps=1e-2))),
}
PER_TENSOR: dict[str, tuple[Callable[[], Optimizer], Callable[[Any], Any]]] = {
    "l2-clipping": (direction("l2-clipping", max_norm=1.0), lambda o: o.clip_by_global_norm(1.0)),
    "normalize": (
        direction("normalize", per_tensor=True, eps=1e-2),
        lambda o: o.normalize_by_update_norm(eps=1e-2),
    ),
}


@pytest.mark.parametrize("name", OPTAX)
def test_runs_equal_optax(name: str) -> None:
    mine, theirs = OPTAX[name]
    assert_same(ours(mine()), optax_run(theirs(pytest.importorskip("optax")))[0])


@pytest.mark.parametrize("name", PER_TENSOR)
def test_runs_per_tensor_equal_optax_on_each_tensor_alone(name: str) -> None:
    optax = pytest.importorskip("optax")
    mine, theirs = PER_TENSOR[name]
    alone = optax.chain(theirs(optax), optax.scale(-LRATE))
    names = {tensor: tensor for tensor in SHAPES}
    assert_same(ours(mine()), optax_run(optax.partition(dict.fromkeys(SHAPES, alone), names))[0])


@pytest.mark.parametrize(("period", "alpha"), [(1, 0.7), (3, 0.4), (5, 1.0)])
def test_lookahead_equals_optax(period: int, alpha: float) -> None:
    optax = pytest.importorskip("optax")
    optimizer = Optimizer(
        LRATE, modules=[("momentum", {"beta": 0.8}), ("lookahead", {"period": period, "alpha": alpha})]
    )
    theirs = optax.lookahead(optax.sgd(LRATE, momentum=0.8), period, alpha)
    run, expected = optax_run(
        theirs,
        optax.LookaheadParams.init_synced,
        trained=lambda params: params.fast,
        evaluated=lambda state, params: params.slow,
    )
    assert_same(ours(optimizer), run)
    lookahead: Any = optimizer.modules[-1]
    assert_equal(lookahead.slow, expected)


@pytest.mark.parametrize("base", ["sgd", "sgd with decay", "adam without momentum"])
def test_schedule_free_equals_optax(base: str) -> None:
    optax = pytest.importorskip("optax")
    adam = ("adam", {"beta_1": 0.0, "beta_2": 0.7, "eps": 1e-3})
    free = ("schedule-free", {"beta": 0.8})
    mine, theirs = {
        "sgd": (Optimizer(LRATE, modules=[free]), optax.sgd(LRATE)),
        "sgd with decay": (
            Optimizer(LRATE, w_decay=LRATE * 0.3, modules=[free]),
            optax.chain(optax.add_decayed_weights(0.3), optax.sgd(LRATE)),
        ),
        "adam without momentum": (
            Optimizer(LRATE, modules=[adam, free]),
            optax.adam(LRATE, b1=0.0, b2=0.7, eps=1e-3),
        ),
    }[base]
    run, expected = optax_run(
        optax.contrib.schedule_free(theirs, LRATE, b1=0.8), evaluated=optax.contrib.schedule_free_eval_params
    )
    assert_same(ours(mine), run)
    schedule_free: Any = mine.modules[-1]
    assert_equal(schedule_free.average, expected)
