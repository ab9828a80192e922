"""Curves: what a round of real machines costs as clients and entries grow, with the exponents that fit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from ..policy import Policy
from .batched import draw_losses
from .chart import Line, page, panel
from .machines import Progress
from .outcome import COLLUDERS, PROTECTS_NOBODY
from .parties import sum_by_machines
from .segment import field_schema
from .simulation import plan_round

CLIENTS: Final = (16, 32, 64, 128)
ENTRIES: Final = (1_000, 10_000, 100_000, 1_000_000)
AT_CLIENTS: Final = 32
"""Clients while entries grow."""
AT_ENTRIES: Final = 10_000
"""Entries while clients grow."""
COSTS: Final = ("client_seconds", "server_seconds", "client_bytes", "server_bytes")


@dataclass(frozen=True)
class Point:
    """One round, with what it cost a client and the server; bytes are those sent."""

    clients: int
    entries: int
    client_seconds: float
    server_seconds: float
    client_bytes: float
    server_bytes: float


@dataclass(frozen=True)
class Exponent:
    """The power of `of` that fits a cost best, by least squares of logarithms, and its standard error."""

    cost: str
    of: str
    value: float
    error: float


@dataclass(frozen=True)
class Curves:
    """Measured points and what fits them.

    Attributes:
        by_clients: Rounds of complete graphs with as many entries and ever more clients.
        by_entries: Rounds with as many clients and ever more entries.
        exponents: Fits, each over one of the two series.
    """

    by_clients: tuple[Point, ...]
    by_entries: tuple[Point, ...]
    exponents: tuple[Exponent, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self) | {"warning": PROTECTS_NOBODY}

    def __str__(self) -> str:
        heads = ("clients", "entries", "client s", "server s", "client B", "server B")
        widths = (8, 10, 10, 10, 12, 14)
        lines = [" ".join(f"{head:>{width}}" for head, width in zip(heads, widths, strict=True))]
        for p in (*self.by_clients, *self.by_entries):
            lines.append(
                f"{p.clients:>8,} {p.entries:>10,} {p.client_seconds:>10.4f} {p.server_seconds:>10.4f} "
                f"{p.client_bytes:>12,.0f} {p.server_bytes:>14,.0f}"
            )
        for e in self.exponents:
            what = e.cost.replace("_", " ")
            lines.append(f"{what:<15} grow as {e.of} to the power {e.value:.2f} ± {e.error:.2f}")
        return "\n".join([*lines, PROTECTS_NOBODY])


def measure(
    dropout: float = 0.1,
    bits: int = 16,
    *,
    clients: Sequence[int] = CLIENTS,
    entries: Sequence[int] = ENTRIES,
    progress: Progress | None = None,
) -> Curves:
    """Run real machines over both series.

    Args:
        dropout: Fraction of the clients that is lost after sharing, the costliest place.
        bits: Bits of a number.
        clients: Numbers of clients, each with `AT_ENTRIES` entries.
        entries: Lengths of vectors, each with `AT_CLIENTS` clients.
        progress: Called with what is done and the fraction of it.

    Raises:
        SecAggError: Whatever the machines raise.
        ArithmeticError: If a released sum is not the clear one.
    """
    rounds = [(n, AT_ENTRIES) for n in clients] + [(AT_CLIENTS, size) for size in entries]
    points = []
    for done, (n, size) in enumerate(rounds):
        points.append(_point(n, size, dropout, bits))
        if progress is not None:
            progress("rounds", (done + 1) / len(rounds))
    by_clients, by_entries = tuple(points[: len(clients)]), tuple(points[len(clients) :])
    fits = [
        Exponent(cost, of, *fit([getattr(p, of) for p in series], [getattr(p, cost) for p in series]))
        for of, series in (("clients", by_clients), ("entries", by_entries))
        for cost in COSTS
    ]
    return Curves(by_clients, by_entries, tuple(fits))


def _point(clients: int, entries: int, dropout: float, bits: int) -> Point:
    chosen = plan_round(clients, entries, dropout, COLLUDERS, 0, None)
    policy = Policy(threshold_fraction=chosen.fraction, colluders=COLLUDERS)
    names = tuple(f"c{i:06d}" for i in range(clients))
    lost = draw_losses(clients, dropout, "vector")
    summed, client, server = sum_by_machines(names, lost, chosen, field_schema(entries, bits), policy)
    if not summed.correct:
        raise ArithmeticError(f"Expected the clear sum of {clients} clients, got another.")
    return Point(clients, entries, client.total, server.total, client.bytes_up, server.bytes_down)


def fit(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Slope of ln y over ln x by least squares, and its standard error (0 for two points)."""
    u, v = [math.log(value) for value in x], [math.log(value) for value in y]
    n, mean_u, mean_v = len(u), sum(u) / len(u), sum(v) / len(v)
    spread = sum((a - mean_u) ** 2 for a in u)
    slope = sum((a - mean_u) * (b - mean_v) for a, b in zip(u, v, strict=True)) / spread
    rest = sum((b - mean_v - slope * (a - mean_u)) ** 2 for a, b in zip(u, v, strict=True))
    return slope, math.sqrt(rest / (n - 2) / spread) if n > 2 else 0.0


def draw(curves: Curves) -> str:
    """Both series as one SVG file: seconds and bytes."""
    panels = []
    for of, series, beside in (
        ("clients", curves.by_clients, f"{AT_ENTRIES:,} entries"),
        ("entries", curves.by_entries, f"{AT_CLIENTS} clients"),
    ):
        for unit, pair in (("seconds", COSTS[:2]), ("bytes", COSTS[2:])):
            lines = [
                Line(_label(curves, cost, of), [(getattr(p, of), getattr(p, cost)) for p in series])
                for cost in pair
            ]
            panels.append(panel(f"{unit.capitalize()} by {of}, {beside}", lines, of, unit))
    return page("Cost of a round of secure aggregation", panels)


def _label(curves: Curves, cost: str, of: str) -> str:
    power = next(e.value for e in curves.exponents if (e.cost, e.of) == (cost, of))
    return f"{cost.split('_')[0]}, power {power:.2f}"
