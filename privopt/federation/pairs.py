"""Whether a clients' optimizer and the server's go together: floor 6."""

from __future__ import annotations

from ..aggregators import Aggregator
from ..optimizer import Optimizer

__all__ = ["verify_pairs"]


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
