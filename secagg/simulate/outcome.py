"""Outcome: what a simulated round gave and cost, and what of it was computed."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Final

from ..policy import Policy

COLLUDERS: Final = 0.05
"""Fraction of colluders where none is given. With the 20 % of `Policy` a client of a large ring has twice the
neighbours, and a simulation takes twice the time."""
PROTECTS_NOBODY: Final = "A simulation protects nobody from this process: it holds all values and all keys."
COMPUTED: Final = {
    "machines": (
        "Computed: everything. Real clients and a real server exchange every message of the protocol, signed "
        "and sealed; only the network is left out."
    ),
    "segments": (
        "Computed for every client: fresh secrets, the graph, one X25519 exchange and one AES-CTR mask a "
        "pair (used at both ends), self masks, shares of both secrets, losses, reconstruction from the "
        "shares that are left, unmasking, and the comparison with the clear sum.\n"
        "Not computed for every client: signatures, sealed boxes and the messages themselves. Their cost is "
        "estimated from real clients and a real server of one neighbourhood."
    ),
}
"""What is computed for real, by method."""


@dataclass(frozen=True)
class Summed:
    """How the sum came out, by either method; attributes as those of `Simulation`."""

    correct: bool
    survivors: int
    work: dict[str, float]
    peak_megabytes: float
    pairs: int | None = None
    recovered: int | None = None


@dataclass(frozen=True)
class Party:
    """What a round costs one party.

    Attributes:
        seconds: Processor seconds by stage, on one core of this machine.
        bytes_up: Bytes to the server, from one client.
        bytes_down: Bytes from the server, to one client.
    """

    seconds: dict[str, float]
    bytes_up: int
    bytes_down: int

    @property
    def total(self) -> float:
        """All stages."""
        return sum(self.seconds.values())


@dataclass(frozen=True)
class Simulation:
    """What a simulated round gave and cost.

    Attributes:
        correct: Whether what the round released is exactly the clear sum of the survivors' values.
        clients: Clients that were offered the round.
        entries: Numbers in a client's vector.
        words: 64-bit words that carry them.
        survivors: Clients in the sum.
        lost: Clients that were lost, by the stage from which on nothing of them came.
        degree: Neighbours of a client; 0 is all the others.
        threshold: Shares that give a secret back.
        colluders: Fraction of the clients that may work with the server.
        privacy: Bound on the probability that more than the sum is learnt (`secagg.graph.privacy_bound`).
        failure: Bound on the probability that losses fail the round (`secagg.graph.failure_bound`).
        method: ``"machines"`` or ``"segments"``; see `computed`.
        processes: Worker processes.
        seconds: Wall-clock seconds of all.
        work: Processor seconds of all processes, by part of the work.
        pairs: Pairs of clients that agreed on a mask; None where machines ran, which keep it to themselves.
        recovered: Masks derived from lost clients' keys; None likewise.
        peak_megabytes: Memory of all processes at their largest.
        client: One client's cost (the median), measured or estimated; None if it was not asked for.
        server: The server's cost; bytes are those of all clients.
    """

    correct: bool
    clients: int
    entries: int
    words: int
    survivors: int
    lost: dict[str, int]
    degree: int
    threshold: int
    colluders: float
    privacy: float
    failure: float
    method: str
    processes: int
    seconds: float
    work: dict[str, float]
    pairs: int | None
    recovered: int | None
    peak_megabytes: float
    client: Party | None = None
    server: Party | None = None

    @property
    def computed(self) -> str:
        """What was computed for real, and what was not."""
        return COMPUTED[self.method]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self) | {"computed": self.computed, "warning": PROTECTS_NOBODY}

    def __str__(self) -> str:
        lost = ", ".join(f"{number:,} at {stage}" for stage, number in self.lost.items() if number)
        graph = f"{self.degree} neighbours each" if self.degree else "everybody everybody's neighbour"
        pairs = f"; {self.pairs:,} pairs, {self.recovered:,} masks of lost clients" if self.pairs else ""
        lines = [
            f"{'exact sum' if self.correct else 'WRONG SUM'}    {self.survivors:,} of {self.clients:,} "
            f"clients, {self.entries:,} entries in {self.words:,} words; lost: {lost or 'none'}",
            f"graph        {graph}, {self.threshold} shares give a secret{pairs}",
            f"bounds       more than the sum is learnt: {_power(self.privacy)} with {self.colluders:.0%} "
            f"colluders; losses fail the round: {_power(self.failure)}",
            *self._assumed(),
            f"took         {self.seconds:.1f} s on {_number(self.processes, 'process', 'processes')}, "
            f"{sum(self.work.values()):.1f} s of processor time, {self.peak_megabytes:,.0f} MB",
            "work         " + _parts(self.work),
        ]
        estimate = "" if self.method == "machines" else " (estimate)"
        for who, party in (("a client", self.client), ("the server", self.server)):
            if party is not None:
                lines.append(
                    f"{who:<12} {party.total:.3g} s on one core, {_size(party.bytes_up)} up, "
                    f"{_size(party.bytes_down)} down{estimate}: {_parts(party.seconds)}"
                )
        return "\n".join([*lines, self.computed, PROTECTS_NOBODY])

    def _assumed(self) -> list[str]:
        """What a reader must know who will run the round with default policies."""
        usual = Policy().colluders
        if self.colluders >= usual:
            return []
        return [
            f"assumed      {self.colluders:.0%} colluders; Policy's default is {usual:.0%}, which takes more "
            "shares and, in large cohorts, neighbours"
        ]


def _power(probability: float) -> str:
    return f"below 2^{math.ceil(math.log2(probability))}" if 0 < probability < 1 else f"{probability:g}"


def _parts(seconds: dict[str, float]) -> str:
    return ", ".join(f"{what} {value:.3g} s" for what, value in seconds.items())


def _number(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _size(size: float) -> str:
    """Bytes as a reader takes them in."""
    unit = min(4, max(0, math.floor(math.log10(max(size, 1)) / 3)))
    return f"{size / 1000**unit:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[unit]}"
