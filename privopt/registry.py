"""The visible tables of plug-ins by name: part of floor 3, filled by declaring classes."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from .aggregators import Aggregator
    from .plugin import OptiModule, Regularizer
    from .schedules import Schedule

__all__ = [
    "AGGREGATORS",
    "AUX_VARS",
    "OPTI_MODULES",
    "REGULARIZERS",
    "SCHEDULES",
    "Registry",
    "list_aggregators",
    "list_optim_modules",
    "list_optim_regularizers",
    "list_rate_schedulers",
    "nearest_names",
]

_Kind = TypeVar("_Kind", bound=type)


class Registry:
    """One visible table of plug-in classes by name.

    Guarantees:
        - A name stands for one class: a second one is an error that names both.
        - Looking a name up runs no code but that of installed packages that declare the
          entry-point group ``privopt.plugins``; names that came over the wire are only looked up.
    """

    _loaded_entry_points = False

    def __init__(self, what: str, built_in: str) -> None:
        """Make an empty table; the module `built_in` is imported, all names of it, before it is needed."""
        self.what = what
        self.one = f"{'an' if what[0] in 'aeiou' else 'a'} {what}"
        self._built_in = built_in
        self._is_built = False
        self._classes: dict[str, type] = {}

    def add(self, cls: _Kind) -> _Kind:
        """Enter a class under its ``name``.

        Raises:
            TypeError: If it has no name of its own, or another class has that name.
        """
        name = getattr(cls, "name", None)
        if not isinstance(name, str) or not name:
            raise TypeError(
                f'Expected {cls.__qualname__} to set `name = "..."` ({self.one} is found by it), '
                "or to be declared with register=False."
            )
        # Another's class must find what is built in, though nothing was looked up yet.
        if cls.__module__.partition(".")[0] != __name__.partition(".")[0]:
            self._load_built_in()
        known = self._classes.get(name)
        # A module that is imported again (a notebook cell, importlib.reload) replaces its own class.
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise TypeError(
                f"Expected {self.one} name that is not taken, got {name!r} for "
                f"{cls.__module__}.{cls.__qualname__}: {known.__module__}.{known.__qualname__} has it. "
                "Choose another name, or declare the class with register=False."
            )
        self._classes[name] = cls
        return cls

    def table(self) -> dict[str, type]:
        """All classes by name, sorted, installed packages' included."""
        self._load_built_in()
        self._load_entry_points()
        return dict(sorted(self._classes.items()))

    def find(self, name: str) -> type:
        """The class of that name.

        Raises:
            TypeError: If the name is no string.
            ValueError: If there is none; the message names the nearest.
        """
        if not isinstance(name, str):
            raise TypeError(f"Expected the name of {self.one}, got {name!r} ({type(name).__name__}).")
        if name not in self._classes:
            self._load_built_in()
        if name not in self._classes:
            self._load_entry_points()
        if name not in self._classes:
            near = nearest_names(name, self._classes)
            hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
            others = [t for t in (OPTI_MODULES, REGULARIZERS, SCHEDULES, AGGREGATORS) if t is not self]
            elsewhere = [t for t in others if name in t.table()]
            if elsewhere:
                raise ValueError(
                    f"Expected a known {self.what}, got {name!r}. "
                    f"{name!r} is {elsewhere[0].one}: give it where {elsewhere[0].what}s go."
                )
            if self is OPTI_MODULES and name.lower() == "adamw":
                hint = " It is 'adam' with the optimizer's w_decay."
            raise ValueError(
                f"Expected a known {self.what}, got {name!r}.{hint} "
                f"`privopt modules` lists them: {', '.join(sorted(self._classes))}."
            )
        return self._classes[name]

    def _load_built_in(self) -> None:
        if not self._is_built:
            package = importlib.import_module(self._built_in)
            for name in getattr(package, "__all__", ()):
                getattr(package, name)  # loads the names that their package loads later
            self._is_built = True

    @classmethod
    def _load_entry_points(cls) -> None:
        if not Registry._loaded_entry_points:
            Registry._loaded_entry_points = True
            from importlib.metadata import entry_points  # 15 ms that `import privopt` need not take

            for entry in entry_points(group="privopt.plugins"):
                try:
                    entry.load()
                except Exception as error:  # noqa: BLE001 - a foreign package may fail in any way
                    warnings.warn(
                        f"plug-ins {entry.name!r} of a package ({entry.value}) could not be loaded: "
                        f"{type(error).__name__}: {error}",
                        stacklevel=2,
                    )


def nearest_names(name: str, names: Iterable[str]) -> list[str]:
    """Up to three names that hold `name` as a word, or as a part; else those that look like it."""
    import difflib  # what only an error needs is not loaded by `import privopt`

    names = list(names)
    words = [other for other in names if name in other.split("-")]
    parts = [other for other in names if len(name) > 2 and name in other]
    found = list(dict.fromkeys([*words, *parts]))
    return found[:3] or difflib.get_close_matches(name, names, n=3, cutoff=0.5)


OPTI_MODULES = Registry("module", "privopt.modules")
REGULARIZERS = Registry("regularizer", "privopt.regularizers")
SCHEDULES = Registry("schedule", "privopt.schedules")
AGGREGATORS = Registry("aggregator", "privopt.aggregators")
AUX_VARS = Registry("aux-var", "privopt.modules")


def list_optim_modules() -> dict[str, type[OptiModule]]:
    """All modules by name, third parties' included."""
    return OPTI_MODULES.table()


def list_optim_regularizers() -> dict[str, type[Regularizer]]:
    """All regularizers by name, third parties' included."""
    return REGULARIZERS.table()


def list_rate_schedulers() -> dict[str, type[Schedule]]:
    """All learning-rate schedules by name, third parties' included."""
    return SCHEDULES.table()


def list_aggregators() -> dict[str, type[Aggregator]]:
    """All aggregators by name, third parties' included."""
    return AGGREGATORS.table()
