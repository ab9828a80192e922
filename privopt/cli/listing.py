"""Plug-ins described for people: floor 7, what `privopt modules` prints."""

from __future__ import annotations

import dataclasses
import inspect
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .. import registry

__all__ = ["Parameter", "PluginCard", "described", "nearest"]

_WIDTH = 120


@dataclass(frozen=True)
class Parameter:
    """A hyper-parameter: name, type as declared, default (None and `required` if it has none)."""

    name: str
    type: str
    default: Any
    required: bool

    def __str__(self) -> str:
        return f"{self.name}: {self.type}" + ("" if self.required else f" = {self.default!r}")


@dataclass(frozen=True)
class PluginCard:
    """One module, regularizer, schedule or aggregator.

    Attributes:
        name: What a configuration calls it.
        kind: What its table holds: ``module``, ``regularizer``, ``schedule`` or ``aggregator``.
        summary: First line of its docstring.
        parameters: Its hyper-parameters.
        exchanges: Whether it sends auxiliary variables with the update.
        doc: Its whole docstring.
    """

    name: str
    kind: str
    summary: str
    parameters: tuple[Parameter, ...]
    exchanges: bool
    doc: str

    def text(self, *, full: bool = False) -> str:
        """For a terminal: name and parameters, then what it does."""
        marked = "\nExchanges auxiliary variables." if full else " [exchanges auxiliary variables]"
        body = (self.doc if full else self.summary) + (marked if self.exchanges else "")
        return f"{self._head()}\n{textwrap.indent(body, '      ')}"

    def _head(self) -> str:
        if not self.parameters:
            return f"  {self.name}"
        # Lines break between parameters, not within them.
        parameters = ", ".join(str(parameter).replace(" ", "\0") for parameter in self.parameters)
        head = textwrap.fill(
            f"{self.name}  ({parameters})",
            _WIDTH,
            initial_indent="  ",
            subsequent_indent=" " * (len(self.name) + 5),
            break_long_words=False,
            break_on_hyphens=False,
        )
        return head.replace("\0", " ")

    def to_dict(self, *, full: bool = False) -> dict[str, Any]:
        """Ready for JSON; the whole docstring only in full."""
        found = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if full or field.name != "doc"
        }
        return {**found, "parameters": [dataclasses.asdict(parameter) for parameter in self.parameters]}


def described() -> list[PluginCard]:
    """All plug-ins, table by table, each table by name; those of installed packages included."""
    tables = [registry.OPTI_MODULES, registry.REGULARIZERS, registry.SCHEDULES, registry.AGGREGATORS]
    return [_card(table.what, name, cls) for table in tables for name, cls in table.table().items()]


def nearest(name: str, cards: Sequence[PluginCard]) -> list[str]:
    """The names of any table that hold `name`, or look most like it, the nearest first."""
    return registry.nearest_names(name, dict.fromkeys(card.name for card in cards))


def _card(kind: str, name: str, cls: Any) -> PluginCard:
    doc = inspect.getdoc(cls) or "(not described)"
    if cls.aliases:
        others = ", ".join(f"{other} for {proper}" for other, proper in cls.aliases.items())
        doc += f"\n\nOther spellings that are accepted: {others}."
    parameters = []
    for field in dataclasses.fields(cls):
        if not field.init:
            continue  # state, not a hyper-parameter
        default: Any = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        missing = default is dataclasses.MISSING
        shown = (
            field.type if isinstance(field.type, str) else getattr(field.type, "__name__", str(field.type))
        )
        parameters.append(Parameter(field.name, shown, None if missing else default, missing))
    exchanges = getattr(cls, "aux_name", None) is not None
    return PluginCard(name, kind, doc.splitlines()[0], tuple(parameters), exchanges, doc)
