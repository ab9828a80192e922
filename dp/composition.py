"""Privacy loss distributions and their composition, incremental: floor 4, what `dp.accounting` calls PLD.

A distribution lies on a grid and is rounded so that it costs at least as much as the mechanism ("connect the
dots"). Composition is a product of Fourier transforms; the product of what was composed before is kept, so
that one more event costs one more factor. dp-accounting gives the bounds of a grid and is the oracle.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

__all__ = [
    "TAIL_MASS",
    "Losses",
    "Pair",
    "Summary",
    "compose",
    "epsilon_at",
    "forget",
    "gaussian_losses",
    "summarize",
    "truncated_losses",
]

FloatArray: TypeAlias = npt.NDArray[np.float64]
Step = TypeVar("Step", bound=Hashable)

TAIL_MASS = 1e-15
"""Mass that a composition may leave out on both sides together; it counts as infinite loss."""
_ORDERS = 2.0 ** np.arange(-5, 18)
"""Orders of the moments that bound a composition's tails; a factor of two apart, they cost 6 % of width."""
_KEPT = 4


@dataclass(frozen=True, eq=False)
class Losses:
    """A distribution of the privacy loss, in one direction.

    Attributes:
        lower: Loss of the first point, in grid intervals.
        probs: Probabilities of the points, one interval apart.
        infinity: Probability of infinite loss.
    """

    lower: int
    probs: FloatArray
    infinity: float


Pair: TypeAlias = tuple[Losses, Losses]
"""Losses of one unit removed, and of one added; a guarantee takes the worse."""


# ---- one step -----------------------------------------------------------------------------------------


def gaussian_losses(noise: float, rate: float, interval: float) -> Pair:
    """Losses of one Gaussian release about a Poisson sample, sensitivity 1.

    Guarantees:
        - Rounded pessimistically: hockey-stick divergences are exact on the grid and above between.

    Args:
        noise: Noise std over the sensitivity, > 0.
        rate: Probability that a unit enters, in (0, 1].
        interval: Distance of the grid's points, in nats.

    References:
        Doroshenko et al. (2022), https://arxiv.org/abs/2207.04380, algorithm 1; Balle and Wang (2018),
        https://arxiv.org/abs/1805.06530, theorem 8.
    """
    from dp_accounting.pld import privacy_loss_mechanism as mechanism

    def one(direction: Any, divergence: Callable[[FloatArray], FloatArray]) -> Losses:
        bounds = mechanism.GaussianPrivacyLoss(
            noise, sampling_prob=rate, adjacency_type=direction
        ).connect_dots_bounds()
        low = math.floor(bounds.epsilon_lower / interval)
        high = max(math.ceil(bounds.epsilon_upper / interval), low + 1)
        return _connect_dots(low, divergence(np.arange(low, high + 1) * interval), interval)

    removed = one(mechanism.AdjacencyType.REMOVE, lambda eps: _removed(eps, noise, rate))
    if rate == 1.0:
        return removed, removed
    return removed, one(mechanism.AdjacencyType.ADD, lambda eps: _added(eps, noise, rate))


def truncated_losses(
    num_samples: int, rate: float, max_batch_size: int, noise: float, interval: float
) -> Pair:
    """Losses of one Gaussian release about a truncated Poisson sample, from dp-accounting.

    References:
        Ganesh (2025), https://arxiv.org/abs/2508.15089.
    """
    from dp_accounting.pld import privacy_loss_distribution as library

    both = library.from_truncated_subsampled_gaussian_mechanism(
        num_samples, rate, max_batch_size, noise, value_discretization_interval=interval
    )

    def one(pmf: Any) -> Losses:
        dense = pmf.to_dense_pmf()
        return Losses(int(dense._lower_loss), np.asarray(dense._probs), float(dense._infinity_mass))

    return one(both._pmf_remove), one(both._pmf_add)


def _plain(eps: FloatArray, noise: float) -> FloatArray:
    """The divergence of two Gaussians that are 1 apart."""
    from scipy import special

    upper = special.ndtr(0.5 / noise - eps * noise)
    return np.asarray(upper - np.exp(eps + special.log_ndtr(-0.5 / noise - eps * noise)), dtype=np.float64)


def _unsampled(eps: FloatArray, rate: float) -> FloatArray:
    """log(1 + (exp(eps) - 1) / rate), the loss without sampling that becomes `eps` with it."""
    near = np.log1p(np.maximum(np.expm1(np.minimum(eps, 1.0)) / rate, -1.0))
    return np.where(eps < 1.0, near, eps + np.log1p(-(1 - rate) * np.exp(-np.maximum(eps, 0))) - np.log(rate))


def _removed(eps: FloatArray, noise: float, rate: float) -> FloatArray:
    """Of the mixture from the plain Gaussian; the rate comes out as a factor, so that nothing cancels."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        inner = rate * _plain(_unsampled(eps, rate), noise)
    outside = eps <= (math.log1p(-rate) if rate < 1 else -math.inf)
    return np.where(outside, -np.expm1(np.minimum(eps, 0)), np.nan_to_num(inner, nan=0.0))


def _added(eps: FloatArray, noise: float, rate: float) -> FloatArray:
    """Of the plain Gaussian from the mixture: the same by duality, written without cancellation."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        loss = _unsampled(-eps, rate)
        inner = rate * np.exp(eps + loss) * _plain(-loss, noise)
    return np.where(eps >= -math.log1p(-rate), 0.0, np.nan_to_num(inner, nan=0.0))


def _connect_dots(lower: int, deltas: FloatArray, interval: float) -> Losses:
    """The distribution on the grid whose divergences are `deltas` at its points."""
    deltas = np.minimum.accumulate(np.clip(deltas, 0.0, 1.0))
    steps = np.diff(deltas)
    probs = np.empty_like(deltas)
    probs[0] = 1 - deltas[0] + steps[0] / math.expm1(interval)
    probs[1:-1] = (steps[1:] - steps[:-1] * math.exp(interval)) / math.expm1(interval)
    probs[-1] = steps[-1] / math.expm1(-interval)
    return Losses(lower, np.maximum(probs, 0.0), float(deltas[-1]))


# ---- composition --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Summary:
    """What a step adds to the bounds of a composition, in one direction."""

    lower: int
    points: int
    infinity: float
    log_moments: FloatArray  # at the orders _ORDERS, then at their negatives


def summarize(losses: Losses, interval: float) -> Summary:
    """The logarithms of moments add up over a composition, and bound its tails (Chernoff)."""
    values = (losses.lower + np.arange(len(losses.probs))) * interval
    moments = np.full((2, len(_ORDERS)), np.inf)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        for row, sign in zip(moments, (1.0, -1.0), strict=True):
            power = np.exp(sign * _ORDERS[0] * values)
            for i in range(len(_ORDERS)):
                # Not a dot product: BLAS would wake threads for it.
                moment = float(np.sum(losses.probs * power))
                if not 0 < moment < math.inf:
                    break
                row[i] = math.log(moment)
                power *= power
    return Summary(losses.lower, len(losses.probs), losses.infinity, moments.ravel())


@dataclass(frozen=True, eq=False)
class _Total:
    """The product of transforms of everything that was composed at one time."""

    interval: float
    size: int
    counts: dict[Any, int]
    transforms: tuple[npt.NDArray[np.complex128], npt.NDArray[np.complex128]]


_totals: list[_Total] = []


def forget() -> None:
    """Forget what was composed before, as a new process has it."""
    _totals.clear()


def compose(
    steps: Sequence[tuple[Step, int]],
    interval: float,
    losses_of: Callable[[Step, float], Pair],
    summaries_of: Callable[[Step, float], tuple[Summary, Summary]],
) -> Pair:
    """Losses of a composition.

    Guarantees:
        - What lies beyond the points that are kept counts as infinite loss, up to `TAIL_MASS`.
        - Where an earlier composition is contained in this one, only what is new is computed.

    Args:
        steps: Steps that differ from one another, and how often each.
        interval: Distance of the points of all their grids.
        losses_of: Gives a step's losses on that grid; called only for what no earlier product holds.
        summaries_of: Gives the summaries of these losses; called for every step, so it remembers.
    """
    if sum(n for _, n in steps) == 1:
        return losses_of(steps[0][0], interval)
    summaries = [(summaries_of(step, interval), n) for step, n in steps]
    windows = [_window([(pair[way], n) for pair, n in summaries], interval) for way in (0, 1)]
    size = _size(max(high - low + 1 for low, high in windows))
    total = _product(dict(steps), interval, size, losses_of)
    return (
        _extracted(total, 0, windows[0], [(pair[0], n) for pair, n in summaries]),
        _extracted(total, 1, windows[1], [(pair[1], n) for pair, n in summaries]),
    )


def _window(summaries: Sequence[tuple[Summary, int]], interval: float) -> tuple[int, int]:
    """First and last point between which all but `TAIL_MASS` of a composition lies."""
    logs = sum(n * s.log_moments for s, n in summaries) + math.log(2 / TAIL_MASS)
    up, down = np.split(np.asarray(logs), 2)
    low = sum(n * s.lower for s, n in summaries)
    high = sum(n * (s.lower + s.points - 1) for s, n in summaries)
    most, least = float(np.min(up / _ORDERS)) / interval, -float(np.min(down / _ORDERS)) / interval
    low = max(low, math.floor(least)) if math.isfinite(least) else low
    high = min(high, math.ceil(most)) if math.isfinite(most) else high
    return low, max(high, low)


def _size(points: int) -> int:
    """Room for so many points, in sizes so far apart that one more event seldom changes it."""
    power: int = 1 << max(points - 1, 1).bit_length()
    return power * 3 // 4 if points <= power * 3 // 4 else power


def _product(
    counts: dict[Step, int], interval: float, size: int, losses_of: Callable[[Step, float], Pair]
) -> _Total:
    from scipy import fft

    def missing(total: _Total) -> int:
        return sum(total.counts.get(step, 0) != n for step, n in counts.items())

    held = [
        total
        for total in _totals
        if total.interval == interval
        and total.size >= size
        and all(n <= counts.get(step, 0) for step, n in total.counts.items())
    ]
    best = min(held, key=missing, default=None)
    if best is not None and not missing(best):
        return best
    size = best.size if best else size
    ones = np.ones(size // 2 + 1, np.complex128)
    products = [transform.copy() for transform in best.transforms] if best else [ones, ones.copy()]
    for step, n in counts.items():
        more = n - (best.counts.get(step, 0) if best else 0)
        if more:
            for product, losses in zip(products, losses_of(step, interval), strict=True):
                product *= _power(fft.rfft(_folded(losses.probs, size)), more)
    total = _Total(interval, size, counts, (products[0], products[1]))
    # A single step is composed fast, and a search asks for hundreds of them.
    if len(counts) > 1:
        _totals[:] = [total, *(other for other in _totals if other is not best)][:_KEPT]
    return total


def _folded(probs: FloatArray, size: int) -> FloatArray:
    """Wrapped around to `size` points, as a transform of that size sees it."""
    if len(probs) <= size:
        return np.pad(probs, (0, size - len(probs)))
    rows: FloatArray = np.pad(probs, (0, -len(probs) % size)).reshape(-1, size)
    return np.asarray(rows.sum(axis=0), dtype=np.float64)


def _power(base: npt.NDArray[np.complex128], exponent: int) -> npt.NDArray[np.complex128]:
    """By squaring: faster than logarithms, and the relative error is the exponent times that of one."""
    result = None
    while True:
        if exponent & 1:
            result = base.copy() if result is None else result * base
        exponent >>= 1
        if not exponent:
            return base if result is None else result
        base = base * base


def _extracted(
    total: _Total, way: int, window: tuple[int, int], summaries: Sequence[tuple[Summary, int]]
) -> Losses:
    from scipy import fft

    low, high = window
    start = (low - sum(n * s.lower for s, n in summaries)) % total.size
    probs = np.roll(fft.irfft(total.transforms[way], total.size), -start)[: high - low + 1]
    infinite = -math.expm1(math.fsum(n * math.log1p(-s.infinity) for s, n in summaries if s.infinity < 1))
    # Transforms leave rounding of either sign; below zero it is taken as zero, which costs more.
    return Losses(low, np.maximum(probs, 0.0), min(1.0, infinite + TAIL_MASS))


# ---- epsilon ------------------------------------------------------------------------------------------


def epsilon_at(losses: Losses, interval: float, delta: float) -> float:
    """The least epsilon >= 0 whose divergence is at most `delta`; infinity where there is none."""
    if losses.infinity > delta:
        return math.inf
    # Points with a loss of at most zero never count for an epsilon of at least zero.
    first = max(0, 1 - losses.lower)
    probs = losses.probs[first:]
    values = (losses.lower + first + np.arange(len(probs))) * interval
    above = losses.infinity + np.cumsum(probs[::-1])[::-1]
    below = np.cumsum((probs * np.exp(-values))[::-1])[::-1]
    # The divergence at each point, from the mass above it; it falls with epsilon.
    at = np.append(above[1:], losses.infinity) - np.exp(values) * np.append(below[1:], 0.0)
    index = int(np.argmax(at <= delta)) if len(at) else 0
    if not len(at) or above[index] <= delta:
        return 0.0
    if below[index] == 0:
        return float(values[index])
    return min(max(0.0, math.log((above[index] - delta) / below[index])), float(values[index]))
