"""What plug-ins of the clients and of their server are told of each other and of the round: floor 6.

Beside what `Plugin` declares, a plug-in may define any of these hooks; where it does, a federation calls

- ``on_weighting(weight, largest)``: before the first round, with what a client counts in the mean;
- ``on_update_sent(update)``: on a client, with the update as it will arrive, under masks clipped and rounded;
- ``on_participation(share)``: on the server, before its step, with the share of all clients' weight;
- ``verify_clients(optimizer)``: on the server, at the start, to check the clients' half.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..aggregators import Aggregator
from ..optimizer import Optimizer
from ..plugin import Plugin

__all__ = ["tell", "verify_pairs"]


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
        counterpart = getattr(plugin, "counterpart", None)
        if counterpart is not None and counterpart not in modules:
            raise ValueError(
                f"Expected the server module {counterpart!r} beside the clients' {plugin.name!r}, got "
                f"{modules}. Add it to the server's modules."
            )
    for module in server.modules:
        if getattr(module, "needs_mean", False) and not aggregator.is_mean:
            raise ValueError(
                f"Expected the aggregator 'mean' beside the server module {module.name!r}, got "
                f"{aggregator.name!r}. Change one of them."
            )
        verify = getattr(module, "verify_clients", None)
        if verify is not None:
            verify(clients)


def tell(plugins: Iterable[Plugin], hook: str, *what: Any) -> None:
    """Call a hook of those plug-ins that have it."""
    for plugin in plugins:
        method = getattr(plugin, hook, None)
        if method is not None:
            method(*what)
