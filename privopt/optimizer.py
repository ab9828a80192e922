"""The optimizer: floor 5, one step of regularizers, modules, learning rate and decoupled decay."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self, TypeVar

from secagg.reductions import Averaged, Reduction

from .auxvar import AuxVar
from .layout import Layout
from .plugin import OptiModule, Plugin, Regularizer
from .registry import OPTI_MODULES, REGULARIZERS, Registry
from .vector import Vector

__all__ = ["Optimizer"]

_P = TypeVar("_P", bound=Plugin)
ModuleSpec = OptiModule | str | tuple[str, Mapping[str, Any]] | Sequence[Any]
RegularizerSpec = Regularizer | str | tuple[str, Mapping[str, Any]] | Sequence[Any]

CONFIG_VERSION = 1


class Optimizer:
    """An SGD-based optimizer made of plug-ins, for any framework.

    One step alters the gradients by the regularizers, then by the modules, in order, and gives
    ``-(lrate * gradients + w_decay * weights)``.

    The decay is decoupled and **not** multiplied by the learning rate: for the same effect as
    ``torch.optim.AdamW(lr=a, weight_decay=b)`` take ``lrate=a, w_decay=a * b``.

    Args:
        lrate: Learning rate, finite and >= 0.
        w_decay: Decoupled weight decay, finite and >= 0.
        regularizers: Each an instance, a name, or ``(name, config)``.
        modules: Likewise.

    Guarantees:
        - ``from_config(get_config())`` builds an equal optimizer; the config is JSON and holds no
          source of randomness.
        - ``set_state(get_state())`` restores everything that changes: the next step is the same.
        - A step that raises leaves every plug-in's state as it was.

    Raises:
        ValueError: If a name is unknown, a value out of range, two modules share one `aux_name`, or
            a noise module stands after a module that sends what it computes from gradients.
        TypeError: If a value has the wrong type.

    Example:
        >>> import numpy as np
        >>> opt = Optimizer(lrate=0.1, modules=[("momentum", {"beta": 0.5})])
        >>> grads = Vector.build({"w": np.array([1.0])})
        >>> opt.compute_updates(grads, grads).coefs["w"]
        array([-0.1])
    """

    def __init__(
        self,
        lrate: float,
        w_decay: float = 0.0,
        regularizers: Iterable[RegularizerSpec] | None = None,
        modules: Iterable[ModuleSpec] | None = None,
    ) -> None:
        self.lrate = _rate("lrate", lrate)
        self.w_decay = _rate("w_decay", w_decay)
        self.regularizers = _plugins(regularizers, Regularizer, REGULARIZERS)
        self.modules = _plugins(modules, OptiModule, OPTI_MODULES)
        self._verify_chain()

    def _verify_chain(self) -> None:
        from .modules.noise import NoiseModule

        owners: dict[str, OptiModule] = {}
        for module in self.modules:
            if module.aux_name is not None:
                if module.aux_name in owners:
                    raise ValueError(
                        "Expected one module per aux_name in an optimizer, got "
                        f"{owners[module.aux_name].name!r} and {module.name!r}, both {module.aux_name!r}."
                    )
                owners[module.aux_name] = module
            sender = next((m for m in owners.values() if m.aux_var is not None), None)
            if isinstance(module, NoiseModule) and sender is not None:
                raise ValueError(
                    f"Expected noise before {sender.name!r}, got {module.name!r} after it: what "
                    f"{sender.name!r} sends would be computed from gradients without the noise. "
                    f"Put {module.name!r} first."
                )

    @property
    def plugins(self) -> list[Plugin]:
        """Regularizers and modules in the order in which they run."""
        return [*self.regularizers, *self.modules]

    def __repr__(self) -> str:
        return (
            f"Optimizer(lrate={self.lrate!r}, w_decay={self.w_decay!r}, "
            f"regularizers={self.regularizers!r}, modules={self.modules!r})"
        )

    # ---- steps ----------------------------------------------------------------------------------------

    def compute_updates(self, gradients: Vector, weights: Vector) -> Vector:
        """Return the updates, to be added to the weights.

        Args:
            gradients: Gradients of the loss, laid out as the weights.
            weights: The weights at which they were taken; not changed.

        Raises:
            TypeError: If either is no Vector.
            ValueError: If their layouts differ.
        """
        for what, value in (("gradients", gradients), ("weights", weights)):
            if not isinstance(value, Vector):
                raise TypeError(f"Expected {what} as a Vector, got {type(value).__name__}.")
        gradients._verify(weights)
        # References suffice: eager steps rebind states and never write into a state's memory.
        before = [(plugin, dict(plugin.__dict__)) for plugin in self.plugins]
        try:
            for regularizer in self.regularizers:
                gradients = regularizer.run(gradients, weights)
            for module in self.modules:
                extra = (weights,) if module.takes_weights else ()
                gradients = module.run(gradients, *extra)
            updates = gradients * -self.lrate
            updates = updates - weights * self.w_decay if self.w_decay else updates
            for module in self.modules:
                updates = module.finish(updates, weights)
            return updates
        except BaseException:
            for plugin, attributes in before:
                plugin.__dict__.clear()
                plugin.__dict__.update(attributes)
            raise

    def step(self, gradients: Vector, weights: Vector) -> None:
        """Apply one step to the weights, in their own memory."""
        weights += self.compute_updates(gradients, weights)

    # ---- rounds and auxiliary variables -----------------------------------------------------------------

    def start_round(self) -> None:
        """Tell every plug-in that a round starts."""
        for plugin in self.plugins:
            plugin.on_round_start()

    def end_round(self, accepted: bool = True) -> None:
        """Tell every plug-in whether the last round's result was used."""
        for plugin in self.plugins:
            plugin.on_round_end(accepted)

    def collect_aux_var(self) -> dict[str, Any]:
        """What the modules share, by `aux_name`; modules with nothing to share are left out."""
        found = {m.aux_name: m.collect_aux_var() for m in self.modules if m.aux_name is not None}
        return {name: value for name, value in found.items() if value is not None}

    def on_aux_vars_sent(self, sent: Mapping[str, AuxVar]) -> None:
        """Tell each module what of its auxiliary variables will really arrive."""
        for module in self.modules:
            if module.aux_name is not None and module.aux_name in sent:
                module.on_aux_var_sent(sent[module.aux_name])

    def process_aux_var(self, aux_vars: Mapping[str, AuxVar]) -> None:
        """Hand each module what its counterpart shared.

        Raises:
            ValueError: If an `aux_name` belongs to no module here; nothing is processed then.
        """
        owners = {m.aux_name: m for m in self.modules if m.aux_name is not None}
        for name in aux_vars:
            if name not in owners:
                raise ValueError(
                    f"Expected auxiliary variables for {sorted(owners) or 'no module'}, got {name!r}. "
                    "Client and server need counterpart modules."
                )
        for name, aux_var in aux_vars.items():
            owners[name].process_aux_var(aux_var)

    def aux_vars(self) -> dict[str, type[AuxVar]]:
        """The class of what each module sends at the end of a round, by `aux_name`."""
        return {
            m.aux_name: m.aux_var for m in self.modules if m.aux_name is not None and m.aux_var is not None
        }

    def aux_reductions(self, layout: Layout) -> dict[str, Reduction]:
        """How each sent field sums, as ``{"aux_name.field": reduction}``, for a model's layout."""
        return {
            f"{name}.{field}": _scoped(reduction, name)
            for name, cls in self.aux_vars().items()
            for field, reduction in cls.reductions(layout).items()
        }

    # ---- config and state ---------------------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        """The optimizer as JSON values."""
        return {
            "version": CONFIG_VERSION,
            "lrate": self.lrate,
            "w_decay": self.w_decay,
            "regularizers": [[p.name, p.get_config()] for p in self.regularizers],
            "modules": [[p.name, p.get_config()] for p in self.modules],
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build an optimizer from `get_config`'s output.

        Raises:
            ValueError: If the version is not known.
            TypeError: If a key is.
        """
        known = {"version", "lrate", "w_decay", "regularizers", "modules"}
        extra = sorted(set(config) - known)
        if extra:
            raise TypeError(f"Expected the keys {sorted(known)} in an optimizer's config, got also {extra}.")
        if config.get("version", CONFIG_VERSION) != CONFIG_VERSION:
            raise ValueError(
                f"Expected an optimizer's config of version {CONFIG_VERSION}, got {config['version']!r}. "
                "Upgrade privopt to read it."
            )
        return cls(**{k: v for k, v in config.items() if k != "version"})

    def get_state(self) -> dict[str, Any]:
        """Everything that changes, plug-in by plug-in (keys such as ``"modules.0.adam"``)."""
        return {key: plugin.get_state() for key, plugin in self._keyed()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Take over a state from `get_state` of an optimizer with the same plug-ins.

        Raises:
            KeyError: If a plug-in's state is missing; no plug-in is changed then.
        """
        keyed = self._keyed()
        expected = [key for key, _ in keyed]
        if sorted(state) != sorted(expected):
            raise KeyError(f"Expected the states {expected}, got {sorted(state)}. Were the plug-ins changed?")
        before = self.get_state()
        try:
            for key, plugin in keyed:
                plugin.set_state(state[key])
        except BaseException:
            for key, plugin in keyed:
                plugin.set_state(before[key])
            raise

    def reset(self) -> None:
        """Forget everything that changed since construction."""
        for plugin in self.plugins:
            plugin.reset()

    def _keyed(self) -> list[tuple[str, Plugin]]:
        keyed: list[tuple[str, Plugin]] = []
        keyed += [(f"regularizers.{i}.{p.name}", p) for i, p in enumerate(self.regularizers)]
        keyed += [(f"modules.{i}.{p.name}", p) for i, p in enumerate(self.modules)]
        return keyed


def _scoped(reduction: Reduction, aux_name: str) -> Reduction:
    """The reduction as it stands in a round's schema, where its weight is named in full."""
    if isinstance(reduction, Averaged) and reduction.weight is not None:
        return dataclasses.replace(reduction, weight=f"{aux_name}.{reduction.weight}")
    return reduction


def _rate(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"Expected a number for {name}, got {value!r} ({type(value).__name__}).")
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"Expected {name} >= 0 and finite, got {name}={value!r}.")
    return float(value)


def _plugins(specs: Iterable[Any] | None, base: type[_P], registry: Registry) -> list[_P]:
    if isinstance(specs, str | Plugin | Mapping):
        raise TypeError(f"Expected a list of {registry.what}s, got {specs!r}. Write [{specs!r}].")
    return [_plugin(spec, base, registry) for spec in specs or ()]


def _plugin(spec: Any, base: type[_P], registry: Registry) -> _P:
    if isinstance(spec, base):
        return spec
    if isinstance(spec, Plugin):
        raise TypeError(f"Expected a {registry.what}, got the {spec._kind()} {spec.name!r}.")
    if isinstance(spec, str):
        spec = (spec, {})
    if not (isinstance(spec, Sequence) and len(spec) == 2 and isinstance(spec[0], str)):
        raise TypeError(
            f"Expected a {registry.what} as an instance, a name, or (name, config), got {spec!r}."
        )
    find: Callable[[str], Any] = registry.find
    built: _P = find(spec[0]).from_config(spec[1])
    return built
