"""The optimizers that `benchmarks.curves` shows, family by family, and the plug-ins that it leaves out."""

from __future__ import annotations

import functools
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from privopt import Optimizer, Vector, list_optim_modules, list_optim_regularizers
from privopt.registry import list_aggregators, list_rate_schedulers
from privopt.schedules import Schedule

from .learning import STEPS, Curve, Problem, best_curve, learn

__all__ = ["FAMILIES", "FEDERATED", "Family", "Method", "best_federated", "not_shown"]


@dataclass(frozen=True)
class Method:
    """One line of a chart.

    Attributes:
        label: Its name there.
        make: An optimizer of a given learning rate.
        average: Name of the state, of the last module, that is evaluated in place of the weights.
    """

    label: str
    make: Callable[[float], Optimizer]
    average: str | None = None

    def best(self, problem: Problem) -> Curve:
        """The curve with the best rate."""
        return best_curve(functools.partial(self._points, problem), problem.rates)

    def _points(self, problem: Problem, lrate: float) -> list[tuple[float, float]]:
        optimizer = self.make(lrate)

        def evaluate(weights: Vector) -> Vector:
            return getattr(optimizer.modules[-1], self.average) if self.average else weights

        return learn(problem, optimizer, evaluate)

    def used(self) -> set[str]:
        """Names of its plug-ins, the schedule's included."""
        optimizer = self.make(0.1)
        schedules = [rate for rate in (optimizer.lrate,) if isinstance(rate, Schedule)]
        return {plugin.name for plugin in [*optimizer.plugins, *schedules]}


@dataclass(frozen=True)
class Family:
    """Methods that belong together.

    Attributes:
        title: What its figure is called.
        problems: The problems on which they are shown, by name.
        methods: The first is what the others are compared with.
        rates: Whether the learning rates are shown as well.
    """

    title: str
    problems: Sequence[str]
    methods: Sequence[Method]
    rates: bool = False


def _plain(label: str, *modules: Any, average: str | None = None, regularizers: Sequence[Any] = ()) -> Method:
    """A method given by what its optimizer is given."""

    def make(lrate: float) -> Optimizer:
        return Optimizer(lrate, regularizers=regularizers, modules=modules)

    return Method(label, make, average)


def _scheduled(name: str, **config: Any) -> Method:
    """Plain SGD under a schedule whose base is the rate; parameters that are functions are given it."""

    def make(lrate: float) -> Optimizer:
        scaled = {key: value(lrate) if callable(value) else value for key, value in config.items()}
        return Optimizer((name, {"base": lrate, **scaled}))

    return Method(name, make)


def _noisy(name: str, **config: Any) -> Method:
    """A noise module whose source can be replayed, so that the figure is the same each time."""

    def make(lrate: float) -> Optimizer:
        from dp.random import insecure_source

        module = cast(Any, list_optim_modules()[name])
        return Optimizer(lrate, modules=[module(**config, source=insecure_source(0))])

    return Method(name, make)


_SGD = _plain("sgd")
_ADAM = _plain("adam", "adam")
_MOMENTUM = _plain("momentum", "momentum")
_USUAL = ("digits", "quadratic", "rosenbrock")

FAMILIES: dict[str, Family] = {
    "momentum": Family(
        "Momentum",
        _USUAL,
        [
            _SGD,
            _MOMENTUM,
            _plain("nesterov", ("momentum", {"nesterov": True})),
            _plain("ewma", "ewma"),
            _plain("yogi-momentum", "yogi-momentum"),
            _plain("cautious", "momentum", "cautious"),
        ],
    ),
    "adaptive": Family(
        "Adaptive steps",
        _USUAL,
        [
            _SGD,
            _plain("adagrad", "adagrad"),
            _plain("rmsprop", "rmsprop"),
            _ADAM,
            _plain("adam, amsgrad", ("adam", {"amsgrad": True})),
            _plain("yogi", "yogi"),
            _plain("adabelief", "adabelief"),
            _plain("nadam", "nadam"),
            _plain("radam", "radam"),
        ],
    ),
    "sign": Family(
        "Signs",
        _USUAL,
        [
            _SGD,
            _plain("sign", "sign"),
            _plain("momentum, sign", "momentum", "sign"),
            _plain("lion", "lion"),
            _ADAM,
        ],
    ),
    "trust": Family(
        "Trust ratios",
        _USUAL,
        [
            _MOMENTUM,
            _plain("lars, momentum", ("lars", {"coefficient": 1.0}), "momentum"),
            _ADAM,
            _plain("lamb", "lamb"),
        ],
    ),
    "averaging": Family(
        "Averages of the weights",
        _USUAL,
        [
            _SGD,
            _plain("ema-weights", ("ema-weights", {"beta": 0.95}), average="average"),
            _plain("lookahead", "lookahead"),
            _plain("schedule-free", "schedule-free", average="average"),
        ],
    ),
    "clipping": Family(
        "Clipping, normalizing, noise",
        ("heavy tails", "digits"),
        [
            _SGD,
            _plain("l2-clipping", ("l2-clipping", {"max_norm": 0.5})),
            _plain("l2-global-clip.", ("l2-global-clipping", {"max_norm": 0.5})),
            _plain("clip-value", ("clip-value", {"max_value": 0.05})),
            _plain("normalize", "normalize"),
            _plain("centralize", "centralize"),
            _noisy("gaussian-noise", std=0.05),
            _noisy("laplace-noise", scale=0.05 / math.sqrt(2)),
        ],
    ),
    "regularizers": Family(
        "Regularizers",
        ("sparse",),
        [
            _SGD,
            _plain("lasso", regularizers=[("lasso", {"alpha": 0.1})]),
            _plain("ridge", regularizers=[("ridge", {"alpha": 0.1})]),
            _plain("elastic-net", regularizers=[("elastic-net", {"alpha": 0.1})]),
        ],
    ),
    "schedules-fall": Family(
        "Schedules that fall",
        ("quadratic", "digits"),
        [
            _scheduled("constant"),
            _scheduled("exponential", factor=0.99),
            _scheduled("inverse-scaling"),
            _scheduled("linear", duration=STEPS),
            _scheduled("polynomial", duration=STEPS),
            _scheduled("piecewise", boundaries=[100, 175], factors=[0.3, 0.3]),
            _scheduled("cosine", duration=STEPS),
            _scheduled("reduce-on-plateau", patience=2, factor=0.5),
        ],
        rates=True,
    ),
    "schedules-rise": Family(
        "Schedules that rise and fall",
        ("quadratic", "digits"),
        [
            _scheduled("constant"),
            _scheduled("cosine-restarts", period=36, multiplier=2),
            _scheduled("cyclic-triangular", base=lambda r: r / 10, max_rate=lambda r: r, rise=25, shrink=0.5),
            _scheduled("cyclic-exp-range", base=lambda r: r / 10, max_rate=lambda r: r, rise=25, factor=0.99),
            _scheduled("one-cycle", duration=STEPS),
            _scheduled("warmup", duration=30, then=("cosine", {"duration": STEPS - 30})),
        ],
        rates=True,
    ),
}

# ---- federated --------------------------------------------------------------------------------------------

ROUNDS = 12
_COMMON = [
    *("twin=false", "dp.enabled=false", "masks.enabled=false", f"rounds={ROUNDS}"),
    *("data.clients=5", "data.alpha=0.1", "dp.sampler.rate=0.1", "client.effort.steps=10"),
    *("client.optimizer.modules=[]", "server.optimizer.modules=[]"),
]

# Settings of a run, laid over those above; the first is what the others are compared with.
FEDERATED: dict[str, list[str]] = {
    "fedavg": [],
    "fedprox": ['client.optimizer.regularizers=[["fedprox", {alpha = 0.1}]]'],
    "scaffold": [
        'client.optimizer.modules=["scaffold-client"]',
        'server.optimizer.modules=["scaffold-server"]',
    ],
    "mime-lite": [
        'client.optimizer.modules=["mime-lite-client"]',
        'server.optimizer.modules=["mime-lite-server"]',
    ],
    "feddyn": [
        'client.optimizer.regularizers=[["feddyn", {alpha = 0.1}]]',
        'server.optimizer.modules=[["feddyn-server", {alpha = 0.1}]]',
    ],
    "adaptive clip": [
        'client.optimizer.modules=["adaptive-clipping-client"]',
        'server.optimizer.modules=["adaptive-clipping-server"]',
    ],
    "fedavgm": ['server.optimizer.modules=["momentum"]', "server.optimizer.lrate=0.3"],
    "fedadam": ['server.optimizer.modules=["adam"]', "server.optimizer.lrate=0.1"],
}


def _federated_config(settings: Sequence[str], lrate: float) -> Any:
    from privopt.setup.config import load

    return load(None, [*_COMMON, *settings, f"client.optimizer.lrate={lrate!r}"])


def _federated_points(settings: Sequence[str], lrate: float) -> list[tuple[float, float]]:
    """Loss of the server's model on the rows of all clients, round by round."""
    from privopt.federation.parts import Parts

    parts = Parts(_federated_config(settings, lrate))
    x, y = (np.concatenate([getattr(c, what) for c in parts.data.clients]) for what in "xy")
    with tempfile.TemporaryDirectory() as name:
        federation, central = parts.federation("curves", Path(name).joinpath, Path(name, "server"))
        with federation:
            points = [(0.0, central.evaluate(x, y)[1])]
            for report in federation.run(ROUNDS):
                points.append((float(report.round), central.evaluate(x, y)[1]))
    return points


def best_federated(label: str) -> Curve:
    """A federated method's curve with the better of two rates of its clients."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return best_curve(functools.partial(_federated_points, FEDERATED[label]), (0.3, 1.0), refine=False)
    finally:
        torch.set_num_threads(threads)


def _federated_used(settings: Sequence[str]) -> set[str]:
    from privopt.federation.parts import make_optimizer
    from privopt.setup.config import chosen_aggregator

    config = _federated_config(settings, 0.1)
    sides = [make_optimizer(side.optimizer) for side in (config.client, config.server)]
    return {plugin.name for side in sides for plugin in side.plugins} | {
        chosen_aggregator(config.server).name
    }


# ---- what is left out -------------------------------------------------------------------------------------

WITHOUT_A_CURVE = {
    "fednova": "the mean, where all clients take as many steps as here they do",
    "sum": "the mean, at another rate of the server",
    "masked-mean": "leaves out entries on which clients disagree: of use with more clients than five",
}
"""Built-in plug-ins that no family shows, with the reason."""


def not_shown() -> list[str]:
    """The built-in plug-ins that no family shows and no reason excuses; none when all is complete."""
    tables = (list_optim_modules(), list_optim_regularizers(), list_rate_schedulers(), list_aggregators())
    built_in = {
        name
        for table in cast(Sequence[Mapping[str, type]], tables)
        for name, cls in table.items()
        if cls.__module__.startswith("privopt.")
    }
    shown = {name for family in FAMILIES.values() for method in family.methods for name in method.used()}
    shown |= {name for settings in FEDERATED.values() for name in _federated_used(settings)}
    return sorted(built_in - shown - set(WITHOUT_A_CURVE))
