"""What every reduction is: a description of itself, the lanes it asks for, and what it discloses."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from typing import Any, ClassVar, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import SchemaError

Shape: TypeAlias = tuple[int, ...]
Number: TypeAlias = "int | float | NDArray[Any]"
Source: TypeAlias = Callable[[slice], NDArray[Any]]
"""Gives a run's values, slice by slice, so that no copy of a large array is ever made."""

MAX_REAL_BITS: Final = 28
"""A real value times its scale plus a 24-bit random fraction must be exact in float64's 53 bits."""
MAX_INTEGER_BITS: Final = 62
"""Integers are encoded and decoded in int64, sign and offset included."""
MAX_GUARD_BITS: Final = 32
MAX_SIZE: Final = 2**40
MIN_BOUND: Final = 2.0**-100
"""Bounds lie between this and its inverse: room for any gradient, far from what overflows a scale."""
MAX_NAME: Final = 128
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.:/-]*")

NOT_FINITE: Final = "expected finite numbers, got NaN or infinity"

Carrier: TypeAlias = Literal["fixed", "rounded", "integer", "truth", "clipped", "peak"]


@dataclass(frozen=True, slots=True)
class Lanes:
    """Lanes of one kind that a field asks of the layout.

    Attributes:
        kind: What the lanes hold: ``"value"``, ``"bins"``, ``"power 2"`` …; of one field each its own.
        carrier: How values become lanes: ``"fixed"`` clips, scales and rounds real values to levels;
            ``"rounded"`` rounds levels that the reduction computed; ``"integer"`` takes integers as they
            are; ``"truth"`` is a whole word, random and not zero where true; ``"clipped"`` and ``"peak"``
            say what happened to the values before.
        size: Lanes of one client.
        low: Smallest level of one client, before it is weighed.
        high: Largest level of one client, before it is weighed.
        weighed: Whether a client's weight multiplies its levels.
        guard_bits: Further bits a lane, for noise that is added to levels.
    """

    kind: str
    carrier: Carrier
    size: int
    low: int = 0
    high: int = 1
    weighed: bool = False
    guard_bits: int = 0


_SHOWN: Final = 8
"""Entries of a tuple that a text shows."""


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

    @property
    @abstractmethod
    def remainder(self) -> str:
        """What all other clients of a round learn of one client, if they pool what they sent."""

    @property
    @abstractmethod
    def difference(self) -> str:
        """What the results of two rounds tell of a client that took part in one of them only."""

    @abstractmethod
    def reduce(self, values: Sequence[Any], weights: Sequence[Any] | None = None) -> Any:
        """Combine the clients' values in clear: the reference that the masked path must reproduce."""

    def __str__(self) -> str:
        """The kind, with what was not left at its default; long lists by their length."""
        said = []
        for field in fields(self):  # type: ignore[arg-type]  # every subclass is a dataclass
            value = getattr(self, field.name)
            if field.init and value != field.default:
                many = isinstance(value, tuple) and len(value) > _SHOWN
                said.append(f"{field.name}={f'<{len(value)} values>' if many else value}")
        return f"{self.kind}({', '.join(said)})"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready description; `reduction_from_dict` is its inverse."""
        out: dict[str, Any] = {"kind": self.kind}
        for field in fields(self):  # type: ignore[arg-type]  # every subclass is a dataclass
            if field.init:
                value = getattr(self, field.name)
                if is_dataclass(value) and not isinstance(value, type):
                    value = asdict(value)
                out[field.name] = list(value) if isinstance(value, tuple) else value
        return out


class MaskedReduction(Reduction):
    """A reduction whose values travel as lanes of the masked vector.

    Attributes:
        shape: Shape of one value; None until a schema is given one.
        entrywise: Whether each entry of the result is the sum of one lane, kind ``"value"``.
    """

    __slots__ = ()
    masked: ClassVar[bool] = True
    entrywise: ClassVar[bool] = False
    shape: Shape | None

    @property
    def dims(self) -> Shape:
        """Shape of one client's value; a field that was never given one holds a scalar."""
        return () if self.shape is None else self.shape

    @property
    def size(self) -> int:
        """Number of entries of one value."""
        return math.prod(self.dims)

    @property
    def integer(self) -> bool:
        """Whether values are integers, which are carried exactly or refused, never rounded or clipped."""
        return False

    @property
    def accepts(self) -> tuple[str, str]:
        """Kinds of numpy dtypes that carry a value, and what an error calls them."""
        return "iubf", "real numbers"

    @property
    def weighed_by(self) -> str | None:
        """Name of the field that weighs this one, or None."""
        return None

    @property
    def holds(self) -> tuple[type[np.generic], ...]:
        """Types that an array for the result may have; none where the result is no array of `dims`."""
        return ()

    @property
    def expects(self) -> str:
        """Shapes that `arranged` takes, in words."""
        return f"shape {self.dims}"

    @property
    def remedy(self) -> str:
        """What to do where values are of a dtype that is not accepted; a sentence, or nothing."""
        return ""

    def index_of(self, entry: int, values: NDArray[Any]) -> tuple[int, ...]:
        """Where in one client's value the entry of a lane stands, given its arranged values."""
        return tuple(int(place) for place in np.unravel_index(entry, self.dims))

    def arranged(self, values: NDArray[Any]) -> NDArray[Any] | None:
        """One client's values as `source` takes them, in one row; None where their shape does not fit."""
        return values.reshape(-1) if values.shape == self.dims else None

    @abstractmethod
    def lanes(self) -> Iterator[Lanes]:
        """The lanes of one client, kind by kind, in the order in which they travel."""

    @abstractmethod
    def source(self, kind: str, values: NDArray[Any]) -> Source:
        """Where the lanes of one kind come from, given one client's arranged values; not yet weighed."""

    def refuses(self, values: NDArray[Any]) -> str | None:
        """Why arranged values cannot be carried, of what encoding does not see by itself; else None."""
        return None

    def clips(self, values: NDArray[Any]) -> int:
        """How many of one client's arranged values `source` clips."""
        return 0

    @abstractmethod
    def assemble(self, sums: Mapping[str, NDArray[Any]], weight: int, out: NDArray[Any] | None = None) -> Any:
        """The reduced value, from the sums of each kind of lanes and the total weight.

        Args:
            sums: Summed values by kind, flat, in value units. May be changed.
            weight: Total weight; the number of clients where they weigh alike.
            out: Where the result goes, if it is an array that the caller holds. Where lanes are the
                result's entries, ``sums["value"]`` already is that array.
        """

    def quantum_of(self, kind: str) -> float:
        """What one level of a kind of lanes is worth, in value units."""
        return 1.0

    def error_bound(self, n: int, at_most: int) -> float | NDArray[np.float64]:
        """Largest error of an entry of the result, over `n` weights up to `at_most`, if nothing clipped."""
        return 0.0

    def says(self, kind: str) -> str:
        """What the server learns from a kind of lanes, in one line."""
        if kind == "clipped":
            return "how many values were out of bounds, over all clients"
        return self.disclosure

    def leaves(self, kind: str) -> str:
        """What all other clients, pooled, learn of one client from a kind of lanes."""
        return "how many of its values were out of bounds" if kind == "clipped" else self.remainder

    def tells(self, kind: str) -> str:
        """What two rounds tell of a client that took part in one of them, from a kind of lanes."""
        if kind == "clipped":
            return "how many of its values were out of bounds, as far as the others' were the same"
        return self.difference


def verify_name(what: str, name: Any) -> None:
    """Raise SchemaError unless `name` can name a field."""
    if not isinstance(name, str) or len(name) > MAX_NAME or not _NAME.fullmatch(name):
        raise SchemaError(
            f"Expected {what} to be a name of at most {MAX_NAME} letters, digits and _ . : / - that starts "
            f"with a letter, got {name!r}."
        )


def with_shape(reduction: Reduction, shape: Shape) -> Reduction:
    """The same reduction for values of `shape`; one that already has another shape raises SchemaError."""
    if not isinstance(reduction, MaskedReduction):
        raise SchemaError(f"Expected a field with lanes, got {reduction.kind!r}, which has no shape.")
    shape = tuple(shape)
    if reduction.shape not in (None, shape):
        raise SchemaError(f"Expected shape {reduction.shape} as declared, got {shape}.")
    return reduction if reduction.shape == shape else replace(reduction, shape=shape)  # type: ignore[type-var]  # all are dataclasses


def is_finite(values: NDArray[Any]) -> bool:
    """Whether no entry is NaN or infinite, read block by block."""
    return first_not_finite(values.reshape(-1).__getitem__, values.size) is None


def first_not_finite(source: Source, size: int) -> int | None:
    """Place of the first entry that is NaN or infinite, read block by block; None where there is none."""
    step = 1 << 16
    for low in range(0, size, step):
        finite = np.isfinite(source(slice(low, min(low + step, size))))
        if not finite.all():
            return low + int(np.argmin(finite))
    return None


def at(why: str, index: tuple[int, ...]) -> str:
    """What is wrong with numbers, and the place of the first that is; a scalar has none."""
    return f"{why}, first at index {index[0] if len(index) == 1 else index}" if index else why


def verify_number(what: str, value: Any) -> float:
    """The finite float that `value` is, or a SchemaError that names it."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise SchemaError(f"Expected {what} to be a number, got {type(value).__name__}.")
    # Beyond the inverse of MIN_BOUND an int may not even fit a float.
    if not -1 / MIN_BOUND <= value <= 1 / MIN_BOUND:
        raise SchemaError(f"Expected {what} to be finite, at most {1 / MIN_BOUND}, got {value}.")
    return float(value) + 0.0  # -0.0 and 0.0 are one number, and one schema


def verify_bound(what: str, value: Any) -> None:
    """Raise SchemaError unless `value` is a finite positive number that no scale overflows."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise SchemaError(f"Expected {what} to be a number, got {type(value).__name__}.")
    if not 0 < value < math.inf:  # No isfinite(): an int may be too large for a float.
        raise SchemaError(f"Expected {what} > 0 and finite, got {value}.")
    if not MIN_BOUND <= value <= 1 / MIN_BOUND:
        raise SchemaError(
            f"Expected {what} in {MIN_BOUND}..{1 / MIN_BOUND}, got {value}. Rescale the values."
        )


def verify_int(what: str, value: Any, low: int, high: int) -> int:
    """The int that `value` is, or a SchemaError unless it is one in ``low..high``."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not low <= value <= high:
        raise SchemaError(f"Expected {what} to be an integer in {low}..{high}, got {value!r}.")
    return int(value)


def verified_shape(what: str, shape: Any) -> Shape | None:
    """A shape as a tuple of ints; None stays."""
    if shape is None:
        return None
    dims = (shape,) if isinstance(shape, (int, np.integer)) else shape
    if not isinstance(dims, (tuple, list)):
        raise SchemaError(f"Expected {what} shape to be a tuple of integers, got {type(shape).__name__}.")
    return tuple(verify_int(f"{what} shape", size, 0, MAX_SIZE) for size in dims)


def total_of(values: Sequence[Any], integer: bool) -> Number:
    """Sum in order, one value in memory at a time."""
    dtype = np.int64 if integer else np.float64
    total = np.zeros(np.shape(values[0]), dtype)
    for value in values:
        total += np.asarray(value, dtype)
    return plain(total)


def outside(low: int, high: int) -> str:
    """What is wrong with an integer beyond its limits."""
    return f"expected integers in {low}..{high}, got one outside"


def plain(total: NDArray[Any]) -> Number:
    """A Python number where the array holds a scalar, else the array."""
    return total.item() if total.ndim == 0 else total
