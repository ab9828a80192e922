"""Local DP of one client: the plan it may follow, what a round reserves, what it draws: floor 6."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

import dp

from .messages import Release

__all__ = ["Policy", "Privacy", "PrivacyPlan"]


@dataclass(frozen=True)
class PrivacyPlan:
    """What a run releases about each sample of a client; public constants only.

    Attributes:
        epsilon: Largest epsilon over the whole plan.
        delta: At which delta.
        clip_norm: Bound on the norm of one sample's gradient over all parameters.
        sample_rate: Poisson inclusion probability of a sample in a step.
        num_steps: Releases of the whole plan.
        noise_multiplier: Noise std over `clip_norm`, calibrated to the above.
        unit: What the guarantee protects.
        neighboring: Relation under which it is stated.
    """

    epsilon: float
    delta: float
    clip_norm: float
    sample_rate: float
    num_steps: int
    noise_multiplier: float
    unit: str = "sample"
    neighboring: str = "add-or-remove-one"

    @classmethod
    def calibrated(
        cls, *, epsilon: float, delta: float, clip_norm: float, sample_rate: float, num_steps: int
    ) -> PrivacyPlan:
        """The plan with the least noise (rounded up) that keeps to epsilon."""
        noise = dp.noise_multiplier_for(
            epsilon=epsilon, delta=delta, sample_rate=sample_rate, num_steps=num_steps
        )
        return cls(epsilon, delta, clip_norm, sample_rate, num_steps, noise)

    def event(self, steps: int) -> dp.events.Event:
        """The event of `steps` releases."""
        step = dp.events.Poisson(self.sample_rate, dp.events.Gaussian(self.noise_multiplier))
        return dp.events.Repeated(step, steps)


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a data holder allows, whatever a server asks; kept in its home.

    Attributes:
        epsilon: Largest epsilon of one run; infinity leaves the choice to the run's config.
        delta: Largest delta.
        noise_multiplier: Least noise multiplier.
    """

    epsilon: float = math.inf
    delta: float = 1.0
    noise_multiplier: float = 0.0

    def verify(self, client: str, plan: PrivacyPlan) -> None:
        """Refuse a plan that is weaker than the policy.

        Raises:
            dp.PrivacyParameterError: Naming the client, the value and the limit.
        """
        for name, got, limit, holds in (
            ("epsilon", plan.epsilon, self.epsilon, plan.epsilon <= self.epsilon),
            ("delta", plan.delta, self.delta, plan.delta <= self.delta),
            (
                "noise_multiplier",
                plan.noise_multiplier,
                self.noise_multiplier,
                plan.noise_multiplier >= self.noise_multiplier,
            ),
        ):
            if not holds:
                word = "at least" if name == "noise_multiplier" else "at most"
                raise dp.PrivacyParameterError(
                    f"Expected {name} of {word} {limit} by the policy of {client!r}, got {got}. "
                    "Change the run's config, or ask the data holder."
                )


class Privacy:
    """The private gradients of one client, each round reserved in the ledger before it is drawn.

    Args:
        client: Id of the client.
        run: Id of the run that the ledger's records name.
        plan: The calibrated plan.
        ledger: The client's ledger.
        gradient: Draws one noised gradient from a stream.
        source: Where randomness comes from.
        dataset: Name of the dataset in the ledger.
    """

    def __init__(
        self,
        client: str,
        run: str,
        plan: PrivacyPlan,
        ledger: dp.Ledger,
        gradient: dp.PrivateGradient,
        source: dp.random.Source,
        dataset: str,
    ) -> None:
        self.client = client
        self.run = run
        self.plan = plan
        self.ledger = ledger
        self.gradient = gradient
        self._source = source
        self.dataset = dataset

    def __repr__(self) -> str:
        return f"Privacy({self.client!r}, {self.plan})"

    def reserve(self, steps: int) -> dp.Reservation:
        """Reserve a round of `steps` releases; nothing is drawn yet.

        Raises:
            dp.PrivacyBudgetExceeded: If the budget does not allow it; nothing is written then.
        """
        event, clip_norm = self.plan.event(steps), self.plan.clip_norm
        return self.ledger.reserve(
            self.dataset, event, run=self.run, unit=self.plan.unit, clip_norm=clip_norm
        )

    def draw(self, reservation: dp.Reservation, step: int) -> Mapping[str, npt.NDArray[np.float64]]:
        """The noised gradient of one step of a reserved round; each step once."""
        # The reservation's number makes every stream a new one, after a crash too: a round that is done
        # again has a new reservation, and so a new batch and new noise.
        label = f"{self.client}/{reservation.sequence}/{step}"
        return self.gradient.draw(self._source.stream(label))

    def releases(self, after: int) -> list[Release]:
        """What the ledger holds of this run beyond record number `after`, as the run's record wants it."""
        return [self._release(found) for found in self.ledger.releases(self.run, after=after)]

    def _release(self, reservation: dp.Reservation) -> Release:
        return Release(
            event=reservation.event.to_dict(),
            steps=reservation.event.count if isinstance(reservation.event, dp.events.Repeated) else 1,
            sampler="poisson",
            sample_rate=self.plan.sample_rate,
            clip_norm=self.plan.clip_norm,
            noise_multiplier=self.plan.noise_multiplier,
            ledger_sequence=reservation.sequence,
        )

    def spent(self) -> float:
        """Epsilon of everything that this run has reserved so far."""
        return float(self.ledger.spent(self.dataset, self.plan.delta, run=self.run).value)
