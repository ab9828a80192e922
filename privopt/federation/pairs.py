"""What may differ between the clients of a masked round: floor 6."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["verify_allowed"]


def verify_allowed(own: Iterable[str], allowed: Iterable[str]) -> None:
    """Refuse auxiliary variables that differ between the clients of a masked round, where they must not.

    A server that may tell each client something else can make one client's part stand out of the sum.

    Args:
        own: The aux_names of which each client gets its own.
        allowed: Those whose clients' modules declare `aux_per_client`.

    Raises:
        ValueError: Naming those that must be the same for all.
    """
    if refused := sorted(set(own) - set(allowed)):
        raise ValueError(
            f"Expected one AuxVar for all clients of a masked round from {refused}, got one for each client: "
            "clients check that all were told the same. If each may be told something else, declare "
            "aux_per_client = True on the clients' module."
        )
