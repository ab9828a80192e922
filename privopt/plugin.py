"""Plug-ins of an optimizer: floor 3, the contract that modules and regularizers follow.

A plug-in's hyper-parameters are dataclass fields and its state is what it declares with `state`,
so config, state, reset and resume follow from the declaration and no list is kept by hand.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, dataclass_transform

from .registry import OPTI_MODULES, REGULARIZERS
from .vector import Vector

if TYPE_CHECKING:
    from .auxvar import AuxVar
    from .optimizer import Optimizer

__all__ = ["OptiModule", "Plugin", "Regularizer", "state"]

_STATE = "privopt.state"
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
    return dataclasses.field(init=init, repr=False, compare=False, default=initial, metadata={_STATE: True})


@dataclass_transform(field_specifiers=(state, dataclasses.field))
class Plugin:
    """What modules and regularizers share: declared hyper-parameters, declared state.

    A subclass is turned into a dataclass; its annotated fields are hyper-parameters (JSON values,
    with defaults), its `state` fields are what changes. Values are checked against the annotations
    ``float``, ``int``, ``bool`` and ``str``; a ``float`` takes an int too.
    """

    name: ClassVar[str]
    aliases: ClassVar[Mapping[str, str]] = {}
    """Other spellings of hyper-parameters that the constructor accepts."""

    counterpart: ClassVar[str | None] = None
    """Of a client's plug-in: the server module that must stand beside it."""

    _hyper: ClassVar[tuple[dataclasses.Field[Any], ...]] = ()
    _state: ClassVar[tuple[dataclasses.Field[Any], ...]] = ()
    _states: ClassVar[tuple[tuple[str, bool, frozenset[type]], ...]] = ()
    """Of each state its name, whether it is declared as a Vector, and the types that need no second look."""
    _free: ClassVar[frozenset[str]] = frozenset()
    """Names that are set without a check: states, which a step checks once it is over."""
    _plain: ClassVar[frozenset[str]] = frozenset()
    """Names of all hyper-parameters and states: what else a plug-in holds, no step may write to."""

    _place: int = 0
    _complete: bool = False
    """Whether the constructor is done: from then on what is set is checked."""

    def __init_subclass__(cls, register: bool = True, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _verify_methods(cls)
        _verify_annotated(cls)
        if "run" in cls.__dict__:
            # The dataclass decorator below works in place, so the method is found through the class.
            cls.run = _with_state(cls.__dict__["run"])  # type: ignore[attr-defined]  # subclasses' contract
        if "finish" in cls.__dict__:
            cls.finish = _with_state(cls.__dict__["finish"])  # type: ignore[attr-defined]  # modules' contract
        if "process_aux_var" in cls.__dict__:
            cls.process_aux_var = _with_state_moved(  # type: ignore[attr-defined]  # modules' contract
                cls.__dict__["process_aux_var"]
            )
        doc = cls.__doc__
        dataclasses.dataclass(eq=False, repr=False)(cls)
        cls.__doc__ = doc or ""  # not the signature, which would pass for a description
        fields = dataclasses.fields(cls)  # type: ignore[arg-type]  # a dataclass since the line above
        for field in fields:
            _verify_declared(cls, field)
        cls._state = tuple(f for f in fields if _STATE in f.metadata)
        cls._states = tuple((f.name, "Vector" in _parts(f.type), _kinds(f)) for f in cls._state)
        cls._free = frozenset(f.name for f in cls._state) | {"_place"}
        cls._plain = frozenset(f.name for f in fields) | {"_place", "_complete"}
        cls._hyper = tuple(f for f in fields if _STATE not in f.metadata and f.init)
        for hyper in cls._hyper:
            if hyper.default is dataclasses.MISSING and hyper.default_factory is dataclasses.MISSING:
                raise TypeError(
                    f"Expected a default for {cls.__qualname__}.{hyper.name}: a plug-in given by its name "
                    "alone is built from its defaults."
                )
        cls.__init__ = _completed(cls, cls.__init__)  # type: ignore[method-assign]

    def __post_init__(self, *init_only: Any) -> None:
        """Check hyper-parameters against their annotations; subclasses extend it with their ranges."""
        for hyper in self._hyper:
            setattr(self, hyper.name, _checked(self, hyper, getattr(self, hyper.name)))

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._free:
            self.__dict__[name] = value  # many a step: the shortest way there is
        elif name[0] == "_" or not self._complete:
            # The constructor checks by itself, once all is set.
            object.__setattr__(self, name, value)
        else:
            object.__setattr__(self, name, self._verified_attribute(name, value))

    def _verified_attribute(self, name: str, value: Any) -> Any:
        """What an attribute is set to from outside: hyper-parameters are checked as by the constructor."""
        if any(f.name == name for f in self._hyper):
            return getattr(self.from_config({**self.get_config(), name: value}), name)
        plain = isinstance(value, int | float | str | None)
        if not plain or name in self.__dict__ or hasattr(type(self), name):
            return value  # of Vectors, and lists of them, a step says what to do
        known = [f.name for f in (*self._hyper, *self._state)]
        near = self.aliases.get(name) or _nearest(name, known)
        hint = f"Did you mean {near!r}?" if near else f"It has {known or 'no parameters'}."
        raise AttributeError(
            f"Expected a parameter or a state of {self._kind()} {self.name!r} to be set, got {name!r}. "
            f"{hint} What a plug-in keeps is declared: `{name}: float = state(0.0)`."
        )

    def _expect(self, holds: bool, what: str, **got: Any) -> None:
        """Raise a ValueError in the house's form unless a condition on hyper-parameters holds."""
        if not holds:
            shown = ", ".join(f"{k}={v!r}" for k, v in got.items())
            raise ValueError(f"Expected {what} for {self._kind()} {self.name!r}, got {shown}.")

    @classmethod
    def _kind(cls) -> str:
        return "plug-in"

    def __repr__(self) -> str:
        inside = ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in self._hyper)
        return f"{type(self).__name__}({inside})"

    # ---- config -------------------------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        """Hyper-parameters as JSON values; ``type(self)(**config)`` builds an equal plug-in."""
        return {f.name: copy.deepcopy(getattr(self, f.name)) for f in self._hyper}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build a plug-in from `get_config`'s output.

        Raises:
            TypeError: If a key is no hyper-parameter, or a value has the wrong type.
            ValueError: If a value is out of range.
        """
        if not isinstance(config, Mapping):
            raise TypeError(f"Expected a mapping as config of {cls.name!r}, got {type(config).__name__}.")
        known = [f.name for f in cls._hyper]
        for key in config:
            if key not in known and key not in cls.aliases:
                near = _nearest(str(key), known)
                hint = f" Did you mean {near!r}?" if near else ""
                raise TypeError(
                    f"Expected parameters of {cls.name!r} among {known or 'none'}, got {key!r}.{hint}"
                )
        return cls(**config)

    # ---- state --------------------------------------------------------------------------------------

    def get_state(self) -> dict[str, Any]:
        """Everything that changed since construction: Vectors (copies), numbers, strings, None."""
        values = {f.name: getattr(self, f.name) for f in self._state}
        return {k: v.copy() if isinstance(v, Vector) else copy.deepcopy(v) for k, v in values.items()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Take over a state from `get_state`; nothing changes unless all of it fits.

        Raises:
            KeyError: If a state variable is missing.
            ValueError: If there is one that this plug-in does not have, or a count below 0, or a NaN.
            TypeError: If one has another type than declared.
        """
        names = [f.name for f in self._state]
        for name in names:
            if name not in state:
                raise KeyError(
                    f"Expected state {name!r} of {self._kind()} {self.name!r}, got {sorted(state)}."
                )
        extra = sorted(set(state) - set(names))
        if extra:
            raise ValueError(f"Expected states {names} for {self._kind()} {self.name!r}, got also {extra}.")
        for field in self._state:
            _verify_state(self, field, state[field.name])
        for name in names:
            value = state[name]
            setattr(self, name, value.copy() if isinstance(value, Vector) else copy.deepcopy(value))

    def reset(self) -> None:
        """Forget everything that changed since construction."""
        for field in self._state:
            setattr(self, field.name, copy.deepcopy(field.default))

    def on_round_start(self) -> None:
        """Called when a round of training starts, before its first step."""

    def on_roster(self, clients: Sequence[str]) -> None:
        """Called on the server before the first round, with the ids of all clients that may take part."""

    def on_weighting(self, weight: int, largest: int) -> None:
        """Called before the first round, with what a client counts in the mean, and the most that any may."""

    def on_update_sent(self, update: Vector) -> None:
        """Called on a client with the update as it will arrive: under masks clipped and rounded."""

    def on_participation(self, share: float) -> None:
        """Called on the server before its step, with the share of all clients' weight that took part."""

    def on_round_trained(self, weights: Vector) -> None:
        """Called on a client after the last step of a round, with the weights that it arrived at."""

    def on_round_end(self, accepted: bool) -> None:
        """Called when it is known whether the round's result was used (`accepted`) or dropped."""

    def _prepare(self, like: Vector) -> list[str]:
        """Give unset Vector states the layout of `like`, and restored ones its framework and device.

        Returns the names of the states that have memory of their own now.
        """
        made = []
        for name, is_vector, _ in self._states:
            value = getattr(self, name)
            if isinstance(value, Vector):
                if value.layout is like.layout and value._backend is like._backend:
                    continue
                if value.framework != like.framework or value.layout != like.layout:
                    # Dtypes may differ on purpose (a float64 state of float32 gradients): only the
                    # framework and device follow the gradients.
                    moved = value.to(_with_dtypes_of(like, value))
                    if moved is not value:
                        setattr(self, name, moved)
                        made.append(name)
            elif is_vector and value is not None:
                setattr(self, name, like.full_like(value))
                made.append(name)
        return made

    def _verify_kinds(self) -> None:
        """Refuse states that are not what they are declared to be."""
        for name, _, kinds in self._states:
            value = getattr(self, name)
            if value.__class__ not in kinds:
                verify_kind(self, name, value)


_PLAIN: dict[str, Any] = {"int": int, "float": (int, float), "bool": bool, "str": str}


def _parts(annotation: Any) -> frozenset[str]:
    """What an annotation allows, by name: ``{"Vector", "None"}``; it may be a string or a type."""
    if isinstance(annotation, type):
        return frozenset([annotation.__name__])
    text = (annotation if isinstance(annotation, str) else repr(annotation)).strip("\"' ")
    if "Optional[" in text and text.endswith("]"):
        text = text.partition("[")[2][:-1] + " | None"
    return frozenset(part.strip().rpartition(".")[2] for part in text.split("|"))


def _spelled(annotation: Any) -> str:
    parts = _parts(annotation)
    return " | ".join(sorted(parts - {"None"}) + ["None"] * ("None" in parts))


def _kinds(field: dataclasses.Field[Any]) -> frozenset[type]:
    """Types of exactly which a state may be; others are looked at twice (`verify_kind`)."""
    simple: dict[str, list[type]] = {"int": [int], "float": [int, float], "bool": [bool], "str": [str]}
    simple["None"] = [type(None)]
    return frozenset(kind for part in _parts(field.type) for kind in simple.get(part, ()))


def _fits(field: dataclasses.Field[Any], value: Any) -> bool:
    """Whether a state may be this. Of a Vector: a number too, as long as no step has made a Vector of it."""
    parts = _parts(field.type)
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
    if _fits(field, value) and not (number and "Vector" in _parts(field.type) and value != field.default):
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


def _verify_state(plugin: Plugin, field: dataclasses.Field[Any], value: Any) -> None:
    """Refuse what a state of this annotation can never have been."""
    where = f"state {field.name!r} of {plugin._kind()} {plugin.name!r}"
    if not _fits(field, value):
        raise TypeError(f"Expected {_spelled(field.type)} for {where}, got {type(value).__name__}.")
    if not _parts(field.type) <= {*_PLAIN, "None", "Vector"}:
        return
    if isinstance(value, float) and math.isnan(value):
        raise ValueError(f"Expected a number for {where}, got nan.")
    counts = isinstance(value, int) and isinstance(field.default, int) and field.default >= 0
    if counts and value < 0:
        raise ValueError(f"Expected a count of at least 0 for {where}, got {value}.")


def _verify_annotated(cls: type[Plugin]) -> None:
    annotated = inspect.get_annotations(cls)
    for name, value in vars(cls).items():
        if isinstance(value, dataclasses.Field) and name not in annotated:
            raise TypeError(
                f"Expected an annotation for {cls.__qualname__}.{name}, got none. Write `{name}: Vector = "
                f"state(0.0)`, or `{name}: int = state(0)`."
            )


def _verify_declared(cls: type[Plugin], field: dataclasses.Field[Any]) -> None:
    """Refuse a state whose first value is not what its annotation says, and Vectors that are no state."""
    name, parts, first = field.name, _parts(field.type), field.default
    where, text = f"{cls.__qualname__}.{name}", _spelled(field.type)
    if _STATE not in field.metadata:
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


def _verify_methods(cls: type[Plugin]) -> None:
    """Refuse methods that would be called with other arguments than they take, or never."""
    if Plugin in cls.__bases__:
        return  # a kind of plug-ins: it says what its methods take
    for name, method in vars(cls).items():
        if name[0] == "_" or not inspect.isfunction(method):
            continue
        base = next((vars(c)[name] for c in cls.__mro__[1:] if name in vars(c)), None)
        if base is None and name.startswith("on_"):
            hooks = sorted({n for c in cls.__mro__[1:] for n in vars(c) if n.startswith("on_")})
            near = _nearest(name, hooks)
            hint = f"Did you mean {near!r}?" if near else f"Hooks are {', '.join(hooks)}."
            raise TypeError(
                f"Expected methods of {cls.__qualname__} that begin with 'on_' to be hooks, got {name!r}, "
                f"which nobody calls. {hint}"
            )
        base = inspect.unwrap(base) if callable(base) else base
        if name == "run" and issubclass(cls, OptiModule):
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
    if not (gradients or anything) or any(p.name in _GIVEN for p in gradients):
        raise TypeError(
            f"Expected {cls.__qualname__}.run to take gradients first, got {_arguments(run)}. Write `def "
            "run(self, gradients)`, with `weights` or `raw_gradients` after it where they are needed."
        )
    for parameter in parameters[2:]:
        variable = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if not variable and parameter.name not in _GIVEN and parameter.default is parameter.empty:
            raise TypeError(
                f"Expected {cls.__qualname__}.run to take gradients, and by these names `weights` and "
                f"`raw_gradients`, got also {parameter.name!r}, which nobody gives it."
            )


_GIVEN = ("weights", "raw_gradients")


def _nearest(name: str, known: Sequence[str]) -> str | None:
    from difflib import SequenceMatcher  # what only an error needs is not loaded by `import privopt`

    likeness = {one: SequenceMatcher(None, name, one).ratio() for one in known}
    best = max(likeness, key=likeness.__getitem__, default="")
    return best if likeness.get(best, 0.0) >= 0.4 else None


def _with_dtypes_of(like: Vector, value: Vector) -> Vector:
    if like.layout.tensors != value.layout.tensors:
        return like  # `to` raises and names the tensor that differs
    dtypes = [b.dtype for b in value.layout.blocks]
    if dtypes == [b.dtype for b in like.layout.blocks]:
        return like
    devices = [b.device for b in like.layout.blocks]
    return Vector(like.layout.with_blocks(dtypes, devices), like.buffers, like._backend)


def _with_state(run: Callable[..., Vector]) -> Callable[..., Vector]:
    """Make `run` see its declared Vector states with the layout of the gradients it gets."""
    if getattr(run, "_prepares_state", False):
        return run

    @functools.wraps(run)
    def prepared(self: Plugin, gradients: Vector, *args: Any, **kwargs: Any) -> Vector:
        if not isinstance(gradients, Vector):
            raise TypeError(
                f"Expected gradients as a Vector for {self.name!r}, got {type(gradients).__name__}. "
                "Vector.build({name: array, ...}) makes one."
            )
        if gradients.in_step:  # the optimizer prepares all states before, and looks at them afterwards
            return run(self, gradients, *args, **kwargs)
        self._prepare(gradients)
        result = run(self, gradients, *args, **kwargs)
        self._verify_kinds()
        return result

    prepared._prepares_state = True  # type: ignore[attr-defined]  # a mark on our own wrapper
    return prepared


def _with_state_moved(process: Callable[..., None]) -> Callable[..., None]:
    """Make `process_aux_var` see restored states where the shared Vectors are (framework, device)."""
    if getattr(process, "_prepares_state", False):
        return process

    @functools.wraps(process)
    def prepared(self: OptiModule, aux_var: AuxVar) -> None:
        _verify_aux_var(self, aux_var)
        like = next((value for value in vars(aux_var).values() if isinstance(value, Vector)), None)
        if like is not None:
            self._prepare(like)
        process(self, aux_var)
        self._verify_kinds()
        received = [value for value in vars(aux_var).values() if isinstance(value, Vector)]
        for field in self._state:
            kept = getattr(self, field.name)
            if any(kept is value for value in received):
                # What was received stays the sender's: several optimizers may be handed one AuxVar.
                setattr(self, field.name, kept.copy())

    prepared._prepares_state = True  # type: ignore[attr-defined]  # a mark on our own wrapper
    return prepared


def _verify_aux_var(module: OptiModule, given: object) -> None:
    from .auxvar import AuxVar

    if isinstance(given, AuxVar):
        return
    hint = ""
    if isinstance(given, Mapping):
        hint = f" Hand a client its own part: answers[{module.aux_name!r}][client]."
    elif isinstance(given, list | tuple):
        hint = " Combine what clients sent first: sum(sent)."
    raise TypeError(f"Expected an AuxVar for {module.aux_name!r}, got {type(given).__name__}.{hint}")


def _completed(cls: type[Plugin], init: Callable[..., None]) -> Callable[..., None]:
    """A constructor that takes other spellings, and marks what it made as complete."""

    @functools.wraps(init)
    def completed(self: Plugin, *args: Any, **kwargs: Any) -> None:
        for other, proper in cls.aliases.items():
            if other in kwargs:
                if proper in kwargs:
                    raise TypeError(f"Expected {proper!r} or {other!r} for {self.name!r}, got both.")
                kwargs[proper] = kwargs.pop(other)
        init(self, *args, **kwargs)
        if type(self) is cls:
            object.__setattr__(self, "_complete", True)

    return completed


def _checked(plugin: Plugin, field: dataclasses.Field[Any], value: Any) -> Any:
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


class OptiModule(Plugin, register=False):
    """One gradient-altering algorithm; an optimizer runs a list of them in order.

    A subclass sets `name`, declares its hyper-parameters and states, and implements `run`.
    Declaring it registers it under its name; ``class X(OptiModule, register=False)`` does not.

    Attributes:
        name: How the module is found; unique among modules.
        aux_name: Name shared by the two modules (client's and server's) that exchange
            auxiliary variables; unique within one optimizer.
        aux_var: The class of what `collect_aux_var` returns on a client; its fields declare how
            clients' values are summed, so the round's schema is known before the round.
        round_reset: Whether the state is forgotten when a round starts (a field of stateful modules).

    Example:
        >>> class Half(OptiModule, register=False):
        ...     name = "half"
        ...     factor: float = 0.5
        ...
        ...     def run(self, gradients):
        ...         return self.factor * gradients
        >>> import numpy as np
        >>> Half().run(Vector.build({"w": np.array([2.0])})).coefs
        {'w': array([1.])}
    """

    aux_name: ClassVar[str | None] = None
    aux_var: ClassVar[type[AuxVar] | None] = None
    needs_mean: ClassVar[bool] = False
    """Of a server's module: whether it is right only where updates are averaged."""
    needs_raw_gradients: ClassVar[bool] = False
    """A module that is wrong on clipped and noised gradients; private runs refuse it."""

    aux_per_client: ClassVar[bool] = False
    """Of a client's module: whether the server may share something else with each client, under masks too."""

    takes: ClassVar[tuple[str, ...]] = ()
    """What `run` is given beside the gradients: ``weights``, ``raw_gradients``, as its parameters say."""

    def __init_subclass__(cls, register: bool = True, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "run" in cls.__dict__:
            known = inspect.signature(cls.__dict__["run"]).parameters
            cls.takes = tuple(name for name in _GIVEN if name in known)
        if register:
            OPTI_MODULES.add(cls)

    @classmethod
    def _kind(cls) -> str:
        return "module"

    def run(self, gradients: Vector, *args: Any, **kwargs: Any) -> Vector:
        """Return the altered gradients: same layout, only values change.

        A module that declares more parameters is given them by name: `weights`, and `raw_gradients`, which
        are those that entered the first module.
        """
        raise TypeError(f"Expected {type(self).__name__} to define run(self, gradients).")

    def finish(self, updates: Vector, weights: Vector) -> Vector:
        """Return the altered updates, after learning rate and decay: what will be added to the weights.

        For algorithms that act on the weights that a step arrives at (averaging, look-ahead).
        """
        return updates

    def on_round_start(self) -> None:
        """Called when a round starts; forgets the state where `round_reset` is set."""
        if getattr(self, "round_reset", False):
            self.reset()

    def collect_aux_var(self) -> AuxVar | Mapping[str, AuxVar] | None:
        """What to share with the counterpart: at the end of a client's round, the start of a server's.

        A server may return one AuxVar for all clients, or one per client id: then for every client that the
        round asks. Under masks, where clients check that all were told the same, the clients' half must allow
        it with `aux_per_client`.
        """
        return None

    def verify_clients(self, optimizer: Optimizer) -> None:
        """Called on the server at the start; raises ValueError at a clients' half that does not fit."""

    def on_aux_var_sent(self, sent: AuxVar) -> None:
        """Called before what `collect_aux_var` returned leaves, with the values as they will arrive.

        Under masks values are clipped to their bounds and rounded. A module that sends changes of a
        state keeps its state in step with the receiver's by adopting what was really sent.
        """

    def process_aux_var(self, aux_var: AuxVar) -> None:
        """Take what the counterpart shared: on a server, the clients' AuxVars already combined."""
        raise ValueError(
            f"Expected no auxiliary variables for module {self.name!r}: it declares no aux_name."
        )


class Regularizer(Plugin, register=False):
    """One loss-regularization term, as its gradient; an optimizer runs them before its modules."""

    def __init_subclass__(cls, register: bool = True, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if register:
            REGULARIZERS.add(cls)

    @classmethod
    def _kind(cls) -> str:
        return "regularizer"

    def run(self, gradients: Vector, weights: Vector) -> Vector:
        """Return the gradients plus the term's gradient at the weights."""
        raise TypeError(f"Expected {type(self).__name__} to define run(self, gradients, weights).")
