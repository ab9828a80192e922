"""Whether a clients' optimizer and the server's go together: floor 6."""

from __future__ import annotations

from collections.abc import Iterable

from ..aggregators import Aggregator
from ..optimizer import Optimizer

__all__ = ["verify_allowed", "verify_pairs"]


def verify_pairs(clients: Optimizer, server: Optimizer, aggregator: Aggregator) -> None:
    """Refuse halves of methods without their counterpart, and parameters in which two halves differ.

    Raises:
        ValueError: Naming the plug-in and what it needs.
    """
    paired = {m.aux_name for m in server.modules if m.aux_name is not None}
    for name in clients.aux_vars():
        if name not in paired:
            raise ValueError(
                f"Expected a server module with aux_name {name!r} beside the clients', got "
                f"{sorted(paired) or 'none'}. Add its counterpart on the server (such as {name}-server)."
            )
    modules = [module.name for module in server.modules]
    for plugin in clients.plugins:
        if plugin.counterpart is not None and plugin.counterpart not in modules:
            raise ValueError(
                f"Expected the server module {plugin.counterpart!r} beside the clients' {plugin.name!r}, got "
                f"{modules}. Add it to the server's modules."
            )
    for module in server.modules:
        if module.needs_mean and not aggregator.is_mean:
            raise ValueError(
                f"Expected the aggregator 'mean' beside the server module {module.name!r}, got "
                f"{aggregator.name!r}. Change one of them."
            )
        module.verify_clients(clients)


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
