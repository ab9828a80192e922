"""Plug-ins described for people: floor 7, what `privopt modules` prints."""

from __future__ import annotations

import dataclasses
import inspect
import textwrap
from dataclasses import dataclass
from typing import Any

__all__ = ["Parameter", "PluginCard", "described"]


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
    """One module or regularizer.

    Attributes:
        name: What a configuration calls it.
        kind: ``module`` or ``regularizer``.
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
        head = f"  {self.name}" + (f"  ({', '.join(map(str, self.parameters))})" if self.parameters else "")
        body = (
            self.doc
            if full
            else self.summary + (" [exchanges auxiliary variables]" if self.exchanges else "")
        )
        return f"{head}\n{textwrap.indent(body, '      ')}"

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        found = {
            field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "doc"
        }
        return {**found, "parameters": [dataclasses.asdict(parameter) for parameter in self.parameters]}


def described() -> list[PluginCard]:
    """All plug-ins, modules first, each kind by name; those of installed packages included."""
    from .. import list_optim_modules, list_optim_regularizers

    tables: list[tuple[str, dict[str, Any]]] = [
        ("module", dict(list_optim_modules())),
        ("regularizer", dict(list_optim_regularizers())),
    ]
    return [_card(kind, name, cls) for kind, table in tables for name, cls in sorted(table.items())]


def _card(kind: str, name: str, cls: Any) -> PluginCard:
    doc = inspect.getdoc(cls) or "(not described)"
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
