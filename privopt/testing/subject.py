"""What a check is about: a plug-in class with one configuration, and how it is built."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import dp

from ..plugin import OptiModule, Plugin, Regularizer
from ..registry import AGGREGATORS, OPTI_MODULES, REGULARIZERS, SCHEDULES, Registry
from ..vector import Vector

__all__ = [
    "ContractError",
    "Subject",
    "accepted",
    "closeness",
    "difference",
    "expect",
    "frozen",
    "registered",
    "same_state",
    "table_of",
]


class ContractError(AssertionError):
    """A plug-in breaks the contract; the message says which part, and what to do."""


def expect(holds: bool, subject: Subject, message: str) -> None:
    """Raise a `ContractError` that names the plug-in unless something holds."""
    if not holds:
        raise subject.broken(message)


@dataclass(frozen=True)
class Subject:
    """A plug-in class with one configuration.

    Args:
        plugin: The class.
        config: Hyper-parameters that differ from the defaults.
        make: How an instance is made of a configuration, where the class alone does not do. A keyword
            `source` of the constructor (randomness) gets `dp.random.insecure_source` without it.
    """

    plugin: type[Plugin]
    config: Mapping[str, Any] = field(default_factory=dict)
    make: Callable[..., Plugin] | None = None

    def __str__(self) -> str:
        inside = ",".join(f"{key}={value}" for key, value in self.config.items())
        return f"{self.plugin.name}({inside})" if inside else self.plugin.name

    @property
    def kind(self) -> str:
        """``"module"``, ``"regularizer"``, ``"schedule"`` or ``"aggregator"``."""
        return self.plugin._kind()

    def broken(self, message: str) -> ContractError:
        """The error that tells what of the contract does not hold."""
        return ContractError(f"{self.kind} {self}: {message}")

    def build(self) -> Plugin:
        """A fresh instance; two of them are equal, their sources of randomness included."""
        return self.build_with(self.config)

    def build_with(self, config: Mapping[str, Any]) -> Plugin:
        """An instance of another configuration."""
        config = dict(config)
        if self.make is not None:
            return self.make(**config)
        if self._takes_source:
            config["source"] = dp.random.insecure_source(7)
        return self.plugin(**config)

    @property
    def hyper(self) -> dict[str, dataclasses.Field[Any]]:
        """The declared hyper-parameters by name."""
        return {f.name: f for f in self.plugin._hyper}

    @functools.cached_property
    def _takes_source(self) -> bool:
        return "source" not in self.hyper and "source" in inspect.signature(self.plugin).parameters


def table_of(plugin: type[Plugin]) -> Registry | None:
    """The table that plug-ins of a class's kind are found in."""
    from ..aggregators import Aggregator
    from ..schedules import Schedule

    kinds: list[tuple[type[Plugin], Registry]] = [
        (OptiModule, OPTI_MODULES),
        (Regularizer, REGULARIZERS),
        (Schedule, SCHEDULES),
        (Aggregator, AGGREGATORS),
    ]
    return next((table for kind, table in kinds if issubclass(plugin, kind)), None)


def registered(package: str | None = None) -> list[type[Plugin]]:
    """Every plug-in in the tables: modules, regularizers, schedules and aggregators.

    Args:
        package: Take those of one package alone; None takes all, installed packages' included.

    Raises:
        ValueError: If there is none.
    """
    found: list[type[Plugin]] = [
        cls
        for table in (OPTI_MODULES, REGULARIZERS, SCHEDULES, AGGREGATORS)
        for cls in table.table().values()
        if package is None or f"{cls.__module__}.".startswith(f"{package}.")
    ]
    if not found:
        raise ValueError(
            f"Expected plug-ins registered by package {package!r}, got none. Import the modules that declare "
            'them first, or name those in the entry-point group "privopt.plugins".'
        )
    return found


def difference(left: Any, right: Any, where: str = "") -> str | None:
    """What first differs between two states, in words; None where they are the same, bit for bit."""
    if isinstance(left, Vector) and isinstance(right, Vector):
        if left.layout != right.layout:
            return f"{where}: other names, shapes, dtypes or devices"
        for name, ours in left.to_numpy().coefs.items():
            theirs = np.ascontiguousarray(right.to_numpy().coefs[name])
            ours = np.ascontiguousarray(ours)
            if ours.tobytes() != theirs.tobytes():
                return f"{where}: tensor {name!r} differs {_by(ours, theirs)}"
        return None
    if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
        same = left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()
        return None if same else f"{where}: arrays differ"
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        if left.keys() != right.keys():
            return f"{where}: keys {sorted(left)} and {sorted(right)}"
        return _first(difference(left[k], right[k], f"{where}.{k}" if where else str(k)) for k in left)
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        if len(left) != len(right):
            return f"{where}: {len(left)} and {len(right)} items"
        pairs = enumerate(zip(left, right, strict=True))
        return _first(difference(a, b, f"{where}[{i}]") for i, (a, b) in pairs)
    if type(left) is not type(right):
        return f"{where}: {_shown(left)} and {_shown(right)}"
    both_nan = isinstance(left, float) and math.isnan(left) and math.isnan(right)
    return None if both_nan or left == right else f"{where}: {_shown(left)} and {_shown(right)}"


def accepted(subject: Subject, config: Mapping[str, Any]) -> bool:
    """Whether the constructor takes a configuration."""
    try:
        subject.build_with(config)
    except (TypeError, ValueError):
        return False
    return True


def closeness(left: Any, right: Any, rtol: float, where: str = "") -> str | None:
    """What first differs by more than `rtol` of its tensor's largest entry, in words; or None."""
    if isinstance(left, Vector) and isinstance(right, Vector):
        theirs = right.to_numpy().coefs
        for name, array in left.to_numpy().coefs.items():
            ours, other = np.asarray(array, np.float64), np.asarray(theirs[name], np.float64)
            worst = float(np.max(np.abs(ours - other), initial=0.0))
            # Written so that a NaN on one side is a difference.
            if not worst <= rtol * float(np.max(np.abs(ours), initial=0.0)):
                return f"{where}: tensor {name!r} differs by up to {worst:.3g}"
        return None
    if isinstance(left, Mapping) and isinstance(right, Mapping) and left.keys() == right.keys():
        found = (closeness(left[k], right[k], rtol, f"{where}.{k}" if where else str(k)) for k in left)
        return next((gap for gap in found if gap is not None), None)
    if isinstance(left, float) and isinstance(right, float):
        return None if abs(left - right) <= rtol * abs(left) else f"{where}: {left!r} and {right!r}"
    return difference(left, right, where)


def same_state(left: Any, right: Any) -> bool:
    """Whether two states, as `get_state` gives them, are the same bit for bit."""
    return difference(left, right) is None


def frozen(value: Any) -> Any:
    """A state with memory of its own, whoever holds the one it was made from."""
    if isinstance(value, Vector | np.ndarray):
        return value.copy()
    if isinstance(value, list | tuple):
        return [frozen(item) for item in value]
    return {key: frozen(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def _first(found: Iterable[str | None]) -> str | None:
    return next((one for one in found if one is not None), None)


def _by(left: Any, right: Any) -> str:
    with np.errstate(all="ignore"):
        gap = np.abs(np.asarray(left, np.float64) - np.asarray(right, np.float64))
    return f"by up to {np.max(gap):.3g}" if gap.size else "in size"


def _shown(value: Any) -> str:
    return (
        f"{type(value).__name__} {value!r}" if isinstance(value, int | float | str) else type(value).__name__
    )
