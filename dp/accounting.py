"""Accountants: what a list of events costs, as epsilon at a delta: floor 4.

PLD and RDP come from dp-accounting, PRV from Opacus as an independent second opinion. What none of them
prices soundly is refused. Figures are upper bounds and are rounded up; the same question is answered once.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from .composition import Pair, Summary, compose, epsilon_at, gaussian_losses, summarize, truncated_losses
from .errors import PrivacyParameterError, UnsupportedEvent
from .events import (
    Epoch,
    Event,
    Gaussian,
    Neighboring,
    Poisson,
    Repeated,
    Step,
    TruncatedPoisson,
    Unpriced,
    WithoutReplacement,
)

__all__ = ["SUPPORTED", "Accountant", "By", "Epsilon", "count_steps", "epsilon", "rdp_epsilon_at", "rdp_of"]

By: TypeAlias = Literal["PLD", "RDP", "PRV"]
Steps: TypeAlias = tuple[tuple[Step, int], ...]

SUPPORTED: MappingProxyType[tuple[str, Neighboring], tuple[By, ...]] = MappingProxyType(
    {
        ("gaussian", Neighboring.ADD_OR_REMOVE_ONE): ("PLD", "RDP", "PRV"),
        ("gaussian", Neighboring.REPLACE_ONE): ("PLD", "RDP", "PRV"),
        ("poisson(gaussian)", Neighboring.ADD_OR_REMOVE_ONE): ("PLD", "RDP", "PRV"),
        ("epoch(gaussian)", Neighboring.ADD_OR_REMOVE_ONE): ("PLD", "RDP", "PRV"),
        ("epoch(gaussian)", Neighboring.REPLACE_ONE): ("PLD", "RDP", "PRV"),
        ("truncated-poisson(gaussian)", Neighboring.ADD_OR_REMOVE_ONE): ("PLD",),
        ("without-replacement(gaussian)", Neighboring.REPLACE_ONE): ("RDP",),
    }
)
"""Which accountants price which event under which relation; whatever is not listed is refused.

Poisson samples under REPLACE_ONE are not listed: libraries disagree on them. Batches of fixed size have a
bound by Rényi divergences alone, and only where their number of units stays (Wang et al. 2019).
"""

_LEAST_NOISE = 1e-4
"""Less noise protects nobody: infinity is an upper bound that no formula can overflow on the way to."""
_MOST_NOISE = 1e9
"""More noise is priced as this much, which costs at least as much; its square would overflow in libraries."""
_LEAST_TRUNCATED_NOISE = 0.05
"""The same for truncated samples, which RDP does not price, so that it cannot tell a hopeless plan."""
CERTIFY_INTERVAL = 1e-4
SEARCH_INTERVAL = 1e-3
_FEW_POINTS = 20_000
_MAX_POINTS = 400_000
_FEW_ORDERS = (2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0, 128.0, 256.0)
_FAST_ORDERS = (*map(float, range(2, 65)), 128.0, 256.0, 512.0)
_PLD_UP_TO = 100.0
"""Beyond this epsilon (by RDP) the figure of RDP, an upper bound too, is reported as PLD's: nothing is
protected there, and the grid of a privacy loss distribution would need gigabytes to say so more exactly."""


@dataclass(frozen=True)
class Epsilon:
    """A privacy cost.

    Attributes:
        value: Epsilon, an upper bound; infinite where nothing is protected.
        delta: At which delta.
        by: Accountant.
    """

    value: float
    delta: float
    by: By = "PLD"

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        return f"Epsilon({self.value:.4g}, delta={self.delta:g}, by={self.by!r})"


def epsilon(
    events: Event | Iterable[Event],
    delta: float,
    *,
    by: By = "PLD",
    neighboring: Neighboring | str = Neighboring.ADD_OR_REMOVE_ONE,
    precise: bool = True,
) -> float:
    """Price the composition of events.

    Guarantees:
        - Never below the accountant's own upper bound: rounded up to a multiple of 1e-6.
        - Equal events priced together or one by one give the same figure.
        - No noise gives infinity, nothing released gives 0.

    Args:
        events: One event, or all of a composition.
        delta: Probability of failure, in (0, 1).
        by: ``"PLD"`` (tight), ``"RDP"`` (an upper bound) or ``"PRV"`` (a second opinion on PLD, within
            ``0.01 * PLD + 0.011``).
        neighboring: Relation.
        precise: Whether PLD's grid is as fine as a certificate needs (1e-4) or as a search does (1e-3).

    Returns:
        Epsilon.

    Raises:
        UnsupportedEvent: If the accountant has no sound price for an event under the relation.
        PrivacyParameterError: If `delta`, `by` or `neighboring` is none.

    Example:
        >>> step = Poisson(0.01, Gaussian(1.0))
        >>> round(epsilon(Repeated(step, 1000), delta=1e-5), 3)
        1.828

    References:
        Koskela et al. (2020), https://arxiv.org/abs/1906.03049; Doroshenko et al. (2022),
        https://arxiv.org/abs/2207.04380; Mironov (2017), https://arxiv.org/abs/1702.07476; Gopi et al.
        (2021), https://arxiv.org/abs/2106.02848.
    """
    if not 0 < delta < 1:
        raise PrivacyParameterError(f"Expected delta in (0, 1), got delta={delta}.")
    relation = _relation(neighboring)
    if by not in ("PLD", "RDP", "PRV"):
        raise PrivacyParameterError(f"Expected an accountant 'PLD', 'RDP' or 'PRV', got {by!r}.")
    steps = count_steps(events)
    for event, _ in steps:
        verify_supported(event, relation, by)
    steps = _added_up((_in_units_of_sensitivity(event, relation), n) for event, n in steps)
    if not steps:
        return 0.0
    if any(_noise(event) < _LEAST_NOISE for event, _ in steps):
        return math.inf
    if by == "PRV":
        return _round_up(_prv_epsilon(steps, float(delta)))
    if by == "RDP":
        return _round_up(_rdp_epsilon(steps, float(delta), _rdp_orders()))
    truncated = [event for event, _ in steps if isinstance(event, TruncatedPoisson)]
    if truncated:
        if any(_noise(event) < _LEAST_TRUNCATED_NOISE for event in truncated):
            return math.inf
        return _round_up(_pld_epsilon(steps, float(delta), CERTIFY_INTERVAL if precise else SEARCH_INTERVAL))
    rough = _rdp_epsilon(steps, float(delta), _FEW_ORDERS)
    if rough > _PLD_UP_TO and _rdp_epsilon(steps, float(delta), _FAST_ORDERS) > _PLD_UP_TO:
        return _round_up(_rdp_epsilon(steps, float(delta), _rdp_orders()))
    # Both are upper bounds. RDP's is the lower one where delta is near the smallest that floats resolve.
    interval = CERTIFY_INTERVAL if precise else SEARCH_INTERVAL
    value = _pld_epsilon(steps, float(delta), interval)
    # The few orders are within 2 % of all of them; only a price that close asks for more.
    if value > 0.95 * rough and value > _rdp_epsilon(steps, float(delta), _FAST_ORDERS):
        value = min(value, _rdp_epsilon(steps, float(delta), _rdp_orders()))
    return _round_up(value)


def count_steps(events: Event | Iterable[Event]) -> Steps:
    """Take repetitions apart and count equal events, in the order of their last occurrence.

    What repeats now is then last, and the composition of all before it need not be computed again.

    Example:
        >>> count_steps([Gaussian(1.0), Repeated(Gaussian(1.0), 4)])
        ((Gaussian(noise_multiplier=1.0), 5),)

    Raises:
        UnsupportedEvent: If an event is `Unpriced`.
    """
    counts: dict[Step, int] = {}
    for event in [events] if isinstance(events, Event) else events:
        if isinstance(event, Unpriced):
            raise UnsupportedEvent(f"Expected an event that has a price, got {event}.")
        if not isinstance(event, Event):
            raise TypeError(f"Expected events of dp.events, got {type(event).__name__}.")
        step, count = (event.event, event.count) if isinstance(event, Repeated) else (event, 1)
        if count > 0:
            counts[step] = counts.pop(step, 0) + count
    return tuple(counts.items())


def verify_supported(event: Step, neighboring: Neighboring, by: By) -> None:
    """Raise UnsupportedEvent unless `by` prices one step `event` under the relation."""
    if by not in SUPPORTED.get((_shape(event), neighboring), ()):
        offered = sorted(
            f"{shape} under {relation}" for (shape, relation), who in SUPPORTED.items() if by in who
        )
        raise UnsupportedEvent(
            f"Expected an event that {by} prices under {neighboring}, got {event}. "
            f"It prices: {'; '.join(offered)}."
        )


class Accountant:
    """Events so far, and what they cost: for a loop that asks after every step.

    Args:
        neighboring: Relation.
        by: Accountant.

    Example:
        >>> accountant = Accountant()
        >>> accountant.compose(Poisson(0.01, Gaussian(1.0)), 1000)
        >>> f"{accountant.epsilon(1e-5).value:.3f}"
        '1.828'
    """

    def __init__(
        self, neighboring: Neighboring | str = Neighboring.ADD_OR_REMOVE_ONE, by: By = "PLD"
    ) -> None:
        self.neighboring = _relation(neighboring)
        self.by: By = by
        self._counts: dict[Step, int] = {}

    def compose(self, event: Event, count: int = 1) -> None:
        """Add `count` times `event`.

        Raises:
            UnsupportedEvent: If the accountant cannot price it; nothing is added then.
        """
        steps = count_steps(event)
        for step, _ in steps:
            verify_supported(step, self.neighboring, self.by)
        for step, n in steps:
            self._counts[step] = self._counts.pop(step, 0) + n * count

    @property
    def events(self) -> list[Event]:
        """What was composed, equal events counted together."""
        return [Repeated(event, n) for event, n in self._counts.items()]

    def epsilon(self, delta: float) -> Epsilon:
        """The cost of everything composed so far."""
        value = epsilon(self.events, delta, by=self.by, neighboring=self.neighboring)
        return Epsilon(value, delta, self.by)


# ---- shapes -------------------------------------------------------------------------------------------


def _shape(event: Step) -> str:
    """The event's kinds, outermost first, as `SUPPORTED` names them."""
    return event.kind if isinstance(event, Gaussian) else f"{event.kind}({event.event.kind})"


def _relation(neighboring: Neighboring | str) -> Neighboring:
    try:
        return Neighboring(neighboring)
    except ValueError:
        raise PrivacyParameterError(
            f"Expected neighboring to be one of {[str(n) for n in Neighboring]}, got {neighboring!r}."
        ) from None


def _in_units_of_sensitivity(event: Step, neighboring: Neighboring) -> Step:
    """The event with its noise over the sensitivity.

    That is 2C under REPLACE_ONE, where one vector of norm C goes and another comes.
    """
    halved = neighboring is Neighboring.REPLACE_ONE and not isinstance(event, Poisson)
    noise = Gaussian(min(_noise(event) / (2 if halved else 1), _MOST_NOISE))
    # In an epoch one batch alone depends on the unit.
    if isinstance(event, Gaussian | Epoch):
        return noise
    return msgspec.structs.replace(event, event=noise)


def _added_up(steps: Iterable[tuple[Step, int]]) -> Steps:
    """Without what nobody entered, and equal ones together, where they last occurred."""
    counts: dict[Step, int] = {}
    for event, n in steps:
        if _rate(event) > 0:
            counts[event] = counts.pop(event, 0) + n
    return tuple(counts.items())


def _rate(event: Step) -> float:
    """Probability that a unit enters."""
    match event:
        case Gaussian() | Epoch():
            return 1.0
        case WithoutReplacement():
            return event.batch_size / event.num_samples
        case _:
            return event.sample_rate


def _noise(event: Step) -> float:
    return (event if isinstance(event, Gaussian) else event.event).noise_multiplier


def _round_up(value: float) -> float:
    return math.ceil(value * 1e6) / 1e6 if math.isfinite(value) else math.inf


# ---- PLD ----------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def _pld_epsilon(steps: Steps, delta: float, interval: float) -> float:
    steps = _merged_gaussians(steps)
    # The library composes by Fourier transforms, whose rounding makes delta uncertain. Measured against
    # closed forms it is off by up to 1e-14 and 1e-17 a step, either way; ten times that is taken off.
    slack = 1e-13 + 1e-16 * sum(n for _, n in steps)
    if delta < 2 * slack:
        return math.inf
    grid = _pld_grid(steps, interval)
    # Add-or-remove takes the worse of both directions.
    both = compose(steps, grid, _pld_step, _pld_summaries)
    return max(epsilon_at(losses, grid, delta - slack) for losses in both)


def _pld_grid(steps: Steps, interval: float) -> float:
    """The distance of the points on which all distributions of one composition lie."""
    # Very little noise needs a coarser grid, and a search's is as coarse as asked for only where that leaves
    # points enough for a small epsilon.
    # A truncated sample moves by up to four times C in the library's bound.
    spans = [
        0.5 / noise**2 + 10 / noise
        for noise in (_noise(e) / (4 if isinstance(e, TruncatedPoisson) else 1) for e, _ in steps)
    ]
    grid = max(CERTIFY_INTERVAL, min(interval, max(spans) / _FEW_POINTS), max(spans) / _MAX_POINTS)
    # A grid wider than a step's own loss makes every step look noisier than it is, by distance times loss in
    # variance; over a million steps that adds up. The root of chi-squared is the loss's size.
    losses = [(_rate(e) * math.sqrt(math.expm1(min(_noise(e) ** -2, 100.0))), n) for e, n in steps]
    variance = math.fsum(n * loss**2 for loss, n in losses)
    wanted = variance / (8 * math.fsum(n * loss for loss, n in losses)) if variance else 0.0
    widest = max(
        math.log1p(_rate(e) * math.expm1(min(s, 500.0))) for (e, _), s in zip(steps, spans, strict=True)
    )
    finest = max(24 * math.sqrt(variance), widest) / _MAX_POINTS
    if variance == 0 or grid <= max(wanted, finest):
        return grid
    # By powers of two, so that one more event seldom changes the grid, and with it everything kept.
    return float(grid * 2.0 ** math.floor(math.log2(max(wanted, finest) / grid)))


def _merged_gaussians(steps: Steps) -> Steps:
    """The same with all unsampled Gaussians as one: their squared signal-to-noise ratios add up, exactly."""
    plain = [(event, n) for event, n in steps if _unsampled(event)]
    if not plain:
        return steps
    ratio = math.fsum(n / _noise(event) ** 2 for event, n in plain)
    # One ulp less noise, so that rounding cannot favour us.
    merged = Gaussian(math.nextafter(1 / math.sqrt(ratio), 0.0))
    return (*((event, n) for event, n in steps if not _unsampled(event)), (merged, 1))


def _unsampled(event: Step) -> bool:
    return isinstance(event, Gaussian | Poisson) and _rate(event) == 1.0


# Distributions hold megabytes, hence the small cache; what bounds their composition is small.
@lru_cache(maxsize=64)
def _pld_step(event: Step, interval: float) -> Pair:
    if isinstance(event, TruncatedPoisson):
        return truncated_losses(
            event.num_samples, event.sample_rate, event.max_batch_size, _noise(event), interval
        )
    # Sensitivity is 1 because noise is in its units.
    return gaussian_losses(_noise(event), _rate(event), interval)


@lru_cache(maxsize=4096)
def _pld_summaries(event: Step, interval: float) -> tuple[Summary, Summary]:
    removed, added = _pld_step(event, interval)
    summary = summarize(removed, interval)
    return summary, summary if added is removed else summarize(added, interval)


# ---- RDP ----------------------------------------------------------------------------------------------


def rdp_of(
    events: Event | Iterable[Event],
    order: float,
    neighboring: Neighboring | str = Neighboring.ADD_OR_REMOVE_ONE,
) -> float:
    """The Rényi divergence of a composition at one order, which adds up; for privacy filters.

    Raises:
        UnsupportedEvent: If RDP prices an event not at all.
    """
    relation = _relation(neighboring)
    total = 0.0
    for event, count in count_steps(events):
        verify_supported(event, relation, "RDP")
        step = _in_units_of_sensitivity(event, relation)
        if _rate(step) > 0:
            priced = _noise(step) >= _LEAST_NOISE
            total += count * float(_rdp_step(step, (float(order),))[0]) if priced else math.inf
    return total


def _rdp_orders() -> tuple[float, ...]:
    from dp_accounting.rdp import rdp_privacy_accountant as rdp

    return tuple(float(order) for order in rdp.DEFAULT_RDP_ORDERS)


def rdp_epsilon_at(divergence: float, order: float, delta: float) -> float:
    """The epsilon that a Rényi divergence at one order proves.

    References:
        Canonne, Kamath, Steinke (2020), https://arxiv.org/abs/2004.00010, proposition 12.
    """
    return divergence + math.log1p(-1 / order) - math.log(delta * order) / (order - 1)


@lru_cache(maxsize=4096)
def _rdp_epsilon(steps: Steps, delta: float, orders: tuple[float, ...]) -> float:
    from dp_accounting.rdp import rdp_privacy_accountant as rdp

    total = sum(n * _rdp_step(event, orders) for event, n in steps)
    return float(rdp.compute_epsilon(orders, total, delta)[0])


@lru_cache(maxsize=512)
def _rdp_step(event: Step, orders: tuple[float, ...]) -> npt.NDArray[np.float64]:
    import dp_accounting
    from dp_accounting.rdp import RdpAccountant

    noise = dp_accounting.GaussianDpEvent(_noise(event))
    relation = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
    step: Any = dp_accounting.PoissonSampledDpEvent(_rate(event), noise)
    if isinstance(event, WithoutReplacement):
        relation = dp_accounting.NeighboringRelation.REPLACE_ONE
        step = dp_accounting.SampledWithoutReplacementDpEvent(event.num_samples, event.batch_size, noise)
    with _without_log("absl"):
        # An order whose series does not converge is left out, which costs tightness only, and is logged.
        accountant = RdpAccountant(orders, relation).compose(step)
    return np.asarray(accountant.rdp, dtype=np.float64)


@contextmanager
def _without_log(name: str) -> Iterator[None]:
    """Keep a library's log quiet for as long as it computes."""
    logger = logging.getLogger(name)

    def drop(record: logging.LogRecord) -> bool:
        return False

    logger.addFilter(drop)
    try:
        yield
    finally:
        logger.removeFilter(drop)


# ---- PRV ----------------------------------------------------------------------------------------------


_PRV_STEPS = 10_000_000
_PRV_POINTS = 1 << 24
_PRV_DELTAS = (1e-15, 0.999)
"""Beyond these PRV's grid takes minutes and gigabytes, or its floats tell nothing: no price there."""


@lru_cache(maxsize=4096)
def _prv_epsilon(steps: Steps, delta: float) -> float:
    count = sum(n for _, n in steps)
    if not _PRV_DELTAS[0] <= delta <= _PRV_DELTAS[1] or count > _PRV_STEPS:
        raise UnsupportedEvent(
            f"Expected at most {_PRV_STEPS:.0e} steps and a delta in {list(_PRV_DELTAS)} for PRV, got "
            f"{count} steps and delta={delta:g}. PLD and RDP price them."
        )
    with warnings.catch_warnings():
        # Opacus imports torch and jaxtyping, which warn about themselves.
        warnings.simplefilter("ignore")
        from opacus.accountants import PRVAccountant

        accountant = _bounded(PRVAccountant)()
        accountant.history = [(_noise(event), _rate(event), n) for event, n in steps]
        # Its quadrature evaluates log(0) at the edge of the support, and says so.
        with np.errstate(all="ignore"):
            return max(0.0, float(accountant.get_epsilon(delta, eps_error=0.01, delta_error=delta / 1000)))


def _bounded(accountant: type[Any]) -> type[Any]:
    """The accountant, refusing a grid that it could not hold before it makes one."""

    class Bounded(accountant):  # type: ignore[misc]
        def _get_domain(self, **options: Any) -> Any:
            domain = super()._get_domain(**options)
            if domain.size * len(self.history) > _PRV_POINTS:
                raise UnsupportedEvent(
                    f"Expected events that PRV prices on {_PRV_POINTS} points, got some that need "
                    f"{domain.size * len(self.history)}. PLD and RDP price them."
                )
            return domain

    return Bounded
