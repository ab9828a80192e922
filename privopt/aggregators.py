"""How the clients' updates become the server's one: floor 4.

Each aggregator says what a client puts into the round's vector, how those fields sum, and what the server
makes of the sums. So it gives the same in clear and under masks, where nothing but sums is known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from secagg import averaged, counted, summed
from secagg.reductions import Bound, Reduction

from .plugin import Plugin
from .registry import AGGREGATORS

__all__ = ["Aggregator", "FedNova", "MaskedMean", "Mean", "Sum", "make_aggregator"]

FloatArray = npt.NDArray[np.floating[Any]]
WEIGHTS = ("uniform", "samples", "steps")


class Aggregator(Plugin, register=False):
    """One way to aggregate; a subclass sets `name` and extends `fields`, `contribution` and `combine`.

    The base is the weighted mean: the fields ``update`` and ``weight``, which every aggregator has.

    Args:
        weight: What a client counts as: ``"uniform"`` (1), its ``"samples"`` or its ``"steps"``.

    Attributes:
        is_mean: Whether the result is the clients' weighted mean update and nothing else; methods whose
            server derives a state from that mean (`needs_mean`) accept no other.
    """

    is_mean: ClassVar[bool] = False
    weight: str = "uniform"

    def __init_subclass__(cls, register: bool = True, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if register:
            AGGREGATORS.add(cls)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect(self.weight in WEIGHTS, f"a weight of {', '.join(WEIGHTS)}", weight=self.weight)

    @classmethod
    def _kind(cls) -> str:
        return "aggregator"

    def count(self, samples: int, steps: int) -> int:
        """What a client of so many samples and steps counts as."""
        return {"uniform": 1, "samples": samples, "steps": steps}[self.weight]

    def most(self, most_weight: int, most_steps: int) -> int:
        """The largest that any client counts as: a lane is as wide."""
        return {"uniform": 1, "samples": most_weight, "steps": most_steps}[self.weight]

    def fields(self, size: int, bound: Bound, bits: int, most: int, most_steps: int) -> dict[str, Reduction]:
        """How what a client puts in sums, by field; names other than the base's start with ``aggregator.``.

        Args:
            size: Entries of the update.
            bound: Bound on one of them.
            bits: Precision of one of them.
            most: Largest weight of a client.
            most_steps: Most steps of a client in a round.
        """
        return {
            "update": averaged(bound, weight="weight", bits=bits, shape=(size,)),
            "weight": counted(at_most=most),
        }

    def contribution(self, update: FloatArray, samples: int, steps: int) -> dict[str, Any]:
        """What one client puts in.

        Args:
            update: Local weights minus the round's, shape ``(size,)``.
            samples: Its number of samples.
            steps: Steps that it took, at least 1.
        """
        return {"update": update, "weight": self.count(samples, steps)}

    def combine(self, sums: Mapping[str, Any]) -> FloatArray:
        """The update that the server takes, from the reduced fields."""
        return np.asarray(sums["update"])


class Mean(Aggregator):
    """The mean update: federated averaging (McMahan et al. 2017).

    Args:
        weight: What a client counts as: ``"uniform"`` (1), its ``"samples"`` or its ``"steps"``.
    """

    name = "mean"
    is_mean: ClassVar[bool] = True


class Sum(Aggregator):
    """The sum of the updates.

    Args:
        weight: What a client counts as: ``"uniform"`` (1), its ``"samples"`` or its ``"steps"``; here in the
            mean training loss alone.
    """

    name = "sum"

    def fields(self, size: int, bound: Bound, bits: int, most: int, most_steps: int) -> dict[str, Reduction]:
        """The update is a sum, not a mean."""
        fields = super().fields(size, bound, bits, most, most_steps)
        return fields | {"update": summed(bound, bits=bits, shape=(size,))}


class MaskedMean(Aggregator):
    """The mean update, damped where clients disagree about its sign (Tenison et al. 2022).

    An entry's agreement is the absolute mean of its signs over the clients, weighed as the mean is: 1 where
    all agree, 0 where half of the weight goes either way. Entries below the threshold are multiplied by
    their agreement, the others are kept.

    Args:
        weight: What a client counts as: ``"uniform"`` (1), its ``"samples"`` or its ``"steps"``.
        threshold: Agreement from which an entry is kept as it is, in [0, 1]; 0 is the plain mean.
    """

    name = "masked-mean"
    threshold: float = 0.4

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect(0 <= self.threshold <= 1, "a threshold in [0, 1]", threshold=self.threshold)

    def fields(self, size: int, bound: Bound, bits: int, most: int, most_steps: int) -> dict[str, Reduction]:
        """Beside the mean, that of the signs."""
        # An integer bound: signs are exact, so that an entry at the threshold is the same under masks.
        signs = averaged(1, weight="weight", bits=2, shape=(size,))
        return super().fields(size, bound, bits, most, most_steps) | {"aggregator.signs": signs}

    def contribution(self, update: FloatArray, samples: int, steps: int) -> dict[str, Any]:
        """The update and its signs."""
        signs = np.sign(update).astype(np.int64)
        return super().contribution(update, samples, steps) | {"aggregator.signs": signs}

    def combine(self, sums: Mapping[str, Any]) -> FloatArray:
        """The mean, times the agreement where that is below the threshold."""
        agreement = np.abs(np.asarray(sums["aggregator.signs"]))
        return np.asarray(sums["update"]) * np.where(agreement >= self.threshold, 1.0, agreement)


class FedNova(Aggregator):
    """The mean of what clients do per step, times the mean number of steps (Wang et al. 2020).

    Plain averaging gives clients who take more steps more influence on where training ends. Here
    each update is divided by ``a_i``, what its steps amount to (with plain SGD their number), and the mean is
    multiplied by what the mean number of steps amounts to. Where all take as many, it is the plain mean.

    Args:
        weight: What a client counts as: ``"uniform"`` (1), its ``"samples"`` or its ``"steps"``;
            p_i in the paper.
        momentum: Factor of the clients' heavy-ball momentum, in [0, 1), if they have any and forget
            it when a round starts; ``a_i`` is then the sum of all gradients' weights in the update.
    """

    name = "fednova"
    momentum: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect(0 <= self.momentum < 1, "0 <= momentum < 1", momentum=self.momentum)

    def amount(self, steps: float) -> float:
        """What so many local steps amount to: the 1-norm of the paper's a_i."""
        rho = self.momentum
        return (steps - rho * (1 - float(rho**steps)) / (1 - rho)) / (1 - rho)

    def fields(self, size: int, bound: Bound, bits: int, most: int, most_steps: int) -> dict[str, Reduction]:
        """Beside the mean, the weighted total of steps."""
        steps = counted(at_most=most * most_steps)
        return super().fields(size, bound, bits, most, most_steps) | {"aggregator.steps": steps}

    def contribution(self, update: FloatArray, samples: int, steps: int) -> dict[str, Any]:
        """The update per step, and the weighted number of steps."""
        if steps < 1:
            raise ValueError(f"Expected at least one step to divide an update by, got {steps}.")
        weighed = self.count(samples, steps) * steps
        per_step = super().contribution(update / self.amount(steps), samples, steps)
        return per_step | {"aggregator.steps": weighed}

    def combine(self, sums: Mapping[str, Any]) -> FloatArray:
        """The mean per step, times what the mean number of steps amounts to."""
        return np.asarray(sums["update"]) * self.amount(sums["aggregator.steps"] / sums["weight"])


def make_aggregator(spec: Aggregator | str | Sequence[Any], weight: str | None = None) -> Aggregator:
    """The aggregator that a name, ``(name, config)`` or an instance stands for.

    Args:
        spec: The aggregator.
        weight: What clients count as, where `spec` does not say it; uniform by default.

    Raises:
        TypeError: If it is none of these, or a parameter has the wrong type.
        ValueError: If there is none of that name, a value is out of range, or both say what clients count as.

    Example:
        >>> make_aggregator("fednova", weight="samples")
        FedNova(weight='samples', momentum=0.0)
    """
    if isinstance(spec, Aggregator):
        if weight is not None and weight != spec.weight:
            raise ValueError(f"Expected one of weight={weight!r} and {spec!r}, got both. Take out the first.")
        return spec
    name, config = (spec, {}) if isinstance(spec, str) else _named(spec)
    if weight is not None:
        if config.get("weight", weight) != weight:
            raise ValueError(
                f"Expected weight={weight!r} in the parameters of {name!r} too, got {config['weight']!r}. "
                "Take out one of the two."
            )
        config = {**config, "weight": weight}
    built: Aggregator = AGGREGATORS.find(name).from_config(config)  # type: ignore[attr-defined]  # a plug-in
    return built


def _named(spec: Any) -> tuple[str, Mapping[str, Any]]:
    if not (isinstance(spec, Sequence) and len(spec) == 2 and isinstance(spec[1], Mapping)):
        raise TypeError(f"Expected an aggregator as an instance, a name, or (name, config), got {spec!r}.")
    return spec[0], spec[1]
