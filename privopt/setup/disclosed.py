"""What a configuration lets out of the clients without a price: floor 7, for a run's record and its audit."""

from __future__ import annotations

from .tables import Config, OptimizerSpec

__all__ = ["disclosures"]


def disclosures(config: Config) -> list[str]:
    """What leaves the clients beside noised values, a line each, in a fixed order.

    Only modules that add noise are made; any other is looked up and no more.

    Args:
        config: A checked configuration.

    Returns:
        The lines that ``run.json`` holds as ``disclosed``.

    Raises:
        ValueError: If a module is unknown here, or does not take its parameters.
    """
    found = []
    if config.dp.enabled:
        found.append("sample counts (declared public)")
        found += [f"{name} (disclosed by the config)" for name in config.dp.disclose]
    return found + _noise(config.client.optimizer) + _noise(config.server.optimizer)


def _noise(spec: OptimizerSpec) -> list[str]:
    """Modules of a chain that add noise: what it is worth by itself, nobody knows."""
    from ..modules import AdaptiveClippingClient, NoiseModule
    from ..registry import OPTI_MODULES

    found = []
    for plug_in in spec.modules:
        name, options = (plug_in, {}) if isinstance(plug_in, str) else plug_in
        cls = OPTI_MODULES.find(name)
        if issubclass(cls, NoiseModule | AdaptiveClippingClient):
            try:
                module = cls(**options)
            except TypeError as error:
                raise ValueError(f"Module {name!r}: {error}.") from error
            if module.event is not None:
                found.append(f"{module.name}: {module.event.reason}")
    return found
