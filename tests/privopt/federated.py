"""Small federations for the tests: heterogeneous quadratics in numpy, and digits in torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import dp
import secagg
from privopt import Optimizer, Vector
from privopt.federation.client import Client
from privopt.federation.federation import Federation, Transport, build_federation
from privopt.federation.privacy import PrivacyPlan
from privopt.federation.settings import Dropout, Dropouts

AFTER = {
    secagg.ClientPhase.ADVERTISED: "advert",
    secagg.ClientPhase.SHARED: "shares",
    secagg.ClientPhase.SUBMITTED: "vector",
    secagg.ClientPhase.SIGNED: "consistency",
    secagg.ClientPhase.IDLE: "unmask",
}
STAGES = tuple(AFTER.values())
"""What a client of a masked round sends, in order."""


def last_sent(client: Client) -> str | None:
    """The stage of the masked round that this client answered last; None where it is in none."""
    return None if client._secure is None else AFTER[client._secure.phase]


class Planned(Dropouts):
    """Dropouts by hand: who vanishes how, by round."""

    def __init__(self, plan: Mapping[int, Mapping[str, Dropout]]) -> None:
        super().__init__()
        object.__setattr__(self, "plan", plan)

    def draw(self, number: int, clients: Iterable[str]) -> dict[str, Dropout]:
        return dict(self.plan.get(number, {}))  # type: ignore[attr-defined]


class Quadratic:
    """A client whose samples are points: mean of ``|scale * (w - point)|^2 / 2``, in closed form."""

    def __init__(self, points: npt.NDArray[np.float64], scale: float = 1.0, dtype: str = "float64") -> None:
        self.points = points
        self.scale = scale
        self._weights = Vector.build({"w": np.zeros(points.shape[1], dtype), "b": np.zeros((), dtype)})

    @property
    def weights(self) -> Vector:
        return self._weights

    @property
    def num_samples(self) -> int:
        return len(self.points)

    def gradient(self, indices: npt.NDArray[np.int64], seed: int = 0) -> tuple[Vector, float]:
        if len(indices) == 0:
            return self._weights.full_like(0.0), 0.0
        w, b = self._weights.coefs["w"], self._weights.coefs["b"]
        gap = w - self.points[indices]
        loss = 0.5 * self.scale**2 * float(np.mean(np.sum(gap**2, axis=1)) + b**2)
        grads = {"w": (self.scale**2 * gap.mean(axis=0)).astype(w.dtype), "b": np.asarray(self.scale**2 * b)}
        return Vector.build(grads), loss

    def private_gradient(self, plan: PrivacyPlan) -> dp.PrivateGradient:
        raise TypeError("these tests train it without privacy")

    def noised_gradient(self, draw: Mapping[str, npt.NDArray[Any]]) -> Vector:
        return Vector.build({k: draw[k] for k in ("w", "b")}).to(self._weights)


def quadratics(num_clients: int = 5, size: int = 12, seed: int = 0) -> dict[str, Quadratic]:
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(num_clients, size))
    return {
        f"c{i}": Quadratic(center + 0.3 * rng.normal(size=(20 + 5 * i, size)), scale=0.5 + 0.2 * i)
        for i, center in enumerate(centers)
    }


def federation(
    folder: Path,
    problems: Mapping[str, Quadratic] | None = None,
    *,
    masks: bool = True,
    scaffold: bool = True,
    transport: Transport | None = None,
    client: Callable[[], Optimizer] | None = None,
    server: Optimizer | None = None,
    steps: int | Mapping[str, int] | None = 4,
    sample_rate: float = 0.5,
    policy: secagg.Policy | None = None,
    **options: Any,
) -> Federation:
    problems = problems or quadratics()
    return build_federation(
        problems,
        homes=folder,
        run="test",
        client_optimizer=client
        or (lambda: Optimizer(0.1, modules=["scaffold-client"] if scaffold else ["momentum"])),
        server_optimizer=server or Optimizer(1.0, modules=["scaffold-server"] if scaffold else []),
        steps=steps,
        sample_rate=sample_rate,
        masks=(policy or secagg.Policy(min_clients=min(5, len(problems)))) if masks else None,
        transport=transport,
        **options,
    )
