"""Clipping to a norm that follows a quantile of the clients' gradient norms: floor 4.

Clients count how many of their gradients were within the norm; the server moves the norm. Under masks
it learns the sum of the counts alone, and with `count_noise` that sum is noised.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import dp
from dp.random import Source, secure_source
from secagg import counted, public, summed

from ..auxvar import AuxVar
from ..plugin import OptiModule, state
from ..vector import Vector

__all__ = [
    "AdaptiveClippingAuxVar",
    "AdaptiveClippingClient",
    "AdaptiveClippingServer",
    "AdaptiveClippingState",
]

_MOST_STEPS = 2**20
_MOST_COUNT = 2**30
"""Room for a noised count on either side of zero: an integer beyond it is clipped before it is sent."""
_SMALLEST, _LARGEST = 2.0**-100, 2.0**100


class AdaptiveClippingAuxVar(AuxVar):
    """What a client sends: how many gradients of a round were within the norm, of how many.

    The first is noised and may be negative, so it is a `summed` integer and no `counted` field.
    """

    name = "adaptive-clipping"
    below: int = summed(bound=_MOST_COUNT, bits=32)
    steps: int = counted(at_most=_MOST_STEPS)


class AdaptiveClippingState(AuxVar):
    """What the server sends to all: the norm to clip to."""

    name = "adaptive-clipping-state"
    max_norm: float = public()


class AdaptiveClippingClient(OptiModule):
    """Scale each gradient to the server's norm at most, and count those that were within it.

    This keeps training stable, as `l2-global-clipping` does, without a norm to choose. It bounds no
    single sample's influence: for privacy, samples are clipped one by one before any plug-in (package
    `dp`). In a private run the gradients that enter are noised already, and so are the counts; elsewhere
    `count_noise` keeps the sum of counts from being exact, at a price that nobody knows.

    Args:
        max_norm: Norm until the server has named one, gradient units, > 0.
        count_noise: Standard deviation of the noise that each client adds to its count of a round, in
            gradients, >= 0. The sum over n clients carries sqrt(n) times as much.
        source: Where the noise comes from (keyword only; never part of the config).

    Guarantees:
        - The source appears in no config, state or repr, and each round draws from a stream of its own.
    """

    name = "adaptive-clipping-client"
    aux_name: ClassVar[str | None] = "adaptive-clipping"
    aux_var: ClassVar[type[AuxVar] | None] = AdaptiveClippingAuxVar
    max_norm: float = 1.0
    count_noise: float = 0.0
    source: dataclasses.InitVar[Source | None] = dataclasses.field(default=None, kw_only=True)
    norm: float | None = state(None)
    below: int = state(0)
    steps: int = state(0)
    draws: int = state(0)

    def __post_init__(self, source: Source | None = None) -> None:
        super().__post_init__()
        self._expect(self.max_norm > 0, "max_norm > 0", max_norm=self.max_norm)
        finite = math.isfinite(self.count_noise) and self.count_noise >= 0
        self._expect(finite, "count_noise >= 0 and finite", count_noise=self.count_noise)
        self._source = source if source is not None else secure_source()

    def on_round_start(self) -> None:
        super().on_round_start()
        self.below = self.steps = 0

    def run(self, gradients: Vector) -> Vector:
        limit, norm = self.max_norm if self.norm is None else self.norm, gradients.norm()
        self.steps += 1
        if norm <= limit:
            self.below += 1
            return gradients
        return gradients * (limit / norm)

    def collect_aux_var(self) -> AdaptiveClippingAuxVar:
        below = self.below
        if self.count_noise:
            stream = self._source.stream(f"{self.name}/{self.draws}")
            self.draws += 1
            below += round(float(dp.noise.gaussian(1, self.count_noise, stream)[0]))
        return AdaptiveClippingAuxVar(below=max(-_MOST_COUNT, min(_MOST_COUNT, below)), steps=self.steps)

    def process_aux_var(self, aux_var: AuxVar) -> None:
        if not isinstance(aux_var, AdaptiveClippingState):
            raise TypeError(f"Expected an AdaptiveClippingState of the server, got {type(aux_var).__name__}.")
        norm = aux_var.max_norm
        if not (isinstance(norm, float) and math.isfinite(norm) and norm > 0):
            raise ValueError("Expected a finite norm > 0 from the server, got another value.")
        self.norm = norm

    @property
    def event(self) -> dp.events.Unpriced | None:
        """What the counts are worth by themselves: nothing that can be priced; None without noise."""
        if not self.count_noise:
            return None
        return dp.events.Unpriced(f"{self.name} in the chain: one sample may move every count of a round")


class AdaptiveClippingServer(OptiModule):
    """Move the norm geometrically towards a quantile of gradient norms (Andrew et al. 2021, Alg. 1).

    Computes ``C exp(-rate (b - quantile))`` once a round, with b the share of the clients' gradients that
    were within C. The paper clips each client's whole update; here it is each local gradient. Gradients
    (the clients' mean update) pass unchanged.

    Args:
        max_norm: Norm of the first round (C_0), gradient units, > 0.
        quantile: Share of gradients to leave unclipped (gamma), in [0, 1].
        rate: How fast the norm moves (eta_C), > 0.
    """

    name = "adaptive-clipping-server"
    aux_name: ClassVar[str | None] = "adaptive-clipping"
    max_norm: float = 1.0
    quantile: float = 0.5
    rate: float = 0.2
    norm: float | None = state(None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect(self.max_norm > 0, "max_norm > 0", max_norm=self.max_norm)
        self._expect(0 <= self.quantile <= 1, "a quantile in [0, 1]", quantile=self.quantile)
        self._expect(math.isfinite(self.rate) and self.rate > 0, "rate > 0 and finite", rate=self.rate)

    def run(self, gradients: Vector) -> Vector:
        return gradients

    def process_aux_var(self, aux_var: AuxVar) -> None:
        if not isinstance(aux_var, AdaptiveClippingAuxVar):
            raise TypeError(f"Expected a combined AdaptiveClippingAuxVar, got {type(aux_var).__name__}.")
        if aux_var.steps == 0:
            return
        # Noise may carry the share outside [0, 1]; the paper takes it as it is, and it is unbiased so.
        moved = -self.rate * (aux_var.below / aux_var.steps - self.quantile)
        norm = (self.max_norm if self.norm is None else self.norm) * math.exp(max(-64.0, min(64.0, moved)))
        self.norm = min(_LARGEST, max(_SMALLEST, norm))

    def collect_aux_var(self) -> AdaptiveClippingState:
        return AdaptiveClippingState(max_norm=self.max_norm if self.norm is None else self.norm)
