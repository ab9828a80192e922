"""Plug-ins of an optimizer: floor 3, the contract that modules and regularizers follow.

A plug-in's hyper-parameters are dataclass fields and its state is what it declares with `state`,
so config, state, reset and resume follow from the declaration and no list is kept by hand.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self, dataclass_transform

from .declarations import (
    STATE,
    checked,
    kinds_of,
    nearest,
    parts_of,
    state,
    verify_annotated,
    verify_declared,
    verify_kind,
    verify_methods,
    verify_state,
)
from .registry import OPTI_MODULES, REGULARIZERS
from .vector import Vector

if TYPE_CHECKING:
    from .auxvar import AuxVar
    from .optimizer import Optimizer

__all__ = ["OptiModule", "Plugin", "Regularizer", "state"]


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

    _by_name: ClassVar[tuple[str, ...]] = ()
    """What `run` may ask for by name, after its first parameters."""
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
        if Plugin not in cls.__bases__:  # a kind of plug-ins says itself what its methods take
            verify_methods(cls)
        verify_annotated(cls)
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
            verify_declared(cls, field)
        cls._state = tuple(f for f in fields if STATE in f.metadata)
        cls._states = tuple((f.name, "Vector" in parts_of(f.type), kinds_of(f)) for f in cls._state)
        cls._free = frozenset(f.name for f in cls._state) | {"_place"}
        cls._plain = frozenset(f.name for f in fields) | {"_place", "_complete"}
        cls._hyper = tuple(f for f in fields if STATE not in f.metadata and f.init)
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
            setattr(self, hyper.name, checked(self, hyper, getattr(self, hyper.name)))

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
        near = self.aliases.get(name) or nearest(name, known)
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
                near = nearest(str(key), known)
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
            verify_state(self, field, state[field.name])
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

    _by_name = ("weights", "raw_gradients")

    def __init_subclass__(cls, register: bool = True, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "run" in cls.__dict__:
            known = inspect.signature(cls.__dict__["run"]).parameters
            cls.takes = tuple(name for name in cls._by_name if name in known)
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
