"""Reductions: how the values of one field, one per client, combine into what the server learns.

The classes behind the vocabulary of `secagg.fields`. A field declares its reduction once; encoding, the
clear reference path and `explain` all follow from it. `reduce` is that reference: the simplest correct
version, in clear, that the masked path must reproduce.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Final, NoReturn, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .errors import SchemaError

Shape: TypeAlias = tuple[int, ...]
Number: TypeAlias = "int | float | NDArray[Any]"
Declared: TypeAlias = "str | int | float | bool | bytes"

MAX_REAL_BITS: Final = 28
"""A real value times its scale plus a 24-bit random fraction must be exact in float64's 53 bits."""
MAX_INTEGER_BITS: Final = 62
"""Integers are encoded and decoded in int64, sign and offset included."""
MIN_BOUND: Final = 2.0**-100
"""Bounds lie between this and its inverse: room for any gradient, far from what overflows a scale."""
MAX_NAME: Final = 128
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.:/-]*")


@dataclass(frozen=True, slots=True)
class Adaptive:
    """A bound that follows the values from round to round (see `adaptive`).

    Attributes:
        initial: Bound of the first round.
        at_most: Cap that no offer of a server can pass.
        now: Bound of the round that this schema describes; None before the first.
    """

    initial: float
    at_most: float
    now: float | None = None

    def __post_init__(self) -> None:
        """Refuse bounds that are not positive, finite and under the cap."""
        for name in ("initial", "at_most", "now"):
            value = getattr(self, name)
            if value is not None:
                _verify_real(f"adaptive {name}", value)
                object.__setattr__(self, name, float(value))
        if self.value > self.at_most:
            raise SchemaError(
                f"Expected an adaptive bound of at most at_most={self.at_most}, got {self.value}. "
                "Raise at_most or lower the bound."
            )

    @property
    def value(self) -> float:
        """Bound of this round."""
        return self.initial if self.now is None else self.now


Bound: TypeAlias = "int | float | Adaptive"


class Reduction(ABC):
    """How a field's values combine. Subclasses are frozen dataclasses: equal, hashable, JSON by construction.

    Attributes:
        kind: Name of the reduction in schemas, errors and explanations.
        masked: Whether the field has lanes in the masked vector.
    """

    __slots__ = ()
    kind: ClassVar[str]
    masked: ClassVar[bool] = False

    @property
    @abstractmethod
    def disclosure(self) -> str:
        """What the server learns of this field, in one line."""

    @abstractmethod
    def reduce(self, values: Sequence[Any], weights: Sequence[Any] | None = None) -> Any:
        """Combine the clients' values in clear: the reference that the masked path must reproduce."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready description; `reduction_from_dict` is its inverse."""
        out: dict[str, Any] = {"kind": self.kind}
        for field in fields(self):  # type: ignore[arg-type]  # every subclass is a dataclass
            value = getattr(self, field.name)
            if isinstance(value, Adaptive):
                value = {"initial": value.initial, "at_most": value.at_most, "now": value.now}
            out[field.name] = list(value) if isinstance(value, tuple) else value
        return out


class MaskedReduction(Reduction):
    """A reduction whose values travel as lanes of the masked vector."""

    __slots__ = ()
    masked: ClassVar[bool] = True
    shape: Shape | None

    @property
    def dims(self) -> Shape:
        """Shape of one client's value; a field that was never given one holds a scalar."""
        return () if self.shape is None else self.shape

    @property
    def size(self) -> int:
        """Number of values of one client."""
        return math.prod(self.dims)

    @property
    @abstractmethod
    def integer(self) -> bool:
        """Whether values are integers, which are carried exactly or refused, never rounded or clipped."""


@dataclass(frozen=True, slots=True)
class _Bounded(MaskedReduction):
    """What `summed` and `averaged` share: a bound, a number of levels and a shape."""

    bound: Bound
    bits: int = 16
    shape: Shape | None = None

    def __post_init__(self) -> None:
        """Refuse bounds, bits and shapes that cannot be carried."""
        object.__setattr__(self, "shape", _verified_shape(self.kind, self.shape))
        if self.integer:
            object.__setattr__(self, "bound", int(self.limit))
        elif not isinstance(self.bound, Adaptive):
            _verify_real(f"{self.kind} bound", self.bound)
            object.__setattr__(self, "bound", float(self.bound))
        _verify_int(f"{self.kind} bits", self.bits, 2, MAX_INTEGER_BITS if self.integer else MAX_REAL_BITS)
        if self.integer and not 1 <= int(self.limit) <= self.levels:
            raise SchemaError(
                f"Expected {self.kind} with an integer bound in 1..{self.levels} for bits={self.bits}, got "
                f"bound={self.bound}. Raise bits to {int(self.limit).bit_length() + 1}, or write "
                f"bound={self.bound}.0 if the values are real."
            )

    @property
    def integer(self) -> bool:
        """An int bound declares integers (exact); a float bound declares reals (rounded to a quantum)."""
        return isinstance(self.bound, (int, np.integer)) and not isinstance(self.bound, bool)

    @property
    def limit(self) -> float:
        """Bound of this round, as a number."""
        return self.bound.value if isinstance(self.bound, Adaptive) else self.bound

    @property
    def levels(self) -> int:
        """Levels on each side of zero: 2^bits − 1 in all, so that zero is one of them."""
        return (1 << (self.bits - 1)) - 1

    @property
    def quantum(self) -> float:
        """Distance between two neighbouring levels, in value units; 1 for integers."""
        return 1.0 if self.integer else self.limit / self.levels


@dataclass(frozen=True, slots=True)
class Summed(_Bounded):
    """The sum over clients (see `summed`)."""

    kind: ClassVar[str] = "summed"

    @property
    def disclosure(self) -> str:
        """What the server learns, in one line."""
        return "the sum over the clients"

    def reduce(self, values: Sequence[Any], weights: Sequence[Any] | None = None) -> Number:
        """Sum over clients, in float64 or exact integers."""
        return _total(values, self.integer)


@dataclass(frozen=True, slots=True)
class Averaged(_Bounded):
    """The mean over clients, equally weighted or by another field (see `averaged`)."""

    kind: ClassVar[str] = "averaged"
    weight: str | None = None

    def __post_init__(self) -> None:
        """Refuse what `summed` refuses, and a weight that is no field name."""
        _Bounded.__post_init__(self)  # Zero-argument super() does not survive dataclass slots.
        if self.weight is not None:
            verify_name("averaged weight", self.weight)

    @property
    def disclosure(self) -> str:
        """What the server learns, in one line."""
        if self.weight is None:
            return "the mean over the clients"
        return f"the mean over the clients weighted by {self.weight!r}"

    def reduce(self, values: Sequence[Any], weights: Sequence[Any] | None = None) -> Number:
        """Weighted mean in float64; NaN where the total weight is zero."""
        if self.weight is None:
            weights = [1] * len(values)
        elif weights is None:
            raise ValueError(f"Expected the values of {self.weight!r}, which weighs this field, got none.")
        total = sum(int(w) for w in weights)
        if total == 0:
            return math.nan if self.dims == () else np.full(self.dims, math.nan)
        scaled = [int(w) * np.asarray(v, np.float64) for v, w in zip(values, weights, strict=True)]
        return _plain(np.asarray(_total(scaled, False) / total))


@dataclass(frozen=True, slots=True)
class Counted(MaskedReduction):
    """The total of non-negative integers (see `counted`)."""

    kind: ClassVar[str] = "counted"
    at_most: int = 2**20
    shape: Shape | None = None

    def __post_init__(self) -> None:
        """Refuse a limit that is no positive integer, and bad shapes."""
        object.__setattr__(self, "shape", _verified_shape(self.kind, self.shape))
        _verify_int("counted at_most", self.at_most, 1, 2**MAX_INTEGER_BITS)

    @property
    def integer(self) -> bool:
        """Counts are exact."""
        return True

    @property
    def disclosure(self) -> str:
        """What the server learns, in one line."""
        return "the total count"

    def reduce(self, values: Sequence[Any], weights: Sequence[Any] | None = None) -> Number:
        """Exact total."""
        return _total(values, True)


@dataclass(frozen=True, slots=True)
class Same(Reduction):
    """A value that all clients must hold alike (see `same`)."""

    kind: ClassVar[str] = "same"

    @property
    def disclosure(self) -> str:
        """What the server learns, in one line."""
        return "whether all clients hold the same value (one that can be guessed can be confirmed)"

    def reduce(self, values: Sequence[Any], weights: Sequence[Any] | None = None) -> Declared:
        """The common value; raises ValueError where clients differ."""
        first, *others = values
        if any(type(v) is not type(first) or v != first for v in others):
            raise ValueError(f"Expected one value held alike by all {len(values)} clients; they differ.")
        value: Declared = first
        return value


@dataclass(frozen=True, slots=True)
class Public(Reduction):
    """A value that every client publishes (see `public`)."""

    kind: ClassVar[str] = "public"

    @property
    def disclosure(self) -> str:
        """What the server learns, in one line."""
        return "every client's value, in clear"

    def reduce(self, values: Sequence[Any], weights: Sequence[Any] | None = None) -> tuple[Declared, ...]:
        """All values, in the order of the clients."""
        return tuple(values)


@dataclass(frozen=True, slots=True)
class Local(Reduction):
    """A value that never leaves its client (see `local`)."""

    kind: ClassVar[str] = "local"

    @property
    def disclosure(self) -> str:
        """What the server learns, in one line."""
        return "nothing: the value never leaves its client"

    def reduce(self, values: Sequence[Any], weights: Sequence[Any] | None = None) -> None:
        """Nothing."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Marks a field that asks for what no masked sum can carry; `refuse` says what to use instead."""

    kind: str
    alternatives: str

    def refuse(self, field: str, owner: str | None = None) -> NoReturn:
        """Raise the TypeError that names the field, its class and the alternatives."""
        where = f"field {field!r}" + (f" of {owner}" if owner else "")
        raise TypeError(f"{self.kind!r} cannot be carried by a masked sum ({where}). {self.alternatives}")


def verify_reduction(field: str, reduction: Any, owner: str | None = None) -> None:
    """Raise TypeError unless `reduction` is one that a masked round can carry.

    Args:
        field: Name of the field, for the error.
        reduction: What the field declares.
        owner: Name of the class that declares it, for the error.
    """
    if isinstance(reduction, Refused):
        reduction.refuse(field, owner)
    if not isinstance(reduction, Reduction):
        where = f"field {field!r}" + (f" of {owner}" if owner else "")
        raise TypeError(
            f"Expected a reduction for {where}, got {type(reduction).__name__}. Declare how clients' values "
            "combine: summed(), averaged(), counted(), same(), public() or local()."
        )


def verify_name(what: str, name: Any) -> None:
    """Raise SchemaError unless `name` can name a field."""
    if not isinstance(name, str) or len(name) > MAX_NAME or not _NAME.fullmatch(name):
        raise SchemaError(
            f"Expected {what} to be a name of at most {MAX_NAME} letters, digits and _ . : / - that starts "
            f"with a letter, got {name!r}."
        )


def reduction_from_dict(config: Mapping[str, Any]) -> Reduction:
    """Inverse of `Reduction.to_dict`; strict: an unknown kind or key is a SchemaError."""
    kinds = {cls.kind: cls for cls in (Summed, Averaged, Counted, Same, Public, Local)}
    if not isinstance(config, Mapping):
        raise SchemaError(f"Expected a reduction as a JSON object, got {type(config).__name__}.")
    arguments = dict(config)
    kind = arguments.pop("kind", None)
    cls = kinds.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise SchemaError(f"Expected a reduction of kind {sorted(kinds)}, got {kind!r}.")
    if unknown := set(arguments) - {f.name for f in fields(cls)}:
        raise SchemaError(f"Expected the keys of {kind!r} only, got also {sorted(map(str, unknown))}.")
    bound = arguments.get("bound")
    try:
        if isinstance(bound, Mapping):
            arguments["bound"] = Adaptive(**bound)
        if isinstance(arguments.get("shape"), list):
            arguments["shape"] = tuple(arguments["shape"])
        return cls(**arguments)
    except TypeError as error:
        raise SchemaError(f"Expected the description of a {kind!r} field; {error}.") from error


def with_shape(reduction: Reduction, shape: Shape) -> Reduction:
    """The same reduction for values of `shape`; one that already has another shape raises SchemaError."""
    if not isinstance(reduction, MaskedReduction):
        raise SchemaError(f"Expected a field with lanes, got {reduction.kind!r}, which has no shape.")
    shape = tuple(shape)
    if reduction.shape not in (None, shape):
        raise SchemaError(f"Expected shape {reduction.shape} as declared, got {shape}.")
    return replace(reduction, shape=shape)  # type: ignore[type-var]  # all are dataclasses


def _verify_real(what: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise SchemaError(f"Expected {what} to be a number, got {type(value).__name__}.")
    if not (math.isfinite(value) and value > 0):
        raise SchemaError(f"Expected {what} > 0 and finite, got {value}.")
    if not MIN_BOUND <= value <= 1 / MIN_BOUND:
        raise SchemaError(
            f"Expected {what} in {MIN_BOUND}..{1 / MIN_BOUND}, got {value}. Rescale the values."
        )


def _verify_int(what: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not low <= value <= high:
        raise SchemaError(f"Expected {what} to be an integer in {low}..{high}, got {value!r}.")


def _verified_shape(what: str, shape: Any) -> Shape | None:
    if shape is None:
        return None
    dims = (shape,) if isinstance(shape, (int, np.integer)) else shape
    if not isinstance(dims, (tuple, list)):
        raise SchemaError(f"Expected {what} shape to be a tuple of integers, got {type(shape).__name__}.")
    for size in dims:
        _verify_int(f"{what} shape", size, 0, 2**40)
    return tuple(int(size) for size in dims)


def _total(values: Sequence[Any], integer: bool) -> Number:
    """Sum in order, one value in memory at a time."""
    dtype = np.int64 if integer else np.float64
    total = np.zeros(np.shape(values[0]), dtype)
    for value in values:
        total += np.asarray(value, dtype)
    return _plain(total)


def _plain(total: NDArray[Any]) -> Number:
    """A Python number where the array holds a scalar, else the array."""
    return total.item() if total.ndim == 0 else total
