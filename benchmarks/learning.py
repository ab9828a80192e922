"""Small problems and how an optimizer learns them, for `benchmarks.curves`: pure numpy, the same for a seed.

Each problem shows one difficulty. All but the Rosenbrock valley have noise in their gradients.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

import privopt
from privopt import Optimizer, Vector

__all__ = [
    "PROBLEMS",
    "STEPS",
    "Curve",
    "Digits",
    "HeavyTails",
    "Problem",
    "Quadratic",
    "Rosenbrock",
    "Sparse",
    "best_curve",
    "learn",
    "score",
]

Array = npt.NDArray[np.float64]
Weights = Mapping[str, Array]
STEPS = 250
"""How many steps the schedules are laid out for, and most problems take."""

POINTS = 25
"""How many points a curve has after its start."""


class Problem(Protocol):
    """Something to learn by gradients."""

    title: str
    measures: str
    steps: int
    rates: Sequence[float] = (0.01, 0.1, 1.0)
    """The grid of learning rates, before it is refined."""

    def start(self) -> dict[str, Array]:
        """The weights to start from."""

    def gradient(self, weights: Weights, rng: np.random.Generator) -> dict[str, Array]:
        """A gradient at the weights, with its noise drawn from `rng`."""

    def loss(self, weights: Weights) -> float:
        """How far there is to go, without noise."""


class Quadratic(Problem):
    """A bowl a hundred times steeper along one axis than along another, under noise."""

    title = "Noisy quadratic, condition number 100"
    measures = "loss"
    steps = STEPS
    noise = 0.1

    def __init__(self) -> None:
        self.curvature = {
            "a": np.geomspace(1e-2, 1.0, 50)[::-1].reshape(10, 5),
            "b": np.geomspace(1e-2, 1.0, 50),
        }

    def start(self) -> dict[str, Array]:
        return {name: np.ones_like(c) for name, c in self.curvature.items()}

    def gradient(self, weights: Weights, rng: np.random.Generator) -> dict[str, Array]:
        return {n: c * weights[n] + self._noise(c.shape, rng) for n, c in self.curvature.items()}

    def _noise(self, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
        return self.noise * rng.standard_normal(shape)

    def loss(self, weights: Weights) -> float:
        return float(sum(0.5 * np.sum(c * weights[n] ** 2) for n, c in self.curvature.items()))


class HeavyTails(Quadratic):
    """The same bowl, where a gradient is now and then hundreds of times too long."""

    title = "Quadratic with rare, huge noise"
    noise = 0.02

    def _noise(self, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
        # One factor for the whole tensor, of infinite variance: Student's t with 1.5 degrees of freedom.
        return self.noise * rng.standard_normal(shape) * abs(rng.standard_t(1.5))


class Rosenbrock(Problem):
    """Rosenbrock's curved valley (1960): quick to reach, slow to follow; no noise."""

    title = "Rosenbrock's valley"
    measures = "loss"
    steps = 400
    rates = (0.003, 0.03, 0.3)

    def start(self) -> dict[str, Array]:
        return {"x": np.array([-1.2, 1.0])}

    def gradient(self, weights: Weights, rng: np.random.Generator) -> dict[str, Array]:
        x, y = weights["x"]
        return {"x": np.array([-400 * x * (y - x * x) - 2 * (1 - x), 200 * (y - x * x)])}

    def loss(self, weights: Weights) -> float:
        x, y = weights["x"]
        return float((1 - x) ** 2 + 100 * (y - x * x) ** 2)


class Digits(Problem):
    """A network of one hidden layer on scikit-learn's handwritten digits, in batches of 64."""

    title = "Handwritten digits, 64-32-10 network"
    measures = "training loss"
    steps = STEPS
    batch = 64

    def __init__(self) -> None:
        self.x, self.y = digits()

    def start(self) -> dict[str, Array]:
        rng = np.random.default_rng(1)
        return {
            "hidden.weight": rng.standard_normal((32, 64)) / 8,
            "hidden.bias": np.zeros(32),
            "out.weight": rng.standard_normal((10, 32)) / math.sqrt(32),
            "out.bias": np.zeros(10),
        }

    def gradient(self, weights: Weights, rng: np.random.Generator) -> dict[str, Array]:
        rows = rng.integers(0, len(self.y), self.batch)
        x, y = self.x[rows], self.y[rows]
        hidden, logits = self._forward(weights, x)
        errors = np.exp(logits - logits.max(axis=1, keepdims=True))
        errors /= errors.sum(axis=1, keepdims=True)
        errors[np.arange(len(y)), y] -= 1
        errors /= len(y)
        back = (errors @ weights["out.weight"]) * (hidden > 0)
        return {
            "hidden.weight": back.T @ x,
            "hidden.bias": back.sum(axis=0),
            "out.weight": errors.T @ hidden,
            "out.bias": errors.sum(axis=0),
        }

    def _forward(self, weights: Weights, x: Array) -> tuple[Array, Array]:
        hidden = np.maximum(x @ weights["hidden.weight"].T + weights["hidden.bias"], 0)
        return hidden, hidden @ weights["out.weight"].T + weights["out.bias"]

    def loss(self, weights: Weights) -> float:
        _, logits = self._forward(weights, self.x)
        return cross_entropy(logits, self.y)


class Sparse(Problem):
    """Linear regression on fewer rows than features, where 5 of 60 features matter."""

    title = "Sparse regression, 40 rows of 60 features"
    measures = "distance to the true weights, relative"
    steps = 400

    def __init__(self) -> None:
        rng = np.random.default_rng(5)
        self.truth = np.zeros(60)
        self.truth[:5] = (2.0, -1.5, 1.0, -1.0, 0.75)
        self.x = rng.standard_normal((40, 60))
        self.y = self.x @ self.truth + 0.3 * rng.standard_normal(40)

    def start(self) -> dict[str, Array]:
        return {"w": np.zeros(60)}

    def gradient(self, weights: Weights, rng: np.random.Generator) -> dict[str, Array]:
        rows = rng.integers(0, 40, 20)
        return {"w": self.x[rows].T @ (self.x[rows] @ weights["w"] - self.y[rows]) / 20}

    def loss(self, weights: Weights) -> float:
        return float(np.linalg.norm(weights["w"] - self.truth) / np.linalg.norm(self.truth))


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "digits": functools.cache(Digits),
    "quadratic": functools.cache(Quadratic),
    "rosenbrock": functools.cache(Rosenbrock),
    "heavy tails": functools.cache(HeavyTails),
    "sparse": functools.cache(Sparse),
}


@functools.cache
def digits() -> tuple[Array, npt.NDArray[np.int64]]:
    """scikit-learn's 1,797 digits, pixels in [-0.5, 0.5]."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return np.asarray(found.data / 16 - 0.5, np.float64), np.asarray(found.target, np.int64)


def cross_entropy(logits: Array, labels: npt.NDArray[np.int64]) -> float:
    """Mean of -log(softmax(logits)[label])."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(shifted).sum(axis=1))
    return float(np.mean(log_sum - shifted[np.arange(len(labels)), labels]))


# ---- learning ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """How one optimizer did: points (steps taken, loss), and the rate that it was the best with."""

    points: Sequence[tuple[float, float]]
    lrate: float

    @property
    def final(self) -> float:
        """What the choice of the rate goes by."""
        return score(self.points)


def learn(
    problem: Problem, optimizer: Optimizer, evaluate: Callable[[Vector], Vector], seed: int = 0
) -> list[tuple[float, float]]:
    """The loss along the steps; infinite, and the end, once it is a thousand times that of the start."""
    rng = np.random.default_rng(seed)
    weights = Vector.build(problem.start())
    grads = weights.full_like(0.0)
    points = [(0.0, problem.loss(weights.coefs))]
    optimizer.start_round()
    # Tensors this small are not worth a compiled loop, which is not installed everywhere.
    with np.errstate(all="ignore"), privopt.executor("eager"):
        for step in range(1, problem.steps + 1):
            found = problem.gradient(weights.coefs, rng)
            for name, view in grads.coefs.items():
                view[...] = found[name]
            optimizer.step(grads, weights)
            if step % (problem.steps // POINTS) == 0:
                points.append((float(step), problem.loss(evaluate(weights).coefs)))
                if not points[-1][1] < 1e3 * points[0][1]:
                    points[-1] = (float(step), math.inf)
                    break
                feed = getattr(optimizer.lrate, "feed", None)
                if feed is not None:
                    feed(points[-1][1])
    return points


def score(points: Sequence[tuple[float, float]]) -> float:
    """The mean loss over the last fifth of the points."""
    kept = [y for _, y in points[-max(1, len(points) // 5) :]]
    return sum(kept) / len(kept)


def best_curve(
    run: Callable[[float], list[tuple[float, float]]], rates: Sequence[float], refine: bool = True
) -> Curve:
    """The curve with the best of these rates; to `refine`, also of three times less and more than it."""
    best = min((Curve(run(rate), rate) for rate in rates), key=lambda curve: curve.final)
    around = (best.lrate / 3, best.lrate * 3) if refine else ()
    return min([best, *(Curve(run(rate), rate) for rate in around)], key=lambda curve: curve.final)
