"""Who takes part in a round, and when a run ends: floor 6.

Both follow from public values alone: numbers of samples are declared public, and so is the metric.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

__all__ = ["EarlyStop", "Selection"]


@dataclass(frozen=True)
class Selection:
    """Which clients the server asks in a round; anyone can compute it, so it hides nobody.

    No privacy is claimed from it: each client's noise and ledger are those of a client that is asked in
    every round. The server picks; a client that counts on being picked at random has no proof of it.

    Args:
        how: ``"all"``; ``"uniform"``, each as likely; ``"weighted"``, one after the other with a
            probability proportional to its samples; ``"round-robin"``, in turn.
        clients: How many in a round; not for ``"all"``.
        seed: Public seed of the draws.

    Raises:
        ValueError: If the number of clients is missing, or given where all take part.
    """

    how: Literal["all", "uniform", "weighted", "round-robin"] = "all"
    clients: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.how not in ("all", "uniform", "weighted", "round-robin"):
            raise ValueError(
                f"Expected selection of 'all', 'uniform', 'weighted' or 'round-robin', got {self.how!r}."
            )
        if (self.clients is None) != (self.how == "all") or (self.clients is not None and self.clients < 1):
            raise ValueError(
                f"Expected a number of clients for every selection but 'all', got {self.how!r} with "
                f"clients={self.clients}."
            )

    def choose(self, number: int, samples: Mapping[str, int]) -> tuple[str, ...]:
        """The clients of one round, in the order given; all of them where fewer are there than wanted.

        Args:
            number: Number of the round, from 1.
            samples: Number of samples of each client to choose from.
        """
        names = list(samples)
        if self.clients is None or self.clients >= len(names):
            return tuple(names)
        if self.how == "round-robin":
            start = (number - 1) * self.clients
            chosen = {names[(start + i) % len(names)] for i in range(self.clients)}
        else:
            draw = self._generator(number)
            weights = np.array([samples[name] for name in names], float)
            if self.how == "uniform":
                weights = np.ones(len(names))
            # Efraimidis and Spirakis 2006: the largest keys u^(1/w) are a draw one after the other by weight.
            keys = np.log(1 - draw.random(len(names))) / np.maximum(weights, 1e-300)
            chosen = {names[i] for i in np.argsort(-keys, kind="stable")[: self.clients]}
        return tuple(name for name in names if name in chosen)

    def _generator(self, number: int) -> np.random.Generator:
        digest = hashlib.sha256(f"{self.seed}/selection/{number}".encode()).digest()
        return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


@dataclass(frozen=True)
class EarlyStop:
    """End a run when a public metric has not improved for some rounds.

    Args:
        metric: ``"accuracy"`` (larger is better), ``"loss"`` (both of public rows), or ``"training_loss"``.
        patience: Rounds without improvement after which it ends, at least 1.
        min_change: What counts as an improvement must exceed this, >= 0.

    Raises:
        ValueError: If a value is out of range.
    """

    metric: Literal["accuracy", "loss", "training_loss"]
    patience: int = 5
    min_change: float = 0.0

    def __post_init__(self) -> None:
        if self.metric not in ("accuracy", "loss", "training_loss"):
            raise ValueError(
                f"Expected the metric 'accuracy', 'loss' or 'training_loss', got {self.metric!r}."
            )
        if self.patience < 1 or not self.min_change >= 0:
            raise ValueError(
                "Expected patience >= 1 and min_change >= 0, got "
                f"patience={self.patience}, min_change={self.min_change}."
            )

    def reached(self, values: Sequence[float | None]) -> bool:
        """Whether the last `patience` of the values, a finished round each, brought no improvement.

        Rounds without a value are passed over.
        """
        sign = 1.0 if self.metric == "accuracy" else -1.0
        best, since = -np.inf, 0
        for value in values:
            if value is None:
                continue
            better = sign * value > best + self.min_change
            best, since = (sign * value, 0) if better else (best, since + 1)
        return since >= self.patience
