"""Who takes part in a round, who vanishes from it for trial, and when a run ends: floor 6.

All follow from public values alone: numbers of samples are declared public, and so is the metric.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..setup.survival import vanishing

__all__ = ["Dropout", "Dropouts", "EarlyStop", "Selection"]

STAGES = ("advert", "shares", "vector", "consistency", "unmask")
"""What a client sends in a masked round, in order; in a clear one its values take the first three's place."""
_LATE = 0.25


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
            draw = _generator(self.seed, "selection", number)
            weights = np.array([samples[name] for name in names], float)
            if self.how == "uniform":
                weights = np.ones(len(names))
            # Efraimidis and Spirakis 2006: the largest keys u^(1/w) are a draw one after the other by weight.
            keys = np.log(1 - draw.random(len(names))) / np.maximum(weights, 1e-300)
            chosen = {names[i] for i in np.argsort(-keys, kind="stable")[: self.clients]}
        return tuple(name for name in names if name in chosen)


def _generator(seed: int, purpose: str, number: int) -> np.random.Generator:
    """Public draws of one round."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{number}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


@dataclass(frozen=True)
class Dropout:
    """How one client vanishes from one round.

    Attributes:
        stage: What it is the first not to send in time: ``"advert"``, ``"shares"``, ``"vector"``,
            ``"consistency"`` or ``"unmask"``.
        late: Whether it sends that all the same, after the stage has ended; else it vanished before, and
            hears nothing of the stage.
    """

    stage: str
    late: bool

    @property
    def counts(self) -> bool:
        """Whether its vector is in the sum."""
        return self.stage in ("consistency", "unmask")

    def misses(self, stage: str | None) -> bool:
        """Whether this is what it does not send in time; in clear, values are what the sum is made of."""
        return self.stage == stage or (stage == "values" and not self.counts)


@dataclass(frozen=True)
class Dropouts:
    """Clients that vanish in each round, for trial: who, at which stage, and whether an answer comes late.

    Each stage is as likely, and one in four sends its answer after all, when the stage has ended.

    Args:
        share: Share of the clients that a round asks, rounded down, in [0, 1).
        seed: Public seed of the draws.

    Raises:
        ValueError: If the share is out of range.
    """

    share: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise ValueError(f"Expected a share of clients in [0, 1) that vanish, got {self.share}.")

    def draw(self, number: int, clients: Iterable[str]) -> dict[str, Dropout]:
        """Who vanishes from round `number` of those it asks, and how."""
        names = sorted(clients)
        count = vanishing(self.share, len(names))
        if not count:
            return {}
        draw = _generator(self.seed, "dropouts", number)
        chosen = sorted(draw.choice(len(names), count, replace=False).tolist())
        return {
            names[i]: Dropout(STAGES[int(draw.integers(len(STAGES)))], bool(draw.random() < _LATE))
            for i in chosen
        }


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
