"""Settings that differ between layers: part of floor 5, chosen by tensor name and applied in the one pass."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt

from .layout import Layout
from .plugin import Plugin
from .schedules import Schedule, schedule_of
from .vector import PerTensor

__all__ = ["Group", "Grouping", "groups_of", "rate_of", "verify_names", "verify_settings"]

Rate = float | Schedule
_T = TypeVar("_T")

# What other libraries call the parameters.
_ELSEWHERE = {
    "lr": "lrate",
    "learning_rate": "lrate",
    "weight_decay": "w_decay",
    "decay": "w_decay",
    "wd": "w_decay",
    "params": "match",
    "pattern": "match",
    "name": "match",
    "plugins": "modules",
    "param_groups": "groups",
}


def verify_names(cls: type[_T]) -> type[_T]:
    """Make a class's constructor say which parameters it has, and which was meant, at one that it lacks."""
    init = cls.__init__
    known = list(inspect.signature(init).parameters)[1:]

    @functools.wraps(init)
    def verified(self: _T, *args: Any, **kwargs: Any) -> None:
        for name in kwargs:
            if name not in known:
                import difflib  # what only an error needs is not loaded by `import privopt`

                near = [_ELSEWHERE.get(name, name), *difflib.get_close_matches(name, known, n=1)]
                meant = next((other for other in near if other in known), None)
                hint = "" if meant is None else f" Did you mean {meant!r}?"
                if meant == "w_decay":
                    hint += " It is not multiplied by the rate."
                raise TypeError(
                    f"Expected parameters of {cls.__name__} among {', '.join(known)}, got {name!r}.{hint}"
                )
        init(self, *args, **kwargs)

    cls.__init__ = verified  # type: ignore[method-assign, assignment]  # it takes what it took
    return cls


@verify_names
@dataclass(frozen=True)
class Group:
    r"""Tensors whose names match a pattern, and what is different for them.

    Where several groups match a tensor, later ones override earlier ones setting by setting, and their
    `lrate_scale` multiply.

    Args:
        match: Regular expression, matched from the start of the name: ``"embed"`` matches ``embed.weight``,
            ``r".*bias"`` every bias.
        lrate: Replaces the optimizer's rate: a number or a schedule.
        lrate_scale: Multiplies the rate, finite and >= 0.
        w_decay: Replaces the optimizer's decay: a number or a schedule.
        frozen: Nothing of these tensors changes; their gradients count as zeros everywhere. False thaws what
            an earlier group froze.
        settings: Hyper-parameters of plug-ins, ``{"adam.eps": 1e-8}``, or ``{"eps": 1e-8}`` where one plug-in
            has that name, or ``{"modules.1.adam.eps": 1e-8}`` where two are called adam (the keys of
            `Optimizer.get_state`). Only numbers that enter the arithmetic can differ.

    Example:
        >>> Group(r".*(bias|norm)", w_decay=0.0)
        Group(match='.*(bias|norm)', lrate=None, lrate_scale=1.0, w_decay=0.0, frozen=None, settings={})
    """

    match: str
    lrate: Any = None
    lrate_scale: float = 1.0
    w_decay: Any = None
    frozen: bool | None = None
    settings: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.match, str):
            raise TypeError(f"Expected a group's match as a string, got {self.match!r}.")
        try:
            re.compile(self.match)
        except re.error as error:
            raise ValueError(
                f"Expected a regular expression as a group's match, got {self.match!r}: {error}."
            ) from None
        if not isinstance(self.frozen, bool | None):
            raise TypeError(f"Expected frozen to be true or false, got {self.frozen!r}.")
        if not isinstance(self.settings, Mapping):
            raise TypeError(
                f'Expected a group\'s settings as {{"adam.eps": 1e-8}}, got {type(self.settings).__name__}.'
            )
        object.__setattr__(self, "lrate_scale", rate_of("lrate_scale", self.lrate_scale, schedules=False))
        for name in ("lrate", "w_decay"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, rate_of(name, value))

    def get_config(self) -> dict[str, Any]:
        """The group as JSON values."""
        return {
            "match": self.match,
            "lrate": config_of(self.lrate),
            "lrate_scale": self.lrate_scale,
            "w_decay": config_of(self.w_decay),
            "frozen": self.frozen,
            "settings": dict(self.settings),
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build a group from `get_config`'s output, or from what a file says.

        Raises:
            TypeError: If a key is unknown.
        """
        known = [f.name for f in dataclasses.fields(cls)]
        extra = sorted(set(config) - set(known))
        if extra or "match" not in config:
            raise TypeError(f"Expected a group's keys among {known}, with a match, got {sorted(config)}.")
        return cls(**config)


def rate_of(name: str, value: object, *, schedules: bool = True) -> Any:
    """A rate as given by a user: a finite number >= 0 as a float, or a schedule.

    Raises:
        TypeError: If it is neither.
        ValueError: If it is out of range.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"Expected {name} >= 0 and finite, got {name}={value!r}.")
        return float(value)
    if isinstance(value, str) and _is_number(value):
        raise TypeError(f"Expected {name} as a number, without quotes, got {value!r}.")
    if not schedules or value is None or isinstance(value, bool):
        raise TypeError(f"Expected a number for {name}, got {value!r} ({type(value).__name__}).")
    try:
        schedule = schedule_of(value)
        if schedule is value and getattr(schedule, "_taken", False):
            # It counts steps for another rate already: this one gets a fresh one of the same parameters.
            schedule = type(schedule).from_config(schedule.get_config())
        schedule._taken = True
        return schedule
    except TypeError as error:
        raise TypeError(f"Expected a number or a schedule for {name}: {error}") from error


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def config_of(rate: Any) -> Any:
    """A rate as JSON: a number, None, or ``[name, config]``."""
    return [rate.name, rate.get_config()] if isinstance(rate, Schedule) else rate


def groups_of(groups: Iterable[Group | Mapping[str, Any]] | None) -> tuple[Group, ...]:
    """Groups as a user gives them: instances or mappings.

    Raises:
        TypeError: If one is neither.
    """
    if isinstance(groups, str | Mapping | Group):
        raise TypeError(f"Expected a list of groups, got {groups!r}. Write [{groups!r}].")
    found = []
    for group in groups or ():
        if isinstance(group, Mapping):
            group = Group.from_config(group)
        if not isinstance(group, Group):
            raise TypeError(f'Expected a group as Group("pattern", ...) or a mapping, got {group!r}.')
        found.append(group)
    return tuple(found)


class Grouping:
    """An optimizer's groups on one model's layout.

    Args:
        groups: In order.
        layout: Of the model.
        plugins: Owners of what `settings` name.

    Raises:
        ValueError: If a group matches no tensor, or a setting belongs to no plug-in or to two.
        TypeError: If a setting is no number that can differ between tensors.
    """

    def __init__(self, groups: Sequence[Group], layout: Layout, plugins: Sequence[Plugin]) -> None:
        self.layout = layout
        self._groups = groups
        self._masks = [
            np.array([re.match(g.match, name) is not None for name in layout.names], bool) for g in groups
        ]
        for group, mask in zip(groups, self._masks, strict=True):
            if not mask.any():
                raise ValueError(
                    f"Expected group {group.match!r} to match a tensor, got none of "
                    f"{', '.join(layout.names[:8])}{', ...' if len(layout) > 8 else ''}. "
                    "A pattern is matched from the start of a name."
                )
        frozen = np.zeros(len(layout), bool)
        for group, mask in zip(groups, self._masks, strict=True):
            if group.frozen is not None:
                frozen[mask] = group.frozen
        self.active = PerTensor(layout, 1.0 - frozen) if frozen.any() else None
        """0 for frozen tensors, 1 for others; None where none is frozen."""
        self.settings = self._settings(plugins)
        self._bases = [(plugin, name, getattr(plugin, name)) for plugin, name, _ in self.settings]
        """``(plug-in, hyper-parameter, one number per tensor)``."""

    def is_stale(self) -> bool:
        """Whether a hyper-parameter that groups vary was changed since."""
        return any(getattr(plugin, name) != base for plugin, name, base in self._bases)

    def rate(self, name: str, base: float) -> float | PerTensor:
        """`lrate` or `w_decay` with what the groups say; a plain number where they say nothing."""
        values = np.full(len(self.layout), base)
        scales = np.ones(len(self.layout))
        touched = False
        for group, mask in zip(self._groups, self._masks, strict=True):
            own = getattr(group, name)
            if own is not None:
                values[mask] = own.current if isinstance(own, Schedule) else own
                touched = True
            if name == "lrate" and group.lrate_scale != 1.0:
                scales[mask] *= group.lrate_scale
                touched = True
        return PerTensor(self.layout, values * scales) if touched else base

    def _settings(self, plugins: Sequence[Plugin]) -> list[tuple[Plugin, str, PerTensor]]:
        found: dict[tuple[int, str], tuple[Plugin, str, npt.NDArray[np.float64]]] = {}
        for group, mask in zip(self._groups, self._masks, strict=True):
            for key, value in group.settings.items():
                plugin, name = _owner(key, plugins)
                # The plug-in itself judges the value.
                built = type(plugin).from_config({**plugin.get_config(), name: value})
                start = (plugin, name, np.full(len(self.layout), getattr(plugin, name)))
                found.setdefault((id(plugin), name), start)[2][mask] = getattr(built, name)
        return [(plugin, name, PerTensor(self.layout, values)) for plugin, name, values in found.values()]


def verify_settings(groups: Sequence[Group], plugins: Sequence[Plugin]) -> None:
    """Check that each setting of each group belongs to one plug-in, which takes its value.

    Raises:
        ValueError: If one belongs to none or to two, or is out of range.
        TypeError: If one is no number that can differ between tensors.
    """
    for group in groups:
        for key, value in group.settings.items():
            plugin, name = _owner(key, plugins)
            type(plugin).from_config({**plugin.get_config(), name: value})


def _owner(key: str, plugins: Sequence[Plugin]) -> tuple[Plugin, str]:
    scope, _, name = key.rpartition(".")
    places = _places(plugins)
    owners = [
        plugin
        for plugin, place in zip(plugins, places, strict=True)
        if scope in ("", plugin.name, place)
        and any(f.name == plugin.aliases.get(name, name) for f in plugin._hyper)
    ]
    if len(owners) != 1:
        names = [plugin.name for plugin in plugins]
        # A plug-in is called by its place only where its name is not enough.
        called = {
            id(plugin): plugin.name if names.count(plugin.name) == 1 else place
            for plugin, place in zip(plugins, places, strict=True)
        }
        if owners:
            full = " or ".join(repr(f"{called[id(owner)]}.{name}") for owner in owners)
            got, hint = " and ".join(repr(owner.name) for owner in owners), f"Write {full}."
        else:
            fields = [(p, f.name) for p in plugins for f in p._hyper]
            known = sorted(f"{called[id(p)]}.{f}" for p, f in fields if isinstance(getattr(p, f), float))
            got, hint = "none", f"Settings: {known}."
        raise ValueError(f"Expected one plug-in to own the setting {key!r}, got {got}. {hint}")
    plugin = owners[0]
    name = plugin.aliases.get(name, name)
    if not isinstance(getattr(plugin, name), float):
        raise TypeError(
            f"Expected a setting that is a number with a fraction, got {key!r}, which is "
            f"{getattr(plugin, name)!r}: it decides what is computed and cannot differ between tensors."
        )
    return plugin, name


def _places(plugins: Sequence[Plugin]) -> list[str]:
    """Where each stands in its optimizer, as `Optimizer.get_state` has it: ``"modules.1.adam"``."""
    before: dict[str, int] = {}
    found = []
    for plugin in plugins:
        kind = f"{plugin._kind()}s"
        found.append(f"{kind}.{before.get(kind, 0)}.{plugin.name}")
        before[kind] = before.get(kind, 0) + 1
    return found
