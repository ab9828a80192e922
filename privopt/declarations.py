"""What a plug-in may declare: floor 3. States, hyper-parameters and methods, and how each mistake is told.

Contents: `state`; what annotations allow (`parts_of` to `verify_state`); what a class is refused for
(`verify_annotated` to `verify_methods`); hyper-parameters (`checked`).
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from .vector import Vector

if TYPE_CHECKING:
    from .plugin import Plugin

__all__ = [
    "STATE",
    "checked",
    "kinds_of",
    "nearest",
    "parts_of",
    "state",
    "verify_annotated",
    "verify_declared",
    "verify_kind",
    "verify_methods",
    "verify_state",
]

STATE = "privopt.state"
"""Mark of a state in its field's metadata."""
_NOT_GIVEN: Any = object()


def state(initial: Any = _NOT_GIVEN, *, init: Literal[False] = False) -> Any:
    """Declare an attribute that changes while training: saved, restored and reset because it is declared.

    Annotated as ``Vector`` it starts, at the first `run`, as a Vector of the gradients' layout filled
    with the number `initial`. Annotated as anything else it starts as the value itself
    (``int``, ``float``, ``bool``, ``str`` or ``None``). Annotated ``Vector | None`` with `None` it stays
    unset until the plug-in sets it. (`init` tells type checkers that a constructor takes no state.)
    """
    if initial is _NOT_GIVEN:
        initial = dataclasses.MISSING  # the class is made next: it knows the name, and what to write
    elif not isinstance(initial, int | float | str | None):
        raise TypeError(
            f"Expected a number, a string or None as a state's first value, got {type(initial).__name__}. "
            "What can be changed in place cannot be taken back when a step fails: declare a state for each."
        )
    return dataclasses.field(init=init, repr=False, compare=False, default=initial, metadata={STATE: True})


_PLAIN: dict[str, Any] = {"int": int, "float": (int, float), "bool": bool, "str": str}


def parts_of(annotation: Any) -> frozenset[str]:
    """What an annotation allows, by name: ``{"Vector", "None"}``; it may be a string or a type."""
    if isinstance(annotation, type):
        return frozenset([annotation.__name__])
    text = (annotation if isinstance(annotation, str) else repr(annotation)).strip("\"' ")
    if "Optional[" in text and text.endswith("]"):
        text = text.partition("[")[2][:-1] + " | None"
    return frozenset(part.strip().rpartition(".")[2] for part in text.split("|"))


def _spelled(annotation: Any) -> str:
    parts = parts_of(annotation)
    return " | ".join(sorted(parts - {"None"}) + ["None"] * ("None" in parts))


def kinds_of(field: dataclasses.Field[Any]) -> frozenset[type]:
    """Types of exactly which a state may be; others are looked at twice (`verify_kind`)."""
    simple: dict[str, list[type]] = {"int": [int], "float": [int, float], "bool": [bool], "str": [str]}
    simple["None"] = [type(None)]
    return frozenset(kind for part in parts_of(field.type) for kind in simple.get(part, ()))


def _fits(field: dataclasses.Field[Any], value: Any) -> bool:
    """Whether a state may be this. Of a Vector: a number too, as long as no step has made a Vector of it."""
    parts = parts_of(field.type)
    if "Vector" in parts:
        unset = isinstance(value, int | float) and not isinstance(value, bool) and "None" not in parts
        return isinstance(value, Vector) or unset or (value is None and "None" in parts)
    if not parts <= set(_PLAIN) | {"None"}:
        return True  # a type of the plug-in's own, which it restores itself
    kinds = tuple(_PLAIN[part] for part in parts if part in _PLAIN)
    boolean = isinstance(value, bool) and "bool" not in parts
    return (isinstance(value, kinds) and not boolean) or (value is None and "None" in parts)


def verify_kind(plugin: Plugin, name: str, value: Any) -> None:
    """Refuse what a step left in a state that is declared to be something else."""
    field = next(f for f in plugin._state if f.name == name)
    number = isinstance(value, int | float)
    # What `reset` puts there is a state that no step has made a Vector of, another number is a mistake.
    if _fits(field, value) and not (number and "Vector" in parts_of(field.type) and value != field.default):
        return
    kind, example = _example(name, value)
    text = _spelled(field.type)
    hint = f"Declare `{example}`" if example else f"Convert it to {text}"
    if number and "Vector" in text:
        hint += f", or make a Vector of it: `gradients.full_like({name})`"
    raise TypeError(
        f"Expected {text} in state {name!r} of {plugin._kind()} {plugin.name!r}, got {kind}. {hint}."
    )


def _example(name: str, value: Any) -> tuple[str, str]:
    """What a value is called, and how a state that may be it is declared."""
    if isinstance(value, Vector):
        return "Vector", f"{name}: Vector = state(0.0)"
    if value is None:
        return "None", f"{name}: Vector | None = state(None)"
    kind = type(value).__name__
    first = {"int": "0", "float": "0.0", "bool": "False", "str": '""'}.get(kind)
    return kind, f"{name}: {kind} = state({first})" if first else ""


def verify_state(plugin: Plugin, field: dataclasses.Field[Any], value: Any) -> None:
    """Refuse what a state of this annotation can never have been."""
    where = f"state {field.name!r} of {plugin._kind()} {plugin.name!r}"
    if not _fits(field, value):
        raise TypeError(f"Expected {_spelled(field.type)} for {where}, got {type(value).__name__}.")
    if not parts_of(field.type) <= {*_PLAIN, "None", "Vector"}:
        return
    if isinstance(value, float) and math.isnan(value):
        raise ValueError(f"Expected a number for {where}, got nan.")
    counts = isinstance(value, int) and isinstance(field.default, int) and field.default >= 0
    if counts and value < 0:
        raise ValueError(f"Expected a count of at least 0 for {where}, got {value}.")


def verify_annotated(cls: type[Plugin]) -> None:
    """Refuse states and hyper-parameters that say no type: a dataclass would pass them over."""
    annotated = inspect.get_annotations(cls)
    for name, value in vars(cls).items():
        if isinstance(value, dataclasses.Field) and name not in annotated:
            raise TypeError(
                f"Expected an annotation for {cls.__qualname__}.{name}, got none. Write `{name}: Vector = "
                f"state(0.0)`, or `{name}: int = state(0)`."
            )


def verify_declared(cls: type[Plugin], field: dataclasses.Field[Any]) -> None:
    """Refuse a state whose first value is not what its annotation says, and Vectors that are no state."""
    name, parts, first = field.name, parts_of(field.type), field.default
    where, text = f"{cls.__qualname__}.{name}", _spelled(field.type)
    if STATE not in field.metadata:
        if "Vector" in parts:
            raise TypeError(
                f"Expected {where} to be declared as state, got a parameter: a configuration holds no "
                f"Vector. Write `{name}: Vector = state(0.0)`, or `{name}: Vector | None = state(None)`."
            )
        return
    if first is not dataclasses.MISSING and _fits(field, first):
        return
    firsts = {"Vector": "0.0", "int": "0", "float": "0.0", "bool": "False", "str": '""'}
    fitting = "None" if "None" in parts else next((firsts[p] for p in sorted(parts) if p in firsts), "None")
    got = "state()" if first is dataclasses.MISSING else f"state({first!r})"
    hint = f"Write `{name}: {text} = state({fitting})`"
    if "Vector" in parts and first is not dataclasses.MISSING:
        other = "Vector = state(0.0)" if "None" in parts else "Vector | None = state(None)"
        hint += f", or `{name}: {other}`"
    raise TypeError(f"Expected a first value of {where} that is {text}, got {got}. {hint}.")


def verify_methods(cls: type[Plugin]) -> None:
    """Refuse methods that would be called with other arguments than they take, or never."""
    for name, method in vars(cls).items():
        if name[0] == "_" or not inspect.isfunction(method):
            continue
        base = next((vars(c)[name] for c in cls.__mro__[1:] if name in vars(c)), None)
        if base is None and name.startswith("on_"):
            hooks = sorted({n for c in cls.__mro__[1:] for n in vars(c) if n.startswith("on_")})
            near = nearest(name, hooks)
            hint = f"Did you mean {near!r}?" if near else f"Hooks are {', '.join(hooks)}."
            raise TypeError(
                f"Expected methods of {cls.__qualname__} that begin with 'on_' to be hooks, got {name!r}, "
                f"which nobody calls. {hint}"
            )
        base = inspect.unwrap(base) if callable(base) else base
        if name == "run" and cls._by_name:
            _verify_run(cls, method)
        elif inspect.isfunction(base) and not _takes(method, base.__code__.co_argcount):
            raise TypeError(
                f"Expected {cls.__qualname__}.{name} to take {_arguments(base)}, which it is called with, "
                f"got {_arguments(method)}."
            )


def _arguments(method: Callable[..., Any]) -> str:
    return f"({', '.join(inspect.signature(method).parameters)})"


def _takes(method: Callable[..., Any], given: int) -> bool:
    """Whether a function can be called with so many arguments, by position."""
    method = inspect.unwrap(method)
    code = method.__code__
    most = math.inf if code.co_flags & inspect.CO_VARARGS else code.co_argcount
    named = code.co_kwonlyargcount - len(method.__kwdefaults__ or ())
    return code.co_argcount - len(method.__defaults__ or ()) <= given <= most and not named


def _verify_run(cls: type[Plugin], run: Callable[..., Any]) -> None:
    parameters = list(inspect.signature(run).parameters.values())
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    anything = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    gradients = positional[1:2]
    if not (gradients or anything) or any(p.name in cls._by_name for p in gradients):
        raise TypeError(
            f"Expected {cls.__qualname__}.run to take gradients first, got {_arguments(run)}. Write `def "
            "run(self, gradients)`, with `weights` or `raw_gradients` after it where they are needed."
        )
    for parameter in parameters[2:]:
        variable = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if not variable and parameter.name not in cls._by_name and parameter.default is parameter.empty:
            raise TypeError(
                f"Expected {cls.__qualname__}.run to take gradients, and by these names `weights` and "
                f"`raw_gradients`, got also {parameter.name!r}, which nobody gives it."
            )


def nearest(name: str, known: Sequence[str]) -> str | None:
    """The known name that is most like this one, for a hint; None where none is."""
    from difflib import SequenceMatcher  # what only an error needs is not loaded by `import privopt`

    likeness = {one: SequenceMatcher(None, name, one).ratio() for one in known}
    best = max(likeness, key=likeness.__getitem__, default="")
    return best if likeness.get(best, 0.0) >= 0.4 else None


def checked(plugin: Plugin, field: dataclasses.Field[Any], value: Any) -> Any:
    """A hyper-parameter's value as its annotation says it; TypeError or ValueError where it is none."""
    kinds = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", "")
    expected: str | None = None
    if kinds == "float":
        if isinstance(value, bool) or not isinstance(value, int | float):
            expected = "a number"
        elif math.isnan(value):
            raise ValueError(f"Expected a number for {plugin.name}.{field.name}, got nan.")
        else:
            return float(value)
    elif kinds == "int" and (isinstance(value, bool) or not isinstance(value, int)):
        expected = "an integer"
    elif kinds == "bool" and not isinstance(value, bool):
        expected = "true or false"
    elif kinds == "str" and not isinstance(value, str):
        expected = "a string"
    if expected:
        raise TypeError(
            f"Expected {expected} for {plugin.name}.{field.name}, got {value!r} ({type(value).__name__})."
        )
    return value
