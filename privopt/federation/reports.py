"""What a round leaves on record, of itself and of each client: floor 6, public values only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from .messages import Release

__all__ = ["ClientReport", "RoundReport", "recordable"]

MAX_RECORD_BYTES = 1 << 20
"""Most bytes of one client's releases in a round's record; one release takes about 200."""


@dataclass
class ClientReport:
    """What a round's record says of one client.

    Attributes:
        status: ``"ok"`` (the round's result includes what it sent), ``"dropped"`` (no good answer came in
            time), ``"stopped"`` (its budget allows no more), ``"refused"`` (the offer is weaker than its
            policy), ``"failed"`` (its update was not finite any more), ``"idle"`` (not asked), ``"aborted"``
            (it answered, and the round came to nothing); ``"waiting"`` while the round is open.
        dropped: Stage from which on it was not heard of: ``"advert"``, ``"shares"``, ``"vector"``,
            ``"consistency"`` or ``"unmask"``, or ``"values"`` where they travel in clear. After its vector
            came, a client is ``"ok"`` all the same.
        late: Whether its answer to that stage came after all, and was refused.
        epsilon: What its ledger says this run has spent; None without DP.
        releases: What it has released and the server had not recorded yet.
    """

    status: str = "waiting"
    dropped: str | None = None
    late: bool = False
    epsilon: float | None = None
    releases: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class RoundReport:
    """How a round went; public values only.

    Attributes:
        round: Number of the round.
        status: ``"ok"``, or ``"aborted"``: then nothing was released or used.
        reason: Why it was aborted.
        clients: One report per client.
        loss: Mean training loss, where it may leave the clients.
        clipped: Values outside their bound, by field, over all clients.
        bounds: Adaptive bounds that this round used, by field.
        faulty: Clients that gave wrong shares, or whose secrets these were; the result is right in spite of
            them.
        bytes_up: Bytes from clients to the server.
        bytes_down: Bytes from the server to clients.
    """

    round: int
    status: str = "ok"
    reason: str | None = None
    clients: dict[str, ClientReport] = field(default_factory=dict)
    loss: float | None = None
    clipped: dict[str, int] = field(default_factory=dict)
    bounds: dict[str, float] = field(default_factory=dict)
    faulty: tuple[str, ...] = ()
    bytes_up: int = 0
    bytes_down: int = 0

    @property
    def gone(self) -> dict[str, str]:
        """Clients that vanished, however the round ended, and from which stage on."""
        return {name: at.dropped for name, at in self.clients.items() if at.dropped is not None}


def recordable(client: str, releases: Sequence[Release]) -> list[dict[str, Any]]:
    """Releases as JSON can hold them: events come as any msgpack value, and end in the run's record."""
    try:
        built: list[dict[str, Any]] = [msgspec.to_builtins(release) for release in releases]
        size = len(msgspec.json.encode(built))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"Expected releases of {client!r} that JSON can hold, got others.") from error
    if size > MAX_RECORD_BYTES:
        raise ValueError(f"Expected releases of {client!r} of at most {MAX_RECORD_BYTES} bytes, got {size}.")
    return built
